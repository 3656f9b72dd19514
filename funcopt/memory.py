"""Which tensors share memory."""

import operator
from collections.abc import Sequence

from torch import Tensor

__all__ = ["apart", "folded"]


def apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no byte belongs to two of some dense tensors on one device; one that is given twice shares its own."""
    tensors = [t for t in tensors if t.numel()]
    starts = [t.data_ptr() for t in tensors]
    ends = [start + _extent(t) for start, t in zip(starts, tensors, strict=True)]
    # None overlaps another where each ends, the first to end first, before the next begins.
    return all(map(operator.le, sorted(ends), sorted(starts)[1:]))


def folded(t: Tensor) -> bool:
    """Whether elements of a dense tensor share memory, as after `expand`: it cannot be written to then."""
    return not t.is_contiguous() and any(n > 1 and step == 0 for n, step in zip(t.shape, t.stride(), strict=True))


def _extent(t: Tensor) -> int:
    """The bytes from a tensor's first element to behind its last."""
    if t.is_contiguous():
        return t.nbytes
    return t.element_size() * (1 + sum((n - 1) * abs(stride) for n, stride in zip(t.shape, t.stride(), strict=True)))
