"""Steps that are prepared, against torch.optim's: whatever was done to an optimizer since the last one is noticed."""

import contextlib
import copy
import gc
import tracemalloc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from funcopt.kernels.plan import Plan
from tests.optim.runs import OURS, TORCH, check_same, snapshot
from tests.optim.sides import Side, check, each_class, give, pair, step

pytestmark = pytest.mark.usefixtures("looked")

# ---- one thing at a time -----------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(name, kwargs, dtype, taken):
    """Each step is torch's in float32, rounded once; and bit for bit what steps from scratch come to."""
    ours, theirs = pair(name, [(4, 3), (70,), ()], torch.float32, **kwargs)
    for p in ours.params:
        p.data = p.data.to(dtype)
    scratch = copy.deepcopy(ours)
    scratch.optimizer._stepper._turn = lambda index, group: None
    for t in range(5):
        for p, q in zip(ours.params, theirs.params, strict=True):
            q.data = p.detach().float()
        theirs.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
        give(ours, scratch, seed=t)
        for p, q in zip(ours.params, theirs.params, strict=True):
            q.grad = p.grad.float()
        for side in (ours, scratch, theirs):
            side.optimizer.step()
        check(ours, scratch, tolerance=0)
        want = snapshot(theirs.optimizer, theirs.params)
        for key, value in snapshot(ours.optimizer, ours.params).items():
            torch.testing.assert_close(value.float(), want[key], rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert len(taken) == 4


@each_class
def test_what_one_preparation_serves_for(name, kwargs, taken):
    """New gradients, None for some, other numbers, other step counts: every step after the first is prepared."""
    ours, theirs = pair(name, [(4, 3), (70,), (), (3,)], **kwargs)
    for t in range(9):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            for p in side.params[: t % 4]:
                p.grad = None
            side.groups[0]["lr"] = torch.tensor(0.1 / (t + 1), dtype=torch.float64) if t % 2 else 0.1
            side.groups[0]["weight_decay"] = 0.1 * (t % 3)
            side.optimizer.step()
        check(ours, theirs)
    assert len(taken) == 8


@each_class
@pytest.mark.parametrize("what", ["data", "slot", "slot in place"])
def test_the_same_memory_read_in_another_order(name, kwargs, what, taken):
    """A square's rows made its columns: it stays where it is."""
    ours, theirs = pair(name, [(3, 3), (3, 3)], **kwargs)
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        p = side.params[0]
        state = side.optimizer.state[p]
        slot = next(slot for slot in state if slot != "step")
        if what == "data":
            p.data = p.data.t()
        elif what == "slot":
            state[slot].data = state[slot].data.t()
        else:
            state[slot].t_()
    step(ours, theirs, steps=3, first=3)
    check(ours, theirs)
    assert taken


@each_class
def test_a_parameter_of_another_shape_in_the_same_memory(name, kwargs):
    ours, theirs = pair(name, [(6, 2), (3, 3)], **kwargs)
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        p = side.params[0]
        p.data = p.data[:3]
        state = side.optimizer.state[p]
        state.update({slot: value[:3] for slot, value in state.items() if slot != "step"})
    step(ours, theirs, steps=3, first=3)
    check(ours, theirs)


@each_class
def test_two_parameters_exchange_their_states(name, kwargs):
    ours, theirs = pair(name, [(3, 3), (3, 3)], **kwargs)
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        p, q = side.params
        state = side.optimizer.state
        of_p, of_q = state.pop(p), state.pop(q)
        state[q], state[p] = of_p, of_q
    step(ours, theirs, steps=3, first=3)
    check(ours, theirs)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("all_of_them", [False, True])
def test_step_counts_of_another_dtype(name, dtype, all_of_them):
    ours, theirs = pair(name, [(3, 3), (2,)])
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        for p in side.params if all_of_them else side.params[:1]:
            side.optimizer.state[p]["step"] = torch.tensor(3, dtype=dtype)
    step(ours, theirs, steps=3, first=3)
    check(ours, theirs)


NEGATIVE = {
    "one element": ((1,), lambda g: torch.complex(g, g).conj().imag),
    "every other": ((4, 3), lambda g: torch.complex(g, g).conj().imag),
    "all": ((4, 3), torch._neg_view),
}


@pytest.mark.parametrize(("shape", "view"), NEGATIVE.values(), ids=NEGATIVE.keys())
def test_negative_views_as_gradients(shape, view):
    ours, theirs = pair("AdamW", [shape, (2,)])
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        side.params[0].grad = view(torch.ones(shape, dtype=torch.float64))
        assert side.params[0].grad.is_neg()
        side.optimizer.step()
    check(ours, theirs)


@each_class
def test_a_tensor_that_is_the_gradient_of_two(name, kwargs, taken):
    ours, theirs = pair(name, [(3,), (3,)], **kwargs)
    for t in range(3):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            side.params[1].grad = side.params[0].grad
            side.optimizer.step()
    check(ours, theirs)
    assert taken


@each_class
def test_sizes(name, kwargs, taken):
    ours, theirs = pair(name, [(0,), (), (2, 0), (1,), (1, 1)], **kwargs)
    step(ours, theirs, steps=3)
    check(ours, theirs)
    assert len(taken) == 2


@each_class
def test_nothing_but_empty_tensors(name, kwargs):
    ours, theirs = pair(name, [(0,), (2, 0)], **kwargs)
    step(ours, theirs, steps=3)
    check(ours, theirs)


@each_class
def test_more_than_a_thousand(name, kwargs, taken):
    """Of which every third has no gradient at every other step, so that their step counts differ."""
    ours, theirs = pair(name, [(n % 7, n % 3) for n in range(1001)], **kwargs)
    for t in range(5):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            for p in side.params[: 1001 * (t % 2) : 3]:
                p.grad = None
            side.optimizer.step()
    for i in range(0, 1001, 50):
        check(Side(ours.params[i : i + 5], ours.optimizer), Side(theirs.params[i : i + 5], theirs.optimizer))
    assert len(taken) >= 2


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(("name", "kwargs"), [("Adam", {"amsgrad": True}), ("AdamW", {})])
def test_a_parameter_twice_in_a_group(name, kwargs):
    ours, theirs = pair(name, [(3,), (2, 2)], **kwargs)
    for side, classes, own in ((ours, OURS, {}), (theirs, TORCH, {"foreach": False})):
        side.optimizer = classes[name]([*side.params, side.params[0]], **kwargs, **own)
    step(ours, theirs, steps=4)
    check(ours, theirs)


def test_gradients_in_a_dtype_of_their_own(taken):
    """As autograd gives them to a bfloat16 parameter whose grad_dtype is float32."""
    params = [torch.ones(5, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    for p in params:
        p.grad_dtype = torch.float32
    optimizer = OURS["SGD"](params, lr=0.5)
    for present in ([0, 1], [0], [1], [0, 1], [0, 1]):
        for i, p in enumerate(params):
            p.grad = torch.full((5,), 0.125 + 2**-12) if i in present else None  # no number of bfloat16
        before = [p.detach().float() for p in params]
        optimizer.step()
        for i, p in enumerate(params):
            want = before[i] - 0.5 * (0.125 + 2**-12) if i in present else before[i]
            assert torch.equal(p, want.bfloat16())
    assert taken


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@each_class
def test_steps_in_a_mode(name, kwargs, mode, taken):
    ours, theirs = pair(name, [(4, 3), (2,)], **kwargs)
    step(ours, theirs, steps=2)
    with mode():
        step(ours, theirs, steps=3, first=2)  # the gradients are made here too
    step(ours, theirs, steps=1, first=5)
    check(ours, theirs)
    assert len(taken) == 5


def test_a_group_that_is_differentiable_beside_one_that_is_prepared(taken):
    values = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    grads = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    plain, watched = values[0].clone().requires_grad_(), values[1].clone()
    groups = [{"params": [plain]}, {"params": [watched], "differentiable": True}]
    optimizer = OURS["SGD"](groups, lr=0.1, momentum=0.9)
    twins = [value.clone().requires_grad_() for value in values]
    reference = torch.optim.SGD(twins, lr=0.1, momentum=0.9)
    for row in grads:
        plain.grad, watched.grad = row[0].detach().clone(), row[1]
        for q, g in zip(twins, row, strict=True):
            q.grad = g.detach().clone()
        optimizer.step()
        reference.step()
    for p, q in zip((plain, watched), twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0, check_stride=False)
    assert len(taken) == 3
    assert plain.is_leaf
    (slope,) = torch.autograd.grad(watched.sum(), grads)
    # The gradient of step t is in the buffer, times 0.9 a step, for all of the steps that follow.
    want = torch.tensor([-0.1 * sum(0.9**k for k in range(4 - t)) for t in range(4)], dtype=torch.float64)
    torch.testing.assert_close(slope[:, 1], want[:, None].expand(4, 3), rtol=1e-12, atol=0)
    assert not slope[:, 0].any()


# ---- what autograd sees ---------------------------------------------------------------------------------------------


def test_autograd_sees_which_parameters_were_written(taken):
    ours, theirs = pair("SGD", [(3,), (3,)], momentum=0.9)
    step(ours, theirs, steps=2)
    for side in (ours, theirs):
        losses = [p.square().sum() for p in side.params]
        side.params[1].grad = None
        side.optimizer.step()
        losses[1].backward()  # it had no gradient, and was left alone
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses[0].backward()
    assert len(taken) == 2


@each_class
def test_autograd_sees_which_slots_were_written(name, kwargs, taken):
    ours, theirs = pair(name, [(3,), (3,)], **kwargs)
    step(ours, theirs, steps=2)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for side in (ours, theirs):
        states = [side.optimizer.state[p] for p in side.params]
        for slot in states[0].keys() - {"step"}:
            seen = [(weight * state[slot]).sum() for state in states]
            give(side)
            side.params[1].grad = None
            side.optimizer.step()
            seen[1].backward()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                seen[0].backward()
    assert len(taken) > 1


# ---- refusals -------------------------------------------------------------------------------------------------------


def spoil_slot(optimizer, p):
    slot = next(slot for slot in optimizer.state[p] if slot != "step")
    optimizer.state[p][slot] = torch.zeros(1, dtype=p.dtype)


def spoil_gradient(optimizer, p):
    p.grad = p.grad.to_sparse()


# With weight decay SGD takes no sparse gradients either.
SPARSE = "does not support sparse|weight_decay option is not compatible with sparse"
MISFITS = {"slot": (spoil_slot, "buffer|exp_avg"), "sparse gradient": (spoil_gradient, SPARSE)}


@each_class
@pytest.mark.parametrize(("spoil", "message"), MISFITS.values(), ids=MISFITS.keys())
@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("group", [0, 1])
def test_a_misfit_is_refused_before_anything_changes(name, kwargs, spoil, message, zero_grad, group, taken):
    """Also where the other group, before or after it, is prepared."""
    ours, theirs = pair(name, [(3,), (2, 2), (3,)], **kwargs, weight_decay=0.1)
    for side in (ours, theirs):
        side.groups[0]["params"].pop()
        side.optimizer.add_param_group({"params": [side.params[2]]})
    step(ours, theirs, steps=2)
    give(ours, theirs, seed=2)
    before = snapshot(ours.optimizer, ours.params)
    p = ours.params[2 * group]
    state, grad = dict(ours.optimizer.state[p]), p.grad
    spoil(ours.optimizer, p)
    spoilt = snapshot(ours.optimizer, ours.params)
    versions = [q._version for q in ours.params]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            ours.optimizer.step(zero_grad=zero_grad)
    check_same(snapshot(ours.optimizer, ours.params), spoilt, tolerance=0)
    assert [q._version for q in ours.params] == versions
    assert all(q.grad.to_dense().all() for q in ours.params)
    ours.optimizer.state[p].update(state)
    p.grad = grad
    check_same(snapshot(ours.optimizer, ours.params), before, tolerance=0)
    for side in (ours, theirs):
        side.optimizer.step()
    check(ours, theirs)
    assert len(taken) == 4


# ---- memory ---------------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("zero_grad", [False, True])
def test_gradients_are_let_go(name, kwargs, steps, zero_grad):
    ours, _ = pair(name, [(3,), (2, 2)], **kwargs)
    held = []
    for t in range(steps):
        give(ours, seed=t)
        held += [weakref.ref(p.grad) for p in ours.params]
        ours.optimizer.step(zero_grad=zero_grad)
    ours.optimizer.zero_grad()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


@each_class
def test_parameters_of_a_group_that_is_gone_are_let_go(name, kwargs):
    ours, _ = pair(name, [(3,), (2, 2)], **kwargs)
    ours.optimizer.add_param_group({"params": [ours.groups[0]["params"].pop()]})
    step(ours, steps=3)
    held = weakref.ref(ours.params[1])
    ours.optimizer.state.pop(ours.params.pop())
    ours.groups.pop()
    step(ours, steps=2)
    gc.collect()
    assert held() is None


@each_class
def test_nothing_grows(name, kwargs, taken):
    """Neither the number of tensors there are nor what Python has allocated, whatever moves between steps."""
    ours, _ = pair(name, [(3,), (2, 2), ()], **kwargs)

    def steps(number):
        for t in range(number):
            give(ours, seed=t)
            if t % 3 == 0:
                ours.params[t % 2].grad = None
            if t % 5 == 0:
                ours.params[2].data = ours.params[2].data.clone()
            ours.groups[0]["lr"] = 0.1 / (1 + t)
            ours.optimizer.step(zero_grad=t % 2 == 0)
        ours.optimizer.zero_grad()
        gc.collect()
        return sum(issubclass(type(value), Tensor) for value in gc.get_objects())

    steps(10)
    tracemalloc.start()
    tensors = steps(10)
    allocated, _ = tracemalloc.get_traced_memory()
    assert steps(60) <= tensors
    assert tracemalloc.get_traced_memory()[0] < allocated + 12_000  # 200 bytes a step would be noticed
    tracemalloc.stop()
    assert len(taken) > 60


# ---- what shares memory, and who lets go ----------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("elements", [5, 200_000])
def test_parameters_that_share_memory_are_stepped_one_after_the_other(name, kwargs, elements):
    ours, theirs = pair(name, [(elements,), (elements,)], **kwargs)
    for side in (ours, theirs):
        side.params[1].data = side.params[0].data
    for t in range(4):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            side.optimizer.step()
        check(ours, theirs)


def test_parameters_that_come_to_share_memory():
    ours, theirs = pair("AdamW", [(200_000,), (200_000,)])
    step(ours, theirs, steps=3)
    for side in (ours, theirs):
        side.params[1].data = side.params[0].data
    step(ours, theirs, steps=3, first=3)
    check(ours, theirs)


def test_gradients_live_until_the_step_is_taken(monkeypatch):
    """Another thread may let go of them while the kernel runs."""
    ours, theirs = pair("AdamW", [(300,), (20,)])
    step(ours, theirs, steps=2)
    plain = Plan.step

    def letting_go(self, *args, **kwargs):
        seen = [weakref.ref(p.grad) for p in ours.params]
        for p in ours.params:
            p.grad = None
        gc.collect()
        assert all(ref() is not None for ref in seen)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Plan, "step", letting_go)
    step(ours, theirs)
    check(ours, theirs)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_parameter_of_another_dtype_that_joins_later(name, backend):
    """Its own step count, also beside those of the first dtype."""
    values = [torch.randn(7), torch.randn(7, dtype=torch.float64)]
    ends = []
    for classes, own in ((OURS, {"backend": backend}), (TORCH, {"foreach": False})):
        params = [value.clone().requires_grad_() for value in values]
        optimizer = classes[name](params, lr=0.1, **own)
        for t in range(5):
            params[0].grad = torch.full((7,), 0.1 * (t + 1))
            params[1].grad = torch.full((7,), 0.1 * (t + 1), dtype=torch.float64) if t >= 3 else None
            optimizer.step()
        ends.append(params)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_nothing_is_stepped_where_the_numbers_of_a_later_group_fail():
    ours, _ = pair("AdamW", [(3,), (4,)])
    ours.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]})
    ours.params.append(ours.groups[1]["params"][0])
    step(ours, steps=2)
    before = snapshot(ours.optimizer, ours.params)
    ours.groups[1]["betas"] = (0.9, 3.0)
    with pytest.raises((ValueError, OverflowError)):
        ours.optimizer.step()
    check_same(snapshot(ours.optimizer, ours.params), before)


@each_class
def test_steps_under_a_dispatch_mode(name, kwargs):
    """Prepared before it or not."""
    ours, theirs = pair(name, [(3,), (2, 2)], **kwargs)
    for t in range(6):
        give(ours, theirs, seed=t)
        for side in (ours, theirs):
            with FlopCounterMode(display=False) if t % 4 < 2 else contextlib.nullcontext():
                side.optimizer.step()
        check(ours, theirs)
