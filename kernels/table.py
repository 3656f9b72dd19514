"""Leaves as the kernels walk them: by address, all of a leaf's tensors lying in memory alike and without gaps."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcopt.backends import Result, Work

__all__ = ["FIRST", "GRAD", "OWN", "SIZE", "Kernel", "Table", "run", "tables"]

# A row's columns: the number of elements, which row of the coefficients is the leaf's own, then the addresses of p, g
# and the slots in use, and of where the new p and slots go.
SIZE, OWN, FIRST, GRAD = 0, 1, 2, 3


@dataclass(frozen=True)
class Table:
    """The leaves of one device and one combination of dtypes.

    `dtypes` are those of p, g and the slots in use, `members` the leaves' places in the work. `inputs` and `outputs`
    hold the tensors that the rows tell the addresses of, column by column.
    """

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    members: list[int]
    rows: "array[int]"
    inputs: list[list[Tensor]]
    outputs: list[list[Tensor]]

    def set(self, column: int, values: Sequence[int]) -> None:
        """Put a value for each leaf of the work, of which the members' are taken, into a column of the rows."""
        if len(values) > len(self.members):
            values = [values[leaf] for leaf in self.members]
        self.rows[column :: len(self.rows) // len(self.members)] = array("q", values)


def width(slots: int) -> int:
    """The length of a row, for a number of slots in use."""
    return FIRST + 2 + slots + 1 + slots


# From a parameter's shape to what a kernel has to know of it.
View = Callable[[Sequence[int]], tuple[int, ...]]

# What runs a kernel on a table, with these sets of coefficients.
Kernel = Callable[[list[tuple[Any, ...]]], None]


def run(work: Work, bound: Callable[[Work, Table], Kernel], view: View | None = None) -> Result:
    """Do the work, one call of a kernel for each device and combination of dtypes."""
    params, slots = list(work.params), [list(slot) for slot in work.slots]
    kernels = [(table, bound(work, table)) for table in tables(work, view)]
    for table, kernel in kernels:
        kernel(work.coefficients)
        for old, new in zip((params, *slots), table.outputs, strict=True):
            for leaf, value in zip(table.members, new, strict=True):
                # A donated tensor has the result in it, unless a copy was made that a kernel can walk.
                old[leaf] = old[leaf].copy_(value) if work.donate and old[leaf] is not value else value
    if work.donate:
        torch.autograd.graph.increment_version([t for column in (params, *slots) for t in column])
    return params, slots


def tables(work: Work, view: View | None = None) -> list[Table]:
    """The leaves of the work, by device and combination of dtypes; their rows are those of the work's coefficients.

    With a view each row ends with what that makes of the parameter's shape, and all tensors lie row after row.
    """
    columns = [work.params, work.grads, *work.slots]
    kinds: dict[Any, list[int]] = {}
    described = zip([p.device for p in work.params], *[[t.dtype for t in column] for column in columns], strict=True)
    for leaf, kind in enumerate(described):
        kinds.setdefault(kind, []).append(leaf)
    return [
        _table(work.of(members), [work.rows[leaf] for leaf in members], members, view, *kind)
        for kind, members in kinds.items()
    ]


def _table(
    work: Work, own: list[int], members: list[int], view: View | None, device: torch.device, *dtypes: torch.dtype
) -> Table:
    columns = [work.params, work.grads, *work.slots]
    if view is None:
        columns = _walkable(columns)
    else:
        columns = [[t.resolve_neg().contiguous() for t in column] for column in columns]
    inputs = [columns[0], *columns[2:]]
    outputs = inputs if work.donate else [[torch.empty_like(t) for t in column] for column in inputs]
    numbers = [[p.numel() for p in work.params], own]
    numbers += [[t.data_ptr() for t in column] for column in (*columns, *outputs)]
    if view is not None:
        numbers += map(list, zip(*(view(p.shape) for p in work.params), strict=True))
    rows = array("q", bytes(8 * len(numbers) * len(members)))
    for place, column in enumerate(numbers):
        rows[place :: len(numbers)] = array("q", column)
    return Table(device, dtypes, members, rows, columns, outputs)


def _walkable(columns: list[list[Tensor]]) -> list[list[Tensor]]:
    """The columns, with copies for those tensors that do not lie as the others of their leaf, or have gaps."""
    if all(t.is_contiguous() and not t.is_neg() for column in columns for t in column):
        return columns
    return [list(column) for column in zip(*map(_alike, zip(*columns, strict=True)), strict=True)]


def _alike(leaf: tuple[Tensor, ...]) -> list[Tensor]:
    tensors = [t.resolve_neg() for t in leaf]
    p = tensors[0]
    if all(t.is_contiguous() for t in tensors):
        return tensors
    if not torch.ops.aten.is_non_overlapping_and_dense(p):
        return [t.contiguous() for t in tensors]
    return [t if t.stride() == p.stride() else torch.empty_like(p, dtype=t.dtype).copy_(t) for t in tensors]
