"""The one kernel: every tensor of a launch updated by one rule, chunk by chunk.

`table` has a row of int64 for each tensor: its number of elements, the row of its coefficients, whether all of its
addresses are multiples of 16, then the addresses of p, g and the slots in use, and of where the new p and slots go.
`chunks` has for each program the tensor in its upper 32 bits and the chunk within that tensor in its lower, so that
offsets, 64 bits wide, have no limit. Nothing that a step changes is a specialised argument: the numbers are in memory.
"""

import builtins
import dis
import functools
import types
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from funcopt import backends
from funcopt import ops as torch_ops
from funcopt.kernels import ops as triton_ops

# Triton's interpreter cuts a float32 off where it should round it to bfloat16.
INTERPRETED = tl.constexpr(backends.interpreted())


@triton.jit
def _rounded(x, DTYPE: tl.constexpr):
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, even.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def _pointer(row, column: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(row + column).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _update_chunk(
    row, i, mask, c, UPDATE: tl.constexpr, ARGUMENTS: tl.constexpr, DTYPE: tl.constexpr, GRAD: tl.constexpr,
    SLOTS: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    p = tl.load(_pointer(row, 3, DTYPE, ALIGNED) + i, mask=mask).to(COMPUTE)
    g = tl.load(_pointer(row, 4, GRAD, ALIGNED) + i, mask=mask).to(COMPUTE)
    loaded = ()
    for k in tl.static_range(len(SLOTS)):
        loaded = loaded + (tl.load(_pointer(row, 5 + k, SLOTS[k], ALIGNED) + i, mask=mask).to(COMPUTE),)
    p, slots = UPDATE(p, g, *ARGUMENTS(c, *loaded))
    tl.store(_pointer(row, 5 + len(SLOTS), DTYPE, ALIGNED) + i, _rounded(p, DTYPE), mask=mask)
    for k in tl.static_range(len(SLOTS)):
        tl.store(_pointer(row, 6 + len(SLOTS) + k, SLOTS[k], ALIGNED) + i, _rounded(slots[k], SLOTS[k]), mask=mask)


@triton.jit
def multi_tensor_update(
    table, chunks, coefficients, UPDATE: tl.constexpr, ARGUMENTS: tl.constexpr, COEFFICIENTS: tl.constexpr,
    COUNT: tl.constexpr, DTYPE: tl.constexpr, GRAD: tl.constexpr, SLOTS: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.load(chunks + tl.program_id(0))
    row = table + (chunk >> 32) * (6 + 2 * len(SLOTS))
    offset = tl.multiple_of((chunk & 0xFFFFFFFF) * BLOCK, BLOCK)
    size = tl.load(row)
    scalars = coefficients + tl.load(row + 1) * COUNT
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (tl.load(scalars + k).to(COMPUTE),)
    c = COEFFICIENTS(*values)
    i = offset + tl.arange(0, BLOCK)
    if (offset + BLOCK <= size) & (tl.load(row + 2) != 0):  # a whole chunk, aligned: no mask, 16-byte accesses
        _update_chunk(row, i, None, c, UPDATE, ARGUMENTS, DTYPE, GRAD, SLOTS, COMPUTE, True)
    else:
        _update_chunk(row, i, i < size, c, UPDATE, ARGUMENTS, DTYPE, GRAD, SLOTS, COMPUTE, False)


@triton.jit(do_not_specialize=[f"a{k}" for k in range(8)])
def fill(table, first, size, a0, a1, a2, a3, a4, a5, a6, a7):
    """Write 8 numbers into a table, from its element `first` on, with no copy from here: a CUDA graph keeps that."""
    values = (a0, a1, a2, a3, a4, a5, a6, a7)
    for k in tl.static_range(8):
        if first + k < size:
            tl.store(table + first + k, values[k])


@functools.cache
def arguments(present: tuple[bool, ...], flags: tuple[bool, ...]) -> Any:
    """What a rule's update takes after p and g, made from c and the slots in use: `(*slots, c, *flags)`.

    It is a NamedTuple type because a kernel can make one with None in it, for a slot that is not in use. Triton's cache
    of compiled kernels goes by its name.
    """
    fields = [f"slot{k}" for k in range(len(present))] + ["c"] + [f"flag{k}" for k in range(len(flags))]

    class Arguments(namedtuple("Arguments", fields)):
        __slots__ = ()

        def __new__(cls, c: Any, *slots: Any) -> Any:
            rest = iter(slots)
            return super().__new__(cls, *(next(rest) if there else None for there in present), c, *flags)

    name = "_".join(["Arguments", *("01"[choice] for choice in (*present, *flags))])
    Arguments.__name__ = Arguments.__qualname__ = name
    return Arguments


@functools.lru_cache(maxsize=256)
def to_triton(function: Callable[..., Any]) -> Any:
    """A rule's own function as a Triton function: the same code, with Triton's op table for torch's.

    Functions that it calls are taken along; numbers that it names become constants.

    Raises:
        TypeError: it names something that Triton has no counterpart of.
    """
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    names = {}
    for instruction in dis.get_instructions(function):  # an attribute, as in c.lr, is no name of the module's
        name = instruction.argval
        if instruction.opname == "LOAD_DEREF":
            names[name] = _counterpart(function, name, closure[name].cell_contents)
        elif instruction.opname == "LOAD_GLOBAL" and name in function.__globals__:
            names[name] = _counterpart(function, name, function.__globals__[name])
    scope = {**names, "tl": tl, "__name__": function.__module__, "__builtins__": builtins}
    copy = types.FunctionType(
        function.__code__,
        scope,
        function.__name__,
        function.__defaults__,
        tuple(types.CellType(names[name]) for name in function.__code__.co_freevars),
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    return triton.jit(copy)


def _counterpart(function: Callable[..., Any], name: str, value: Any) -> Any:
    if value is torch_ops:
        return triton_ops
    if isinstance(value, int | float):
        return tl.constexpr(value)
    if isinstance(value, types.FunctionType):
        if value.__module__ != torch_ops.__name__:
            return to_triton(value)
        if hasattr(triton_ops, value.__name__):
            return getattr(triton_ops, value.__name__)
    known = [name for name in torch_ops.__all__ if hasattr(triton_ops, name)]
    raise TypeError(
        f"{function.__module__}.{function.__qualname__} uses {name!r}, which Triton cannot run; "
        f"an update may call its own functions and funcopt.ops: {', '.join(known)}"
    )
