"""Laws of functions around an optimizer: clipping, `(grads, max_norm) -> grads`, and schedules, `step -> number`."""

import itertools
import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt.testing import strategies
from funcopt.testing.case import Case
from funcopt.testing.function_form import FunctionSubject
from funcopt.testing.law import BrokenLawError, Tried, law, near, rounding, same

CLIPPED = Tried(
    steps=(1, 1),
    leaves=(1, 3),
    params=("zero",),
    more={"bound": st.sampled_from([1.0, 0.5, 3.0, 100.0])},
)


def norm(grads: list[Tensor]) -> float:
    """The Euclidean norm of all elements of all gradients."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


@law(CLIPPED, of="clip")
def clip_bound(subject: FunctionSubject, case: Case) -> None:
    """Clipping shortens to the bound: |c(g)| ≤ bound, and c(g) = g·min(1, bound/|g|), to rounding."""
    grads: list[Any] = list(case.grads[0])
    bound, size = case.more["bound"], norm(grads)
    clipped = subject.function(grads, bound)
    allowed = rounding(torch.float64, 1) * bound + 1e-6 * bound  # many add 1e-6 to the norm that they divide by
    if norm(clipped) > bound * (1 + rounding(torch.float64, 1)):
        raise BrokenLawError(f"the norm is {norm(clipped)!r} after clipping to {bound}")
    for leaf, g in enumerate(grads):
        near(clipped[leaf], g * min(1.0, bound / size) if size else g, allowed, f"gradient {leaf}, clipped")


@law(CLIPPED, of="clip")
def clip_is_idempotent(subject: FunctionSubject, case: Case) -> None:
    """Clipping what is clipped changes nothing: c(c(g)) = c(g), to rounding."""
    once = subject.function(list(case.grads[0]), case.more["bound"])
    twice = subject.function([g.clone() for g in once], case.more["bound"])
    for leaf, g in enumerate(once):
        near(twice[leaf], g, rounding(torch.float64, 1) * case.more["bound"], f"gradient {leaf}, clipped twice")


@law(CLIPPED, of="clip")
def clip_is_identity_below(subject: FunctionSubject, case: Case) -> None:
    """Gradients below the bound stay as they are, to the bit."""
    grads: list[Any] = list(case.grads[0])
    for leaf, g in enumerate(subject.function(grads, 2 * norm(grads) + 1)):
        same(g, grads[leaf], f"gradient {leaf}, below the bound")


@law(CLIPPED, of="clip")
def clip_is_differentiable(subject: FunctionSubject, case: Case) -> None:
    """Clipped gradients and their derivatives are finite, at g = 0 too."""
    grads = [g.clone().requires_grad_() for g in case.grads[0]]  # type: ignore[union-attr]
    clipped = subject.function(grads, case.more["bound"])
    slopes = torch.autograd.grad(sum((g * (1 + g.detach())).sum() for g in clipped), grads)  # type: ignore[arg-type]
    for leaf, (g, slope) in enumerate(zip(clipped, slopes, strict=True)):
        if not bool(g.isfinite().all() and slope.isfinite().all()):
            raise BrokenLawError(f"gradient {leaf} is {g.tolist()} when clipped, and its derivative {slope.tolist()}")


AT_A_STEP = Tried(steps=(1, 1), leaves=(1, 1), max_dims=0, more={"step": strategies.step_numbers(max_value=2**31)})


@law(AT_A_STEP, of="schedule")
def schedule_values(subject: FunctionSubject, case: Case) -> None:
    """A schedule is finite and not negative at every step, and nowhere above its peak, where it names one."""
    peak = subject.says.get("peak", math.inf)
    for step in (case.more["step"], subject.says.get("warmup", 0)):
        value = float(subject.function(step))
        if not 0 <= value <= peak * (1 + rounding(torch.float64, 1)) or not math.isfinite(value):
            raise BrokenLawError(f"it is {value!r} at step {step}; the law says 0 to {peak}")


@law(AT_A_STEP, of="schedule")
def schedule_of_tensors(subject: FunctionSubject, case: Case) -> None:
    """The step may be a tensor: f(tensor(t)) = f(t), to rounding."""
    step = case.more["step"]
    got = torch.as_tensor(subject.function(torch.tensor(step, dtype=torch.float64)), dtype=torch.float64)
    want = torch.as_tensor(float(subject.function(step)), dtype=torch.float64)
    near(got, want, rounding(torch.float64, 8) * (1 + want.abs()), f"its value at tensor({step})")


@law(Tried(steps=(1, 1), leaves=(1, 1), max_dims=0), of="schedule", needs=("warmup", "peak"))
def schedule_warmup(subject: FunctionSubject, case: Case) -> None:
    """Warmup rises to the peak: f grows up to the step `warmup`, where it is `peak`."""
    end, peak = subject.says["warmup"], subject.says["peak"]
    values = [float(subject.function(t)) for t in range(end + 1)]
    if any(b < a for a, b in itertools.pairwise(values)):
        raise BrokenLawError(f"it does not rise: {values}")
    near(torch.tensor(values[-1]).double(), torch.tensor(peak).double(), 1e-6 * peak, f"its value at step {end}")


@law(Tried(steps=(1, 1), leaves=(1, 1), max_dims=0), of="schedule", needs=("joins",))
def schedule_joins(subject: FunctionSubject, case: Case) -> None:
    """Pieces meet: over a step at which the schedule joins them it changes no more than over the steps beside it."""
    for join in subject.says["joins"]:
        f = [float(subject.function(t)) for t in range(max(0, join - 2), join + 3)]
        jumps = [abs(b - a) for a, b in itertools.pairwise(f)]
        most = 2 * max(jumps[0], jumps[-1]) + 1e-12 * max(f)
        if max(jumps) > most:
            raise BrokenLawError(f"it jumps by {max(jumps):.3g} at step {join}, beside steps of at most {most / 2:.3g}")


@law(
    Tried(steps=(1, 1), leaves=(1, 1), max_dims=0, more={"step": st.integers(0, 60)}), of="schedule", claim="reference"
)
def agrees_with_scheduler(subject: FunctionSubject, case: Case) -> None:
    """It is the schedule it stands for: lr · f(t) or f(t) is what torch's scheduler has after t steps, to rounding."""
    assert subject.reference is not None
    rate = float(subject.says.get("lr", 1.0))
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=rate)
    scheduler = subject.reference(optimizer)
    for _ in range(case.more["step"]):
        optimizer.step()
        scheduler.step()
    want = torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)
    got = torch.as_tensor(subject.function(case.more["step"]), dtype=torch.float64)
    near(got, want, 1e-12 + 1e-9 * want.abs(), f"its value at step {case.more['step']}")
