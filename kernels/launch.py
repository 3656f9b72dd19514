"""One launch for all leaves of a kind: the tables that the kernel reads, and what of them serves the next step too."""

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from funcopt.backends import Result, Work, compute_dtype
from funcopt.kernels.multi_tensor import arguments, multi_tensor_update, to_triton

__all__ = ["step"]

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
        kind = (p.device, p.dtype, *(slot[leaf].dtype for slot in work.slots))
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
            params[member] = new[0]
            for slot, value in zip(slots, new[1:], strict=True):
                slot[member] = value
    return params, slots


# ---- one leaf's tensors ---------------------------------------------------------------------------------------------


def _inputs(work: Work, leaf: int) -> Leaf:
    """p, g and the slots, lying in memory alike and without gaps: the kernel walks them by address."""
    p = work.params[leaf]
    tensors = [p, work.grads[leaf], *(slot[leaf] for slot in work.slots)]
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
    device, dtype, *slot_dtypes = kind
    sizes = tuple(p.numel() for p, *_ in inputs)
    chunks = _chunks(sizes, device)
    if len(chunks) == 0:
        return
    rows = []
    for size, scalars, tensors, new in zip(sizes, work.rows, inputs, outputs, strict=True):
        addresses = [t.data_ptr() for t in (*tensors, *new)]
        rows.append([size, scalars, all(address % 16 == 0 for address in addresses), *addresses])
    fields = type(work.coefficients[0])
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        multi_tensor_update[(len(chunks),)](
            _table(torch.tensor(rows, dtype=torch.int64), device, tables, (kind, sizes)),
            chunks,
            _scalars(work.coefficients, device),
            UPDATE=to_triton(work.update),
            ARGUMENTS=arguments(work.present, work.flags),
            COEFFICIENTS=fields,
            COUNT=len(fields._fields),
            DTYPE=TRITON_DTYPES[dtype],
            SLOTS=tuple(TRITON_DTYPES[d] for d in slot_dtypes),
            COMPUTE=TRITON_DTYPES[compute_dtype(dtype)],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@lru_cache(maxsize=32)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """What each program works on: (tensor << 32) + the chunk within it. It depends on sizes only."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    within = torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]
    return ((tensor << 32) + within).to(device)


def _scalars(coefficients: list[tuple[Any, ...]], device: torch.device) -> Tensor:
    """The sets of coefficients, float64 on the device."""
    if any(isinstance(c, Tensor) for cs in coefficients for c in cs):
        # Numbers on the device are worked with there, and nobody waits for them.
        to = {"dtype": torch.float64, "device": device}
        return torch.stack([torch.stack([torch.as_tensor(c, **to) for c in cs]) for cs in coefficients])
    if _capturing(device):
        raise RuntimeError(
            "a CUDA graph that captured this step would repeat its step number and hparams for ever: keep the count on "
            "the device (capturable=True), and whatever is to change between replays in tensors there"
        )
    return torch.tensor(coefficients, dtype=torch.float64).to(device, non_blocking=True)


@dataclass
class _Kept:
    """A table on the device, the same rows here to see what has moved, and memory for what a CUDA graph captures."""

    rows: Tensor
    on_device: Tensor
    spare: Tensor | None
    captured: list[Tensor]


def _table(rows: Tensor, device: torch.device, tables: dict[Hashable, Any] | None, key: Hashable) -> Tensor:
    """The rows on the device; where they are kept, only those that differ from the last step's are copied there."""
    if tables is None:
        return rows.to(device, non_blocking=True)
    kept = tables.get(key)
    if kept is None:
        kept = tables[key] = _Kept(rows, rows.to(device, copy=True), None, [])
    moved = (rows != kept.rows).any(1).nonzero().flatten().tolist()
    if _capturing(device):
        if moved:  # the graph copies from here at every replay, so this memory is never written again
            if kept.spare is None:
                raise RuntimeError("take an ordinary step before capturing one in a CUDA graph")
            source, kept.spare = kept.spare.copy_(rows), None
            kept.captured.append(source)
            kept.on_device.copy_(source, non_blocking=True)
    else:
        if kept.spare is None and device.type == "cuda":
            kept.spare = torch.empty_like(rows, pin_memory=True)
        if moved:
            part = slice(moved[0], moved[-1] + 1)
            kept.on_device[part].copy_(rows[part], non_blocking=True)
    kept.rows = rows
    return kept.on_device


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
