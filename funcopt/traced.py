"""How an adapter takes a step that torch.compile traces: with nothing that is kept from step to step but its state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper
from funcopt.declaration import Rule, scalar_dtype
from funcopt.leaves import Leaves
from funcopt.step import measured, measured_together, step
from funcopt.transforms.partition import stays

__all__ = ["step_traced", "zero_grad_traced"]


def step_traced(optimizer: Any) -> None:
    """One step of an adapter's groups, as a tracer follows it.

    Tensors of the state are written to where they are: one that is put in its place would be another at the next step,
    and traced anew.
    """
    groups = [group for group in optimizer.param_groups if optimizer._rule_of(group) is not stays.rule]
    parts = [_leaves(optimizer, group) for group in groups]

    def measure(i: int, level: int, sums: Mapping[str, Any]) -> dict[str, Any]:
        rule, flags, leaves = parts[i]
        return measured(rule, flags, leaves, level, sums, backend="eager") if leaves.params else {}

    together = measured_together([rule for rule, *_ in parts], [optimizer._label(group) for group in groups], measure)
    for group, (rule, flags, leaves), sums in zip(groups, parts, together, strict=True):
        if not leaves.params:
            continue
        with torch.set_grad_enabled(bool(group.get("differentiable"))):
            new = step(rule, flags, leaves, backend="eager", donate=False, sums=sums)
            counts = {"step": new.steps} if optimizer._counts else {}
            for i, p in enumerate(leaves.params):
                p.copy_(new.params[i])
                own = optimizer.state[p] if counts or new.slots or new.scalars else {}
                for name, column in {**counts, **new.slots, **new.scalars}.items():
                    if isinstance(own.get(name), Tensor):
                        own[name].copy_(column[i])
                    elif column[i] is not None:
                        own[name] = column[i]


def _leaves(optimizer: Any, group: Mapping[str, Any]) -> tuple[Rule, tuple[Any, ...], Leaves]:
    """The rule of a group, its flags, and its parameters that have a gradient, with their state."""
    opt = optimizer._pure(group)
    rule: Rule = opt.rule
    numbers = optimizer._numbers(rule, group)
    used = rule.slots_for(numbers, opt.flags)
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        optimizer._check_whole(group, p)
    states: list[Any] = [optimizer.state.get(p, {}) for p in params]

    def count(p: Tensor, own: Mapping[str, Any]) -> Tensor:
        if isinstance(own.get("step"), Tensor):
            return own["step"]  # type: ignore[no-any-return]
        # A tracer says of every group that it is capturable; on the CPU that means nothing.
        device = p.device if group.get("capturable") and p.device.type != "cpu" else torch.device("cpu")
        taken = 0.0 if optimizer._counts or any(own.get(name) is None for name in used) else 1.0
        return torch.full((), taken, dtype=scalar_dtype(), device=device)

    steps = [count(p, own) for p, own in zip(params, states, strict=True)]

    def column(name: str) -> list[Any]:
        slot = next(slot for slot in rule.slots if slot.name == name)
        return [
            slot.first(p.detach(), numbers, device=step.device) if own.get(name) is None else own[name]
            for p, own, step in zip(params, states, steps, strict=True)
        ]

    scalars = [slot.name for slot in rule.scalars]
    leaves = Leaves(
        params=params,
        grads=[p.grad for p in params],
        slots={name: column(name) for name in used if name not in scalars},
        steps=steps,
        columns=hyper.columns(rule.hparams, numbers),
        scalars={name: column(name) for name in used if name in scalars},
    )
    return rule, tuple(opt.flags.values()), leaves


def zero_grad_traced(optimizer: Any, set_to_none: bool) -> None:
    """Reset the gradients, as a tracer follows it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                if set_to_none:
                    p.grad = None
                else:
                    p.grad.zero_()
