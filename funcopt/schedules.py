"""Schedules: the learning rate, or any other number, as a pure function of the step.

`cosine(1e-3, T_max=100)` is a function `step -> number`. Step 0 is the first step of the optimizer, and at every step a
schedule has the value that torch's scheduler of its name sets, to rounding; where it has not, it says so. The arguments
are torch's too, with its names and defaults, after the learning rate. A rate that never changes is a plain number, and
what takes no steps is over at once (torch's schedulers with `total_iters=0` never are).

The step is a number or a tensor: one of `torch.vmap`'s batch, or `torch.arange(100)`. Each number among the arguments
may be a 0-d tensor, and the value is differentiable in it: at a kink with the derivative of one side or the mean of
both, and with 0 in place of an infinite one. Python's numbers alone give a float, tensors a float64 tensor.

A schedule is itself a value: it can be pickled, copied, compared and printed. `a * b` is the product of two.

    >>> from funcopt import schedules
    >>> lr = schedules.linear(1.0, start_factor=0.1, total_iters=10) * schedules.cosine(0.5, T_max=100)
    >>> lr(0), lr(100)
    (0.05, 0.0)
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any

from funcopt.ops import Scalar, cos, expm1, floor, log1p, minimum, sqrt, where
from funcopt.ops import power as _power
from funcopt.scheduling import (
    Schedule,
    ascending,
    at,
    boolean,
    list_of,
    number_or_schedule,
    one_of,
    optional,
    schedule,
    within,
)

__all__ = [
    "Schedule",
    "at",
    "batch_size",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "join",
    "linear",
    "multi_step",
    "one_cycle",
    "polynomial",
    "product",
    "step",
    "warmup_stable_decay",
]

NonNegative = Annotated[Scalar, within(0)]
Positive = Annotated[Scalar, within(0, above=True)]
Milestones = Annotated[Sequence[Scalar], ascending]
Schedules = Annotated[Sequence[Any], list_of(number_or_schedule)]


def _progress(step: Any, total: Any) -> Any:
    """From 0 at step 0 to 1 at step `total`, and on: always 1 where there are no steps to take."""
    some = total > 0
    return where(some, minimum(step / where(some, total, 1.0), 1.0), 1.0)


def _line(x: Any) -> Any:
    return 1 - x


def _half_cosine(x: Any) -> Any:
    return (1 + cos(math.pi * x)) / 2


def _one_minus_sqrt(x: Any) -> Any:
    return 1 - sqrt(x)


# From 1 at 0 to 0 at 1.
_FALLS = {"linear": _line, "cos": _half_cosine, "cosine": _half_cosine, "sqrt": _one_minus_sqrt}


def _between(start: Any, end: Any, fall: Any) -> Any:
    return start * fall + end * (1 - fall)  # to the bit at both ends


@schedule
def constant(step: NonNegative, lr: NonNegative, factor: NonNegative = 1 / 3, total_iters: NonNegative = 5) -> Any:
    """lr·factor for the first steps, then lr, as torch's ConstantLR.

    Args:
        lr: learning rate ≥ 0.
        factor: ≥ 0.
        total_iters: the step ≥ 0 from which on it is lr.
    """
    return where(step < total_iters, lr * factor, lr)


@schedule
def linear(
    step: NonNegative,
    lr: NonNegative,
    start_factor: NonNegative = 1 / 3,
    end_factor: NonNegative = 1.0,
    total_iters: NonNegative = 5,
) -> Any:
    """A line from lr·start_factor to lr·end_factor, where it stays, as torch's LinearLR.

    Args:
        lr: learning rate ≥ 0.
        start_factor: ≥ 0, at step 0.
        end_factor: ≥ 0, from step `total_iters` on.
        total_iters: ≥ 0.
    """
    return lr * _between(start_factor, end_factor, 1 - _progress(step, total_iters))


@schedule
def polynomial(step: NonNegative, lr: NonNegative, total_iters: NonNegative = 5, power: NonNegative = 1.0) -> Any:
    """lr·(1 - step/total_iters)^power, and 0 from step `total_iters` on, as torch's PolynomialLR.

    Args:
        lr: learning rate ≥ 0.
        total_iters: ≥ 0.
        power: exponent ≥ 0.
    """
    return lr * _power(1 - _progress(step, total_iters), power)


@schedule
def exponential(step: NonNegative, lr: NonNegative, gamma: NonNegative) -> Any:
    """lr·gamma^step, as torch's ExponentialLR.

    Args:
        lr: learning rate ≥ 0.
        gamma: factor ≥ 0 of each step.
    """
    return lr * _power(gamma, step)


@schedule
def step(step: NonNegative, lr: NonNegative, step_size: Positive, gamma: NonNegative = 0.1) -> Any:
    """lr·gamma^⌊step/step_size⌋, as torch's StepLR.

    Args:
        lr: learning rate ≥ 0.
        step_size: steps > 0 between two changes.
        gamma: factor ≥ 0 of each change.
    """
    return lr * _power(gamma, floor(step / step_size))


@schedule
def multi_step(step: NonNegative, lr: NonNegative, milestones: Milestones, gamma: NonNegative = 0.1) -> Any:
    """lr·gammaⁿ, n the number of milestones up to the step, as torch's MultiStepLR.

    Args:
        lr: learning rate ≥ 0.
        milestones: steps ≥ 0 in ascending order; one that is there twice counts twice.
        gamma: factor ≥ 0 of each milestone.
    """
    return lr * _power(gamma, sum(where(step >= milestone, 1.0, 0.0) for milestone in milestones))


@schedule
def cosine(step: NonNegative, lr: NonNegative, T_max: Positive, eta_min: NonNegative = 0.0) -> Any:
    """eta_min + (lr - eta_min)·(1 + cos(π·step/T_max))/2, as torch's CosineAnnealingLR.

    After step T_max it rises again, to lr at 2·T_max, and so on; `join([cosine(…), eta_min], [T_max])` does not.
    Reference: Loshchilov & Hutter 2017, equation 5, without restarts, https://arxiv.org/abs/1608.03983

    Args:
        lr: learning rate ≥ 0, at step 0.
        T_max: the step > 0 of the first minimum.
        eta_min: the minimum ≥ 0.
    """
    return _between(lr, eta_min, _half_cosine(step / T_max))


@schedule
def cosine_restarts(
    step: NonNegative,
    lr: NonNegative,
    T_0: Positive,
    T_mult: Annotated[Scalar, within(1)] = 1,
    eta_min: NonNegative = 0.0,
) -> Any:
    """`cosine` from lr to eta_min again and again, as torch's CosineAnnealingWarmRestarts.

    Reference: Loshchilov & Hutter 2017, equation 5, https://arxiv.org/abs/1608.03983

    Args:
        lr: learning rate ≥ 0, at each restart.
        T_0: steps > 0 to the first restart.
        T_mult: how many times longer ≥ 1 each period is than the one before.
        eta_min: the minimum ≥ 0, which a restart comes before.
    """
    # In units of T_0 period n is T_multⁿ long and begins at (T_multⁿ - 1)/(T_mult - 1), which is n where T_mult = 1.
    time, grows = step / T_0, T_mult > 1
    growth = where(grows, T_mult - 1, 1.0)
    n = floor(where(grows, log1p(time * growth) / log1p(growth), time) + 1e-12)  # no restart is missed by rounding
    geometric = expm1(where(grows, n, 0.0) * log1p(growth)) / growth
    begin = where(grows, geometric, n + n * (n - 1) / 2 * (T_mult - 1))  # with its derivative
    return _between(lr, eta_min, _half_cosine((time - begin) / _power(T_mult, n)))


@schedule
def one_cycle(
    step: NonNegative,
    max_lr: NonNegative,
    total_steps: Positive,
    pct_start: Annotated[Scalar, within(0, 1)] = 0.3,
    anneal_strategy: Annotated[str, one_of("cos", "linear")] = "cos",
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    three_phase: Annotated[bool, boolean] = False,
) -> Any:
    """Up from max_lr/div_factor to max_lr, and down to max_lr/div_factor/final_div_factor, as torch's OneCycleLR.

    It ends at step `total_steps - 1` and keeps that value, where torch goes on in that direction for one step more and
    then raises. Momentum is not its affair. Reference: Smith & Topin 2018, https://arxiv.org/abs/1708.07120

    Args:
        max_lr: the highest learning rate ≥ 0.
        total_steps: > 0, from the first to the last step.
        pct_start: the part of them in [0, 1] that goes up; the highest is at step `pct_start * total_steps - 1`.
        anneal_strategy: "cos" or "linear".
        div_factor: > 0.
        final_div_factor: > 0.
        three_phase: down to where it began in as many steps as it took up, and only then to the end.
    """
    low, last, top = max_lr / div_factor, total_steps - 1, pct_start * total_steps - 1
    steps = [0, top, 2 * top, last] if three_phase else [0, top, last]
    rates = [low, max_lr, low, low / final_div_factor] if three_phase else [low, max_lr, low / final_div_factor]
    step, value = minimum(step, last), rates[-1]
    for (begin, start), (end, stop) in reversed([*itertools.pairwise(zip(steps, rates, strict=True))]):
        x = (step - begin) / where(end == begin, 1.0, end - begin)
        value = where(step <= end, _between(start, stop, _FALLS[anneal_strategy](x)), value)
    return value


@schedule
def cyclic(
    step: NonNegative,
    base_lr: NonNegative,
    max_lr: NonNegative,
    step_size_up: Positive = 2000,
    step_size_down: Annotated[Scalar | None, optional(within(0, above=True))] = None,
    mode: Annotated[str, one_of("triangular", "triangular2", "exp_range")] = "triangular",
    gamma: NonNegative = 1.0,
) -> Any:
    """Up and down between base_lr and max_lr, as torch's CyclicLR.

    Momentum is not its affair. Reference: Smith 2017, https://arxiv.org/abs/1506.01186

    Args:
        base_lr: the lowest learning rate ≥ 0, at step 0.
        max_lr: the highest ≥ 0.
        step_size_up: steps > 0 from the lowest to the highest.
        step_size_down: steps > 0 back; as many if None.
        mode: "triangular"; "triangular2", half as high in each cycle as in the one before; or "exp_range", gamma^step
            times as high.
        gamma: ≥ 0.
    """
    down = step_size_up if step_size_down is None else step_size_down
    cycle = floor(step / (step_size_up + down))
    x = step - cycle * (step_size_up + down)
    height = minimum(x / step_size_up, (step_size_up + down - x) / down)
    scale = {"triangular": 1.0, "triangular2": _power(0.5, cycle), "exp_range": _power(gamma, step)}[mode]
    return base_lr + (max_lr - base_lr) * height * scale


@schedule
def warmup_stable_decay(
    step: NonNegative,
    lr: NonNegative,
    warmup: NonNegative,
    stable: NonNegative,
    decay: NonNegative,
    final: NonNegative = 0.0,
    shape: Annotated[str, one_of("linear", "cosine", "sqrt")] = "linear",
) -> Any:
    """lr·step/warmup, then lr, then final + (lr - final)·f(x), x from 0 to 1; it stays at `final`.

    f(x) is 1 - x, (1 + cos(πx))/2, or 1 - √x. Step 0 has the rate 0 if there is a warmup. References: Hu et al. 2024,
    MiniCPM, https://arxiv.org/abs/2404.06395; the square root is Hägele et al.'s 2024, https://arxiv.org/abs/2405.18392

    Args:
        lr: the highest learning rate ≥ 0.
        warmup: steps ≥ 0 up.
        stable: steps ≥ 0 there.
        decay: steps ≥ 0 down.
        final: learning rate ≥ 0 in the end.
        shape: "linear", "cosine" or "sqrt".
    """
    begin = warmup + stable
    up = lr * _progress(step, warmup)
    down = _between(lr, final, _FALLS[shape](_progress(where(step < begin, 0.0, step - begin), decay)))
    return where(step < warmup, up, where(step < begin, lr, down))


@schedule
def batch_size(
    batch_size: Annotated[Scalar, within(0, above=True)], base_batch_size: Positive, power: NonNegative = 0.5
) -> Any:
    """(batch_size/base_batch_size)^power: a function of the batch size, by which learning rates are multiplied.

    A power of 1/2 suits Adam and its like (Malladi et al. 2022, https://arxiv.org/abs/2205.10287), and 1 SGD (Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677).

    Args:
        base_batch_size: the batch size > 0 where the factor is 1.
        power: exponent ≥ 0.
    """
    return _power(batch_size / base_batch_size, power)


@schedule
def product(step: NonNegative, schedules: Schedules) -> Any:
    """The product of schedules, as torch's ChainedScheduler has it of those that multiply; `a * b` is one of two.

    Args:
        schedules: schedules, other functions of the step, or numbers ≥ 0.
    """
    value: Any = 1.0
    for each in schedules:
        value = value * at(each, step)
    return value


@schedule
def _join(step: NonNegative, schedules: Schedules, milestones: Milestones) -> Any:
    value: Any = 0.0
    for begin, end, each in zip((0, *milestones), (*milestones, math.inf), schedules, strict=True):
        inside = (begin <= step) & (step < end)
        if inside is not False:  # it is a tensor, or True
            value = where(inside, at(each, where(inside, step - begin, 0)), value)
    return value


def join(schedules: Sequence[Any], milestones: Sequence[Scalar]) -> Schedule:
    """One schedule after the other, each counting from its own milestone, as torch's SequentialLR.

    Args:
        schedules: schedules, other functions of the step, or numbers ≥ 0.
        milestones: the steps ≥ 0, in ascending order, at which the second, the third, … begins.

    Raises:
        TypeError, ValueError: another kind of argument, or number of milestones.
    """
    made = _join(schedules, milestones)
    if len(schedules) != len(milestones) + 1:
        raise ValueError(
            f"join: {len(schedules)} schedules and {len(milestones)} milestones; there is a milestone between each two"
        )
    return made
