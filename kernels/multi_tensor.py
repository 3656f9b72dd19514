"""The one kernel: every tensor of a launch updated by one rule, chunk by chunk.

`table` has a row of int64 for each tensor, see `funcopt.kernels.table`. `chunks` has for each program the tensor in its
upper 32 bits and the chunk within that tensor in its lower, so that offsets, 64 bits wide, have no limit. Nothing that
a step changes is a specialised argument: the numbers are in memory.

What happens to a chunk is a rule's own: `source` writes it from the update equation, in Triton's Python.
"""

import functools
import hashlib
import linecache
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from funcopt import backends, expression
from funcopt.backends import compute_dtype
from funcopt.declaration import Measure
from funcopt.expression import Equation
from funcopt.kernels import ops
from funcopt.kernels.statements import ARITHMETIC, Language, Statements

__all__ = [
    "fill",
    "measure_chunk",
    "measuring",
    "multi_tensor_measure",
    "multi_tensor_update",
    "source",
    "update_chunk",
]

# Triton's interpreter cuts a float32 off where it should round it to bfloat16.
INTERPRETED = tl.constexpr(backends.interpreted())


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, even.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def pointer(row, column: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(row + column).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def multi_tensor_update(
    table, chunks, coefficients, UPDATE_CHUNK: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.load(chunks + tl.program_id(0))
    row = table + (chunk >> 32) * WIDTH
    offset = tl.multiple_of((chunk & 0xFFFFFFFF) * BLOCK, BLOCK)
    size = tl.load(row)
    c = coefficients + tl.load(row + 1) * COUNT
    addresses = tl.load(row + 2)
    for column in tl.static_range(3, WIDTH):
        addresses = addresses | tl.load(row + column)
    i = offset + tl.arange(0, BLOCK)
    if (offset + BLOCK <= size) & (addresses % 16 == 0):  # a whole chunk, aligned: no mask, 16-byte accesses
        UPDATE_CHUNK(row, i, None, c, True)
    else:
        UPDATE_CHUNK(row, i, i < size, c, False)


@triton.jit
def multi_tensor_measure(
    table, chunks, coefficients, sums, MEASURE_CHUNK: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk = tl.load(chunks + program)
    row = table + (chunk >> 32) * WIDTH
    offset = tl.multiple_of((chunk & 0xFFFFFFFF) * BLOCK, BLOCK)
    size = tl.load(row)
    c = coefficients + tl.load(row + 1) * COUNT
    i = offset + tl.arange(0, BLOCK)
    addresses = tl.load(row + 2)
    for column in tl.static_range(3, WIDTH):
        addresses = addresses | tl.load(row + column)
    if (offset + BLOCK <= size) & (addresses % 16 == 0):
        MEASURE_CHUNK(row, i, None, c, sums + program * SUMS, True)
    else:
        MEASURE_CHUNK(row, i, i < size, c, sums + program * SUMS, False)


@triton.jit(do_not_specialize=[f"a{k}" for k in range(8)])
def fill(table, first, size, a0, a1, a2, a3, a4, a5, a6, a7):
    """Write 8 numbers into a table, from its element `first` on, with no copy from here: a CUDA graph keeps that."""
    values = (a0, a1, a2, a3, a4, a5, a6, a7)
    for k in tl.static_range(8):
        if first + k < size:
            tl.store(table + first + k, values[k])


# ---- what happens to a chunk ----------------------------------------------------------------------------------------

TYPES = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
}

OPERATIONS = {
    **ARITHMETIC,
    "not": "~{}",
    "sqrt": "tl.sqrt({})",
    "abs": "tl.abs({})",
    "sign": "sign({})",
    "maximum": "maximum({}, {})",
    "minimum": "minimum({}, {})",
    "where": "tl.where({}, {}, {})",
}

# Of float32 what is not rounded correctly otherwise; of float64 everything is.
OPERATIONS_FLOAT32 = {**OPERATIONS, "div": "tl.div_rn({}, {})", "sqrt": "tl.sqrt_rn({})"}


def _language(compute: str) -> Language:
    return Language(
        operations=OPERATIONS_FLOAT32 if compute == "tl.float32" else OPERATIONS,
        scalar_operations=OPERATIONS,
        statement="{name} = {value}",
        kinds=("", "", ""),
        literal="tl.full((), {}, tl.float64)",
        literals={name: f"tl.full((), float('{name}'), tl.float64)" for name in ("nan", "inf", "-inf")},
        scalar="{}.to(tl.float64)",
        number=f"{{}}.to({compute})",
    )


def source(equation: Equation, dtypes: Sequence[torch.dtype], zero_grad: bool = False) -> str:
    """The Python, as Triton compiles it, of what happens to a chunk of a tensor.

    Args:
        equation: the update, written down.
        dtypes: of p, g and the slots in use.
        zero_grad: write zeros to the gradients.
    """
    compute, types = TYPES[compute_dtype(dtypes[0])], [TYPES[dtype] for dtype in dtypes]
    statements = Statements(_language(compute))
    results = [statements.number(result) for result in equation.results]
    names, written = equation.read, equation.written
    scalars = [f"c{k} = tl.load(c + {k})  # {field}" for k, field in enumerate(equation.fields)]
    loads = [
        f"{name} = tl.load(pointer(row, {2 + k}, {t}, ALIGNED) + i, mask=mask).to({compute})"
        for k, (name, t) in enumerate(zip(names, types, strict=True))
    ]
    stores = [
        f"tl.store(pointer(row, {2 + k}, {types[of]}, ALIGNED) + i, rounded({result}, {types[of]}), mask=mask)"
        for k, (of, result) in enumerate(zip(written, results, strict=True), len(names))
    ]
    if zero_grad:
        zero = f"tl.where(g == g, 0.0, 0.0).to({types[1]})"
        stores.append(f"tl.store(pointer(row, 3, {types[1]}, ALIGNED) + i, {zero}, mask=mask)")
    body = [*scalars, *statements.scalars, *loads, *statements.elements, *stores]
    return "\n    ".join(["def update_chunk(row, i, mask, c, ALIGNED: tl.constexpr):", *body, ""])


def measuring(measures: Sequence[tuple[Any, Any]], fields: int, dtypes: Sequence[torch.dtype]) -> str:
    """The Python, as Triton compiles it, that sums measures of a chunk of a gradient, in float64.

    Args:
        measures: what becomes of a gradient g first, and what is summed of that, x.
        fields: the number of coefficients.
        dtypes: of p, g and the slots in use.
    """
    compute, types = TYPES[compute_dtype(dtypes[0])], [TYPES[dtype] for dtype in dtypes]
    names = ["p", "g", *(f"s{k}" for k in range(len(dtypes) - 2))]
    written = []
    for before, summand in measures:
        first, then = Statements(_language(compute)), Statements(_language("tl.float64"), "x")
        written.append((first, first.number(before), then, then.number(summand)))
    given = {name for first, *_ in written for name in first.given}
    body = [f"c{k} = tl.load(c + {k})" for k in range(fields)]
    body += [
        f"{name} = tl.load(pointer(row, {2 + k}, {t}, ALIGNED) + i, mask=mask).to({compute})"
        for k, (name, t) in enumerate(zip(names, types, strict=True))
        if name in given
    ]
    for k, (first, x, then, value) in enumerate(written):
        body += [*first.scalars, *first.elements, f"x = {x}.to(tl.float64)", *then.scalars, *then.elements]
        body += [f"tl.store(sums + {k}, tl.sum({value} if ALIGNED else tl.where(mask, {value}, 0.0)))"]
    return "\n    ".join(["def measure_chunk(row, i, mask, c, sums, ALIGNED: tl.constexpr):", *body, ""])


@functools.lru_cache(maxsize=256)
def update_chunk(equation: Equation, dtypes: tuple[torch.dtype, ...], zero_grad: bool = False) -> Any:
    """The function of `source`, for Triton to compile."""
    return _jitted(source(equation, dtypes, zero_grad), "update_chunk")


@functools.lru_cache(maxsize=256)
def measure_chunk(
    measures: tuple[Measure, ...], present: tuple[bool, ...], fields: Any, dtypes: tuple[torch.dtype, ...]
) -> Any:
    """The function of `measuring`, for Triton to compile."""
    summed = [expression.summed(measure.summand, measure.before, present, fields) for measure in measures]
    return _jitted(measuring(summed, len(fields._fields), dtypes), "measure_chunk")


def _jitted(text: str, function: str) -> Any:
    # Triton reads a function's text, and names what it keeps of it by this name.
    name = f"<funcopt {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope = {"tl": tl, "pointer": pointer, "rounded": rounded, "__name__": __name__, **vars(ops)}
    exec(compile(text, name, "exec"), scope)
    return triton.jit(scope[function])
