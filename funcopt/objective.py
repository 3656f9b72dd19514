"""A loss over a pytree as a method of optimization sees it: a value, and a gradient that is one real vector.

Complex tensors are pairs of reals. A vector lies where the first tensor does, in the widest of the tensors' dtypes and
float32, the dtype of the arithmetic.
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from funcopt import tree

__all__ = ["checked_loss", "leaves", "moved", "unpacked", "value_and_grad", "vector"]


def value_and_grad(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Any]]:
    """The function `(params, *args, **kwargs) -> (value, grads)` of a loss `(params, *args, **kwargs) -> value`.

    Args:
        loss: from a pytree of floating-point or complex tensors, and whatever else it takes, to a real 0-d tensor.

    Returns:
        A function of the same arguments. Its value is the loss, its grads are a tree like params: what
        `torch.func.grad_and_value` gives, in the other order.
    """
    both = torch.func.grad_and_value(loss)

    def value_first(params: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        grads, value = both(params, *args, **kwargs)
        return value, grads

    return value_first


# ---- vectors --------------------------------------------------------------------------------------------------------


def vector(grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> Tensor:
    """The gradients one behind the other, copied; one that is None is 0, and a sparse one becomes dense."""
    if not params:
        return torch.empty(0)
    dtype = functools.reduce(torch.promote_types, [_real(p).dtype for p in params], torch.float32)
    dense = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(grads, params, strict=True)]
    dense = [g if g.layout == torch.strided else g.to_dense() for g in dense]
    return torch.cat([_real(g.resolve_conj()).reshape(-1).to(params[0].device, dtype) for g in dense])


def moved(params: Sequence[Tensor], t: Tensor | float, d: Tensor) -> list[Tensor]:
    """New tensors params + t·d for a vector d, each rounded to its parameter's dtype."""
    new = [p.clone() for p in params]
    reals = [_real(p) for p in new]
    for p, part in zip(reals, torch.split(d, [p.numel() for p in reals]), strict=True):
        p.add_(part.view(p.shape).to(p.device), alpha=float(t))
    return new


def _real(p: Tensor) -> Tensor:
    return torch.view_as_real(p) if p.is_complex() else p


# ---- what is given --------------------------------------------------------------------------------------------------


def leaves(params: tree.Tree) -> tuple[list[Tensor], tree.Spec]:
    """The tensors of a tree, and its structure; raises TypeError for what is no floating-point or complex tensor."""
    found, spec = tree.flatten(params)
    for index, leaf in enumerate(found):
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            got = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise TypeError(
                f"{tree.paths(params, 'params')[index]} is {got}; params holds floating-point or complex tensors only"
            )
    return found, spec


def checked_loss(value: Any, whose: str) -> float:
    """A loss as a float; raises TypeError or ValueError where it is no real number, or several."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{whose} gave a loss of shape {tuple(value.shape)}; one number is needed")
        value = value.detach().item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{whose} gave a loss that is {value!r}; a real number is needed")
    return float(value)


def unpacked(given: Any, params: tree.Tree, ps: Sequence[Tensor], spec: tree.Spec) -> tuple[float, list[Any]]:
    """The value and the gradients, leaf by leaf, that a `value_and_grad` returned; raises TypeError or ValueError."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"value_and_grad must return a pair (value, grads); it returned a {type(given).__name__}")
    value, grads = given
    if isinstance(value, dict | list | tuple):
        raise TypeError(
            f"value_and_grad must return (value, grads), the loss first; it returned a {type(value).__name__} first. "
            "torch.func.grad_and_value has the other order; funcopt.value_and_grad(loss) has this one"
        )
    loss = checked_loss(value, "value_and_grad")
    found = tree.flatten_like(grads, params, spec, "grads")
    for index, (g, p) in enumerate(zip(found, ps, strict=True)):
        if g is None:
            continue
        if not isinstance(g, Tensor) or (g.shape, g.dtype) != (p.shape, p.dtype):
            got = f"{g.dtype} of shape {tuple(g.shape)}" if isinstance(g, Tensor) else f"a {type(g).__name__}"
            path = tree.paths(params, "")[index]
            raise ValueError(f"grads{path} is {got}, but params{path} is {p.dtype} of shape {tuple(p.shape)}")
    return loss, found
