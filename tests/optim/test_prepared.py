"""Steps that are prepared, against torch.optim's: whatever was done to an optimizer since the last one is noticed."""

import contextlib
import copy
import gc
import pickle
import random
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from funcopt.kernels import host
from funcopt.kernels.plan import Plan
from tests.optim.runs import OURS, TORCH, check_same, snapshot

CLASSES = ("SGD", "Adam", "AdamW")
STATEFUL: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "AdamW": {}}

# Sums in another order, relative to the largest number: some dozens of roundings of 6e-8, which Adam's division by
# small second moments enlarges.
FLOAT32 = 1e-4


@pytest.fixture(autouse=True, params=["compiled", "Python"])
def looked(request, monkeypatch):
    """Who looks at the tensors before a step."""
    if request.param == "Python":
        monkeypatch.setattr(host, "_looking", lambda: None)


@pytest.fixture
def taken(monkeypatch):
    """An entry for each prepared step of a group."""
    steps = []
    plain = Plan.step

    def step(self, *args, **kwargs):
        steps.append(len(steps))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Plan, "step", step)
    return steps


@dataclass
class Side:
    """One of the two optimizers, and the parameters that it has or had."""

    params: list[Tensor]
    optimizer: Optimizer

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


class Draw:
    """Random choices and tensors, the same for both sides."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.random, self.dtype = random.Random(seed), dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator).to(self.dtype)

    def one(self, values: Any) -> Any:
        return self.random.choice(list(values))

    def some(self, values: Any) -> list[Any]:
        return [value for value in values if self.random.random() < 0.4]


def pair(name: str, shapes: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> tuple[Side, Side]:
    """Ours and torch's, on equal parameters."""
    values = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    sides = []
    for classes, own in ((OURS, {}), (TORCH, {"foreach": False})):
        params = [value.clone().requires_grad_() for value in values]
        sides.append(Side(params, classes[name](params, **kwargs, **own)))
    return sides[0], sides[1]


def give(*sides: Side, seed: int = 0) -> None:
    """New gradients, equal ones to both."""
    for side in sides:
        draw = Draw(seed, side.params[0].dtype)
        for p in side.params:
            p.grad = draw.normal(*p.shape)


def step(*sides: Side, steps: int = 1, first: int = 0) -> None:
    """Some steps with new gradients."""
    for t in range(first, first + steps):
        give(*sides, seed=t)
        for side in sides:
            side.optimizer.step()


def check(ours: Side, theirs: Side, tolerance: float = 1e-12) -> None:
    """That parameters and states agree; numbers of this size, also where terms of it cancel."""
    got, want = (snapshot(side.optimizer, side.params) for side in (ours, theirs))
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(
            got[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, k=key: f"{k}: {text}"
        )


# ---- everything that may happen between steps -----------------------------------------------------------------------

ACTIONS: dict[str, Callable[[Side, Draw], Any]] = {}


def action(f: Callable[[Side, Draw], Any]) -> Callable[[Side, Draw], Any]:
    ACTIONS[f.__name__] = f
    return f


@action
def other_gradients(side, draw):
    for p in side.params:
        p.grad = draw.normal(*p.shape)


@action
def no_gradient_for_some(side, draw):
    for p in draw.some(side.params):
        p.grad = None


@action
def gradients_written_in_place(side, draw):
    for p in side.params:
        if p.grad is not None:
            p.grad.copy_(draw.normal(*p.shape))


@action
def gradients_data_replaced(side, draw):
    for p in side.params:
        if p.grad is not None:
            p.grad.data = draw.normal(*p.shape)


@action
def gradients_that_lie_otherwise(side, draw):
    for p in side.params:
        p.grad = draw.normal(*reversed(p.shape)).permute(tuple(reversed(range(p.dim()))))


@action
def gradients_channels_last(side, draw):
    for p in side.params:
        if p.dim() == 4:
            p.grad = draw.normal(*p.shape).to(memory_format=torch.channels_last)


@action
def gradients_expanded(side, draw):
    for p in side.params:
        p.grad = draw.normal(*[1] * p.dim()).expand(p.shape)


@action
def gradients_that_are_negative_views(side, draw):
    for p in side.params:
        p.grad = torch.complex(draw.normal(*p.shape), draw.normal(*p.shape)).conj().imag


@action
def gradients_shared(side, draw):
    p, q = side.params[0], next(p for p in side.params[1:] if p.shape == side.params[0].shape)
    p.grad = q.grad


@action
def zero_grad(side, draw):
    side.optimizer.zero_grad(set_to_none=draw.one([False, True]))


@action
def lr(side, draw):
    draw.one(side.groups)["lr"] = draw.one([0.0, 0.02, 0.1, torch.tensor(0.05, dtype=torch.float64)])


@action
def lr_tensor_written_to(side, draw):
    group = draw.one(side.groups)
    group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    step_of(side)
    group["lr"].fill_(0.07)


@action
def weight_decay(side, draw):
    draw.one(side.groups)["weight_decay"] = draw.one([0, 0.0, 0.1, 0.3])


@action
def maximize(side, draw):
    group = draw.one(side.groups)
    group["maximize"] = not group["maximize"]


@action
def momentum_or_betas(side, draw):
    group, value = draw.one(side.groups), draw.one([0.9, 0.5, 0])
    if "betas" in group:
        group["betas"] = (float(value), 0.99)
    elif not group["nesterov"]:
        group["momentum"] = value


@action
def data_cloned(side, draw):
    p = draw.one(side.params)
    p.data = p.data.clone()


@action
def data_elsewhere(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(p.numel() + 3)[3:].view(p.shape)


@action
def data_transposed_in_memory(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(*reversed(p.shape)).permute(tuple(reversed(range(p.dim()))))


@action
def data_with_gaps(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(*p.shape, 2)[..., 0]


@action
def parameters_written_to(side, draw):
    with torch.no_grad():
        for p in draw.some(side.params):
            p.mul_(0.5)


@action
def slots_cloned(side, draw):
    for p in draw.some(side.params):
        state = side.optimizer.state.get(p, {})
        state.update({name: value.clone() for name, value in state.items()})


@action
def slots_data_replaced(side, draw):
    for p in draw.some(side.params):
        for name, value in side.optimizer.state.get(p, {}).items():
            if name != "step":
                value.data = value.data.clone() + 0.01


@action
def slots_that_lie_otherwise(side, draw):
    for p in draw.some(side.params):
        for name, value in side.optimizer.state.get(p, {}).items():
            if name != "step":
                turned = tuple(reversed(range(p.dim())))
                side.optimizer.state[p][name] = value.permute(turned).contiguous().permute(turned)


@action
def step_count_replaced(side, draw):
    for p in draw.some(side.params):
        if "step" in side.optimizer.state.get(p, {}):
            side.optimizer.state[p]["step"] = torch.tensor(2.0)


@action
def step_count_written_to(side, draw):
    for p in draw.some(side.params):
        if "step" in side.optimizer.state.get(p, {}):
            side.optimizer.state[p]["step"].fill_(7)


@action
def state_replaced_by_an_equal_dict(side, draw):
    for p in draw.some(side.params):
        if p in side.optimizer.state:
            side.optimizer.state[p] = dict(side.optimizer.state[p])


@action
def state_popped(side, draw):
    side.optimizer.state.pop(draw.one(side.params), None)


@action
def state_of_all_replaced(side, draw):
    state = side.optimizer.state
    side.optimizer.state = type(state)(dict, {p: dict(own) for p, own in state.items()})


@action
def deepcopied(side, draw):
    side.params, side.optimizer = copied(side, copy.deepcopy)


@action
def pickled(side, draw):
    side.params, side.optimizer = copied(side, lambda value: pickle.loads(pickle.dumps(value)))


def copied(side: Side, duplicate: Any) -> Any:
    grads = [None if p.grad is None else p.grad.clone() for p in side.params]
    params, optimizer = duplicate((side.params, side.optimizer))
    for p, g in zip(params, grads, strict=True):
        p.grad = g  # a copy has none
    return params, optimizer


@action
def group_added(side, draw):
    if len(side.groups) < 4:
        p = draw.normal(3, 2).requires_grad_()
        side.params.append(p)
        side.optimizer.add_param_group({"params": [p], "lr": 0.03})


@action
def frozen_or_thawed(side, draw):
    p = draw.one(side.params)
    p.requires_grad_(not p.requires_grad)


@action
def moved_to_another_group(side, draw):
    source, target = draw.one(side.groups)["params"], draw.one(side.groups)["params"]
    if len(source) > 1:
        target.append(source.pop(draw.random.randrange(len(source))))


@action
def taken_out_and_put_back(side, draw):
    p = side.groups[0]["params"].pop()
    step_of(side)
    side.groups[0]["params"].insert(0, p)


@action
def groups_in_another_order(side, draw):
    side.groups.reverse()


@action
def threads(side, draw):
    torch.set_num_threads(draw.one([1, 2]))


@action
def under_no_grad(side, draw):
    with torch.no_grad():
        step_of(side)


def step_of(side: Side) -> None:
    side.optimizer.step()


def loaded(sides: tuple[Side, Side], draw: Draw) -> None:
    """Each loads its own state_dict, or the other's."""
    saved = [copy.deepcopy(side.optimizer.state_dict()) for side in sides]
    if draw.one([False, True]):
        saved.reverse()
    for side, state_dict in zip(sides, saved, strict=True):
        backend = {"foreach": False} if type(side.optimizer).__module__.startswith("torch") else {}
        side.optimizer.load_state_dict(state_dict)
        for group in side.groups:
            group.update(backend)


RUNS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "amsgrad": ("Adam", {"lr": 0.1, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.1}),
}
SHAPES = [(4, 3), (4, 3), (), (1,), (0, 2), (3, 3), (2, 3, 2, 2), (70,)]


@pytest.fixture
def one_thread_after():
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "seed"),
    [*((torch.float64, 1e-12, seed) for seed in range(4)), (torch.float32, FLOAT32, 4)],
    ids=str,
)
@pytest.mark.parametrize(("name", "kwargs"), RUNS.values(), ids=RUNS.keys())
def test_whatever_happens_between_steps(name, kwargs, dtype, tolerance, seed, taken, one_thread_after):
    sides = pair(name, SHAPES, dtype, **kwargs)
    for side in sides:
        group = side.optimizer.param_groups[0]
        params = group["params"]
        side.optimizer.add_param_group({"params": [params.pop(5)], "weight_decay": 0.1})
    script = Draw(seed, dtype)
    names = [*ACTIONS, "loaded"]
    script.random.shuffle(names)
    groups = 0
    for t, what in enumerate(names):
        print(t, what)  # what pytest shows of a failure
        if script.one([True, True, False]):
            for side in sides:
                other_gradients(side, Draw(1000 * seed + t, dtype))
        if what == "loaded":
            loaded(sides, Draw(t, dtype))
        else:
            for side in sides:
                ACTIONS[what](side, Draw(1000 * seed + t, dtype))
        for _ in range(2):
            for side in sides:
                side.optimizer.step()
            groups += len(sides[0].groups)
            check(*sides, tolerance=tolerance)
    assert len(taken) > groups / 4


# ---- one thing at a time -----------------------------------------------------------------------------------------

each_class = pytest.mark.parametrize(("name", "kwargs"), STATEFUL.items(), ids=STATEFUL.keys())


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


MISFITS = {"slot": (spoil_slot, "buffer|exp_avg"), "sparse gradient": (spoil_gradient, "does not support sparse")}


@each_class
@pytest.mark.parametrize(("spoil", "message"), MISFITS.values(), ids=MISFITS.keys())
@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("group", [0, 1])
def test_a_misfit_is_refused_before_anything_changes(name, kwargs, spoil, message, zero_grad, group, taken):
    """Also where the other group, before or after it, is prepared."""
    ours, theirs = pair(name, [(3,), (2, 2), (3,)], **kwargs)
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
