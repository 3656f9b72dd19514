"""What GradScaler and `step(zero_grad=True)` add to a step, prepared or not, against torch.optim's."""

import pytest
import torch

from tests.optim.actions import ACTIONS, other_gradients
from tests.optim.runs import OURS, TORCH, check_same, snapshot
from tests.optim.sides import FLOAT32, Draw, Side, check, each_class, give, pair, step

pytestmark = pytest.mark.usefixtures("looked")

# ---- GradScaler -----------------------------------------------------------------------------------------------------


# Where the first step is skipped, torch's fused SGD goes on from memory that nobody has written.
SCALED = {
    "SGD": ("SGD", {"momentum": 0.9, "dampening": 0.5}, (3, 4), True),
    "SGD from the start": ("SGD", {"momentum": 0.9, "dampening": 0.5}, (0, 1, 4), False),
    "Adam": ("Adam", {"amsgrad": True}, (0, 1, 4), True),
    "AdamW": ("AdamW", {}, (0, 3, 4), True),
}


@pytest.mark.parametrize("unscale_before", [False, True])
@pytest.mark.parametrize(("name", "kwargs", "infinite", "like_fused"), SCALED.values(), ids=SCALED.keys())
def test_grad_scaler(name, kwargs, infinite, like_fused, unscale_before, taken):
    """As torch's fused class, down to the state that a skipped first step makes; as the other, where it has a state."""
    values = [torch.randn(4, 3), torch.randn(5)]
    sides, scalers = [], []
    for classes, own in ((OURS, {}), (TORCH, {"foreach": False}), (TORCH, {"fused": True}))[: 2 + like_fused]:
        params = [value.clone().requires_grad_() for value in values]
        sides.append(Side(params, classes[name](params, lr=0.1, **kwargs, **own)))
        scalers.append(torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2))
    for t in range(9):
        for side, scaler in zip(sides, scalers, strict=True):
            side.optimizer.zero_grad()
            scaler.scale(sum(p.square().sum() for p in side.params)).backward()
            if t in infinite:
                side.params[0].grad[0, 0] = torch.inf
            if t == 5:
                side.params[1].grad = None
            if unscale_before:
                scaler.unscale_(side.optimizer)
            scaler.step(side.optimizer)
            scaler.update()
        ours, plain, *fused = (snapshot(side.optimizer, side.params) for side in sides)
        made = {key: value for key, value in ours.items() if key in plain}
        for own, other in [(made, plain), *((ours, f) for f in fused)]:
            assert own.keys() == other.keys()
            for key, value in other.items():
                torch.testing.assert_close(own[key], value, rtol=FLOAT32, atol=FLOAT32)
        assert len({scaler.get_scale() for scaler in scalers}) == 1
    assert len(taken) > 4


# ---- step(zero_grad=True) -------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize(
    "what",
    [
        "other_gradients",
        "no_gradient_for_some",
        "gradients_written_in_place",
        "gradients_that_lie_otherwise",
        "gradients_that_are_negative_views",
        "data_cloned",
        "state_popped",
    ],
)
def test_zeroing_in_the_step_is_zeroing_after_it(name, kwargs, what, taken):
    sides = pair(name, [(4, 3), (4, 3), (), (0, 2), (70,)], **kwargs)
    for t in range(6):
        grads = []
        for side in sides:
            draw = Draw(t, torch.float64)
            other_gradients(side, draw)
            if t % 3 == 2:
                ACTIONS[what](side, draw)
            grads.append([p.grad for p in side.params])
        sides[0].optimizer.step(zero_grad=True)
        sides[1].optimizer.step()
        sides[1].optimizer.zero_grad(set_to_none=False)
        check(*sides)
        for side, given in zip(sides, grads, strict=True):
            for p, g in zip(side.params, given, strict=True):
                assert p.grad is g
                assert g is None or not g.any()
    assert taken


@each_class
def test_zeroing_in_the_step_where_there_is_nothing_to_zero(name, kwargs):
    ours, _ = pair(name, [(3,), (2,)], **kwargs)
    for t in range(3):
        before = snapshot(ours.optimizer, ours.params)
        ours.optimizer.zero_grad()
        ours.optimizer.step(zero_grad=True)
        check_same(snapshot(ours.optimizer, ours.params), before, tolerance=0)
        assert all(p.grad is None for p in ours.params)
        step(ours, first=t)


@pytest.mark.parametrize("groups", [1, 2])
def test_zeroing_in_the_step_where_two_parameters_have_one_gradient(groups):
    ours, theirs = pair("SGD", [(3,), (3,)], lr=0.1)
    if groups == 2:
        for side in (ours, theirs):
            side.optimizer.add_param_group({"params": [side.groups[0]["params"].pop()]})
    for t in range(3):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            side.params[1].grad = side.params[0].grad
        ours.optimizer.step(zero_grad=True)
        theirs.optimizer.step()
        assert not ours.params[0].grad.any()
        check(ours, theirs)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@each_class
def test_zeroing_in_the_step_lets_go_of_the_graph(name, kwargs, taken):
    """As zero_grad does with gradients of create_graph=True: what is added to them next is no derivative of it."""
    ours, _ = pair(name, [(3,), (2,)], **kwargs)
    for _ in range(3):
        for p in ours.params:
            p.grad = None
        sum((p**3).sum() for p in ours.params).backward(create_graph=True)
        assert all(p.grad.requires_grad for p in ours.params)
        ours.optimizer.step(zero_grad=True)
        assert not any(p.grad.requires_grad for p in ours.params)
    assert taken


def test_zeroing_in_the_step_is_seen_by_autograd(taken):
    ours, _ = pair("AdamW", [(3,)])
    step(ours, steps=2)
    (p,) = ours.params
    loss = (torch.ones(3, dtype=torch.float64, requires_grad=True) * p.grad).sum()
    ours.optimizer.step(zero_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert len(taken) == 2


@each_class
def test_zeroing_in_a_step_that_is_skipped(name, kwargs):
    ours, _ = pair(name, [(3,), (2,)], torch.float32, **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for t in range(4):
        before = snapshot(ours.optimizer, ours.params)
        scaler.scale(sum(p.square().sum() for p in ours.params)).backward()
        if t > 1:
            ours.params[0].grad[0] = torch.nan
        if t == 3:
            ours.params[1].grad = None
        scaler.step(ours.optimizer, zero_grad=True)
        scaler.update()
        assert all(p.grad is None or p.grad.eq(0).all() for p in ours.params)
        if t > 1:
            check_same(snapshot(ours.optimizer, ours.params), before, tolerance=0)


def test_zeroing_in_the_step_of_gradients_that_overlap():
    """Not in the pass: the second one is still to be read when the first one is done."""
    for zero_grad in (False, True):
        a, b = torch.zeros(4, requires_grad=True), torch.zeros(3, requires_grad=True)
        optimizer = OURS["SGD"]([{"params": [a]}, {"params": [b]}], lr=1.0)
        buffer = torch.ones(4)
        for _ in range(3):
            buffer.fill_(1)
            a.grad, b.grad = buffer, buffer[1:]
            optimizer.step(zero_grad=zero_grad)
        assert a.eq(-3).all()
        assert b.eq(-3).all()
        assert buffer.any() != zero_grad
