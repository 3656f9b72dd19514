"""Who is looking on: tracers, derivatives, batches. The one place that knows torch's names for them."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["differentiated", "readable", "traced", "transformed", "wrapped"]


def traced() -> bool:
    """Whether torch.compile, or another tracer, records what is done."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def transformed() -> bool:
    """Whether this runs inside a torch.func transform, or under forward-mode AD."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def wrapped(*values: Tensor) -> bool:
    """Whether a tensor stands for more than its numbers: a batch, a derivative, a trace."""
    return (
        torch.compiler.is_compiling()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or any(map(torch._C._functorch.is_functorch_wrapped_tensor, values))
    )


def readable(value: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device, or cutting off a derivative or a trace."""
    return value.device.type == "cpu" and not (value.requires_grad and torch.is_grad_enabled()) and not wrapped(value)


def differentiated(values: Iterable[Tensor]) -> bool:
    """Whether somebody may ask for a derivative of what is made of these, or has them batched."""
    values = list(values)
    if torch.is_grad_enabled() and any(map(_requires_grad, values)):
        return True
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return bool(values)
    if torch._C._len_torch_dispatch_stack() > 0:
        return bool(values)
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, values))


_requires_grad = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
