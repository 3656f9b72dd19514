"""`from_pure`: a class over rules that torch does not have, written here."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import funcopt
from funcopt.adapter import Adapter
from funcopt.ops import sign, sqrt
from tests.optim.runs import (
    LAYOUT,
    check_same,
    error,
    follow,
    gradients,
    leaves,
    packed_groups,
    plain,
    snapshot,
    trajectory,
)

# ---- Lion (Chen et al. 2023, algorithm 2): a pair of numbers, a slot, a flag ----------------------------------------


def lion_coefficients(t, lr, betas, weight_decay):
    return {
        "lr": lr,
        "beta1": betas[0],
        "one_minus_beta1": 1 - betas[0],
        "beta2": betas[1],
        "one_minus_beta2": 1 - betas[1],
        "decay": 1 - lr * weight_decay,
    }


def lion_update(p, g, m, c, maximize):
    if maximize:
        g = -g
    step = sign(c.beta1 * m + c.one_minus_beta1 * g)
    return c.decay * p - c.lr * step, (c.beta2 * m + c.one_minus_beta2 * g,)


lion = funcopt.rule(
    "lion",
    hparams={
        "lr": funcopt.nonnegative(1e-4, "learning rate"),
        "betas": (funcopt.fraction(0.9, "beta 0"), funcopt.fraction(0.99, "beta 1")),
        "weight_decay": funcopt.nonnegative(0.0, "weight_decay value"),
    },
    slots=("exp_avg",),
    flags={"maximize": False},
    coefficients=lion_coefficients,
    update=lion_update,
    doc="Lion.",
)


def lion_reference(
    p: Tensor, g: Tensor, state: dict[str, Any], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False
):
    g = -g if maximize else g
    m = state.get("exp_avg", torch.zeros_like(p))
    p.mul_(1 - lr * weight_decay).sub_(lr * torch.sign(betas[0] * m + (1 - betas[0]) * g))
    state["exp_avg"] = betas[1] * m + (1 - betas[1]) * g


# ---- RMSprop with a fading learning rate: a use of the step count, slots that a flag and a number switch on ---------


def rms_coefficients(t, lr, alpha, eps, momentum):
    return {"step_size": lr / t, "alpha": alpha, "rest": 1 - alpha, "eps": eps, "momentum": momentum}


def rms_update(p, g, v, mean, b, c, centered):
    v = c.alpha * v + c.rest * g * g
    if centered:
        mean = c.alpha * mean + c.rest * g
        u = g / (sqrt(v - mean * mean) + c.eps)
        slots = (v, mean)
    else:
        u = g / (sqrt(v) + c.eps)
        slots = (v,)
    if b is not None:
        b = c.momentum * b + u
        u = b
        slots = (*slots, b)
    return p - c.step_size * u, slots


fading_rms = funcopt.rule(
    "fading_rms",
    hparams={
        "lr": funcopt.nonnegative(0.01, "learning rate"),
        "alpha": funcopt.fraction(0.9, "alpha"),
        "eps": funcopt.nonnegative(1e-8, "epsilon"),
        "momentum": funcopt.nonnegative(0.0, "momentum"),
    },
    slots=("square_avg", funcopt.Slot("grad_avg", when="centered"), funcopt.Slot("momentum_buffer", when="momentum")),
    flags={"centered": False},
    coefficients=rms_coefficients,
    update=rms_update,
    doc="RMSprop whose learning rate fades.",
)


def rms_reference(p, g, state, lr=0.01, alpha=0.9, eps=1e-8, momentum=0.0, centered=False):
    zeros = torch.zeros_like(p)
    t = state["t"] = state.get("t", 0) + 1
    v = state["square_avg"] = alpha * state.get("square_avg", zeros) + (1 - alpha) * g**2
    if centered:
        mean = state["grad_avg"] = alpha * state.get("grad_avg", zeros) + (1 - alpha) * g
        v = v - mean**2
    u = g / (v.sqrt() + eps)
    if momentum:
        u = state["momentum_buffer"] = momentum * state.get("momentum_buffer", zeros) + u
    p.sub_(lr / t * u)


# The classes, as users keep them: under their own names, in a module.
Lion = funcopt.optim.from_pure(lion())
FadingRms = funcopt.optim.from_pure(fading_rms())
Ascent = funcopt.optim.from_pure(lion(maximize=True, backend="eager"), "Ascent")

CLASSES = [Lion, FadingRms, Ascent]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


# ---- the class ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (
            Lion,
            "(params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False, capturable=False, "
            "differentiable=False, backend='auto')",
        ),
        (
            FadingRms,
            "(params, lr=0.01, alpha=0.9, eps=1e-08, momentum=0.0, *, centered=False, capturable=False, "
            "differentiable=False, backend='auto')",
        ),
        (
            Ascent,
            "(params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=True, capturable=False, "
            "differentiable=False, backend='eager')",
        ),
    ],
)
def test_signature(cls, text):
    assert str(inspect.signature(cls)) == text


@pytest.mark.parametrize(
    ("cls", "name", "doc"),
    [
        (Lion, "Lion", "Lion."),
        (Ascent, "Ascent", "Lion."),
        (FadingRms, "FadingRms", "RMSprop whose learning rate fades."),
    ],
)
def test_name_module_and_doc(cls, name, doc):
    assert (cls.__name__, cls.__qualname__, cls.__module__, cls.__doc__) == (name, name, __name__, doc)
    assert issubclass(cls, torch.optim.Optimizer)


@each_class
def test_arguments(cls):
    p = torch.zeros(2, requires_grad=True)
    by_position, by_name = cls([p], 0.5), cls(params=[p], lr=0.5)
    assert by_position.defaults == by_name.defaults
    assert by_position.defaults["lr"] == 0.5
    assert set(by_position.defaults) == set(inspect.signature(cls).parameters) - {"params", "backend"}
    with pytest.raises(TypeError, match="momentun"):
        cls([p], momentun=0.5)
    with pytest.raises(TypeError, match="params"):
        cls()
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1.*\[0, inf\)"):
        cls([p], lr=-1)


def test_repr():
    p = torch.zeros(2, requires_grad=True)
    assert repr(Lion([p], 0.5)) == (
        "Lion (\n"
        "Parameter Group 0\n"
        "    betas: (0.9, 0.99)\n"
        "    capturable: False\n"
        "    differentiable: False\n"
        "    lr: 0.5\n"
        "    maximize: False\n"
        "    weight_decay: 0.0\n"
        ")"
    )


@each_class
def test_params_are_not_defaults(cls):
    """Two instances share nothing."""
    first, second = (cls([torch.zeros(2, requires_grad=True)]) for _ in range(2))
    first.add_param_group({"params": torch.zeros(3), "lr": 0.5})
    first.defaults["lr"] = 0.25
    assert len(second.param_groups) == 1
    assert second.defaults["lr"] != 0.25
    assert cls([torch.zeros(2)]).defaults == second.defaults


# ---- its steps ------------------------------------------------------------------------------------------------------

REFERENCES = {Lion: lion_reference, FadingRms: rms_reference, Ascent: lion_reference}
# A class, what its constructor takes, what its groups change, and what the reference must be told besides.
CASES: tuple[tuple[Any, dict[str, Any], tuple[dict[str, Any], ...], dict[str, Any]], ...] = (
    (Lion, {"lr": 0.01}, ({}, {}, {}), {}),
    (Lion, {"lr": 0.01, "weight_decay": 0.1}, ({}, {"lr": 0.1}, {"betas": (0.5, 0.6), "maximize": True}), {}),
    (
        Ascent,
        {"lr": torch.tensor([0.01], dtype=torch.float64)},
        ({}, {"weight_decay": 0.5}, {}),
        {"lr": 0.01, "maximize": True},
    ),
    (FadingRms, {}, ({}, {"lr": 0.1}, {"eps": 0.1}), {}),
    (FadingRms, {"momentum": 0.9}, ({}, {"momentum": 0.0}, {"centered": True, "eps": 0.01}), {}),
    (FadingRms, {"centered": True, "eps": 0.01}, ({}, {"centered": False}, {"momentum": 0.5}), {}),
)
by_case = pytest.mark.parametrize(
    ("cls", "kwargs", "changes", "told"), CASES, ids=[f"{case[0].__name__}-{i}" for i, case in enumerate(CASES)]
)


def grouped(params: list[Tensor], changes: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [
        {"params": [p for p, row in zip(params, LAYOUT, strict=True) if row[0] == index], **change}
        for index, change in enumerate(changes)
    ]


def reference(cls: Any, kwargs: Any, changes: Any, told: Any, grads: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
    params = [p.detach() for p in leaves(torch.float64)]
    states: list[dict[str, Any]] = [{} for _ in params]
    for row in grads:
        for p, g, state, (group, *_) in zip(params, row, states, LAYOUT, strict=True):
            if g is not None:
                REFERENCES[cls](p, g, state, **{**kwargs, **changes[group], **told})
    return params, states


@by_case
@pytest.mark.parametrize(("backend", "steps"), [("auto", 30), ("triton", 7)])
def test_trajectory(cls, kwargs, changes, told, backend, steps):
    """Params and slots, and only the slots that a group's numbers and flags ask for."""
    grads = gradients(steps, torch.float64)
    params = leaves(torch.float64)
    optimizer = cls(grouped(params, changes), backend=backend, **kwargs)
    follow(optimizer, params, grads)
    wanted, states = reference(cls, kwargs, changes, told, grads)
    met = [sum(row[i] is not None for row in grads) for i in range(len(params))]
    expected = {(i, "param"): p for i, p in enumerate(wanted)}
    for i, state in enumerate(states):
        if met[i]:
            expected[i, "step"] = torch.tensor(float(met[i]))
        expected |= {(i, name): value for name, value in state.items() if name != "t"}
    check_same(snapshot(optimizer, params), expected)


@each_class
def test_bfloat16_state_and_finite_steps(cls):
    params = leaves(torch.bfloat16)
    optimizer = cls(params, lr=0.01)
    follow(optimizer, params, gradients(5, torch.bfloat16))
    for p, state in optimizer.state.items():
        assert p.isfinite().all()
        assert {k: (v.dtype, v.shape) for k, v in state.items() if k != "step"} == {
            k: (p.dtype, p.shape) for k in state if k != "step"
        }


@each_class
def test_differentiable(cls):
    """Against finite differences of the same steps: h = 1e-6, error h² and 1e-16/h."""

    def end(lr: Tensor, **kwargs: Any) -> Tensor:
        p = torch.linspace(-1, 1, 4, dtype=torch.float64)
        optimizer = cls([p], lr=lr, **kwargs)
        for t in range(3):
            p.grad = torch.cos(torch.arange(4.0, dtype=torch.float64) + t)
            optimizer.step()
        return (p**2).sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(lr, differentiable=True), lr)
    h = 1e-6
    difference = (end(lr.detach() + h) - end(lr.detach() - h)) / (2 * h)
    assert slope.abs() > 0.01
    assert error(slope, difference) < 1e-8


# ---- saving, copying, the pure form ---------------------------------------------------------------------------------


@by_case
def test_state_dict_round_trip(cls, kwargs, changes, told):
    params = leaves(torch.float64)
    old = cls(grouped(params, changes), **kwargs)
    follow(old, params, gradients(7, torch.float64))
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new_params = [p.detach().clone().requires_grad_() for p in params]
    new = cls(grouped(new_params, ({}, {}, {})))
    new.load_state_dict(torch.load(file, weights_only=True))
    assert packed_groups(new) == packed_groups(old)
    check_same(snapshot(new, new_params), snapshot(old, params), tolerance=0)
    rest = gradients(5, torch.float64, first=7)
    check_same(trajectory(new, new_params, rest), trajectory(old, params, rest))


@each_class
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies(cls, duplicate):
    params = leaves(torch.float64)
    old = cls(params, lr=0.05)
    follow(old, params, gradients(3, torch.float64))
    new, new_params = duplicate((old, params))
    assert type(new) is cls
    rest = gradients(3, torch.float64, first=3)
    alone = trajectory(new, new_params, rest)
    check_same(trajectory(old, params, rest), alone)


@by_case
def test_to_pure_and_back(cls, kwargs, changes, told):
    """With one set of flags: groups that differ in them have no pure form."""
    flags = {"maximize", "centered"}
    changes = tuple({key: value for key, value in change.items() if key not in flags} for change in changes)
    params = leaves(torch.float64)
    optimizer = cls(grouped(params, changes), **kwargs)
    grads = gradients(9, torch.float64)
    follow(optimizer, params, grads[:3])
    opt, pure_params, state, hparams = optimizer.to_pure()
    for row in grads[3:6]:
        pure_params, state = opt(pure_params, row, state, hparams)
    optimizer.load_pure(pure_params, state)
    follow(optimizer, params, grads[6:])
    straight_params = leaves(torch.float64)
    straight = cls(grouped(straight_params, changes), **kwargs)
    follow(straight, straight_params, grads)
    check_same(snapshot(optimizer, params), snapshot(straight, straight_params))


@each_class
def test_scheduler(cls):
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = cls([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    lrs = []
    for _ in range(4):
        p.grad = torch.ones_like(p)
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert lrs == [0.1, 0.1, 0.05, 0.05]
    assert plain(scheduler.get_last_lr()) == [0.025]


def test_torchs_own_rules_through_from_pure():
    """SGD's class by hand has no step count; this one has, and the same steps."""
    cls = funcopt.optim.from_pure(funcopt.sgd(nesterov=True), "Sgd")
    ends = []
    for make in (lambda ps: cls(ps, 0.1, momentum=0.9), lambda ps: torch.optim.SGD(ps, 0.1, 0.9, nesterov=True)):
        params = leaves(torch.float64)
        optimizer = make(params)
        follow(optimizer, params, gradients(10, torch.float64))
        ends.append(snapshot(optimizer, params))
    counts = {key for key in ends[0] if key[1] == "step"}
    assert counts
    check_same({key: value for key, value in ends[0].items() if key not in counts}, ends[1])


def test_an_adapter_of_no_rule():
    with pytest.raises(TypeError, match=r"no rule of its own; make a class with funcopt\.optim\.from_pure"):
        Adapter(leaves(torch.float32))


@pytest.mark.parametrize("saver", [torch.optim.AdamW, funcopt.optim.AdamW])
def test_a_state_dict_of_the_optimizer_without_its_transforms(saver):
    """Numbers that the saved groups lack stay what they are; the rest is loaded."""
    opt = funcopt.ema(funcopt.clip_by_global_norm(funcopt.adamw(), max_norm=1e6), decay=0.75)
    values = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    grads = [[torch.randn(3, dtype=torch.float64) for _ in range(2)] for _ in range(6)]
    params = [v.clone().requires_grad_() for v in values]
    theirs = saver([{"params": [p]} for p in params], lr=0.5)
    follow(theirs, params, grads[:3])
    middle = [p.detach().clone() for p in params]
    copies = [p.clone().requires_grad_() for p in middle]
    ours = funcopt.optim.from_pure(opt, "Ours")(
        [{"params": [copies[0]], "max_norm": 1e7}, {"params": [copies[1]]}], lr=0.1
    )
    ours.load_state_dict(theirs.state_dict())
    assert [(g["max_norm"], g["ema_decay"], g["lr"]) for g in ours.param_groups] == [(1e7, 0.75, 0.5), (1e6, 0.75, 0.5)]
    follow(ours, copies, grads[3:4])
    for p, before in zip(copies, middle, strict=True):
        torch.testing.assert_close(ours.state[p]["ema"], 0.75 * before + 0.25 * p.detach(), rtol=1e-12, atol=0)
    follow(ours, copies, grads[4:])
    follow(theirs, params, grads[3:])
    torch.testing.assert_close(copies, params, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [funcopt.adamw, funcopt.optim.AdamW, "adamw"], ids=["rule", "class", "name"])
def test_what_is_no_pure_optimizer(given):
    with pytest.raises(TypeError, match=r"takes a pure optimizer, such as funcopt\.adamw\(\) returns; got "):
        funcopt.optim.from_pure(given)


def test_an_argument_that_there_is_not():
    with pytest.raises(TypeError, match=r"^Lion has no argument 'weight_deacy'; did you mean 'weight_decay'\?"):
        Lion(leaves(torch.float32), weight_deacy=0.1)


def test_a_number_of_a_group_that_is_none_or_gone():
    params = leaves(torch.float32)
    optimizer = Lion(params)
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["weight_decay"] = None
    with pytest.raises(TypeError, match="weight_decay in the param_groups must be a number; got None"):
        optimizer.step()
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="lr"):
        optimizer.step()
    torch.testing.assert_close(params, before, rtol=0, atol=0)


def test_a_state_dict_that_is_loaded_stays_the_callers():
    params = leaves(torch.float32)
    saved = funcopt.optim.SGD(params).state_dict()
    before = [dict(group) for group in saved["param_groups"]]
    Lion(params).load_state_dict(saved)
    assert saved["param_groups"] == before
