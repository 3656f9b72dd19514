"""An adapter's parameters and state as the pure form has them, and back: what `to_pure` and `load_pure` do."""

from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import PureOptimizer, State, Tree

__all__ = ["load_pure", "to_pure"]


def to_pure(optimizer: Any) -> tuple[PureOptimizer, Tree, State, dict[str, Any]]:
    """See `Adapter.to_pure`."""
    first, *rest = [optimizer._pure(group) for group in optimizer.param_groups]
    for index, opt in enumerate(rest, 1):
        if (opt.rule, opt.flags) != (first.rule, first.flags):
            raise ValueError(f"group 0 is {first}, but group {index} is {opt}; one pure optimizer cannot be both")
    params, spec = tree.flatten(_named(optimizer))
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    numbers = [optimizer._numbers(first.rule, group) for group in optimizer.param_groups]
    by_group = [hyper.columns(first.rule.hparams, n) for n in numbers]
    columns = [
        values[0]
        if all(v is values[0] or (not isinstance(v, Tensor) and v == values[0]) for v in values)
        else tree.unflatten([v for v, g in zip(values, optimizer.param_groups, strict=True) for _ in g["params"]], spec)
        for values in zip(*by_group, strict=True)
    ]
    used = {name for group in optimizer.param_groups for name in optimizer._slots(group)}
    slots = [slot.name for slot in first.rule.slots if slot.name in used]
    states = [optimizer._state_of(p, group, slots) for p, group in zip(params, groups, strict=True)]
    state = {
        name: tree.unflatten([None if s[name] is None else s[name].detach().clone() for s in states], spec)
        for name in ["step", *slots]
    }
    hparams = first.hparams(**hyper.nest(first.rule.hparams, columns))
    return first, tree.unflatten([p.detach().clone() for p in params], spec), state, hparams


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
    shapes = {slot.name: slot for group in optimizer.param_groups for slot in optimizer._rule_of(group).slots}
    for name, values in {"params": new, **slots}.items():
        root = name if name == "params" else f"state[{name!r}]"
        for value, p, path in zip(values, own, tree.paths(named, ""), strict=True):
            shape = () if name == "step" else tuple(p.shape) if name == "params" else shapes[name].shape_for(p)
            if shape is None and value is None:
                continue
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{root}{path} must be a tensor of shape {shape}; got {got}")
    counts = slots.pop("step")
    with torch.no_grad():
        for i, p in enumerate(own):
            p.copy_(new[i])
            if counts[i] == 0:
                optimizer.state.pop(p, None)
                continue
            before = optimizer._state_of(p, groups[i], kept[i])
            new_state = {name: slots[name][i] for name in kept[i] if slots[name][i] is not None}
            new_state = {name: before[name].copy_(value) for name, value in new_state.items()}
            if optimizer._counts:
                new_state["step"] = optimizer._counted(before["step"].copy_(counts[i]))
            if new_state:  # in the dtypes, and where, this optimizer has them
                optimizer.state[p].update(new_state)


def _named(optimizer: Any) -> Tree:
    if "param_names" not in optimizer.param_groups[0]:
        return [p for group in optimizer.param_groups for p in group["params"]]
    pairs = [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
    if len(dict(pairs)) != len(pairs):
        raise ValueError("two parameters have the same name; a pytree by name needs each to have its own")
    return dict(pairs)
