"""Who runs a rule where.

| backend | what runs |
|---|---|
| eager   | the rule, by torch, leaf by leaf; inside torch.func and torch.compile this is what they trace |
| compile | the rule written in C++, compiled once: one call and one pass over memory for all leaves of a dtype |
| triton  | the rule as one Triton launch for all leaves of a dtype; its derivatives are the rule's |
| auto    | triton on a GPU, compile on the CPU where there is a compiler, and eager where neither runs |

Every operation of the equation is rounded by itself, as IEEE has it, so that all give the same bits, but for torch's
own sqrt on the CPU, which is off by one bit for one number in two hundred, and for its division on a GPU.
"""

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import observed, ops
from funcopt.expression import operations, written
from funcopt.hyper import suggest
from funcopt.observed import wrapped

__all__ = [
    "BACKENDS",
    "CompilationError",
    "Sets",
    "Work",
    "added",
    "check",
    "check_name",
    "compiler",
    "compute_dtype",
    "interpreted",
    "ready",
    "run",
    "run_eager",
    "skipped",
    "unavailable",
]

BACKENDS = ("auto", "triton", "compile", "eager")

# Tensors that are what they seem, and lie where they say.
PLAIN = frozenset({Tensor, torch.nn.Parameter})

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Sets(list[tuple[Any, ...]]):
    """Sets of coefficients that were worked out together: `columns` has each field's values, one number or a vector."""

    def __init__(self, columns: tuple[Any, ...], count: int) -> None:
        alone = [c.unbind() if isinstance(c, Tensor) and c.dim() else [c] * count for c in columns]
        super().__init__(type(columns)(*cs) for cs in zip(*alone, strict=True))
        self.columns = columns


@dataclass(frozen=True)
class Work:
    """What one step has to do: lists of one entry a leaf. The leaves have been checked, and each has a gradient.

    `slots` has a list for each slot in use, and `present` says of each that the rule declares whether it is; a leaf
    that has no such slot has None there. `coefficients` has the distinct sets of scalars, and `rows` the one that each
    leaf takes. `donate` lets the results overwrite params and slots. An update that is not `elementwise` is run by
    torch.
    """

    update: Callable[..., Any]
    flags: tuple[Any, ...]
    params: list[Tensor]
    grads: list[Tensor]
    slots: list[list[Tensor]]
    present: tuple[bool, ...]
    coefficients: list[tuple[Any, ...]]
    rows: list[int]
    donate: bool
    elementwise: bool = True

    def of(self, members: list[int]) -> "Work":
        """The part of the work that concerns these leaves, with only their sets of coefficients, and rows of those."""
        if len(members) == len(self.params):
            return self

        def pick(values: list[Any]) -> list[Any]:
            return [values[i] for i in members]

        rows = pick(self.rows)
        own = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        return replace(
            self,
            params=pick(self.params),
            grads=pick(self.grads),
            slots=[pick(slot) for slot in self.slots],
            coefficients=[self.coefficients[row] for row in own],
            rows=[own[row] for row in rows],
        )

    def given(self, leaf: int) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...], Any]:
        """What an equation takes of a leaf, in the dtype of its arithmetic: p, g, the slots, and the coefficients."""
        p = self.params[leaf]
        dtype, rest = compute_dtype(p.dtype), iter(self.slots)
        slots = tuple(_to(next(rest)[leaf], dtype) if there else None for there in self.present)
        return _to(p, dtype), _to(self.grads[leaf], dtype), slots, self.coefficients[self.rows[leaf]]

    def updated(self, leaf: int) -> tuple[Tensor, list[Any]]:
        """The equation run by torch on one leaf: the new p and slots, in their dtypes."""
        p, g, slots, c = self.given(leaf)
        with ops.arithmetic(p.dtype):
            new_p, new_slots = self.update(p, g, *slots, c, *self.flags)
        new, old = iter(new_slots), [slot[leaf] for slot in self.slots]
        return _to(new_p, self.params[leaf].dtype), [s if s is None else _like(next(new), s) for s in old]


def _to(t: Any, dtype: torch.dtype) -> Any:
    """The tensor in a dtype; itself, at a tenth of the cost of `to`, where it has it already, or is None."""
    return t if t is None or t.dtype == dtype else t.to(dtype)


def _like(new: Any, old: Tensor) -> Tensor:
    """A new slot in the dtype of the old one; an equation may have found it to be a Python number."""
    return _to(new, old.dtype) if isinstance(new, Tensor) else torch.full_like(old, new)


Result = tuple[list[Tensor], list[list[Tensor]]]


# ---- what there is --------------------------------------------------------------------------------------------------


def check_name(backend: str) -> str:
    """The name, if it is a backend's; else ValueError."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; {suggest(str(backend), BACKENDS)}")
    return backend


def check(backend: str, device: torch.device) -> None:
    """Raise ValueError, with the reason, where a backend does not run on a device here."""
    if reason := unavailable(backend, device):
        raise ValueError(f"backend={backend!r} cannot update parameters on {device.type} here: {reason}")


def unavailable(backend: str, device: torch.device) -> str | None:
    """Why a backend does not run on a device here; None where it does."""
    if backend == "triton":
        if not _has_triton():
            return "Triton is not installed; pip install 'funcopt[triton]'"
        if device.type == "cpu" and not interpreted():
            return (
                "Triton needs a GPU, or its interpreter (slow, for tests), which TRITON_INTERPRET=1 in the environment "
                "switches on; backend='compile' is the fast one for the CPU"
            )
        if device.type not in ("cpu", "cuda"):
            return f"the kernel runs on CUDA and ROCm devices, not on {device.type}; choose 'compile' or 'eager'"
    if backend == "compile":
        if device.type != "cpu":
            return f"the compiled kernel is for the CPU, not for {device.type}; choose 'auto' or 'eager'"
        if not compiler():
            return "there is no C++ compiler; install g++ or clang++ or set CXX, or choose backend='eager'"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter is switched on in the environment."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: CXX of the environment, or what is found of the usual ones."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


class CompilationError(RuntimeError):
    """No kernel could be made: there is no compiler, or it fails. Nothing has been changed by then."""


# ---- the choice -----------------------------------------------------------------------------------------------------


def run(work: Work, backend: str, *, traced: bool, differentiated: bool, tables: dict[Hashable, Any] | None) -> Result:
    """Do the work on the backend chosen.

    Args:
        work: what there is to do.
        backend: one of `BACKENDS`.
        traced: torch.compile or another tracer is looking on: the rule must be run by torch.
        differentiated: somebody may ask for a derivative.
        tables: what a kernel launch may use again at the next step; None keeps nothing.
    """
    if traced:
        return run_eager(work)
    parts = _chosen(work, backend, differentiated)
    runners = {
        "eager": run_eager if differentiated or not work.elementwise else _run_in_pieces,
        "compile": _run_compiled,
        "auto compile": _run_compiled_or_eager,
        "triton": _launch_differentiable if differentiated else functools.partial(_launch, tables=tables),
    }
    if len(parts) == 1:
        return runners[next(iter(parts))](work)
    params: list[Any] = [None] * len(work.params)
    slots: list[Any] = [[None] * len(params) for _ in work.slots]
    for name, members in parts.items():
        new_params, new_slots = runners[name](work.of(members))
        for part, leaf in enumerate(members):
            params[leaf] = new_params[part]
            for slot, new in zip(slots, new_slots, strict=True):
                slot[leaf] = new[part]
    return params, slots


def ready(work: Work) -> None:
    """Make the kernels that backend="compile" needs for the work; raises CompilationError."""
    if members := _chosen(work, "compile", differentiated=False).get("compile"):
        from funcopt.kernels import cpu, whole

        (cpu if work.elementwise else whole).ready(work.of(members))


def skipped(sets: Sequence[Any]) -> bool:
    """Whether these sets of coefficients are known to make a step leave everything as it is."""
    skips = [getattr(cs, "skip", 0.0) for cs in sets]
    return all(not isinstance(skip, Tensor) and skip != 0 for skip in skips)


def measure(
    work: Work, measures: Mapping[str, Any], backend: str, *, traced: bool, differentiated: bool
) -> dict[str, Any]:
    """The measures of the gradients, summed over all leaves: floats, or 0-d tensors in float64."""
    parts = {"eager": list(range(len(work.params)))} if traced else _chosen(work, backend, differentiated)
    totals: dict[str, Any] = dict.fromkeys(measures, 0.0)
    for name, members in parts.items() if work.params else ():
        by = "eager" if differentiated or not work.elementwise else name
        for measured, value in _measured(work.of(members), measures, by).items():
            totals[measured] = added(totals[measured], value)
    return totals


def added(total: Any, value: Any) -> Any:
    """Two measures together, where the first is."""
    both = isinstance(total, Tensor) and isinstance(value, Tensor)
    return total + (value.to(total.device) if both else value)


def _measured(work: Work, measures: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name == "triton":
        from funcopt.kernels import launch

        launched: dict[str, Any] = launch.measure(work, measures)
        return launched
    if name in ("compile", "auto compile"):
        from funcopt.kernels import cpu

        try:
            compiled: dict[str, Any] = cpu.measure(work, measures)
            return compiled
        except CompilationError as error:
            if name == "compile":
                raise
            _say_once(str(error))
    return _measure_eager(work, measures)


def _measure_eager(work: Work, measures: Mapping[str, Any]) -> dict[str, Any]:
    totals = {}
    work = _cast_all(work)
    for name, measure in measures.items():
        sums = []
        for leaf in range(len(work.grads)):
            p, x, slots, c = work.given(leaf)
            if measure.before is not None:
                with ops.arithmetic(p.dtype):
                    x = measure.before(p, x, slots, c)
            sums.append(torch.as_tensor(measure.summand(x if x.device.type == "mps" else x.double())).sum())
        totals[name] = functools.reduce(lambda a, b: a + b.to(a.device), sums)
    return {name: total.item() if observed.readable(total) else total for name, total in totals.items()}


class Kernels(NamedTuple):
    """What runs on a `funcopt.kernels.table.Table`: `bound(work, table, zero_grad=…)` and `bound_measure(work, table,
    measures)` are functions of the sets of coefficients.
    """

    bound: Callable[..., Callable[[list[tuple[Any, ...]]], None]]
    bound_measure: Callable[..., Callable[[list[tuple[Any, ...]]], dict[str, Any]]]


def kernels(work: Work, backend: str, kept: dict[Hashable, Any]) -> Kernels | None:
    """What runs all of the work, without a derivative; None where that is not one kernel."""
    parts = list(_chosen(work, backend, differentiated=False))
    if parts == ["triton"]:
        from funcopt.kernels import launch

        return Kernels(functools.partial(launch.bound, kept=kept), functools.partial(launch.bound_measure, kept=kept))
    if parts in (["compile"], ["auto compile"]):
        from funcopt.kernels import cpu

        return Kernels(cpu.bound, cpu.bound_measure)
    return None


def _chosen(work: Work, backend: str, differentiated: bool) -> dict[str, list[int]]:
    """Who runs which leaves."""
    if backend != "auto":
        for device in {p.device for p in work.params}:
            check(backend, device)
    parts: dict[str, list[int]] = {}
    scalar = [all(not isinstance(c, Tensor) or c.dim() == 0 for c in cs) for cs in work.coefficients]
    for leaf, p in enumerate(work.params):
        name = backend if backend != "auto" else _best(p)
        tensors = (p, work.grads[leaf], *[slot[leaf] for slot in work.slots])
        plain = all(t is None or (type(t) in PLAIN and t.dtype in KERNEL_DTYPES) for t in tensors)
        if not work.elementwise and (name == "triton" or not _with_sums(work, leaf)):
            plain = False
        if not plain or not scalar[work.rows[leaf]] or (name != "triton" and differentiated):
            name = "eager"  # distributed tensors, numbers that differ within a leaf, autograd: the rule, run by torch
        parts.setdefault(name, []).append(leaf)
    return parts


def _with_sums(work: Work, leaf: int) -> bool:
    """Whether what an update that is not elementwise does to a leaf can be written down, with sums."""
    p, rest = work.params[leaf], iter(work.slots)
    present = tuple(there and next(rest)[leaf] is not None for there in work.present)
    return _is_written(work.update, work.flags, present, type(work.coefficients[0]), p.dim() > 1)


@functools.lru_cache(maxsize=1024)
def _is_written(
    update: Callable[..., Any], flags: tuple[Any, ...], present: tuple[bool, ...], fields: Any, matrix: bool
) -> bool:
    try:
        equation = written(update, flags, present, fields, matrix)
    except Exception:  # it uses more than the op table, as it may
        return False
    found = {operation for result in equation.results for operation in operations(result)}
    over = {operation.replace("size", "total") for operation in found}
    return "total_units" not in over or not over & {"total_rows", "total_columns"}


def _best(p: Tensor) -> str:
    if p.device.type == "cuda":
        return "eager" if unavailable("triton", p.device) else "triton"
    return "auto compile" if p.device.type == "cpu" else "eager"


# ---- torch ----------------------------------------------------------------------------------------------------------


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic for parameters of a dtype: float64 for float64, float32 for all below."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cast_all(work: Work) -> Work:
    """The work with each leaf's coefficients as its arithmetic takes them."""
    casts: dict[tuple[int, torch.dtype, torch.device], int] = {}
    rows: list[int] = []
    sets: list[tuple[Any, ...]] = []
    for row, p in zip(work.rows, work.params, strict=True):
        key = (row, compute_dtype(p.dtype), p.device)
        if key not in casts:
            casts[key] = len(sets)
            sets.append(_cast(work.coefficients[row], p))
        rows.append(casts[key])
    return replace(work, coefficients=sets, rows=rows)


def run_eager(work: Work) -> Result:
    """The rule, run by torch, leaf by leaf."""
    work = _cast_all(work)
    results = []
    for leaf, p in enumerate(work.params):
        new_p, new_slots = work.updated(leaf)
        old: list[Any] = [p, *(slot[leaf] for slot in work.slots)]
        # What the equation hands through is not the result yet: it may be written before it is read, or by its owner;
        # nor is what it gives twice.
        taken = [t for t in (*old, work.grads[leaf]) if t is not None]
        new: list[Any] = []
        for t in (new_p, *new_slots):
            new.append(t.clone() if any(t is one for one in taken) else t)
            taken += [t] if t is not None else []
        if work.donate:
            new = [t if t is None else t.copy_(value) for t, value in zip(old, new, strict=True)]
        results.append((new[0], new[1:]))
    return [p for p, _ in results], [[slots[k] for _, slots in results] for k in range(len(work.slots))]


# So many elements at a time, torch's operations leave what they make in the cache, and cost little to call.
PIECE = 1 << 16


def _run_in_pieces(work: Work) -> Result:
    """The rule, run by torch, on pieces of large leaves: no more memory than one needs is made on the way."""
    columns = [work.params, work.grads, *work.slots]
    large = [_in_pieces(tensors) for tensors in zip(*columns, strict=True)]
    scalar = all(not isinstance(c, Tensor) or c.dim() == 0 for cs in work.coefficients for c in cs)
    if not scalar or not any(large):
        return run_eager(work)
    if not work.donate:
        params, *slots = ([t.clone() for t in column] for column in (work.params, *work.slots))
        work = replace(work, params=params, slots=slots, donate=True)
    columns = [work.params, work.grads, *work.slots]
    pieces: list[tuple[Tensor, ...]] = []
    rows: list[int] = []
    for cut, row, tensors in zip(large, work.rows, zip(*columns, strict=True), strict=True):
        some = list(zip(*(t.detach().view(-1).split(PIECE) for t in tensors), strict=True)) if cut else [tensors]
        pieces += some
        rows += [row] * len(some)
    params, grads, *slots = map(list, zip(*pieces, strict=True))
    run_eager(replace(work, params=params, grads=grads, slots=slots, rows=rows))
    return work.params, work.slots


def _in_pieces(tensors: tuple[Tensor, ...]) -> bool:
    p = tensors[0]
    if p.numel() <= PIECE or p.device.type != "cpu":
        return False
    return all(type(t) in PLAIN and t.is_contiguous() and not t.is_neg() for t in tensors)


def _cast(coefficients: tuple[Any, ...], p: Tensor) -> tuple[Any, ...]:
    """The coefficients as p's arithmetic takes them. A 0-d tensor on the CPU may stay there, unless it is batched."""

    def cast(c: Any) -> Any:
        if not isinstance(c, Tensor):
            return torch.finfo(p.dtype).eps if c is None else c
        stays = c.dim() == 0 and (torch.compiler.is_compiling() or not wrapped(c))
        return c.to(dtype=compute_dtype(p.dtype), device=None if stays else p.device)

    return type(coefficients)(*map(cast, coefficients))


# ---- kernels: imported here and not above, so that importing funcopt imports neither Triton nor what compiles --------


def _run_compiled(work: Work) -> Result:
    from funcopt.kernels import cpu, whole

    result: Result = (cpu if work.elementwise else whole).step(work)
    return result


def _run_compiled_or_eager(work: Work) -> Result:
    try:
        return _run_compiled(work)
    except CompilationError as error:
        _say_once(str(error))
        return _run_in_pieces(work) if work.elementwise else run_eager(work)


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"parameters on the CPU are updated without compiled code: {reason}", RuntimeWarning, stacklevel=2)


def _launch(work: Work, tables: dict[Hashable, Any] | None = None) -> Result:
    from funcopt.kernels import launch

    result: Result = launch.step(work, tables)
    return result


def _launch_differentiable(work: Work) -> Result:
    from funcopt.kernels import differentiable

    result: Result = differentiable.step(work)
    return result
