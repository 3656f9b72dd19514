"""The CPU's kernel of a rule: its C++ compiled, kept on disk, loaded, and called once for all leaves."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from funcopt import expression
from funcopt.backends import CompilationError, Result, Work, compiler
from funcopt.kernels import cpp, table

__all__ = ["bound", "library", "step"]


def step(work: Work) -> Result:
    """Do the work, one call for each combination of dtypes.

    Args:
        work: scalars are floats or 0-d tensors; all leaves of floating dtype, on the CPU.

    Raises:
        CompilationError: there is no kernel for these dtypes, and none can be made. Nothing has been changed by then.
    """
    return table.run(work, bound)


def bound(work: Work, rows: table.Table) -> table.Kernel:
    """The kernel for a table; raises CompilationError."""
    entry = kernel(work.update, work.flags, work.present, type(work.coefficients[0]), rows.dtypes)
    address, tensors = rows.rows.buffer_info()[0], len(rows.members)

    def run(coefficients: list[tuple[Any, ...]]) -> None:
        numbers = array("d", [float(c) for cs in coefficients for c in cs])
        entry(address, tensors, numbers.buffer_info()[0], torch.get_num_threads())

    return run


@functools.lru_cache(maxsize=256)
def kernel(
    update: Callable[..., Any],
    flags: tuple[bool, ...],
    present: tuple[bool, ...],
    fields: Any,
    dtypes: tuple[torch.dtype, ...],
) -> Callable[[int, int, int, int], None]:
    """The compiled kernel: `(address of the table, its rows, address of the coefficients, most threads)`."""
    equation = expression.written(update, flags, present, fields)
    entry = getattr(library(cpp.source(equation, dtypes)), cpp.ENTRY)
    entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64], None
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
        path = _built(text)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # cut short, perhaps
            path.unlink()
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
    library = folder / f"{name}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as work:
        written, made = Path(work, "kernel.cpp"), Path(work, "kernel.so")
        written.write_text(text)
        said = ""
        for machine in MACHINES:
            done = subprocess.run(
                [cxx, *FLAGS, *machine, str(written), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                os.replace(made, library)  # another process may have made it meanwhile: the same
                return library
            said = said or done.stderr
    lines = said.strip().splitlines() or ["it says nothing"]
    raise CompilationError(f"{cxx} cannot compile the kernel: {lines[0]}")


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
