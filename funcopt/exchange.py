"""An adapter's parameters and state as the pure form has them, and back: what `to_pure` and `load_pure` do."""

import itertools
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import PureOptimizer, State, Tree
from funcopt.transforms.partition import stays

__all__ = ["load_pure", "to_pure"]

ABSENT = object()


def to_pure(optimizer: Any) -> tuple[Any, Tree, State, dict[str, Any]]:
    """See `Adapter.to_pure`."""
    params, spec = tree.flatten(_named(optimizer))
    groups: list[dict[str, Any]] = optimizer.param_groups
    opts: dict[Any, tuple[int, PureOptimizer]] = {}
    slots: dict[Any, dict[str, None]] = {}
    for index, group in enumerate(groups):
        label, own = optimizer._label(group), optimizer._pure(group)
        before, first = opts.setdefault(label, (index, own))
        if (own.rule, own.flags) != (first.rule, first.flags):
            raise ValueError(
                f"group {before} is {first}, but group {index} is {own}; one pure optimizer cannot be both"
            )
        slots.setdefault(label, {}).update(dict.fromkeys(optimizer._slots(group)))
    each = [group for group in groups for _ in group["params"]]
    labels = tree.unflatten(list(map(optimizer._label, each)), spec)
    opt = optimizer._whole({label: first for label, (_, first) in opts.items()}, labels)

    numbers = [optimizer._called(g, optimizer._numbers(opts[optimizer._label(g)][1].rule, g)) for g in groups]
    found = {name: [own.get(name, ABSENT) for own in numbers] for name in dict.fromkeys(itertools.chain(*numbers))}
    counts = [len(group["params"]) for group in groups]
    hparams = opt.hparams(**{name: _merged(values, counts, spec) for name, values in found.items()})

    states = [
        optimizer._state_of(p, g, list(slots[optimizer._label(g)])) if _moves(optimizer, g) else {}
        for p, g in zip(params, each, strict=True)
    ]
    kept = dict.fromkeys(name for names in slots.values() for name in names)
    state = {
        name: tree.unflatten([None if s.get(name) is None else s[name].detach().clone() for s in states], spec)
        for name in ["step", *kept]
    }
    return opt, tree.unflatten([p.detach().clone() for p in params], spec), state, hparams


def _merged(values: list[Any], counts: list[int], spec: tree.Spec) -> Any:
    """A number of all groups that have it; a tree like params where they differ."""
    first = next(value for value in values if value is not ABSENT)
    values = [first if value is ABSENT else value for value in values]  # nobody asks for it there
    if isinstance(first, tuple):
        return tuple(_merged([value[k] for value in values], counts, spec) for k in range(len(first)))
    if all(value is first or (not isinstance(value, Tensor) and value == first) for value in values):
        return first
    return tree.unflatten([value for value, n in zip(values, counts, strict=True) for _ in range(n)], spec)


def _moves(optimizer: Any, group: dict[str, Any]) -> bool:
    return optimizer._rule_of(group) is not stays.rule


def load_pure(optimizer: Any, params: Tree, state: State) -> None:
    """See `Adapter.load_pure`."""
    named = _named(optimizer)
    own, spec = tree.flatten(named)
    new = tree.flatten_like(params, named, spec, "params")
    slots = {name: tree.flatten_like(value, named, spec, f"state[{name!r}]") for name, value in state.items()}
    known = [
        "step",
        *dict.fromkeys(slot.name for group in optimizer.param_groups for slot in optimizer._rule_of(group).slots),
    ]
    for name in slots:
        if name not in known:
            raise ValueError(f"state[{name!r}] is unknown; {hyper.suggest(name, known)}")
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    kept = [names for group in optimizer.param_groups for names in [optimizer._slots(group)] * len(group["params"])]
    for name in ["step", *sorted({name for names in kept for name in names})]:
        if name not in slots:
            raise ValueError(f"state has no {name!r}, which this optimizer keeps; to_pure() gives a complete state")
    for name, values in {"params": new, **slots}.items():
        root = name if name == "params" else f"state[{name!r}]"
        for value, p, group, path in zip(values, own, groups, tree.paths(named, ""), strict=True):
            shape = tuple(p.shape) if name == "params" else _shape(optimizer, group, name, p)
            got = tuple(value.shape) if isinstance(value, Tensor) else value
            if got != shape:
                wanted = "None" if shape is None else f"a tensor of shape {shape}"
                given = got if value is None or isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{root}{path} must be {wanted}; got {given}")
    counts = slots.pop("step")
    with torch.no_grad():
        for i, p in enumerate(own):
            p.copy_(new[i])
            if counts[i] is None:
                continue
            if counts[i] == 0:
                optimizer.state.pop(p, None)
            before = optimizer._state_of(p, groups[i], kept[i])
            new_state = {name: slots[name][i] for name in kept[i] if slots[name][i] is not None}
            if counts[i] == 0 and all(torch.equal(before[n], t.to(before[n])) for n, t in new_state.items()):
                continue  # as before the first step, when there is nothing yet
            new_state = {name: before[name].copy_(value) for name, value in new_state.items()}
            if optimizer._counts:
                new_state["step"] = optimizer._counted(before["step"].copy_(counts[i]))
            if new_state:  # in the dtypes, and where, this optimizer has them
                optimizer.state[p].update(new_state)


def _shape(optimizer: Any, group: dict[str, Any], name: str, p: Tensor) -> tuple[int, ...] | None:
    """The shape of a slot, or of the step count; None where a parameter of the group has none."""
    if name == "step":
        return () if _moves(optimizer, group) else None
    slot = next((slot for slot in optimizer._rule_of(group).slots if slot.name == name), None)
    return None if slot is None else slot.shape_for(p)


def _named(optimizer: Any) -> Tree:
    if "param_names" not in optimizer.param_groups[0]:
        return [p for group in optimizer.param_groups for p in group["params"]]
    pairs = [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
    if len(dict(pairs)) != len(pairs):
        raise ValueError("two parameters have the same name; a pytree by name needs each to have its own")
    return dict(pairs)
