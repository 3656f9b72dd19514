"""What the kernel of a rule is on a GPU that is not here: compiled for it, and read.

`assembly` compiles a rule's kernel for a GPU by name, which needs no device; `accesses` and `bytes_per_element` read
its loads and stores, `local_memory` what it spills.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from funcopt import expression
from funcopt.core import PureOptimizer
from funcopt.kernels import table
from funcopt.kernels.launch import BLOCK, OPTIONS, WARPS
from funcopt.kernels.multi_tensor import measure_chunk, multi_tensor_measure, multi_tensor_update, update_chunk

__all__ = ["TARGETS", "accesses", "assembly", "bytes_per_element", "local_memory", "measuring_assembly"]

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
        slots: the slots in use, as `opt.init` makes them; scalars among them count for nothing.
        target: one of `TARGETS`.
        dtype: of the parameters and gradients.
        slot_dtype: of the slots; that of the parameters if left out.
    """
    present = _present(opt, slots)
    dtypes = (dtype, dtype, *[slot_dtype or dtype] * sum(present))
    equation = expression.written(opt.rule.update, tuple(opt.flags.values()), present, opt.rule.Coefficients)
    constants = {
        "UPDATE_CHUNK": update_chunk(equation, dtypes),
        "WIDTH": table.width(sum(present)),
        "COUNT": len(equation.fields),
        "BLOCK": BLOCK,
    }
    return _compiled(multi_tensor_update, constants, target)


def measuring_assembly(opt: PureOptimizer, slots: Sequence[str], level: int, target: str, dtype: torch.dtype) -> str:
    """The PTX, or AMD assembly, of the kernel that sums what an optimizer measures of gradients at a level."""
    fields, present = opt.rule.Coefficients, _present(opt, slots)
    measures = opt.rule.measures[level]
    constants = {
        "MEASURE_CHUNK": measure_chunk(tuple(measures.values()), present, fields, (dtype,) * (2 + sum(present))),
        "WIDTH": table.width(sum(present)),
        "COUNT": len(fields._fields),
        "SUMS": len(measures),
        "BLOCK": BLOCK,
    }
    return _compiled(multi_tensor_measure, constants, target)


def _present(opt: PureOptimizer, slots: Sequence[str]) -> tuple[bool, ...]:
    """Of each slot that is a tensor whether it is in use."""
    return tuple(slot.name in slots for slot in opt.rule.tensors)


def _compiled(kernel: Any, constants: dict[str, Any], target: str) -> str:
    names = kernel.arg_names
    types = {"table": "*i64", "chunks": "*i64", "coefficients": "*fp64", "sums": "*fp64"}
    source = ASTSource(
        kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={},
    )
    compiled = triton.compile(source, target=TARGETS[target], options=OPTIONS)
    return compiled.asm["ptx"] if "ptx" in compiled.asm else compiled.asm["amdgcn"]


def accesses(text: str) -> dict[str, list[int]]:
    """The whole-chunk path's accesses to the tensors' elements: the bytes a thread moves with each, "load" and "store".

    Reads of the table of addresses are not among them. On AMD, float64 elements are not told from vectors of others.
    """
    if _is_ptx(text):
        # A masked access is predicated, an address or a coefficient is read as one scalar.
        path = text[re.search(r"@\S+ bra\s+\$L__BB", text).end() :]  # type: ignore[union-attr]
        path = path[: path.index("bra.uni")]
        found = re.findall(r"(@%p\d+ )?(ld|st)\.global(?:\.v(\d))?\.b(\d+)", path)
        widths = [(kind, int(n or 1) * int(bits) // 8) for guard, kind, n, bits in found if kind == "st" or guard or n]
    else:
        # What is not uniform has its address in vector registers: `off`. A masked chunk goes element by element.
        found = re.findall(r"global_(load|store)_dwordx?(\d) [^\n]*\boff\b", text)
        widths = [("ld" if kind == "load" else "st", 4 * int(n)) for kind, n in found]
    return {
        name: [width for kind, width in widths if kind == name[:2].replace("lo", "ld")] for name in ("load", "store")
    }


def bytes_per_element(text: str) -> float:
    """The bytes that the whole-chunk path moves for each element."""
    threads = WARPS * (32 if _is_ptx(text) else 64)
    return sum(map(sum, accesses(text).values())) * threads / BLOCK


def local_memory(text: str, target: str) -> int:
    """The bytes of local memory that a thread needs: registers spilled, arrays with computed indices."""
    if not _is_ptx(text):
        found = re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text) + re.findall(r"_spill_count:\s+(\d+)", text)
        return sum(map(int, found))
    tool = knobs.nvidia.ptxas_blackwell if target == "sm_100" else knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        arch = re.search(r"^\.target (\S+?)[,\s]", text, re.MULTILINE).group(1)  # type: ignore[union-attr]
        command = [tool.path, "-v", f"--gpu-name={arch}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said)))


def _is_ptx(text: str) -> bool:
    return ".visible .entry" in text
