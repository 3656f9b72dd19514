"""How an adapter takes gradients elsewhere than at its parameters, as sharpness-aware minimization does."""

from collections.abc import Callable
from typing import Any

import torch

from funcopt.core import step_together

__all__ = ["go_uphill"]


def go_uphill(optimizer: Any, closure: Callable[[], Any] | None) -> None:
    """Take the gradients anew where rules want them elsewhere; the parameters are where they were after it.

    Args:
        optimizer: an adapter, whose gradients are those at its parameters.
        closure: sets the gradients to zero, computes the loss and calls backward().

    Raises:
        TypeError: no closure, where one is needed.
    """
    groups = [group for group in optimizer.param_groups if optimizer._rule_of(group).ascent is not None]
    if not groups:
        return
    if closure is None:
        raise TypeError(
            f"{type(optimizer).__name__} takes gradients at two points: step takes a closure that sets them to zero, "
            "computes the loss, calls backward() and returns the loss"
        )
    ascents = [optimizer._pure(g).ascent(optimizer._numbers(optimizer._rule_of(g), g)) for g in groups]
    params = [[p for p in group["params"] if p.grad is not None] for group in groups]
    with torch.no_grad():
        parts = [
            opt.leaves([p.detach() for p in own], [p.grad for p in own], opt.init(own, numbers), numbers)[0]
            for (opt, numbers), own in zip(ascents, params, strict=True)
        ]
        tops = step_together([opt for opt, _ in ascents], [optimizer._label(group) for group in groups], parts)
        moved = [p for own in params for p in own]
        before = [p.clone() for p in moved]
        for p, top in zip(moved, (top for leaves in tops for top in leaves.params), strict=True):
            p.copy_(top)
    try:
        with torch.enable_grad():
            closure()
    finally:
        with torch.no_grad():
            for p, old in zip(moved, before, strict=True):
                p.copy_(old)
