"""Flat storage: parameters, gradients and slots that lie one behind the other, each kind in a buffer of its own."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from funcopt.backends import KERNEL_DTYPES, PLAIN

__all__ = ["Flat", "check", "flats"]

# A tensor begins at a multiple of so many elements: at 64 bytes or more, whatever the dtype.
ALIGNMENT = 64


class Flat:
    """The flat storage of parameters of one device and dtype, of their gradients and of their slots.

    A parameter's `data`, its `grad` and its slots are views of buffers. What somebody else puts in the place of a view
    is what counts. Parameters that are found elsewhere are to get a new storage: somebody may have kept their old data.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self._values, self._grads = _Buffer(params, params[0].dtype), _Buffer(params, _grad_dtype(params[0]))
        self._slots: dict[str, _Buffer] = {}
        with torch.no_grad():
            for i, p in enumerate(self.params):
                p.data = self._values.put(i, p)

    @property
    def grads(self) -> list[Tensor]:
        """The views that the gradients are, or will be when they are next set to 0."""
        return self._grads.views

    @property
    def holds(self) -> bool:
        """Whether the parameters are where they were laid, and as they were."""
        return all(p.data_ptr() == self._values.address(i) and self._like(i) for i, p in enumerate(self.params))

    def _like(self, i: int) -> bool:
        p, grad = self.params[i], self._grads.views[i]
        same = p.dtype == self._values.dtype and p.device == grad.device and _grad_dtype(p) == self._grads.dtype
        return same and (p.shape, p.stride()) == self._values.places[i][:2]

    @torch.no_grad()
    def gather(self, states: Mapping[Tensor, dict[str, Any]]) -> None:
        """Bring in the gradients there are, and the slots that all parameters have."""
        for i, p in enumerate(self.params):
            if p.grad is not None and type(p.grad) is Tensor and p.grad.layout == torch.strided:
                p.grad = self._grads.put(i, p.grad)
        own = [states.get(p, {}) for p in self.params]
        for name in own[0]:
            slots: list[Any] = [state.get(name) for state in own]
            if name == "step" or not all(map(_fits, slots, self.params)) or len({t.dtype for t in slots}) > 1:
                continue
            if name not in self._slots or self._slots[name].dtype != slots[0].dtype:
                self._slots[name] = _Buffer(self.params, slots[0].dtype)
            for i, state in enumerate(own):
                state[name] = self._slots[name].put(i, slots[i])

    @torch.no_grad()
    def zero_grad(self) -> None:
        """Set the gradients to 0, and put them back in their place where something else is."""
        self._grads.buffer.zero_()
        for i, p in enumerate(self.params):
            if not p.requires_grad or not self._like(i):
                p.grad = None  # frozen, or another than it was: its next step lays it out again
            elif p.grad is not self._grads.views[i] or not self._grads.holds(i):
                p.grad = self._grads.renewed(i)


class _Buffer:
    """Zeros for each parameter, lying as it does, one behind the other, and the views of them."""

    def __init__(self, params: Sequence[Tensor], dtype: torch.dtype) -> None:
        sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in params]
        self.places = [
            (p.shape, p.stride(), start)
            for p, start in zip(params, itertools.accumulate(sizes, initial=0), strict=False)
        ]
        self.dtype = dtype
        self.buffer = torch.zeros(sum(sizes), dtype=dtype, device=params[0].device)
        self.views = [self.buffer.as_strided(*place) for place in self.places]

    def address(self, i: int) -> int:
        """Where the i-th view belongs."""
        return self.buffer.data_ptr() + self.places[i][2] * self.buffer.element_size()

    def holds(self, i: int) -> bool:
        """Whether the i-th view is one still: its `data` may have been set to something else."""
        return self.views[i].data_ptr() == self.address(i) and self.views[i].dtype == self.dtype

    def renewed(self, i: int) -> Tensor:
        """The i-th view, a new one where it is none any more."""
        if not self.holds(i):
            self.views[i] = self.buffer.as_strided(*self.places[i])
        return self.views[i]

    def put(self, i: int, value: Tensor) -> Tensor:
        """The i-th view, with these values in it."""
        if value is self.views[i] and self.holds(i):
            return value
        return self.renewed(i).copy_(value)


def _grad_dtype(p: Tensor) -> torch.dtype:
    """The dtype that gradients of a parameter have; it may be set to another than the parameter's."""
    return getattr(p, "grad_dtype", None) or p.dtype


def _fits(slot: Any, p: Tensor) -> bool:
    return type(slot) is Tensor and slot.shape == p.shape and slot.device == p.device and slot.layout == torch.strided


def flats(params: Sequence[Tensor]) -> list[Flat]:
    """Lay parameters out: a flat storage for each device and dtype; those that need no gradient are left out."""
    kinds: dict[Any, list[Tensor]] = {}
    for p in params:
        if p.requires_grad:
            kinds.setdefault((p.device, p.dtype, _grad_dtype(p)), []).append(p)
    return [Flat(members) for members in kinds.values()]


def check(params: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise TypeError or ValueError, naming it, where a parameter that needs a gradient cannot lie in a buffer."""
    for p, name in zip(params, names, strict=True):
        if not p.requires_grad:
            continue
        if type(p) not in PLAIN or p.layout != torch.strided or p.dtype not in KERNEL_DTYPES:
            raise TypeError(
                f"parameter {name} is a {type(p).__name__} of {p.layout} and {p.dtype}; flat storage is for plain "
                "dense tensors of float32, float64, bfloat16 or float16"
            )
        if p.numel() and not torch.ops.aten.is_non_overlapping_and_dense(p):
            raise ValueError(
                f"parameter {name}, of shape {tuple(p.shape)} and stride {p.stride()}, has gaps or overlaps in memory, "
                "which a buffer cannot keep; make it contiguous, or leave it out of flat storage"
            )
    placed = [(p, name) for p, name in zip(params, names, strict=True) if p.layout == torch.strided and p.numel()]
    placed.sort(key=lambda pair: pair[0].data_ptr())
    for (p, first), (q, second) in itertools.pairwise(placed):
        if p.device == q.device and p.data_ptr() + p.nbytes > q.data_ptr():
            raise ValueError(
                f"the parameters {first} and {second} share memory, which flat storage would put asunder; leave one of "
                "them out"
            )
