"""Checkpoints in the middle of training, of every class: to torch's class of that name, and from it, old ones too."""

import copy
import io
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict as dcp

from tests.optim.runs import packed_groups, plain
from tests.optim.table import (
    INFOS,
    OURS,
    TORCH,
    check_near,
    draw,
    each_name,
    float64_by_default,
    follow,
    inputs,
    much,
    plain_torch,
    rows,
    seen,
    step,
    tolerance,
)

BEFORE, AFTER = 5, 10
WAYS = {"to torch": (OURS, TORCH), "from torch": (TORCH, OURS), "among ours": (OURS, OURS)}
by_way = pytest.mark.parametrize(("source", "target"), WAYS.values(), ids=WAYS)


def through_a_file(value: Any) -> Any:
    """By the unpickler that runs no code."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(classes: dict[str, Any], name: str, params: Any, kwargs: dict[str, Any]) -> Any:
    return classes[name](params, **(plain_torch(name, **kwargs) if classes is TORCH else kwargs))


def half_way(classes: dict[str, Any], name: str, kwargs: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    params = draw(rows(name, dtype), dtype, 1)
    optimizer = make(classes, name, params, kwargs)
    for t in range(BEFORE):
        step(name, optimizer, params, t)
    return optimizer, params


def twins(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


def go_on(name: str, optimizer: Any, params: list[torch.Tensor]) -> Any:
    return list(follow(name, optimizer, params, range(BEFORE, BEFORE + AFTER)))


@by_way
@each_name
@pytest.mark.parametrize("numbers", [lambda name: inputs(name)[0][1], much], ids=["default", "much"])
def test_training_goes_on_in_the_other_class(name, numbers, source, target):
    """With the numbers and flags of the state_dict; of torch's for-loop, where there are several implementations."""
    with float64_by_default():
        old, params = half_way(source, name, numbers(name))
        new_params = twins(params)
        new = target[name](new_params)
        new.load_state_dict(through_a_file(old.state_dict()))
        assert packed_groups(new) == packed_groups(old)
        check_near([seen(new, new_params)], [seen(old, params)], 0)
        check_near(go_on(name, new, new_params), go_on(name, old, params), tolerance(name))


@each_name
@pytest.mark.parametrize(
    ("source", "target", "named"),
    [(OURS, TORCH, (True, False)), (TORCH, OURS, (False, True)), (OURS, OURS, (True, True))],
    ids=["from names, to torch", "to names, from torch", "of both"],
)
def test_names(name, source, target, named):
    """They come with the state_dict, if it has them."""
    with float64_by_default():
        params = draw(rows(name, torch.float64), torch.float64, 1)
        pairs = lambda ps, yes, letter: [(f"{letter}{i}", p) for i, p in enumerate(ps)] if yes else ps
        old = make(source, name, pairs(params, named[0], "old"), much(name))
        for t in range(BEFORE):
            step(name, old, params, t)
        new_params = twins(params)
        new = make(target, name, pairs(new_params, named[1], "new"), much(name))
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        kept = "old" if named[0] else "new"
        assert new.param_groups[0]["param_names"] == [f"{kept}{i}" for i in range(len(params))]
        check_near(go_on(name, new, new_params), go_on(name, old, params), tolerance(name))


@each_name
def test_flags_that_came_later(name):
    """A state_dict from before they existed is one without them, whatever the optimizer was made with."""
    ends, later = [], INFOS[name].not_og_supported_flags
    for classes in (OURS, TORCH):
        with float64_by_default():
            old, params = half_way(TORCH, name, inputs(name)[0][1])
            saved = old.state_dict()
            for group in saved["param_groups"]:
                for flag in later:
                    group.pop(flag, None)
            new_params = twins(params)
            new = make(classes, name, new_params, much(name))
            new.load_state_dict(copy.deepcopy(saved))
            # A flag that is off may be None, False, or not there.
            groups = [{k: v for k, v in group.items() if v or k not in later} for group in packed_groups(new)]
            ends.append((groups, go_on(name, new, new_params)))
    (our_groups, ours), (their_groups, theirs) = ends
    assert our_groups == their_groups
    check_near(ours, theirs, tolerance(name))


@each_name
def test_counts_that_are_no_tensors(name):
    with float64_by_default():
        old, params = half_way(TORCH, name, much(name))
        saved = copy.deepcopy(old.state_dict())
        for state in saved["state"].values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].item()
        before = plain(saved)
        new_params = twins(params)
        new = make(OURS, name, new_params, {})
        new.load_state_dict(saved)
        assert plain(saved) == before
        check_near(go_on(name, new, new_params), go_on(name, old, params), tolerance(name))


@each_name
@pytest.mark.parametrize("classes", [OURS, TORCH], ids=["from funcopt", "from torch"])
def test_loading_shares_nothing(name, classes):
    """Neither with the dict that was given, nor with the optimizer that it came from."""
    old, params = half_way(classes, name, much(name), torch.float32)
    given = old.state_dict()
    before = plain(given)
    new_params = twins(params)
    new = make(OURS, name, new_params, {})
    new.load_state_dict(given)
    go_on(name, new, new_params)
    assert plain(given) == before


@each_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_state_takes_the_parameters_dtype(name, dtype):
    """As in torch; but scalars stay as they are: torch rounds NAdam's product and ASGD's rates to bfloat16."""
    old, params = half_way(TORCH, name, much(name), torch.float32)
    kept = {k for k, v in old.state[params[0]].items() if isinstance(v, torch.Tensor) and v.dim() == 0}
    if INFOS[name].step_requires_closure:
        pytest.skip("torch leaves what is in lists as it is")
    loaded = []
    for classes in (OURS, TORCH):
        new_params = [p.detach().to(dtype).requires_grad_() for p in params]
        new = make(classes, name, new_params, {})
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        saved = seen(new, new_params)
        loaded.append({k: v for k, v in saved.items() if not any(f"[{slot!r}]" in k for slot in kept)})
        if classes is OURS:
            before = seen(old, params)
            check_near(*([{k: v for k, v in side.items() if k not in loaded[0]}] for side in (saved, before)), 0)
    check_near([loaded[0]], [loaded[1]], 0)


# ---- torch.distributed.checkpoint -----------------------------------------------------------------------------------


class Pair(torch.nn.Module):
    """Matrices alone, which is what Muon takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 2, bias=False)


@pytest.mark.parametrize(
    ("source", "target", "flatten"),
    [(OURS, TORCH, False), (TORCH, OURS, True), (OURS, OURS, False)],
    ids=["to torch", "from torch, flat", "among ours"],
)
@pytest.mark.parametrize(
    "name", [n for n, i in INFOS.items() if not (i.only_supports_sparse_grads or i.step_requires_closure)]
)
def test_distributed_state_dict(name, source, target, flatten):
    """By parameter name.

    Torch makes the state of an optimizer that has none by a step without closure, at a learning rate of 0, on gradients
    of 0, which are dense.
    """
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
    with float64_by_default():
        old_model, new_model = Pair(), Pair()
        params, new_params = list(old_model.parameters()), list(new_model.parameters())
        old, new = make(source, name, params, much(name)), make(target, name, new_params, much(name))
        for t in range(BEFORE):
            step(name, old, params, t)
        new_model.load_state_dict(old_model.state_dict())
        saved = dcp.get_optimizer_state_dict(old_model, old, options=options)
        dcp.set_optimizer_state_dict(new_model, new, copy.deepcopy(saved), options=options)  # torch's class shares it
        check_near([seen(new, new_params)], [seen(old, params)], 0)
        check_near(go_on(name, new, new_params), go_on(name, old, params), tolerance(name))
