"""Flat storage, against torch.optim: the same numbers whatever happens to the tensors, and buffers again after it."""

import copy
import gc
import io
import itertools
import pickle
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from funcopt.kernels.plan import Plan
from tests.optim.runs import OURS, TORCH, check_same, packed_groups, snapshot

# Torch's advice on create_graph, and on gradients that lie otherwise than their parameters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),
    pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract"),
]

STATEFUL: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 0.02, "amsgrad": True},
    "AdamW": {"lr": 0.02, "weight_decay": 0.1},
}
each_class = pytest.mark.parametrize(("name", "kwargs"), STATEFUL.items(), ids=STATEFUL.keys())


class Net(nn.Module):
    """Weights tied and channels last, a 0-d parameter and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.middle = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.middle.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).tanh().mean((2, 3))
        return self.last(self.scale * self.tied(self.middle(x).tanh()) + self.empty.sum())


@dataclass
class Side:
    """One of the two optimizers, and its model."""

    net: Net
    optimizer: Optimizer

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def ours(self) -> bool:
        return type(self.optimizer) in OURS.values()

    def backward(self, t: int, **kwargs: Any) -> None:
        """The gradients of step t; those that the loss does not reach are 0, as in flat storage."""
        random = torch.Generator().manual_seed(t)
        x = torch.randn(3, 2, 5, 5, generator=random, dtype=torch.float64).to(self.net.scale.dtype)
        self.net(x).square().mean().backward(**kwargs)
        for p in self.params:
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)

    def train(self, first: int, steps: int = 3) -> None:
        for t in range(first, first + steps):
            self.zero_grad()
            self.backward(t)
            self.optimizer.step()

    def zero_grad(self) -> None:
        """As in flat storage: to 0, and to None for what needs no gradient."""
        self.optimizer.zero_grad(set_to_none=False)
        for p in self.params:
            if not self.ours and not p.requires_grad:
                p.grad = None


def pair(name: str, dtype: torch.dtype = torch.float64, **kwargs: Any) -> tuple[Side, Side]:
    """Ours, in flat storage, and torch's, of equal models."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    ours, theirs = Side(net, None), Side(copy.deepcopy(net), None)
    ours.optimizer = OURS[name](ours.net.parameters(), **kwargs)
    assert ours.optimizer.flatten() is ours.optimizer
    theirs.optimizer = TORCH[name](theirs.net.parameters(), foreach=False, **kwargs)
    return ours, theirs


def check(ours: Side, theirs: Side, tolerance: float = 1e-12) -> None:
    got, want = (snapshot(side.optimizer, side.params) for side in (ours, theirs))
    assert got.keys() == want.keys()
    for key, value in want.items():
        name = str(key)
        torch.testing.assert_close(got[key], value, rtol=tolerance, atol=tolerance, msg=lambda s, name=name: name + s)


def check_flat(optimizer: Optimizer) -> None:
    """That parameters, gradients and slots are views of one storage for each group, kind and dtype."""
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.requires_grad and p.numel()]
        slots = {name for p in params for name in optimizer.state.get(p, {}) if name != "step"}
        columns = [params, [p.grad for p in params]]
        columns += [[optimizer.state[p][name] for p in params] for name in slots]
        storages = []
        for column in columns:
            assert all(t.stride() == p.stride() for t, p in zip(column, params, strict=True))
            assert all(t.data_ptr() % 64 == column[0].data_ptr() % 64 for t in column)
            found = {(t.untyped_storage().data_ptr(), t.dtype) for t in column}
            assert len(found) == len({p.dtype for p in params})
            storages += found
        assert len(storages) == len(set(storages))
    for p, q in itertools.combinations([p for group in optimizer.param_groups for p in group["params"]], 2):
        assert not p.numel() or not q.numel() or p.data_ptr() != q.data_ptr()


# ---- everything that may happen -------------------------------------------------------------------------------------

EVENTS: dict[str, Callable[[Side], Any]] = {}


def event(f: Callable[[Side], Any]) -> Callable[[Side], Any]:
    EVENTS[f.__name__] = f
    return f


@event
def nothing(side):
    pass


@event
def flattened_again(side):
    if side.ours:
        assert side.optimizer.flatten() is side.optimizer


@event
def gradients_of_the_model_to_none(side):
    side.net.zero_grad()
    side.backward(50)
    side.optimizer.step()


@event
def gradients_of_the_model_to_zero(side):
    side.net.zero_grad(set_to_none=False)
    side.backward(50)
    side.optimizer.step()


@event
def gradients_to_none_and_a_step(side):
    side.net.zero_grad()
    side.optimizer.step()


@event
def gradients_accumulated(side):
    for t in (50, 51):
        side.backward(t)
    side.optimizer.step()


@event
def gradients_in_a_graph(side):
    side.backward(50, create_graph=True)
    for p in side.params:
        if p.grad is not None:
            p.grad = p.grad.detach()
    side.optimizer.step()


@event
def gradients_given(side):
    """By the user, also such that lie otherwise."""
    for p in side.params:
        g = torch.linspace(-1, 1, p.numel(), dtype=p.dtype)
        p.grad = g.reshape(p.shape[::-1]).permute(tuple(reversed(range(p.dim()))))
    side.optimizer.step()


@event
def gradients_data_given(side):
    for p in side.params:
        if p.grad is not None:
            p.grad.data = torch.ones_like(p)
    side.optimizer.step()


@event
def gradients_clipped(side):
    side.backward(50)
    nn.utils.clip_grad_norm_(side.net.parameters(), 0.01)
    side.optimizer.step()


@event
def zeroed_in_the_step(side):
    for t in (50, 51, 52):
        side.backward(t)
        if side.ours:
            side.optimizer.step(zero_grad=True)
        else:
            side.optimizer.step()
            side.optimizer.zero_grad(set_to_none=False)


@event
def state_loaded(side):
    side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


@event
def state_popped(side):
    side.optimizer.state.pop(side.params[1])


@event
def all_state_dropped(side):
    side.optimizer.state.clear()


@event
def state_replaced(side):
    for p in side.params[:2]:
        side.optimizer.state[p] = {slot: value.clone() for slot, value in side.optimizer.state[p].items()}


@event
def model_loaded(side):
    side.net.load_state_dict({name: value + 0.1 for name, value in side.net.state_dict().items()})


@event
def model_loaded_by_assignment(side):
    """New parameters: the optimizer has the old ones, as with torch's."""
    held = dict(side.net.named_parameters())
    side.net.load_state_dict({name: value + 0.1 for name, value in side.net.state_dict().items()}, assign=True)
    for name, p in held.items():
        owner, _, attribute = name.rpartition(".")
        setattr(side.net.get_submodule(owner), attribute, p)
    side.net.tied.weight = side.net.middle.weight


@event
def deepcopied(side):
    side.net, side.optimizer = copy.deepcopy((side.net, side.optimizer))


@event
def pickled(side):
    side.net, side.optimizer = pickle.loads(pickle.dumps((side.net, side.optimizer)))


@event
def group_added(side):
    side.net.last = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        side.net.last.weight.copy_(torch.linspace(-1, 1, 16).view(4, 4))
    side.optimizer.add_param_group({"params": list(side.net.last.parameters()), "lr": 0.01})


@event
def to_float_and_back(side):
    side.net.float()
    side.net.double()


@event
def to_another_memory_format(side):
    side.net.to(memory_format=torch.channels_last)
    side.net.conv.weight.data = side.net.conv.weight.data.contiguous()


@event
def data_elsewhere(side):
    for p in side.params[::2]:
        p.data = p.data.clone()


@event
def data_transposed_in_memory(side):
    p = side.net.middle.weight
    p.data = p.data.t().contiguous().t()


@event
def data_transposed_in_place(side):
    p = side.net.middle.weight
    p.data = p.data.t()


@event
def parameters_written_to(side):
    with torch.no_grad():
        for p in side.params:
            p.mul_(0.9)


@event
def averages_swapped_in_and_out(side):
    """As an evaluation on averaged weights does, by pointer."""
    exchange(side, averages := [p.detach() * 0.9 for p in side.params])
    with torch.no_grad():
        side.net(torch.ones(1, 2, 5, 5, dtype=torch.float64))
    exchange(side, averages)


@event
def gradients_zeroed_while_averages_are_in(side):
    exchange(side, averages := [p.detach() * 0.9 for p in side.params])
    side.optimizer.zero_grad(set_to_none=False)
    exchange(side, averages)


@event
def steps_while_averages_are_in(side):
    exchange(side, averages := [p.detach() * 0.9 for p in side.params])
    side.train(60, 2)
    exchange(side, averages)


@event
def weights_put_back_after_steps_on_others(side):
    """As an exponential moving average's `restore`: the tensors that were `data` are so again."""
    backup = [p.data for p in side.params]
    for p in side.params:
        p.data = p.data * 0.9
    side.train(60, 2)
    for p, data in zip(side.params, backup, strict=True):
        p.data = data


def exchange(side: Side, averages: list[Tensor]) -> None:
    for i, p in enumerate(side.params):
        p.data, averages[i] = averages[i], p.data


@event
def frozen(side):
    for p in side.net.middle.parameters():
        p.requires_grad_(False)
        p.grad = None


@event
def frozen_and_thawed(side):
    for thawed in (False, True):
        for p in side.net.conv.parameters():
            p.requires_grad_(thawed)
            p.grad = None
        side.train(60, 2)


@event
def taken_out_of_its_group(side):
    side.optimizer.state.pop(side.optimizer.param_groups[0]["params"].pop(1), None)


@event
def moved_to_a_group_of_its_own(side):
    p = side.optimizer.param_groups[0]["params"].pop(1)
    side.optimizer.add_param_group({"params": [p], "lr": 0.01})


@event
def threads(side):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    side.train(60, 2)
    torch.set_num_threads(before)


@each_class
@pytest.mark.parametrize("after", EVENTS.values(), ids=EVENTS.keys())
def test_same_numbers_and_flat_again(name, kwargs, after):
    sides = pair(name, **kwargs)
    for side in sides:
        side.train(0)
    check(*sides)
    check_flat(sides[0].optimizer)
    for side in sides:
        after(side)
    check(*sides)
    for t in (100, 101, 102):
        for side in sides:
            side.train(t, 1)
        check(*sides)
    sides[0].optimizer.zero_grad()
    check_flat(sides[0].optimizer)


@each_class
@pytest.mark.parametrize("seed", range(2))
def test_one_thing_after_the_other(name, kwargs, seed):
    sides = pair(name, **kwargs)
    names = list(EVENTS)
    random.Random(seed).shuffle(names)
    for t, what in enumerate(["nothing", *names]):
        print(t, what)  # what pytest shows of a failure
        for side in sides:
            EVENTS[what](side)
            side.train(100 + t, 2)  # what the first makes is laid out by the second
        check(*sides, tolerance=1e-11)
        for side in sides:
            side.zero_grad()
        check_flat(sides[0].optimizer)


@pytest.mark.parametrize(
    "before", [name for name in EVENTS if name not in ("state_popped", "state_replaced", "gradients_data_given")]
)
def test_before_the_first_step(before):
    sides = pair("AdamW", **STATEFUL["AdamW"])
    for side in sides:
        EVENTS[before](side)
        side.train(100)
    check(*sides)
    sides[0].optimizer.zero_grad()
    check_flat(sides[0].optimizer)


@each_class
@pytest.mark.parametrize("shapes", [[(4, 3), (70,)], [(4, 3), (), (0, 2)]], ids=["full", "with an empty one"])
@pytest.mark.parametrize("own", [False, True], ids=["gradients in the buffer", "gradients of their own"])
def test_steps_are_prepared(name, kwargs, shapes, own, monkeypatch):
    taken = []
    plain = Plan.step
    monkeypatch.setattr(Plan, "step", lambda self, *args, **kwargs: taken.append(0) or plain(self, *args, **kwargs))
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    optimizer = OURS[name](params, **kwargs).flatten()
    for _ in range(5):
        optimizer.zero_grad()
        for p in params:
            if own:
                p.grad = None
            p.square().sum().backward()
        optimizer.step()
    assert len(taken) == 4


# ---- what flat storage means ----------------------------------------------------------------------------------------


@each_class
def test_laid_out_in_the_middle_of_training(name, kwargs):
    ours, theirs = pair(name, **kwargs)
    ours.optimizer = OURS[name](ours.net.parameters(), **kwargs)
    for side in (ours, theirs):
        side.train(0)
        side.backward(3)
    before = list(ours.params)
    ours.optimizer.flatten()
    check_flat(ours.optimizer)
    assert all(p is q for p, q in zip(ours.net.parameters(), before, strict=True))
    for p, q in zip(ours.params, theirs.params, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12, check_stride=False)
    for side in (ours, theirs):
        side.optimizer.step()
        side.train(4)
    check(ours, theirs)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_are_zero_and_never_none(set_to_none):
    """A parameter that the loss does not reach takes the step of a gradient of 0: its momentum goes on."""
    ours, theirs = pair("SGD", lr=0.1, momentum=0.9, weight_decay=0.1)
    for side in (ours, theirs):
        side.train(0)
    views = [p.grad for p in ours.params]
    for side in (ours, theirs):
        side.optimizer.zero_grad(set_to_none=side.ours and set_to_none)
        (side.net.conv.weight.sum() * 2).backward()
        side.optimizer.step()
    assert all(p.grad is view for p, view in zip(ours.params, views, strict=True) if p.numel())
    check(ours, theirs)


def test_autograd_adds_in_place():
    ours, _ = pair("AdamW")
    ours.optimizer.zero_grad()
    before = [p.grad for p in ours.params]
    ours.backward(0)
    assert all(p.grad is g for p, g in zip(ours.params, before, strict=True))


def test_frozen_parameters_are_left_alone():
    ours, _ = pair("AdamW")
    frozen = ours.net.middle.weight.requires_grad_(False)
    own = frozen.data = torch.ones_like(frozen)
    ours.train(0)
    ours.optimizer.zero_grad()
    assert frozen.data_ptr() == own.data_ptr()
    assert frozen.grad is None
    assert frozen.eq(1).all()


def test_autograd_sees_that_parameters_were_written():
    ours, _ = pair("AdamW")
    ours.train(0)
    loss = ours.net.scale.square()
    ours.train(3, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_class
def test_dtypes_in_one_group(name, kwargs):
    """Each in a buffer of its own; numbers as without flat storage, bit for bit."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.float64]
    values = [torch.randn(5, 3).to(dtype) for dtype in dtypes] + [torch.randn(()), torch.zeros(0).bfloat16()]
    runs = []
    for flat in (False, True):
        params = [value.clone().requires_grad_() for value in values]
        optimizer = OURS[name](params, **kwargs)
        if flat:
            optimizer.flatten()
        for t in range(4):
            optimizer.zero_grad(set_to_none=False)
            random = torch.Generator().manual_seed(t)
            for p in params:
                g = torch.randn(p.shape, generator=random).to(p.dtype)
                if p.grad is None or t == 2:
                    p.grad = g
                else:
                    p.grad += g
            optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        runs.append(snapshot(optimizer, params))
    check_flat(optimizer)
    check_same(runs[1], runs[0], tolerance=0)


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_model_goes_to_another_dtype_and_stays(name, kwargs, dtype):
    """The state follows when it is loaded, as with torch's classes."""
    ours, _ = pair(name, **kwargs)
    ours.train(0)
    plain = copy.deepcopy(ours)
    plain.optimizer._stepper.flat = None
    for side in (ours, plain):
        side.net.to(dtype)
        side.optimizer.load_state_dict(side.optimizer.state_dict())
    for t in range(3, 6):
        for side in (ours, plain):
            side.optimizer.zero_grad(set_to_none=False)
        ours.backward(t)
        for p, q in zip(ours.params, plain.params, strict=True):
            q.grad = p.grad.clone()
        for side in (ours, plain):
            side.optimizer.step()
    check_same(*(snapshot(side.optimizer, side.params) for side in (ours, plain)), tolerance=0)
    assert {p.dtype for p in ours.params} == {dtype}
    ours.optimizer.zero_grad()
    check_flat(ours.optimizer)


@each_class
@pytest.mark.parametrize("flat_first", [False, True])
def test_saved_and_loaded_by_torch_optim_and_back(name, kwargs, flat_first):
    ours, theirs = pair(name, **kwargs)
    for side in (ours, theirs):
        side.train(0)
    files = []
    for side in (ours, theirs):
        torch.save({"model": side.net.state_dict(), "optimizer": side.optimizer.state_dict()}, file := io.BytesIO())
        files.append(file)
        file.seek(0)
    assert len(files[0].getvalue()) < 2 * len(files[1].getvalue())
    fresh = pair(name)
    for side, file, foreach in zip(fresh, reversed(files), (None, False), strict=True):
        saved = torch.load(file, weights_only=True)
        if side.ours and not flat_first:
            side.optimizer = OURS[name](side.net.parameters())
        side.net.load_state_dict(saved["model"])
        side.optimizer.load_state_dict(saved["optimizer"])
        side.optimizer.param_groups[0]["foreach"] = foreach
        if side.ours:
            side.optimizer.flatten()
    for side in (*fresh, theirs):
        side.train(3)
    check(*fresh)
    check(fresh[0], theirs)
    fresh[0].optimizer.zero_grad()
    check_flat(fresh[0].optimizer)


def test_a_state_dict_in_hand_is_not_changed_by_later_steps_of_a_copy():
    ours, _ = pair("AdamW")
    ours.train(0)
    other = copy.deepcopy(ours)
    before = snapshot(ours.optimizer, ours.params)
    other.train(3)
    other.optimizer.zero_grad()
    check_same(snapshot(ours.optimizer, ours.params), before, tolerance=0)
    grads = [p.grad.clone() for p in ours.params]
    other.backward(6)
    assert all(torch.equal(p.grad, g) for p, g in zip(ours.params, grads, strict=True))


@pytest.mark.parametrize("through", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_state_dict_takes_no_more_space_for_it(through):
    """Pickle writes the memory of a view as often as it meets one: a hundred slots, a hundred buffers."""
    sizes = []
    for flat in (False, True):
        params = [torch.randn(64, requires_grad=True) for _ in range(100)]
        optimizer = OURS["AdamW"](params)
        if flat:
            optimizer.flatten()
        for _ in range(3):
            for p in params:
                p.grad = torch.ones(64)
            optimizer.step()
        through(optimizer.state_dict(), file := io.BytesIO())
        sizes.append(len(file.getvalue()))
    assert sizes[1] < 2 * sizes[0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_are_laid_out_from_the_start(duplicate):
    ours, _ = pair("AdamW")
    ours.train(0)
    _, optimizer = duplicate((ours.net, ours.optimizer))
    optimizer.zero_grad()
    check_flat(optimizer)
    assert packed_groups(optimizer) == packed_groups(ours.optimizer)


def test_differentiable_groups():
    """Their state is in autograd's graph, and in no buffer; parameters and gradients may be."""
    grads = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    slopes = []
    for flat in (False, True):
        torch.manual_seed(1)
        fixed = torch.randn(4, dtype=torch.float64, requires_grad=True)
        watched = torch.randn(4, dtype=torch.float64)
        groups = [{"params": [fixed]}, {"params": [watched], "differentiable": True}]
        optimizer = OURS["AdamW"](groups, lr=0.1)
        if flat:
            optimizer.flatten()
        for row in grads:
            fixed.grad, watched.grad = row[0].detach().clone(), row[1]
            optimizer.step()
        (slope,) = torch.autograd.grad(watched.sum(), grads)
        slopes.append((slope, fixed.detach(), watched.detach()))
    for got, want in zip(*slopes, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert slopes[0][0][:, 1].all()


# ---- what cannot be laid out ----------------------------------------------------------------------------------------


class Mine(nn.Parameter):
    pass


def weight(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def with_overlap(**kwargs: Any) -> list[Tensor]:
    whole = weight(6)
    return [nn.Parameter(whole[:4]), nn.Parameter(whole[2:], **kwargs)]


REFUSED: dict[str, tuple[Callable[[], list[Tensor]], type[Exception], str]] = {
    "a subclass": (lambda: [Mine(weight(3))], TypeError, "parameter last.* is a Mine"),
    "expanded": (lambda: [nn.Parameter(weight(1).expand(3))], ValueError, "parameter last.*gaps or overlaps"),
    "with gaps": (lambda: [nn.Parameter(weight(3, 2)[:, 0])], ValueError, "parameter last.*gaps or overlaps"),
    "complex": (lambda: [nn.Parameter(weight(3).to(torch.complex128))], TypeError, "parameter last.*complex128"),
    "overlapping": (with_overlap, ValueError, "share memory"),
    "one memory": (lambda: [nn.Parameter(w := weight(3)), nn.Parameter(w)], ValueError, "share memory"),
    "overlapping a frozen one": (lambda: with_overlap(requires_grad=False), ValueError, "share memory"),
}


def check_unchanged(optimizer: Optimizer, params: list[Tensor], act: Callable[[], Any]) -> None:
    """That an action, which is refused, leaves every tensor what and where it was."""

    def seen() -> list[Any]:
        groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
        tensors = [t for p in params for t in (p, p.grad, *optimizer.state.get(p, {}).values())]
        return [groups] + [(id(t), t is not None and (t.data_ptr(), t.stride(), t.tolist())) for t in tensors]

    before = seen()
    act()
    assert seen() == before


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_everything_as_it_was(make, error, message, groups):
    first, *rest = nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), *make()
    named = [(f"p{i}", p) for i, p in enumerate([first, *rest[:-1]])], [("last", rest[-1])]
    split = named if groups == 2 else [[*named[0], *named[1]]]
    optimizer = OURS["AdamW"]([{"params": part} for part in split])
    params = [first, *rest]
    first.grad = torch.ones_like(first)
    optimizer.step()

    def act():
        with pytest.raises(error, match=message):
            optimizer.flatten()

    check_unchanged(optimizer, params, act)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_twice_in_a_group_is_refused():
    p = nn.Parameter(weight(3))
    optimizer = OURS["SGD"]([p, p])

    def act():
        with pytest.raises(ValueError, match=r"share memory|twice"):
            optimizer.flatten()

    check_unchanged(optimizer, [p], act)


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_group_that_cannot_be_laid_out_is_refused(make, error, message):
    """By add_param_group of an optimizer in flat storage, which then is as it was, and goes on."""
    ours, theirs = pair("AdamW")
    for side in (ours, theirs):
        side.train(0)
    rest = make()
    named = [(f"p{i}", p) for i, p in enumerate(rest[:-1])] + [("last", rest[-1])]
    ours.optimizer = OURS["AdamW"](ours.net.named_parameters()).flatten()
    theirs.optimizer = TORCH["AdamW"](theirs.net.parameters())

    def act():
        with pytest.raises(error, match=message):
            ours.optimizer.add_param_group({"params": named})

    check_unchanged(ours.optimizer, ours.params, act)
    for side in (ours, theirs):
        side.train(3)
    check(ours, theirs)


def test_data_that_cannot_be_laid_out():
    """The step is refused with nothing changed; other data, and it goes on."""
    ours, theirs = pair("AdamW")
    for side in (ours, theirs):
        side.train(0)
        side.backward(3)
    p = ours.net.middle.weight
    held, p.data = p.data, torch.stack([p.data] * 2, -1)[..., 0]

    def act():
        for zero_grad in (False, True):
            with pytest.raises(ValueError, match="gaps or overlaps"):
                ours.optimizer.step(zero_grad=zero_grad)

    check_unchanged(ours.optimizer, ours.params, act)
    p.data = held.clone()
    for side in (ours, theirs):
        side.optimizer.step()
        side.train(4)
    check(ours, theirs)


def test_a_group_that_is_gone_is_let_go():
    """Its gradients are nobody's to set to 0, and nothing holds on to its parameters."""
    ours, _ = pair("AdamW")
    ours.optimizer.add_param_group({"params": [other := nn.Parameter(weight(5))]})
    for t in range(3):
        other.grad = torch.ones_like(other)
        ours.train(t, 1)
    ours.optimizer.param_groups.pop()
    del ours.optimizer.state[other]
    ours.train(3)
    other.grad = torch.ones_like(other)
    ours.optimizer.zero_grad()
    assert other.grad.eq(1).all()
    held = weakref.ref(other)
    del other
    gc.collect()
    assert held() is None


def test_integers_that_are_not_trained_are_left_alone():
    counter = torch.zeros(3, dtype=torch.int64)
    p = nn.Parameter(weight(3))
    optimizer = OURS["SGD"]([p, counter]).flatten()
    optimizer.zero_grad()
    assert counter.grad is None
    assert p.grad.eq(0).all()


@pytest.mark.parametrize("given", [False, True])
def test_gradients_in_a_dtype_of_their_own(given):
    """Refused with everything as it was, or stepped as without flat storage."""
    p, q = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    q.grad_dtype = torch.float32
    optimizer = OURS["SGD"]([p, q], lr=0.5)
    if given:
        p.grad, q.grad = torch.ones_like(p), torch.ones(4)

    def act():
        with pytest.raises((TypeError, ValueError)):
            optimizer.flatten()

    try:
        copy.deepcopy(optimizer).flatten()
        optimizer.flatten()
    except (TypeError, ValueError):
        check_unchanged(optimizer, [p, q], act)
    optimizer.zero_grad()
    p.grad, q.grad = torch.ones_like(p), torch.full((4,), 0.25 + 2**-12)
    optimizer.step()
    assert p.eq(0.5).all()
    assert torch.equal(q, (1 - 0.5 * torch.full((4,), 0.25 + 2**-12)).bfloat16())
