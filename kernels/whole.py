"""The CPU's kernels of rules with sums over whole tensors: one call for all leaves whose tensors are of one kind."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from funcopt import expression
from funcopt.backends import Result, Work
from funcopt.kernels import cpu, table, tensorwise

__all__ = ["ready", "step"]

Extents = tuple[frozenset[str], ...]
Kind = tuple[bool, Extents]  # whether parameters have two dimensions, and what p, g and the slots in use vary along


def step(work: Work) -> Result:
    """Do the work; raises CompilationError, before anything has been changed."""
    ready(work)
    params, slots = list(work.params), [list(column) for column in work.slots]
    for kind, part, members in _parts(work):

        def bound(part: Work, rows: table.Table, kind: Kind = kind) -> table.Kernel:
            call = cpu.called(_kernel(part, kind, rows.dtypes)[0], rows)
            return lambda coefficients: call(coefficients, 0)

        _, view = _kernel(part, kind, _dtypes(part)[0])
        new_params, new_slots = table.run(part, bound, view)
        used = [column for column in slots if column[members[0]] is not None]
        for old, new in zip((params, *used), (new_params, *new_slots), strict=True):
            for place, leaf in enumerate(members):
                old[leaf] = new[place]
    return params, slots


def ready(work: Work) -> None:
    """Have the kernels for the work; raises CompilationError."""
    for kind, part, _ in _parts(work):
        for dtypes in set(_dtypes(part)):
            _kernel(part, kind, dtypes)


def _parts(work: Work) -> list[tuple[Kind, Work, list[int]]]:
    """The work by kind, and the places of the leaves of each."""
    kinds: dict[Kind, list[int]] = {}
    for leaf, p in enumerate(work.params):
        own = [tensorwise.extent(p, column[leaf]) for column in work.slots if column[leaf] is not None]
        kinds.setdefault((p.dim() > 1, (tensorwise.ALL, tensorwise.ALL, *own)), []).append(leaf)
    parts = []
    for kind, members in kinds.items():
        part = work.of(members)
        rest = iter(part.slots)
        present = tuple(there and next(rest)[0] is not None for there in part.present)
        slots = [column for column in part.slots if column[0] is not None]
        parts.append((kind, replace(part, slots=slots, present=present), members))
    return parts


def _dtypes(part: Work) -> list[tuple[torch.dtype, ...]]:
    return list(zip(*[[t.dtype for t in column] for column in (part.params, part.grads, *part.slots)], strict=True))


def _kernel(part: Work, kind: Kind, dtypes: tuple[torch.dtype, ...]) -> tuple[cpu.Entry, table.View]:
    return _made(part.update, part.flags, part.present, type(part.coefficients[0]), *kind, dtypes)


@functools.lru_cache(maxsize=256)
def _made(
    update: Callable[..., Any],
    flags: tuple[Any, ...],
    present: tuple[bool, ...],
    fields: Any,
    matrix: bool,
    extents: Extents,
    dtypes: tuple[torch.dtype, ...],
) -> tuple[cpu.Entry, table.View]:
    """The compiled kernel of an equation with sums, and how it looks at parameters."""
    writer = tensorwise.Writer(expression.written(update, flags, present, fields, matrix), dtypes, extents)
    return cpu.compiled(writer.text()), writer.view
