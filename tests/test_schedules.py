"""Schedules against torch's schedulers, finite differences, and formulas written by hand."""

import copy
import inspect
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import funcopt.schedules
from funcopt import schedules
from funcopt.testing import check_laws

LR = 0.3
TORCHS = {
    "constant": lr_scheduler.ConstantLR,
    "linear": lr_scheduler.LinearLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "exponential": lr_scheduler.ExponentialLR,
    "step": lr_scheduler.StepLR,
    "multi_step": lr_scheduler.MultiStepLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "one_cycle": lr_scheduler.OneCycleLR,
    "cyclic": lr_scheduler.CyclicLR,
}
LIKE_TORCHS = [
    schedules.constant(LR),
    schedules.constant(LR, factor=0.25, total_iters=9),
    schedules.linear(LR),
    schedules.linear(LR, start_factor=0.9, end_factor=0.0, total_iters=7),
    schedules.polynomial(LR),
    schedules.polynomial(LR, total_iters=8, power=0.5),
    schedules.polynomial(LR, total_iters=11, power=2),
    schedules.exponential(LR, 0.93),
    schedules.step(LR, step_size=7),
    schedules.step(LR, step_size=3, gamma=0.8),
    schedules.multi_step(LR, milestones=[3, 11]),
    schedules.multi_step(LR, milestones=[0, 4, 4, 9], gamma=0.5),
    schedules.multi_step(LR, milestones=[]),
    schedules.cosine(LR, T_max=12),
    schedules.cosine(LR, T_max=7, eta_min=0.05),
    schedules.cosine_restarts(LR, T_0=6),
    schedules.cosine_restarts(LR, T_0=3, T_mult=2, eta_min=0.01),
    schedules.cosine_restarts(LR, T_0=1, T_mult=3),
    schedules.one_cycle(LR, total_steps=61),
    schedules.one_cycle(LR, total_steps=90, pct_start=0.25, anneal_strategy="linear", div_factor=10.0),
    schedules.one_cycle(LR, total_steps=64, pct_start=0.35, three_phase=True, final_div_factor=100.0),
    schedules.one_cycle(LR, total_steps=64, pct_start=0.0),
    schedules.one_cycle(LR, total_steps=61, pct_start=1.0),
    schedules.cyclic(0.1, max_lr=LR, step_size_up=5),
    schedules.cyclic(0.1, max_lr=LR, step_size_up=4, step_size_down=7, mode="triangular2"),
    schedules.cyclic(0.1, max_lr=LR, step_size_up=6, step_size_down=2, mode="exp_range", gamma=0.95),
]


def torchs(schedule):
    """From an optimizer to torch's scheduler of the same name and arguments."""
    arguments = {name: value for name, value in schedule.arguments.items() if name != "lr"}
    if schedule.name in ("one_cycle", "cyclic"):
        arguments["cycle_momentum"] = False
    return lambda optimizer: TORCHS[schedule.name](optimizer, **arguments)


def rates(scheduler_of, count):
    """What one of torch's schedulers sets for the first steps."""
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=LR)
    scheduler, out = scheduler_of(optimizer), []
    for _ in range(count):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


# Torch works most of them out from the value before: 60 steps come to some 60 roundings, of 2e-16 each. Its cosine
# also divides by 1 + cos(…), which near T_max is as small as 1 - cos(π/12) = 0.03.
NEAR = {"rel": 1e-12, "abs": 1e-14}


@pytest.mark.parametrize("schedule", LIKE_TORCHS, ids=repr)
def test_torchs_values(schedule):
    want = rates(torchs(schedule), 60)
    assert [schedule(step) for step in range(60)] == pytest.approx(want, **NEAR)
    assert schedule(torch.arange(60)).tolist() == pytest.approx(want, **NEAR)


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_arguments(name):
    ours = inspect.signature(getattr(schedules, name)).parameters
    theirs = inspect.signature(TORCHS[name]).parameters
    for each, parameter in ours.items():
        if each != "lr":
            assert parameter.default in (inspect.Parameter.empty, theirs[each].default)


def test_torchs_sequence():
    pieces = [
        schedules.linear(LR, total_iters=4),
        schedules.multi_step(LR, [2, 3]),
        schedules.cosine(LR, T_max=5),
        schedules.cosine_restarts(LR, T_0=3),
        schedules.exponential(LR, 0.9),
    ]
    milestones = [4, 10, 17, 25]
    joined = schedules.join(pieces, milestones)
    want = rates(lambda o: lr_scheduler.SequentialLR(o, [torchs(piece)(o) for piece in pieces], milestones), 40)
    assert [joined(step) for step in range(40)] == pytest.approx(want, **NEAR)
    assert joined(torch.arange(40)).tolist() == pytest.approx(want, **NEAR)


def test_torchs_chain():
    first, second = schedules.constant(LR, 0.1, total_iters=20), schedules.exponential(1.0, 0.9)
    want = rates(lambda o: lr_scheduler.ChainedScheduler([torchs(first)(o), torchs(second)(o)]), 40)
    assert [(first * second)(step) for step in range(40)] == pytest.approx(want, **NEAR)


WARM = schedules.join([schedules.linear(LR, start_factor=0.1, total_iters=8), schedules.cosine(LR, T_max=30)], [8])
LAST_OF_EACH = {schedule.name: schedule for schedule in LIKE_TORCHS}.values()
SAYS = [(schedule, {"lr": LR}, torchs(schedule)) for schedule in LAST_OF_EACH] + [
    (schedules.warmup_stable_decay(0.1, 10, 20, 15), {"peak": 0.1, "warmup": 10, "joins": (10, 30, 45)}, None),
    (schedules.warmup_stable_decay(0.1, 9, 0, 16, shape="cosine"), {"peak": 0.1, "warmup": 9, "joins": (9, 25)}, None),
    (schedules.warmup_stable_decay(0.1, 5, 6, 30, 0.01, "sqrt"), {"peak": 0.1, "warmup": 5, "joins": (5,)}, None),
    (WARM, {"peak": LR, "warmup": 8, "joins": (8,)}, None),
    (WARM * 0.5, {"peak": LR / 2, "warmup": 8, "joins": (8,)}, None),
    (lambda step: schedules.batch_size(64)(step + 1), {}, None),
]


@pytest.mark.parametrize(("schedule", "says", "reference"), SAYS, ids=range(len(SAYS)))
def test_laws(schedule, says, reference):
    report = check_laws(schedule, kind="schedule", fixed=says, reference=reference, max_examples=10)
    assert report.ok, str(report)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T_mult", [1, 2, 3, 7])
@pytest.mark.parametrize("T_0", [1, 3, 10])
def test_restarts_of_long_runs(T_0, T_mult):
    """Against whole numbers: rounding makes no restart early or late, up to a hundred thousand million steps."""
    schedule, begin, length = schedules.cosine_restarts(1.0, T_0, T_mult), 0, T_0
    while begin < 10**11:
        for step in {begin, begin + min(1, length - 1), begin + length // 2, begin + length - 1}:
            want = (1 + math.cos(math.pi * Fraction(step - begin, length))) / 2
            near = (
                1e-12 + 1e-15 * step / length
            )  # the step and the restart before it, in units of the period, are rounded
            assert schedule(step) == pytest.approx(want, abs=near)
            assert schedule(torch.tensor(step)).item() == pytest.approx(want, abs=near)
        begin += length if T_mult > 1 else 7**9 * length
        length *= T_mult


def test_one_cycle_stays_at_its_end():
    """Torch goes one step too far, where lines fall below 0, and raises after that."""
    schedule = schedules.one_cycle(LR, total_steps=10, anneal_strategy="linear")
    assert schedule(9) == pytest.approx(LR / 25 / 1e4)
    assert schedule(10) == schedule(10**9) == schedule(9)
    assert rates(torchs(schedule), 10)[9] == pytest.approx(schedule(9))


@pytest.mark.parametrize(
    ("shape", "fall"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("sqrt", lambda x: 1 - x**0.5),
    ],
)
def test_warmup_stable_decay(shape, fall):
    schedule = schedules.warmup_stable_decay(0.8, warmup=4, stable=3, decay=10, final=0.1, shape=shape)
    want = [0.0, 0.2, 0.4, 0.6, *[0.8] * 3, *(0.1 + 0.7 * fall(i / 10) for i in range(10)), 0.1, 0.1]
    assert [schedule(step) for step in range(len(want))] == pytest.approx(want, rel=1e-14)


def test_pieces_of_no_steps():
    assert schedules.warmup_stable_decay(0.8, 0, 0, 0, final=0.1)(0) == 0.1
    assert [schedules.warmup_stable_decay(0.8, 0, 2, 0, final=0.1)(step) for step in range(3)] == [0.8, 0.8, 0.1]
    assert schedules.linear(0.8, total_iters=0)(0) == schedules.constant(0.8, total_iters=0)(0) == 0.8
    assert schedules.polynomial(0.8, total_iters=0)(0) == 0
    assert [schedules.one_cycle(0.8, 10, pct_start=0.1)(step) for step in (0, 9)] == pytest.approx([0.032, 3.2e-6])
    assert schedules.join([0.1, 0.2, 0.3], [0, 0])(0) == 0.3


def test_ends_to_the_bit():
    assert [schedules.linear(1.0, start_factor=0.1, total_iters=10)(step) for step in (0, 10, 11)] == [0.1, 1.0, 1.0]
    assert [schedules.cosine(0.3, T_max=7, eta_min=0.1)(step) for step in (0, 7, 14)] == [0.3, 0.1, 0.3]
    assert [schedules.one_cycle(0.3, 11, 0.5)(step) for step in (0, 10)] == [0.3 / 25, 0.3 / 25 / 1e4]
    assert schedules.warmup_stable_decay(0.3, 3, 0, 7, final=0.1)(10) == 0.1


def test_batch_size():
    factor = schedules.batch_size(64)
    assert [factor(64), factor(256), factor(16)] == [1, 2, 0.5]
    assert schedules.batch_size(64, power=1)(96) == 1.5


def test_pieces_of_all_kinds():
    """Functions are called with whole steps, and with none outside of their piece."""
    table = [0.1, 0.2, 0.3]
    joined = schedules.join([lambda step: table[step], 0.05, schedules.exponential(1.0, 0.5)], [3, 5])
    assert [joined(step) for step in range(8)] == [0.1, 0.2, 0.3, 0.05, 0.05, 1.0, 0.5, 0.25]
    assert (2 * joined * 0.5)(1) == 0.2
    assert schedules.product([joined, lambda step: step, 3])(4) == pytest.approx(0.6)
    assert schedules.product([2, 3])(torch.arange(2)).tolist() == [6, 6]


def test_at():
    assert schedules.at(schedules.exponential(1.0, 0.5), 3) == schedules.at(lambda step: 0.5**step, 3) == 0.125
    lr = torch.tensor(0.1)
    assert (schedules.at(0.1, 3), schedules.at(lr, 3)) == (0.1, lr)


def test_large_numbers():
    """A power too large for a float is inf, as a tensor's."""
    schedule = schedules.exponential(0.1, 1.5)
    assert schedule(10**6) == schedule(torch.tensor(10**6)).item() == math.inf


# ---- tensors ---------------------------------------------------------------------------------------------------------

# Every function, at numbers where pieces begin and end at whole steps.
ROUND = [
    schedules.constant(0.3, factor=0.25, total_iters=4.0),
    schedules.linear(0.3, start_factor=0.25, end_factor=0.75, total_iters=4.0),
    schedules.polynomial(0.3, total_iters=4.0),
    schedules.polynomial(0.3, total_iters=4.0, power=0.5),
    schedules.polynomial(0.3, total_iters=4.0, power=1.5),
    schedules.exponential(0.3, gamma=0.75),
    schedules.exponential(0.3, gamma=0.0),
    schedules.step(0.3, step_size=2.0, gamma=0.5),
    schedules.multi_step(0.3, milestones=[2.0, 2.0, 5.0], gamma=0.5),
    schedules.cosine(0.3, T_max=4.0, eta_min=0.125),
    schedules.cosine_restarts(0.3, T_0=2.0, T_mult=1.0, eta_min=0.125),
    schedules.cosine_restarts(0.3, T_0=2.0, T_mult=2.0),
    schedules.one_cycle(0.3, total_steps=8.0, pct_start=0.5, div_factor=4.0, final_div_factor=8.0),
    schedules.one_cycle(0.3, total_steps=8.0, pct_start=0.125, anneal_strategy="linear", three_phase=True),
    schedules.cyclic(0.1, max_lr=0.3, step_size_up=2.0),
    schedules.cyclic(0.1, max_lr=0.3, step_size_up=2.0, step_size_down=1.0, mode="triangular2"),
    schedules.cyclic(0.1, max_lr=0.3, step_size_up=2.0, mode="exp_range", gamma=0.5),
    schedules.warmup_stable_decay(0.3, 2.0, 2.0, 2.0, final=0.125),
    schedules.warmup_stable_decay(0.3, 2.0, 1.0, 3.0, shape="sqrt"),
    schedules.warmup_stable_decay(0.3, 0.0, 2.0, 0.0, shape="cosine"),
    schedules.batch_size(4.0, power=0.5),
    schedules.join([schedules.linear(0.3, total_iters=2), 0.2, schedules.cosine(0.3, T_max=3.0)], [3.0, 4.0]),
    schedules.constant(0.3, total_iters=3) * schedules.exponential(1.0, gamma=0.75),
]
STEPS = range(1, 9)


def numbers_of(value):
    """The floats among a schedule's arguments, and its schedules'."""
    if isinstance(value, schedules.Schedule):
        value = tuple(value.arguments.values())
    return (
        [number for each in value for number in numbers_of(each)]
        if isinstance(value, tuple)
        else ([value] if isinstance(value, float) else [])
    )


def with_numbers(value, numbers):
    """The same schedule with others, floats or tensors, from an iterator."""
    if isinstance(value, schedules.Schedule):
        return getattr(schedules, value.name)(**{k: with_numbers(v, numbers) for k, v in value.arguments.items()})
    if isinstance(value, tuple):
        return tuple(with_numbers(each, numbers) for each in value)
    return next(numbers) if isinstance(value, float) else value


def function_of(schedule, step):
    """The value as a function of the numbers, as a vector."""
    return lambda values: with_numbers(schedule, iter(values.unbind()))(step)


def vector_of(schedule):
    return torch.tensor(numbers_of(schedule), dtype=torch.float64)


# The same at other numbers, where no step is at an edge.
MOVED = [with_numbers(schedule, (number + 0.0625 for number in numbers_of(schedule))) for schedule in ROUND]
CASES = pytest.mark.parametrize("schedule", ROUND + MOVED, ids=repr)


def differences(schedule, step, index, h=1e-7):
    """One-sided differences by one of the numbers, where they are not refused."""
    numbers = numbers_of(schedule)
    for move in (h, -h):
        moved = [number + move * (i == index) for i, number in enumerate(numbers)]
        try:
            yield (with_numbers(schedule, iter(moved))(step) - schedule(step)) / move
        except ValueError:
            assert math.copysign(1, move) < 0 or numbers.count(numbers[index]) > 1


@CASES
def test_derivatives(schedule):
    """Finite, first and second ones, forward and backward; and that of one side, or between both."""
    at = vector_of(schedule)
    for step in STEPS:
        f = function_of(schedule, step)
        assert f(at).item() == pytest.approx(schedule(step), rel=1e-14)
        got = jacrev(f)(at)
        torch.testing.assert_close(jacfwd(f)(at), got, rtol=1e-12, atol=1e-14)
        assert bool(hessian(f)(at).isfinite().all())
        for index in range(len(at)):
            sides = [*differences(schedule, step, index)]
            if max(map(abs, sides)) > 1e3:  # infinite: a jump, or a root at 0
                sides.append(0.0)
            # Differences are off by h = 1e-7 times a second derivative, of at most some 100, and 1e-16 / h.
            assert min(sides) - 1e-4 <= got[index] <= max(sides) + 1e-4, (step, index)


@CASES
def test_derivative_in_the_step(schedule):
    h = 1e-7
    for step in STEPS:
        assert bool(grad(schedule)(torch.tensor(float(step))).isfinite())
        step += 0.03125  # not at an edge
        got = grad(schedule)(torch.tensor(step, dtype=torch.float64)).item()
        assert got == pytest.approx((schedule(step + h) - schedule(step - h)) / (2 * h), abs=1e-6)


@CASES
def test_batches_are_loops(schedule):
    close = {"rtol": 1e-13, "atol": 1e-15}
    want = torch.tensor([schedule(step) for step in STEPS], dtype=torch.float64)
    for dtype in (torch.int64, torch.float32):
        steps = torch.tensor(STEPS, dtype=dtype)
        torch.testing.assert_close(torch.stack([schedule(step) for step in steps]), want, **close)
        torch.testing.assert_close(schedule(steps), want, **close)
        torch.testing.assert_close(vmap(schedule)(steps), want, **close)
    at = vector_of(schedule)
    some, f = torch.stack([at, at + 0.0625, at * 1.25]), function_of(schedule, 3)
    torch.testing.assert_close(vmap(f)(some), torch.stack([f(each) for each in some]), **close)
    torch.testing.assert_close(vmap(grad(f))(some), torch.stack([grad(f)(each) for each in some]), **close)
    both = vmap(lambda values, step: function_of(schedule, step)(values), in_dims=(None, 0))
    torch.testing.assert_close(both(at, torch.tensor(STEPS)), want, **close)


@pytest.mark.parametrize("schedule", {schedule.name: schedule for schedule in ROUND}.values(), ids=repr)
def test_compiled_once(schedule):
    """One graph for all steps, also where the schedule is made of tensors inside and differentiated."""
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    def loss(values, step):
        return with_numbers(schedule, iter(values.unbind()))(step)

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda values, step: (schedule(step), grad(loss)(values, step)), backend=counted, fullgraph=True
    )
    at = vector_of(schedule)
    for step in (1, 3, 8):
        value, derivative = compiled(at, torch.tensor(float(step)))
        assert value.item() == pytest.approx(schedule(step), rel=1e-14)
        torch.testing.assert_close(derivative, grad(function_of(schedule, step))(at), rtol=1e-12, atol=1e-14)
    assert len(graphs) == 1


class Untouched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} is called")


@pytest.mark.parametrize("schedule", ROUND + LIKE_TORCHS, ids=repr)
def test_floats_of_floats(schedule):
    with Untouched():
        assert {type(schedule(step)) for step in (*STEPS, 2.5, np.int64(3), np.float32(0.5))} == {float}


def test_float64_of_tensors():
    """Of any tensor: also where the value does not depend on it, so that it has a derivative all the same."""
    third = torch.tensor(1 / 3, requires_grad=True)
    for value in (
        schedules.constant(0.1, factor=third, total_iters=3)(5),
        schedules.join([third, 0.1], [3])(5),
        (schedules.linear(third) * 0.5)(2),
        schedules.multi_step(0.1, [])(torch.tensor(2, dtype=torch.int32)),
        schedules.cosine(torch.tensor(1), torch.tensor(10))(3),
    ):
        assert isinstance(value, torch.Tensor)
        assert (value.dtype, value.shape) == (torch.float64, ())
    assert grad(lambda factor: schedules.constant(0.1, factor, total_iters=3)(5))(third) == 0
    schedule = schedules.cosine(third, 10)  # it is read at each call, and may be learned meanwhile
    for _ in range(2):
        schedule(5).backward()
        with torch.no_grad():
            third += 1
    assert third.grad.item() == pytest.approx(1.0)
    assert schedule(5).item() == pytest.approx((1 / 3 + 2) / 2)


# ---- schedules as values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ROUND + LIKE_TORCHS, ids=repr)
def test_copies(schedule):
    copies = [copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), {"funcopt": funcopt})]
    for each in copies:
        assert each == schedule
        assert hash(each) == hash(schedule)
        assert each(3) == schedule(3)


def test_equality():
    assert schedules.cosine(0.1, 10) == schedules.cosine(lr=0.1, T_max=10.0, eta_min=0)
    assert schedules.cosine(0.1, 10) != schedules.cosine(0.1, 11)
    assert schedules.cosine(torch.tensor(0.5), 10) == schedules.cosine(torch.tensor(0.5), 10)
    lr = torch.tensor(0.5, requires_grad=True)
    assert copy.deepcopy(schedules.cosine(lr, 10)).arguments["lr"].requires_grad


def test_what_is_printed():
    assert repr(schedules.cosine(0.001, 100)) == "funcopt.schedules.cosine(0.001, T_max=100, eta_min=0.0)"
    assert str(inspect.signature(schedules.step)).startswith(
        "(lr: float | torch.Tensor, step_size: float | torch.Tensor"
    )


COSINE = schedules.cosine(0.1, 10)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: schedules.cosine(0.1), TypeError, "cosine: missing a required argument: 'T_max'"),
        (lambda: schedules.cosine(0.1, 10, 0.0, 1), TypeError, "cosine: too many positional arguments"),
        (lambda: schedules.cosine(0.1, Tmax=3), TypeError, "cosine has no argument 'Tmax'; did you mean 'T_max'?"),
        (lambda: schedules.cosine(0.1, 3, step=3), TypeError, "cosine has no argument 'step'"),
        (lambda: schedules.cosine(0.1, 0), ValueError, r"cosine: T_max is 0; it takes numbers in \(0, inf\)"),
        (lambda: schedules.cosine(-0.1, 3), ValueError, r"cosine: lr is -0.1; it takes numbers in \[0, inf\)"),
        (lambda: schedules.cosine(math.nan, 3), ValueError, "cosine: lr is nan"),
        (lambda: schedules.cosine(math.inf, 3), ValueError, "cosine: lr is inf"),
        (lambda: schedules.cosine(torch.tensor(-1.0), 3), ValueError, "cosine: lr is -1.0"),
        (lambda: schedules.cosine(torch.ones(2), 3), ValueError, r"lr is a tensor of torch.float32 and shape \(2,\)"),
        (lambda: schedules.cosine(torch.tensor(1j), 3), ValueError, "lr is a tensor of torch.complex64"),
        (lambda: schedules.cosine(True, 3), TypeError, "cosine: lr takes a number or a 0-d tensor; got bool: True"),
        (lambda: schedules.constant(0.1, total_iters=-1), ValueError, "constant: total_iters is -1"),
        (lambda: schedules.linear(0.1, total_iters=-1), ValueError, "linear: total_iters is -1"),
        (lambda: schedules.exponential(0.1, "0.5"), TypeError, "exponential: gamma takes a number .* got str: '0.5'"),
        (lambda: schedules.cosine_restarts(0.1, 3, 0.5), ValueError, r"T_mult is 0.5; it takes numbers in \[1, inf\)"),
        (lambda: schedules.one_cycle(0.1, 9, 1.5), ValueError, r"pct_start is 1.5; it takes numbers in \[0, 1\]"),
        (lambda: schedules.one_cycle(0.1, 9, three_phase=1), TypeError, "three_phase takes True or False; got 1"),
        (lambda: schedules.one_cycle(0.1, 9, anneal_strategy="cosine"), ValueError, "'cosine'; did you mean 'cos'?"),
        (
            lambda: schedules.cyclic(0.1, 0.2, mode="triangle"),
            ValueError,
            "mode is 'triangle'; did you mean 'triangular'?",
        ),
        (lambda: schedules.cyclic(0.1, 0.2, step_size_down=0), ValueError, "cyclic: step_size_down is 0"),
        (lambda: schedules.multi_step(0.1, 5), TypeError, "multi_step: milestones takes a list; got int: 5"),
        (lambda: schedules.multi_step(0.1, [5, 3]), ValueError, r"\(5, 3\); milestones must be in ascending order"),
        (lambda: schedules.multi_step(0.1, [-1]), ValueError, r"milestones\[0\] is -1"),
        (lambda: schedules.join([COSINE], [5]), ValueError, "join: 1 schedules and 1 milestones"),
        (lambda: schedules.join([COSINE, "0.1"], [5]), TypeError, r"join: schedules\[1\] takes a number"),
        (lambda: schedules.join(COSINE, []), TypeError, "join: schedules takes a list; got Schedule"),
        (lambda: schedules.batch_size(0), ValueError, "base_batch_size is 0"),
        (lambda: schedules.batch_size(64)(0), ValueError, r"batch_size is 0; it takes numbers in \(0, inf\)"),
        (lambda: COSINE * "2", TypeError, r"product\[1\] takes a number"),
        (lambda: COSINE(-1), ValueError, "step is -1"),
        (lambda: COSINE("1"), TypeError, "step takes a number or a 0-d tensor; got str: '1'"),
    ],
)
def test_refusals(make, error, text):
    with pytest.raises(error, match=text):
        make()
