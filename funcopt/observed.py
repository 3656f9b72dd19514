"""Who is looking on: tracers, derivatives, batches. The one place that knows torch's names for them."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["constant", "differentiated", "readable", "traced", "transformed", "wrapped", "writable"]


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


def writable(target: Tensor, value: Tensor) -> bool:
    """Whether a value can be written to a tensor in place, as far as the transforms of torch.func are concerned.

    A transform that the value has been through must know the tensor too: a batch fits into no single tensor. A compiler
    cannot tell which transforms those are.
    """
    if not torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and _levels(value) <= _levels(target)


def constant(value: Tensor) -> Tensor:
    """A value to which no derivative is known, without what torch.func's grad and jvp have put around it."""
    while not torch.compiler.is_compiling() and torch._C._functorch.is_gradtrackingtensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value


def _levels(value: Tensor) -> set[int]:
    """The transforms, by depth, in which a tensor is a batch or has a derivative."""
    found = set()
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        found.add(torch._C._functorch.maybe_get_level(value))
        value = torch._C._functorch.get_unwrapped(value)
    return found


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
