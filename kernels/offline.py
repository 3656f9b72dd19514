"""What the kernel of a rule is on a GPU that is not here: compiled for it, and read.

`assembly` compiles a rule's kernel for a GPU by name, which needs no device; `accesses` reads the width of its global
loads and stores, `spills` what it keeps in local memory.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from funcopt.backends import compute_dtype
from funcopt.core import PureOptimizer
from funcopt.kernels.launch import BLOCK, TRITON_DTYPES, WARPS
from funcopt.kernels.multi_tensor import arguments, multi_tensor_update, to_triton

__all__ = ["TARGETS", "accesses", "assembly", "spills"]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def assembly(
    opt: PureOptimizer, slots: Sequence[str], target: str, dtype: torch.dtype, slot_dtype: torch.dtype | None = None
) -> str:
    """The PTX, or AMD assembly, of the kernel that steps parameters of a dtype.

    Args:
        opt: the pure optimizer.
        slots: the slots in use, as `opt.init` makes them.
        target: one of `TARGETS`.
        dtype: of the parameters and gradients.
        slot_dtype: of the slots; that of the parameters if left out.
    """
    slot = TRITON_DTYPES[slot_dtype or dtype]
    constants = {
        "UPDATE": to_triton(opt.rule.update),
        "ARGUMENTS": arguments(tuple(s.name in slots for s in opt.rule.slots), tuple(opt.flags.values())),
        "COEFFICIENTS": opt.rule.Coefficients,
        "COUNT": len(opt.rule.Coefficients._fields),
        "DTYPE": TRITON_DTYPES[dtype],
        "SLOTS": (slot,) * len(slots),
        "COMPUTE": TRITON_DTYPES[compute_dtype(dtype)],
        "BLOCK": BLOCK,
    }
    names = multi_tensor_update.arg_names
    types = {"table": "*i64", "chunks": "*i64", "coefficients": "*fp64"}
    source = ASTSource(
        multi_tensor_update,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={},
    )
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": WARPS})
    return compiled.asm["ptx"] if "ptx" in compiled.asm else compiled.asm["amdgcn"]


def accesses(text: str) -> dict[str, list[int]]:
    """The bytes of every global "load" and "store" of assembly text, one entry an instruction, per thread."""
    if ".visible .entry" in text:
        found = re.findall(r"\b(ld|st)\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[bfus](\d+)\b", text)
        widths = [(kind, int(count or 1) * int(bits) // 8) for kind, count, bits in found]
    else:
        found = re.findall(r"\bglobal_(load|store)_(dwordx(\d)|dword|short|ushort|ubyte|byte)", text)
        sizes = {"dword": 4, "short": 2, "ushort": 2, "ubyte": 1, "byte": 1}
        widths = [(kind[:2] if kind == "load" else "st", 4 * int(n) if n else sizes[name]) for kind, name, n in found]
        widths = [("ld" if kind == "lo" else kind, width) for kind, width in widths]
    return {
        "load": [width for kind, width in widths if kind == "ld"],
        "store": [width for kind, width in widths if kind == "st"],
    }
