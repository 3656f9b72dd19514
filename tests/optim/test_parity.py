"""The steps of SGD, Adam and AdamW against torch.optim's own."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.runs import (
    NAMES,
    OURS,
    STATEFUL,
    TORCH,
    check_same,
    error,
    follow,
    give,
    gradients,
    grouped,
    leaves,
    packed_groups,
    snapshot,
    trajectory,
)

STEPS = 30


def scalar(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


# ---- the table ------------------------------------------------------------------------------------------------------

Choices = dict[str, tuple[Any, ...]]

# Every combination of a row's choices is a case, if torch accepts it.
FLAGS: dict[str, Choices] = {
    "SGD": {
        "lr": (0.1,),
        "momentum": (0, 0.9),
        "dampening": (0, 0.3),
        "nesterov": (False, True),
        "weight_decay": (0, 0.1),
        "maximize": (False, True),
    },
    "Adam": {
        "lr": (0.01,),
        "amsgrad": (False, True),
        "weight_decay": (0, 0.1),
        "decoupled_weight_decay": (False, True),
        "maximize": (False, True),
    },
    "AdamW": {"lr": (0.01,), "amsgrad": (False, True), "weight_decay": (0, 0.1), "maximize": (False, True)},
}

# Tensors are float64: where torch multiplies a float32 one with another number it rounds to float32 on the way.
LR = (0.0, 0.02, scalar(0.02), scalar(0.02, 1), scalar(0.02, 1, 1))
BETAS = ((0.0, 0.5), [0.9, 0.999], (scalar(0.8), scalar(0.95)), (scalar(0.8, 1), scalar(0.95, 1, 1)))
DECAY = (1, 0.1, scalar(0.1))
NUMBERS: tuple[dict[str, Choices], ...] = (
    {name: {"lr": LR, "weight_decay": DECAY} for name in NAMES},
    {"SGD": {"momentum": (0.5, 1.5), "dampening": (-1.0, 2.0)}},
    {name: {"betas": BETAS, "lr": (0.02, scalar(0.02))} for name in ("Adam", "AdamW")},
    {name: {"eps": (0.0, 0.1), "amsgrad": (False, True)} for name in ("Adam", "AdamW")},
)

# What chooses among torch's implementations. Here it changes nothing.
SWITCHES: tuple[dict[str, Choices], ...] = (
    {name: {"foreach": (None, False, True), "fused": (None, False, True)} for name in NAMES},
    {name: {"capturable": (True,)} for name in ("Adam", "AdamW")},
)


def also(table: dict[str, Choices], **more: tuple[Any, ...]) -> dict[str, Choices]:
    return {name: {**row, **more} for name, row in table.items()}


def cases(*tables: dict[str, Choices]) -> pytest.MarkDecorator:
    """The combinations that torch accepts, as arguments of a test."""
    rows = []
    for name, choices in (row for table in tables for row in table.items()):
        for values in itertools.product(*choices.values()):
            kwargs = dict(zip(choices, values, strict=True))
            try:
                TORCH[name]([torch.zeros(1, requires_grad=True)], **kwargs)
            except (ValueError, RuntimeError):
                continue
            rows.append(pytest.param(name, kwargs, id=f"{name}({','.join(map(_text, kwargs.items()))})"))
    return pytest.mark.parametrize(("name", "kwargs"), rows)


def _text(item: tuple[str, Any]) -> str:
    name, value = item
    return f"{name}={value!r}".replace(", dtype=torch.float64", "")


def run(classes: dict[str, Any], name: str, kwargs: dict[str, Any], dtype: torch.dtype, drawn_in: Any = None) -> Any:
    """A trajectory of STEPS steps."""
    params = leaves(dtype, drawn_in)
    optimizer = classes[name](grouped(name, params), **kwargs)
    return trajectory(optimizer, params, gradients(STEPS, dtype, drawn_in))


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- trajectories ---------------------------------------------------------------------------------------------------


@cases(FLAGS)
def test_float64(name, kwargs):
    check_same(run(OURS, name, kwargs, torch.float64), run(TORCH, name, kwargs, torch.float64))


@cases(*NUMBERS)
def test_numbers(name, kwargs):
    check_same(run(OURS, name, kwargs, torch.float64), run(TORCH, name, kwargs, torch.float64))


@cases(also(FLAGS, differentiable=(True,)))
@pytest.mark.usefixtures("float64_by_default")
def test_differentiable(name, kwargs):
    """With `differentiable` the values are the same; the parameters are no leaves, as autograd requires.

    Torch then works out the bias corrections in the dtype of its step count, so that is made float64.
    """
    ends = []
    for classes in (OURS, TORCH):
        params = [p.clone() for p in leaves(torch.float64)]
        for p in params:
            p.retain_grad()  # else torch warns of `p.grad` where it is None
        optimizer = classes[name](grouped(name, params), **kwargs)
        ends.append(trajectory(optimizer, params, gradients(10, torch.float64)))
    check_same(*ends)


@cases(*SWITCHES)
def test_foreach_and_fused_change_nothing(name, kwargs):
    """The reference is torch's for-loop: its fused SGD loses the momentum of parameters that join later."""
    check_same(run(OURS, name, kwargs, torch.float64), run(TORCH, name, {"foreach": False}, torch.float64))


@cases(FLAGS)
def test_float32(name, kwargs):
    """At most twice the error of torch's own float32, plus one unit in the last place.

    Both errors are of the same size, but are single samples of rounding: of a tensor with one element torch's may be 0
    by luck, hence the unit. They are relative to the largest magnitude on the way, at which roundings happened.
    """
    truth = run(TORCH, name, {**kwargs, "foreach": False}, torch.float64, torch.float32)
    theirs = run(TORCH, name, {**kwargs, "foreach": False}, torch.float32)
    ours = run(OURS, name, kwargs, torch.float32)
    check_same(ours, theirs, torch.inf)
    for key, value in truth.items():
        bound = 2 * error(theirs[key], value) + torch.finfo(torch.float32).eps
        assert error(ours[key], value) <= bound, key


# In float16 the default eps is 0, and torch divides by it where a small gradient's square is 0 too.
LOW_PRECISION: dict[str, dict[str, float]] = {"SGD": {}, "Adam": {"eps": 1e-4}, "AdamW": {"eps": 1e-4}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cases(also(FLAGS, maximize=(False,)))
def test_low_precision(name, kwargs, dtype):
    """At most one rounding further from the truth than torch's for-loop, which rounds after every operation.

    Both round what they store once a step, so neither can be better at every single number.
    """
    kwargs = {**kwargs, **LOW_PRECISION[name]}
    truth = run(TORCH, name, {**kwargs, "foreach": False}, torch.float64, dtype)
    theirs = run(TORCH, name, {**kwargs, "foreach": False}, dtype)
    ours = run(OURS, name, kwargs, dtype)
    check_same(ours, theirs, torch.inf)
    for key, value in truth.items():
        theirs_off = error(theirs[key], value)
        assert theirs_off < 1, f"torch's {key} is no reference"
        assert error(ours[key], value) <= theirs_off + torch.finfo(dtype).eps, key


@pytest.mark.parametrize("name", NAMES)
def test_float16_stays_finite_where_eps_and_squares_vanish(name):
    p = torch.ones(4, dtype=torch.float16, requires_grad=True)
    optimizer = OURS[name]([p])
    for size in (0.0, 1e-4, 0.0, 1e-7):
        p.grad = torch.tensor([0.0, size, -size, 1.0], dtype=torch.float16)
        optimizer.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_is_stepped_as_if_it_were_alone(name, backend):
    """Bit for bit, of whatever dtypes the others in its group are."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float32)
    random = torch.Generator().manual_seed(0)
    starts = [torch.randn(5, generator=random, dtype=torch.float64).to(dtype) for dtype in dtypes]
    grads = [[torch.randn(5, generator=random, dtype=torch.float64).to(d) for d in dtypes] for _ in range(4)]

    def end(members: list[int]) -> list[Tensor]:
        params = [starts[i].clone().requires_grad_() for i in members]
        optimizer = OURS[name](params, lr=0.1, weight_decay=0.1, backend=backend, **STATEFUL[name])
        follow(optimizer, params, [[row[i] for i in members] for row in grads])
        return params

    together = end(list(range(len(dtypes))))
    for i, p in enumerate(together):
        assert torch.equal(p, end([i])[0]), dtypes[i]


# ---- what is saved --------------------------------------------------------------------------------------------------


def check_same_layout(ours: Any, theirs: Any) -> None:
    """That two state_dicts have the same groups, and state of the same names, shapes and dtypes."""
    assert packed_groups(ours) == packed_groups(theirs)
    saved = [optimizer.state_dict()["state"] for optimizer in (ours, theirs)]
    kinds = [{i: {k: (v.shape, v.dtype, v.device) for k, v in s.items()} for i, s in state.items()} for state in saved]
    assert kinds[0] == kinds[1]


@cases(FLAGS)
def test_state_dict(name, kwargs):
    for dtype in (torch.float32, torch.bfloat16):
        pair = []
        for classes in (OURS, TORCH):
            params = leaves(dtype)
            optimizer = classes[name](grouped(name, params), **kwargs)
            follow(optimizer, params, gradients(3, dtype))
            pair.append(optimizer)
        check_same_layout(*pair)


@cases(*NUMBERS)
def test_groups_keep_numbers_as_torch_does(name, kwargs):
    ours, theirs = (classes[name](grouped(name, leaves(torch.float32)), **kwargs) for classes in (OURS, TORCH))
    check_same_layout(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("float64_by_default")
def test_step_count_follows_the_default_dtype(name):
    test_state_dict(name, {})


# ---- other backends -------------------------------------------------------------------------------------------------

FEW: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("SGD", {"lr": scalar(0.1), "momentum": 0.9, "nesterov": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"lr": scalar(0.01), "amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"betas": (scalar(0.8), scalar(0.95))}),
    ("AdamW", {"amsgrad": True, "eps": 0.1}),
)


@pytest.mark.parametrize(
    ("name", "kwargs", "backend"),
    [(name, kwargs, backend) for name, kwargs in FEW for backend in ("triton", "eager")]
    + [("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "compile"), ("AdamW", {"amsgrad": True}, "compile")],
)
def test_backends(name, kwargs, backend):
    """Seven steps: past the first gradient of the parameter that has none before."""
    ends = []
    for classes, more in ((OURS, {"backend": backend}), (TORCH, {})):
        params = leaves(torch.float64)
        optimizer = classes[name](grouped(name, params), **kwargs, **more)
        ends.append(trajectory(optimizer, params, gradients(7, torch.float64)))
    check_same(*ends)


# ---- what a step leaves alone ---------------------------------------------------------------------------------------


# The interpreter takes its time.
SLOW_AND_FAST = [(*case, "auto") for case in FEW] + [(*case, "triton") for case in FEW[1::3]]


@pytest.mark.parametrize(
    ("name", "kwargs", "backend"), [*SLOW_AND_FAST, *((name, {"differentiable": True}, "auto") for name in NAMES)]
)
def test_gradients_are_never_written(name, kwargs, backend):
    params = [p.detach() for p in leaves(torch.float64)]  # also fit for `differentiable`
    optimizer = OURS[name](grouped(name, params), backend=backend, **kwargs)
    for row in gradients(5, torch.float64):
        give(params, row)
        before = [(p.grad, p.grad is not None and p.grad._version) for p in params]
        optimizer.step()
        for p, g, (grad, version) in zip(params, row, before, strict=True):
            assert p.grad is grad
            assert g is None or (grad._version == version and torch.equal(grad, g))


@pytest.mark.parametrize(("name", "kwargs", "backend"), SLOW_AND_FAST)
def test_parameters_without_gradient_are_left_alone(name, kwargs, backend):
    params = leaves(torch.float64)
    optimizer = OURS[name](grouped(name, params), backend=backend, **kwargs)
    met = set()
    for row in gradients(7, torch.float64):
        versions = [p._version for p in params]
        states = snapshot(optimizer, params)
        follow(optimizer, params, [row])
        met |= {i for i, g in enumerate(row) if g is not None}
        for i, (p, g) in enumerate(zip(params, row, strict=True)):
            assert g is not None or p._version == versions[i]
            assert p in optimizer.state or optimizer.state.get(p) is None
        idle = {key: value for key, value in states.items() if row[key[0]] is None}
        after = snapshot(optimizer, params)
        check_same({key: after[key] for key in idle}, idle, tolerance=0)
        assert {i for i, p in enumerate(params) if p in optimizer.state} <= met
        assert all(optimizer.state.values()), "an empty state"


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_sgd_without_momentum_has_no_state(backend):
    params = leaves(torch.float64)
    optimizer = OURS["SGD"](params, lr=0.1, weight_decay=0.1, backend=backend)
    follow(optimizer, params, gradients(3, torch.float64))
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", NAMES)
def test_step_without_any_gradient(name):
    params = leaves(torch.float64)
    optimizer = OURS[name](params)
    optimizer.step()
    check_same(snapshot(optimizer, params), snapshot(optimizer, leaves(torch.float64)), tolerance=0)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [scalar(0.02), scalar(0.02, 1), scalar(0.02, 1, 1)], ids=["0-d", "1-d", "2-d"])
def test_tensor_lr_is_read_at_each_step_and_never_written(name, lr):
    ends = []
    for classes in (OURS, TORCH):
        own = lr.clone()
        params = leaves(torch.float64)
        optimizer = classes[name](params, lr=own)
        for factor in (1.0, 0.5):
            own.fill_(0.02 * factor)
            version = own._version
            follow(optimizer, params, gradients(3, torch.float64))
            assert own._version == version
            assert optimizer.param_groups[0]["lr"] is own
        ends.append(snapshot(optimizer, params))
    check_same(*ends)


# ---- the same parameter twice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
        ("Adam", {"weight_decay": 0.1}),
        ("AdamW", {"amsgrad": True}),
    ],
)
def test_duplicates_in_a_group(name, kwargs):
    """Torch warns, and its for-loop steps such a parameter as often as the group has it.

    Its SGD with momentum starts such a parameter's buffer once for each time, and keeps the last: that is not copied.
    """
    ends = []
    for classes in (OURS, TORCH):
        p, q = (torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_() for n in (3, 4))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = classes[name]([p, q, p], foreach=False, **kwargs)
        random = torch.Generator().manual_seed(0)
        grads = [[torch.randn(n, dtype=torch.float64, generator=random) for n in (3, 4)] for _ in range(5)]
        ends.append(trajectory(optimizer, [p, q], grads))
    check_same(*ends)


class Tied(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("name", NAMES)
def test_tied_parameters(name):
    ends = []
    for classes in (OURS, TORCH):
        torch.manual_seed(0)
        model = Tied().double()
        x = torch.randn(8, 3, dtype=torch.float64)
        with warnings.catch_warnings(action="error"):
            optimizer = classes[name](model.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert model.first.weight is model.second.weight
        ends.append(snapshot(optimizer, list(model.parameters())))
        assert len(ends[-1]) >= 3
    check_same(*ends)
