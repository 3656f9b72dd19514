"""state_dicts between funcopt's classes and torch.optim's, in both directions, old ones too."""

import copy
import io
from typing import Any

import pytest
import torch

from tests.optim.runs import (
    NAMES,
    OURS,
    TORCH,
    check_same,
    follow,
    gradients,
    grouped,
    leaves,
    packed_groups,
    plain,
    snapshot,
    trajectory,
)

BEFORE, AFTER = 7, 10

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": torch.tensor(0.1, dtype=torch.float64), "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True, "lr": torch.tensor([0.1], dtype=torch.float64)}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.1}),
    (
        "AdamW",
        {"amsgrad": True, "betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64))},
    ),
)
WAYS = {"torch to funcopt": (TORCH, OURS), "funcopt to torch": (OURS, TORCH), "funcopt to funcopt": (OURS, OURS)}

by_case = pytest.mark.parametrize(("name", "kwargs"), CASES)
by_way = pytest.mark.parametrize(("source", "target"), WAYS.values(), ids=WAYS)


def saved(value: Any) -> Any:
    """The value through a file, by the unpickler that runs no code."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def half_way(classes: dict[str, Any], name: str, kwargs: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    params = leaves(dtype)
    optimizer = classes[name](grouped(name, params), **kwargs)
    follow(optimizer, params, gradients(BEFORE, dtype))
    return optimizer, params


def twins(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


def rest() -> Any:
    return gradients(AFTER, torch.float64, first=BEFORE)


@by_way
@by_case
@pytest.mark.parametrize("through", [copy.deepcopy, saved], ids=["deepcopy", "torch.save"])
def test_training_goes_on_in_the_other_class(name, kwargs, source, target, through):
    old, params = half_way(source, name, kwargs)
    new_params = twins(params)
    new = target[name](grouped(name, new_params))  # the numbers and flags come with the state_dict
    new.load_state_dict(through(old.state_dict()))
    assert packed_groups(new) == packed_groups(old)
    check_same(snapshot(new, new_params), snapshot(old, params), tolerance=0)
    check_same(trajectory(new, new_params, rest()), trajectory(old, params, rest()))


@by_case
@pytest.mark.parametrize("source", [OURS, TORCH], ids=["from funcopt", "from torch"])
def test_loading_takes_nothing_and_shares_nothing(name, kwargs, source):
    old, params = half_way(source, name, kwargs)
    given = old.state_dict()
    before = plain(given)
    new_params = twins(params)
    new = OURS[name](grouped(name, new_params))
    new.load_state_dict(given)
    assert plain(given) == before
    own = {id(v) for state in new.state.values() for v in state.values()}
    assert not own & {id(v) for state in given["state"].values() for v in state.values()}
    follow(new, new_params, rest())
    assert plain(given) == before, "steps of the new optimizer reach the old one's state"
    after = snapshot(new, new_params)
    follow(old, params, rest())
    check_same(snapshot(new, new_params), after, tolerance=0)


@pytest.mark.parametrize("name", NAMES)
def test_state_takes_the_parameters_dtype(name):
    """As in torch: the moments go to the parameter's dtype, the step count stays as it is."""
    old, _ = half_way(TORCH, name, {"weight_decay": 0.1}, torch.float32)
    loaded = []
    for classes in (OURS, TORCH):
        params = leaves(torch.bfloat16)
        new = classes[name](grouped(name, params))
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        loaded.append(snapshot(new, params))
    check_same(*loaded, tolerance=0)


# ---- torch's other implementations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["foreach", "fused"])
@pytest.mark.parametrize(("name", "kwargs"), [("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("AdamW", {})])
@pytest.mark.parametrize(("source", "target"), list(WAYS.values())[:2], ids=list(WAYS)[:2])
def test_foreach_and_fused(name, kwargs, switch, source, target):
    """Between torch's fast implementations and ours.

    Parameters and gradients lie in memory in order and are all there: torch's fused steps are wrong where they are not.
    """
    random = torch.Generator().manual_seed(0)
    draw = lambda: [torch.randn(shape, dtype=torch.float64, generator=random) for shape in ((4, 3), (), (0,), (70,))]
    params = [p.requires_grad_() for p in draw()]
    before, after = [draw() for _ in range(BEFORE)], [draw() for _ in range(AFTER)]
    old = source[name](params, **kwargs, **{switch: True})
    follow(old, params, before)
    new_params = twins(params)
    new = target[name](new_params)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert packed_groups(new) == packed_groups(old)
    check_same(snapshot(new, new_params), snapshot(old, params), tolerance=0)
    check_same(trajectory(new, new_params, after), trajectory(old, params, after))


# ---- old and foreign state_dicts ------------------------------------------------------------------------------------

# The flags that came after the class's first release.
NEWER = {
    "SGD": ("nesterov", "maximize", "foreach", "differentiable", "fused"),
    "Adam": ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"),
    "AdamW": ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"),
}
# What the optimizer that loads was made with: it must not show up in what an old state_dict says nothing of.
MADE_WITH = {
    "SGD": ({}, {"maximize": True}, {"momentum": 0.9, "nesterov": True}),
    "Adam": ({}, {"maximize": True}, {"amsgrad": True}, {"decoupled_weight_decay": True}),
    "AdamW": ({}, {"maximize": True}, {"amsgrad": True}),
}


@pytest.mark.parametrize(("name", "made_with"), [(name, kwargs) for name in NAMES for kwargs in MADE_WITH[name]])
def test_older_state_dict(name, made_with):
    source, params = half_way(TORCH, name, {})
    old = source.state_dict()
    for group in old["param_groups"]:
        for flag in NEWER[name]:
            del group[flag]
    ends = []
    for classes in (OURS, TORCH):
        own = twins(params)
        new = classes[name](grouped(name, own), **made_with)
        new.load_state_dict(copy.deepcopy(old))
        # A flag that is off is None in one group and False in another.
        groups = [g | {flag: g.get(flag) or False for flag in NEWER[name] if flag in g} for g in packed_groups(new)]
        ends.append((groups, trajectory(new, own, rest())))
    (our_groups, ours), (their_groups, theirs) = ends
    assert our_groups == their_groups
    check_same(ours, theirs)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("number", [int, float])
def test_step_counts_that_are_no_tensors(name, number):
    source, params = half_way(TORCH, name, {})
    old = source.state_dict()
    for state in old["state"].values():
        state["step"] = number(state["step"].item())
    new_params = twins(params)
    new = OURS[name](grouped(name, new_params))
    new.load_state_dict(old)
    assert all(isinstance(state["step"], number) for state in old["state"].values()), "the given dict was changed"
    reference, params = half_way(TORCH, name, {})
    check_same(trajectory(new, new_params, rest()), trajectory(reference, params, rest()))


def test_adamw_decays_decoupled_whatever_is_loaded():
    """As in torch: an Adam's state_dict makes no Adam of an AdamW."""
    source, params = half_way(TORCH, "Adam", {"weight_decay": 0.1})
    ends = []
    for classes in (OURS, TORCH):
        own = twins(params)
        new = classes["AdamW"](grouped("AdamW", own))
        new.load_state_dict(copy.deepcopy(source.state_dict()))
        assert all(group["decoupled_weight_decay"] is True for group in new.param_groups)
        ends.append(trajectory(new, own, rest()))
    check_same(*ends)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True)])
@by_way
def test_named_and_unnamed(name, named, source, target):
    from_names, to_names = named
    params = leaves(torch.float64)
    pair = lambda ps, yes, letter: [(f"{letter}{i}", p) for i, p in enumerate(ps)] if yes else ps
    old = source[name](grouped(name, pair(params, from_names, "old")))
    follow(old, params, gradients(BEFORE, torch.float64))
    new_params = twins(params)
    new = target[name](grouped(name, pair(new_params, to_names, "new")))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    kept = "old" if from_names else "new"
    assert [n for group in new.param_groups for n in group["param_names"]] == [
        f"{kept}{i}" for group in old.param_groups for i, p in enumerate(params) if any(p is q for q in group["params"])
    ]
    check_same(trajectory(new, new_params, rest()), trajectory(old, params, rest()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shapes", [[[2], [3]], [[2, 3, 4]], [[2], [3, 4], [5]]], ids=["fewer groups", "one group", "other sizes"]
)
def test_groups_that_do_not_fit(name, shapes):
    """The type and text are torch's, and nothing changes."""
    source, _ = half_way(TORCH, name, {})
    messages = []
    for classes in (OURS, TORCH):
        params = [[torch.zeros(n, requires_grad=True) for n in group] for group in shapes]
        new = classes[name]([{"params": group} for group in params])
        before = packed_groups(new)
        with pytest.raises(ValueError, match="loaded state dict") as caught:
            new.load_state_dict(source.state_dict())
        messages.append(str(caught.value))
        assert packed_groups(new) == before
        assert len(new.state) == 0
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_may_replace_the_state_dict(name):
    """What a hook returns is loaded, and is no more shared than what the caller gives."""
    source, params = half_way(TORCH, name, {})
    replacement = source.state_dict()
    before = plain(replacement)
    new_params = twins(params)
    new = OURS[name](grouped(name, new_params))
    new.register_load_state_dict_pre_hook(lambda opt, state_dict: replacement)
    new.load_state_dict({"state": {}, "param_groups": []})
    check_same(snapshot(new, new_params), snapshot(source, params), tolerance=0)
    follow(new, new_params, rest())
    assert plain(replacement) == before
