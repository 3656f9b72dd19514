"""One launch for all leaves of a kind: the tables that the kernel reads, and what of them serves the next step too."""

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from funcopt.backends import Result, Work, compute_dtype
from funcopt.kernels.multi_tensor import arguments, fill, multi_tensor_update, to_triton

__all__ = ["BLOCK", "TRITON_DTYPES", "WARPS", "scalars", "step"]

# A program's elements and warps: two 16-byte vectors of float32 a thread for each array, so that enough loads are under
# way to hide memory's latency. Chosen by rule, not by autotuning, which would run an in-place kernel several times.
BLOCK, WARPS = 1024, 4

TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

Leaf = list[Tensor]


def step(work: Work, tables: dict[Hashable, Any] | None = None) -> Result:
    """Do the work, one launch for each device and combination of dtypes.

    Args:
        work: scalars are floats or 0-d tensors; all leaves of floating dtype, on devices that Triton runs on.
        tables: where to keep the tables of this step for the next one; the caller owns it, one for each optimizer.
    """
    kinds: dict[Hashable, list[int]] = {}
    for leaf, p in enumerate(work.params):
        kind = (p.device, p.dtype, work.grads[leaf].dtype, *(slot[leaf].dtype for slot in work.slots))
        kinds.setdefault(kind, []).append(leaf)
    params = list(work.params)
    slots = [list(slot) for slot in work.slots]
    for kind, members in kinds.items():
        part = work.of(members)
        inputs = [_inputs(part, leaf) for leaf in range(len(members))]
        outputs = [_outputs(leaf, work.donate) for leaf in inputs]
        _launch(part, inputs, outputs, kind, tables)
        for leaf, member in enumerate(members):
            new = outputs[leaf]
            if work.donate:  # the result is in the donated tensor, unless a copy was made to lie in order
                old = [params[member], *(slot[member] for slot in slots)]
                new = [o if o is n else o.copy_(n) for o, n in zip(old, new, strict=True)]
                torch.autograd.graph.increment_version(old)
            params[member] = new[0]
            for slot, value in zip(slots, new[1:], strict=True):
                slot[member] = value
    return params, slots


# ---- one leaf's tensors ---------------------------------------------------------------------------------------------


def _inputs(work: Work, leaf: int) -> Leaf:
    """p, g and the slots, lying in memory alike and without gaps: the kernel walks them by address."""
    p = work.params[leaf]
    tensors = [t.resolve_neg() for t in (p, work.grads[leaf], *(slot[leaf] for slot in work.slots))]
    if all(t.is_contiguous() for t in tensors):
        return tensors
    if not torch.ops.aten.is_non_overlapping_and_dense(p):
        return [t.contiguous() for t in tensors]
    return [t if t.stride() == p.stride() else torch.empty_like(p, dtype=t.dtype).copy_(t) for t in tensors]


def _outputs(inputs: Leaf, donate: bool) -> Leaf:
    p, _, *slots = inputs
    return [p, *slots] if donate else [torch.empty_like(t) for t in (p, *slots)]


# ---- one launch -----------------------------------------------------------------------------------------------------


def _launch(
    work: Work, inputs: list[Leaf], outputs: list[Leaf], kind: tuple[Any, ...], tables: dict[Hashable, Any] | None
) -> None:
    device, dtype, grad_dtype, *slot_dtypes = kind
    sizes = tuple(p.numel() for p, *_ in inputs)
    chunks = _chunks(sizes, device)
    if len(chunks) == 0:
        return
    rows = []
    for size, own, tensors, new in zip(sizes, work.rows, inputs, outputs, strict=True):
        addresses = [t.data_ptr() for t in (*tensors, *new)]
        rows.append([size, own, all(address % 16 == 0 for address in addresses), *addresses])
    fields = type(work.coefficients[0])
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        multi_tensor_update[(len(chunks),)](
            _table(torch.tensor(rows, dtype=torch.int64, device="cpu"), device, tables, kind),
            chunks,
            scalars(work.coefficients, device),
            UPDATE=to_triton(work.update),
            ARGUMENTS=arguments(work.present, work.flags),
            COEFFICIENTS=fields,
            COUNT=len(fields._fields),
            DTYPE=TRITON_DTYPES[dtype],
            GRAD=TRITON_DTYPES[grad_dtype],
            SLOTS=tuple(TRITON_DTYPES[d] for d in slot_dtypes),
            COMPUTE=TRITON_DTYPES[compute_dtype(dtype)],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


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
