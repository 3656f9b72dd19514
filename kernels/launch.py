"""One launch for all leaves of a kind: the tables that the kernel reads, and what of them serves the next step too."""

import contextlib
import functools
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcopt import expression
from funcopt.backends import Result, Sets, Work
from funcopt.declaration import Measure
from funcopt.kernels import table
from funcopt.kernels.multi_tensor import fill, measure_chunk, multi_tensor_measure, multi_tensor_update, update_chunk

__all__ = ["BLOCK", "OPTIONS", "WARPS", "bound", "bound_measure", "measure", "scalars", "step"]

# A program's elements and warps: two 16-byte vectors of float32 a thread for each array, so that enough loads are under
# way to hide memory's latency. Chosen by rule, not by autotuning, which would run an in-place kernel several times.
BLOCK, WARPS = 1024, 4

# No contraction of a·b + c: every operation rounds by itself, as torch's.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}


def step(work: Work, kept: dict[Hashable, Any] | None = None) -> Result:
    """Do the work, one launch for each device and combination of dtypes.

    Args:
        work: scalars are floats or 0-d tensors; all leaves of floating dtype, on devices that Triton runs on.
        kept: where to keep the tables of this step for the next one; the caller owns it, one for each optimizer.
    """
    return table.run(work, functools.partial(bound, kept=kept))


def bound(
    work: Work, rows: table.Table, *, zero_grad: bool = False, kept: dict[Hashable, Any] | None = None
) -> table.Kernel:
    """The kernel for a table."""
    fields = type(work.coefficients[0])
    equation = expression.written(work.update, work.flags, work.present, fields)
    chunk = update_chunk(equation, rows.dtypes, zero_grad)
    placed = _Placed(rows, kept)

    def run(coefficients: list[tuple[Any, ...]]) -> None:
        width, chunks, on_device = placed()
        if len(chunks) == 0:
            return
        with _on(rows.device):
            multi_tensor_update[(len(chunks),)](
                on_device,
                chunks,
                scalars(coefficients, rows.device),
                UPDATE_CHUNK=chunk,
                WIDTH=width,
                COUNT=len(fields._fields),
                BLOCK=BLOCK,
                **OPTIONS,
            )

    return run


def measure(work: Work, measures: Mapping[str, Measure]) -> dict[str, Any]:
    """The measures of the work's gradients: 0-d float64 tensors on the device, or floats where it is the CPU."""
    sums = [bound_measure(work, rows, measures)(work.coefficients) for rows in table.tables(work)]
    return {name: functools.reduce(operator.add, [part[name] for part in sums]) for name in measures}


def bound_measure(
    work: Work, rows: table.Table, measures: Mapping[str, Measure], *, kept: dict[Hashable, Any] | None = None
) -> Callable[[list[tuple[Any, ...]]], dict[str, Any]]:
    """What sums measures of the gradients in a table, in the same order whatever the order of the programs."""
    fields = type(work.coefficients[0])
    chunk = measure_chunk(tuple(measures.values()), work.present, fields, rows.dtypes)
    placed = _Placed(rows, kept)

    def run(coefficients: list[tuple[Any, ...]]) -> dict[str, Any]:
        width, chunks, on_device = placed()
        sums = torch.zeros((len(chunks), len(measures)), dtype=torch.float64, device=rows.device)
        if len(chunks) > 0:
            with _on(rows.device):
                multi_tensor_measure[(len(chunks),)](
                    on_device,
                    chunks,
                    scalars(coefficients, rows.device),
                    sums,
                    MEASURE_CHUNK=chunk,
                    WIDTH=width,
                    COUNT=len(fields._fields),
                    SUMS=len(measures),
                    BLOCK=BLOCK,
                    **OPTIONS,
                )
        total = sums.sum(0)
        return {
            name: value.item() if rows.device.type == "cpu" else value
            for name, value in zip(measures, total, strict=True)
        }

    return run


class _Placed:
    """A table's rows on the device, and what each program works on; nothing is looked at twice that has not moved."""

    def __init__(self, rows: table.Table, kept: dict[Hashable, Any] | None) -> None:
        self.rows, self.kept = rows, {} if kept is None else kept
        self.kind = (rows.device, *rows.dtypes)
        self.width = len(rows.rows) // len(rows.members)
        self._last: tuple[Any, Any] | None = None  # the rows, and what was kept of them
        self._found: tuple[int, Tensor, Tensor] | None = None

    def __call__(self) -> tuple[int, Tensor, Tensor]:
        """The length of a row, the chunks, and the rows on the device."""
        device, before = self.rows.device, self.kept.get(self.kind)
        if self._last is not None and not _capturing(device):
            rows, kept = self._last
            if before is not None and before.rows is kept and rows == self.rows.rows:
                return self._found
        chunks = _chunks(tuple(self.rows.rows[table.SIZE :: self.width]), device)
        on_host = torch.frombuffer(self.rows.rows, dtype=torch.int64).view(-1, self.width).clone()
        self._found = self.width, chunks, _table(on_host, device, self.kept, self.kind)
        now = self.kept.get(self.kind)
        self._last = None if now is None else (self.rows.rows[:], now.rows)
        return self._found


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


_kept_chunks: dict[Hashable, Tensor] = {}


def _chunks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """What each program works on: (tensor << 32) + the chunk within it. It depends on sizes only, and is kept."""
    key = (sizes, device)
    if key not in _kept_chunks:
        if _capturing(device):
            raise RuntimeError("take an ordinary step with these parameters before capturing one in a CUDA graph")
        counts = torch.tensor([-(-size // BLOCK) for size in sizes], device="cpu")
        tensor = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
        within = torch.arange(len(tensor), device="cpu") - (counts.cumsum(0) - counts)[tensor]
        if len(_kept_chunks) >= 64:
            del _kept_chunks[next(iter(_kept_chunks))]
        _kept_chunks[key] = ((tensor << 32) + within).to(device)
    if _capturing(device):
        _captured.append(_kept_chunks[key])
    return _kept_chunks[key]


def scalars(coefficients: list[tuple[Any, ...]], device: torch.device) -> Tensor:
    """The sets of coefficients as a float64 table on the device, differentiable in those that are tensors."""
    if not any(isinstance(c, Tensor) for cs in coefficients for c in cs):
        if _capturing(device):
            raise RuntimeError(
                "a CUDA graph that captured this step would repeat its step number and hparams for ever: keep the "
                "count on the device (capturable=True), and what is to change between replays in tensors there"
            )
        return torch.tensor(coefficients, dtype=torch.float64, device="cpu").to(device, non_blocking=True)

    def number(c: Any) -> Tensor:
        # What is on the device stays there; a number from here is filled in, for a copy would have to be waited for.
        if isinstance(c, Tensor):
            return c.to(dtype=torch.float64, device=device)
        return torch.full((), c, dtype=torch.float64, device=device)

    if isinstance(coefficients, Sets):  # as they were worked out: all leaves' at once
        return torch.stack([number(c).expand(len(coefficients)) for c in coefficients.columns], 1)
    return torch.stack([torch.stack([number(c) for c in cs]) for cs in coefficients])


# What CUDA graphs read at every replay, and nobody else refers to.
_captured: list[Tensor] = []


@dataclass
class _Kept:
    """A table on the device, and the same rows here to see what has moved. A frozen one belongs to a CUDA graph."""

    rows: Tensor
    on_device: Tensor
    frozen: bool = False


def _table(rows: Tensor, device: torch.device, tables: dict[Hashable, Any] | None, kind: Hashable) -> Tensor:
    """The rows on the device; where they are kept, only what has moved since the last step is copied there."""
    kept = tables.get(kind) if tables is not None else None
    if kept is not None and kept.rows.shape == rows.shape:
        moved = (rows != kept.rows).any(1).nonzero().flatten().tolist()
        if not moved:
            kept.frozen = kept.frozen or _capturing(device)
            return _remembered(kept.on_device, device)
        if not kept.frozen and not _capturing(device):
            part = slice(moved[0], moved[-1] + 1)
            kept.on_device[part].copy_(rows[part], non_blocking=True)
            kept.rows = rows
            return kept.on_device
    if _capturing(device):
        return _remembered(_filled(rows, device), device)
    on_device = rows.to(device, non_blocking=True, copy=True)
    if tables is not None:
        tables[kind] = _Kept(rows, on_device)
    return on_device


def _filled(rows: Tensor, device: torch.device) -> Tensor:
    """The rows on the device, written there by kernels that have them as arguments."""
    table = torch.empty_like(rows, device=device)
    flat = rows.flatten().tolist()
    for first in range(0, len(flat), 8):
        part = flat[first : first + 8]
        fill[(1,)](table, first, len(flat), *part, *[0] * (8 - len(part)))
    return table


def _remembered(table: Tensor, device: torch.device) -> Tensor:
    if _capturing(device):
        _captured.append(table)
    return table


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
