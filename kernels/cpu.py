"""The CPU's kernel of a rule: its C++ compiled, kept on disk, loaded, and called once for all leaves."""

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import platform
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from funcopt import expression
from funcopt.backends import CompilationError, Result, Work, compiler
from funcopt.declaration import Measure
from funcopt.kernels import cpp, table

__all__ = ["Entry", "bound", "bound_measure", "called", "compiled", "library", "measure", "ready", "step"]


def step(work: Work) -> Result:
    """Do the work, one call for each combination of dtypes.

    Args:
        work: scalars are floats or 0-d tensors; all leaves of floating dtype, on the CPU.

    Raises:
        CompilationError: there is no kernel for these dtypes, and none can be made. Nothing has been changed by then.
    """
    return table.run(work, bound)


def ready(work: Work) -> None:
    """Have the kernels for the work's combinations of dtypes; raises CompilationError."""
    columns = (work.params, work.grads, *work.slots)
    for dtypes in set(zip(*[[t.dtype for t in column] for column in columns], strict=True)):
        _kernel(work.update, work.flags, work.present, type(work.coefficients[0]), dtypes, False)


def bound(work: Work, rows: table.Table, *, zero_grad: bool = False) -> table.Kernel:
    """The kernel for a table; raises CompilationError."""
    entry = _kernel(work.update, work.flags, work.present, type(work.coefficients[0]), rows.dtypes, zero_grad)
    call = called(entry, rows)
    return lambda coefficients: call(coefficients, 0)


def measure(work: Work, measures: Mapping[str, Measure]) -> dict[str, float]:
    """The measures of the work's gradients; raises CompilationError."""
    sums = [bound_measure(work, rows, measures)(work.coefficients) for rows in table.tables(work)]
    return {name: sum(part[name] for part in sums) for name in measures}


def bound_measure(
    work: Work, rows: table.Table, measures: Mapping[str, Measure]
) -> Callable[[list[tuple[Any, ...]]], dict[str, float]]:
    """What sums measures of the gradients in a table; raises CompilationError."""
    width = len(rows.rows) // len(rows.members)
    entry = _measuring(tuple(measures.values()), work.present, type(work.coefficients[0]), rows.dtypes, width)
    call = called(entry, rows)

    def run(coefficients: list[tuple[Any, ...]]) -> dict[str, float]:
        sums, count = call(coefficients, len(measures)), len(measures)
        return {name: _sum(sums[k::count]) for k, name in enumerate(measures)}

    return run


def _sum(parts: "array[float]") -> float:
    """The sum of the threads' sums, rounded once; inf where it is too large."""
    try:
        return math.fsum(parts)
    except OverflowError:
        return sum(parts)


# `(address of the table, its rows, address of the coefficients, most threads, address of their sums)`.
Entry = Callable[[int, int, int, int, int], None]


def called(entry: Entry, rows: table.Table) -> Callable[[list[tuple[Any, ...]], int], "array[float]"]:
    """The call of a compiled kernel on a table: coefficients and the number of sums ↦ each thread's sums."""
    address, tensors = rows.rows.buffer_info()[0], len(rows.members)
    resolution = torch.finfo(rows.dtypes[0]).eps

    def call(coefficients: list[tuple[Any, ...]], sums: int) -> "array[float]":
        numbers = array("d", [resolution if c is None else float(c) for cs in coefficients for c in cs])
        threads = torch.get_num_threads()
        out = array("d", bytes(8 * sums * threads))
        entry(address, tensors, numbers.buffer_info()[0], threads, out.buffer_info()[0])
        return out

    return call


@functools.lru_cache(maxsize=256)
def _kernel(
    update: Callable[..., Any],
    flags: tuple[bool, ...],
    present: tuple[bool, ...],
    fields: Any,
    dtypes: tuple[torch.dtype, ...],
    zero_grad: bool,
) -> Entry:
    """The compiled kernel of a rule."""
    return compiled(cpp.source(expression.written(update, flags, present, fields), dtypes, zero_grad))


@functools.lru_cache(maxsize=256)
def _measuring(
    measures: tuple[Measure, ...], present: tuple[bool, ...], fields: Any, dtypes: tuple[torch.dtype, ...], width: int
) -> Entry:
    """The compiled kernel that sums measures."""
    summed = [expression.summed(measure.summand, measure.before, present, fields) for measure in measures]
    return compiled(cpp.measuring(summed, len(fields._fields), dtypes, width))


def compiled(text: str) -> Entry:
    """The entry of a text, compiled; raises CompilationError."""
    entry = getattr(library(text), cpp.ENTRY)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    entry.argtypes, entry.restype = [pointer, integer, pointer, integer, pointer], None
    return entry  # type: ignore[no-any-return]


# ---- compiling ------------------------------------------------------------------------------------------------------

# Rounding is IEEE's, operation by operation: nothing contracted, nothing reordered. Left out are the errno of sqrt, and
# floating-point exceptions as traps.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")

# The best first; a compiler that does not know the one is asked for the next.
MACHINES = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp-simd"), ("-fopenmp-simd",), ())


def library(text: str) -> ctypes.CDLL:
    """A C++ text compiled and loaded; raises CompilationError."""
    made = _attempt(text)
    if isinstance(made, CompilationError):
        raise made
    return made


@functools.cache
def _attempt(text: str) -> ctypes.CDLL | CompilationError:
    """The library, or why there is none: no step asks a second time."""
    try:
        return ctypes.CDLL(str(_built(text)))
    except CompilationError as error:
        return error
    except OSError as error:  # a folder that runs nothing, a full disk
        return CompilationError(f"the compiled kernel cannot be loaded: {error}")


def _built(text: str) -> Path:
    """The shared library of a C++ text, from the folder of those made before, or made now."""
    cxx = compiler()
    if cxx is None:
        raise CompilationError("there is no C++ compiler; install g++ or clang++, or set CXX")
    made_by = (text, os.path.realpath(cxx), _machine(), FLAGS, MACHINES)
    name = hashlib.sha256(repr(made_by).encode()).hexdigest()[:32]
    folder = _folder()
    for library in folder.glob(f"{name}-*.so"):
        if _whole(library):
            return library
        library.unlink(missing_ok=True)  # cut short, perhaps: what is loaded must be what was written
    with tempfile.TemporaryDirectory(dir=folder) as work:
        written, made = Path(work, "kernel.cpp"), Path(work, "kernel.so")
        written.write_text(text)
        said = ""
        for machine in MACHINES:
            done = subprocess.run(
                [cxx, *FLAGS, *machine, str(written), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                library = folder / f"{name}-{_digest(made)}.so"
                os.replace(made, library)  # another process may have made it meanwhile: the same
                return library
            said = said or done.stderr
    lines = said.strip().splitlines() or [f"it says nothing, and its exit status is {done.returncode}"]
    raise CompilationError(f"{cxx} cannot compile the kernel: {lines[0]}")


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _whole(library: Path) -> bool:
    return library.stem.endswith(f"-{_digest(library)}")


@functools.cache
def _machine() -> str:
    """What code for this very processor may not run without."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line}"
    return f"{platform.machine()} {platform.processor()} {sys.platform}"


@functools.cache
def _folder() -> Path:
    """Where kernels are kept: FUNCOPT_CACHE_DIR, else the user's cache folder, else one for this process alone."""
    given = os.environ.get("FUNCOPT_CACHE_DIR")
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(given) if given else home / "funcopt"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # no place to write, no home
        return Path(tempfile.mkdtemp(prefix="funcopt-"))
