"""Hypothesis strategies for what an optimizer takes: pytrees of tensors, gradients, numbers, states, step numbers.

Every function refuses bad arguments when it is called, not when the first example is drawn, and filters out next to
nothing. Examples shrink towards few leaves, few elements, zeros and ones; hyperparameters as `number` says.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import PureOptimizer
from funcopt.testing.problems import DECAYS, MODELS, Problem, Schedule
from funcopt.testing.ranges import flags, hparams, number, numbers

__all__ = [
    "DTYPES",
    "KINDS",
    "LAYOUTS",
    "elements",
    "flags",
    "gradient_sequences",
    "gradients",
    "hparams",
    "laid_out",
    "number",
    "numbers",
    "params",
    "problems",
    "schedules",
    "shapes",
    "states",
    "step_numbers",
    "tensors",
    "trees",
]

Tree = Any
Shape = tuple[int, ...]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KINDS = ("zero", "unit", "moderate", "denormal", "huge", "inf", "nan")
LAYOUTS = ("contiguous", "transposed", "strided", "misaligned")


# ---- tensors --------------------------------------------------------------------------------------------------------


def shapes(*, min_dims: int = 0, max_dims: int = 2, min_side: int = 0, max_side: int = 3) -> SearchStrategy[Shape]:
    """Shapes of `min_dims` to `max_dims` dimensions of `min_side` to `max_side` elements; () and empty ones too.

    Raises:
        ValueError: a bound below 0, or a lower bound above its upper one.
    """
    _check_bounds("dims", min_dims, max_dims)
    _check_bounds("side", min_side, max_side)
    side = st.integers(min_side, max_side)
    if min_side == 0 < max_side:  # fewer empty tensors, which show little
        side = st.one_of(st.integers(1, max_side), st.integers(1, max_side), side)
    return st.lists(side, min_size=min_dims, max_size=max_dims).map(tuple)


def elements(
    dtype: torch.dtype = torch.float64, include: Sequence[str] = ("zero", "moderate")
) -> SearchStrategy[float]:
    """Floats for tensors of a dtype.

    Args:
        dtype: float64, float32, bfloat16 or float16; it sets what is denormal, and what is huge.
        include: the kinds of values, of `KINDS`: `zero`; `unit`, ±[1/2, 2]; `moderate`, ±[1/64, 64]; `denormal`, below
            the dtype's smallest normal number; `huge`, from the root of its largest number to that number; `inf` of
            either sign; `nan`.

    Raises:
        ValueError: a dtype or a kind that there is not, or no kind at all.
    """
    _check_dtype("dtype", dtype)
    _check_choice("include", include, KINDS)
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    kinds = {
        "zero": [st.just(0.0)],
        "unit": [st.floats(0.5, 2.0, width=16), st.floats(-2.0, -0.5, width=16)],
        "moderate": [st.floats(2.0**-6, 64.0, width=16), st.floats(-64.0, -(2.0**-6), width=16)],
        "denormal": [st.sampled_from([s * least * k for k in (1, 3, 2**6) for s in (1, -1)])],
        "huge": [st.sampled_from([s * x for x in (math.sqrt(info.max), info.max / 4, info.max) for s in (1, -1)])],
        "inf": [st.sampled_from([math.inf, -math.inf])],
        "nan": [st.just(math.nan)],
    }
    return st.one_of([strategy for kind in KINDS if kind in include for strategy in kinds[kind]])


def tensors(
    shape: Shape | SearchStrategy[Shape] | None = None,
    dtype: torch.dtype | SearchStrategy[torch.dtype] = torch.float64,
    *,
    include: Sequence[str] = ("zero", "moderate"),
    layouts: Sequence[str] = ("contiguous",),
) -> SearchStrategy[Tensor]:
    """Tensors on the CPU.

    Args:
        shape: one shape or a strategy of them; `shapes()` if left out.
        dtype: one dtype or a strategy of them.
        include: as in `elements`.
        layouts: how they may lie in memory, of `LAYOUTS`: `transposed` has its strides in reverse, `strided` every
            other element of its memory, `misaligned` an offset of one element. They shrink towards the first.

    Raises:
        ValueError: a shape, dtype, kind or layout that there is not.
    """
    _check_choice("layouts", layouts, LAYOUTS)
    given = shapes() if shape is None else shape
    of = given if isinstance(given, SearchStrategy) else st.just(_checked_shape(given))
    dtypes = dtype if isinstance(dtype, SearchStrategy) else st.just(dtype)
    values = {d: elements(d, include) for d in (DTYPES if isinstance(dtype, SearchStrategy) else [dtype])}
    return _tensors(of, dtypes, values, st.sampled_from(list(layouts)))


@st.composite
def _tensors(
    draw: Any,
    shapes: SearchStrategy[Shape],
    dtypes: SearchStrategy[torch.dtype],
    values: Mapping[torch.dtype, SearchStrategy[float]],
    layouts: SearchStrategy[str],
) -> Tensor:
    shape, dtype = draw(shapes), draw(dtypes)
    _check_dtype("the dtype drawn", dtype)
    size = math.prod(shape)
    flat = draw(st.lists(values[dtype], min_size=size, max_size=size))
    return laid_out(torch.tensor(flat, dtype=dtype).reshape(shape), draw(layouts))


def laid_out(t: Tensor, layout: str) -> Tensor:
    """A copy of a tensor that lies in memory as one of `LAYOUTS`; one of fewer dimensions than that needs as it is."""
    _check_choice("layout", [layout], LAYOUTS)
    if layout == "transposed":
        backwards = tuple(reversed(range(t.dim())))
        return t.permute(backwards).clone(memory_format=torch.contiguous_format).permute(backwards)
    if layout == "strided" and t.dim():
        return torch.stack([t, torch.zeros_like(t)], -1)[..., 0]
    if layout == "misaligned":
        return torch.cat([torch.zeros(1, dtype=t.dtype), t.flatten()])[1:].view(t.shape)
    return t.clone(memory_format=torch.contiguous_format)


# ---- pytrees --------------------------------------------------------------------------------------------------------


def trees(leaves: SearchStrategy[Any], *, max_leaves: int = 4) -> SearchStrategy[Tree]:
    """Pytrees of leaves: a leaf alone, or lists, tuples and dicts of any nesting, none of them empty."""
    if not isinstance(leaves, SearchStrategy):
        raise TypeError(f"leaves is {leaves!r}; a strategy is needed, such as tensors()")
    _check_least("max_leaves", max_leaves, 1)
    keys = st.sampled_from(["w", "b", "scale", "0", "a.b", "β"])

    def nodes(children: SearchStrategy[Tree]) -> SearchStrategy[Tree]:
        few = st.lists(children, min_size=1, max_size=max_leaves)
        return few | few.map(tuple) | st.dictionaries(keys, children, min_size=1, max_size=max_leaves)

    return st.recursive(leaves, nodes, max_leaves=max_leaves)


def params(
    dtype: torch.dtype | SearchStrategy[torch.dtype] = torch.float64,
    *,
    shape: Shape | SearchStrategy[Shape] | None = None,
    include: Sequence[str] = ("zero", "moderate"),
    layouts: Sequence[str] = LAYOUTS,
    max_leaves: int = 4,
) -> SearchStrategy[Tree]:
    """Pytrees of parameters; the arguments are those of `tensors` and `trees`."""
    return trees(tensors(shape, dtype, include=include, layouts=layouts), max_leaves=max_leaves)


def gradients(
    params: Tree,
    *,
    include: Sequence[str] = ("zero", "moderate"),
    layouts: Sequence[str] = LAYOUTS,
    missing: bool = False,
) -> SearchStrategy[Tree]:
    """Gradients for a pytree of parameters: a tree like it; with `missing` some may be None."""
    leaves, spec = tree.flatten(params)
    for leaf, path in zip(leaves, tree.paths(params, "params"), strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{path} is a {type(leaf).__name__}; params holds tensors only")
        _check_dtype(f"the dtype of {path}", leaf.dtype)
    each = [tensors(tuple(p.shape), p.dtype, include=include, layouts=layouts) for p in leaves]
    drawn = st.tuples(*([g | st.none() for g in each] if missing else each))
    return drawn.map(lambda gs: tree.unflatten(gs, spec))


def gradient_sequences(
    params: Tree, *, min_steps: int = 1, max_steps: int = 5, **options: Any
) -> SearchStrategy[list[Tree]]:
    """Lists of gradients, one for each step; the options are those of `gradients`."""
    _check_bounds("steps", min_steps, max_steps)
    return st.lists(gradients(params, **options), min_size=min_steps, max_size=max_steps)


def states(
    opt: PureOptimizer, params: Tree, hparams: Mapping[str, Any] | None = None, *, max_steps: int = 3
) -> SearchStrategy[dict[str, Tree]]:
    """States that a pure optimizer reaches in up to `max_steps` steps of drawn gradients; hparams may be a few."""
    if not isinstance(opt, PureOptimizer):
        raise TypeError(f"a pure optimizer is needed, such as funcopt.adamw(); got {opt!r}")
    _check_least("max_steps", max_steps, 0)
    numbers = opt.hparams(**(hparams or {}))
    opt(params, None, opt.init(params, numbers), numbers)  # refuses what does not fit, without a step

    def reached(sequence: list[Tree]) -> dict[str, Tree]:
        state, at = opt.init(params, numbers), params
        for grads in sequence:
            at, state = opt(at, grads, state, numbers)
        return state

    return gradient_sequences(params, min_steps=0, max_steps=max_steps).map(reached)


def step_numbers(*, max_value: int = 2**53) -> SearchStrategy[int]:
    """Numbers of steps already taken, 0 included: small ones, those around which counts go wrong (2²⁴), any."""
    _check_least("max_value", max_value, 0)
    edges = [n + d for n in (2**8, 2**11, 10**5, 2**24, 2**31, 2**53) for d in (-1, 0) if n + d <= max_value]
    return st.one_of(
        st.integers(0, min(10, max_value)), *([st.sampled_from(edges)] if edges else []), st.integers(0, max_value)
    )


# ---- schedules and problems -----------------------------------------------------------------------------------------


def schedules(*, max_peak: float = 1.0, max_steps: int = 10) -> SearchStrategy[Schedule]:
    """Schedules of a number between 0 and `max_peak`, for every one of `DECAYS`, with warmup or without."""
    if not isinstance(max_peak, int | float) or isinstance(max_peak, bool) or not 0 < max_peak < math.inf:
        raise ValueError(f"max_peak is {max_peak!r}; a finite number above 0 is needed")
    _check_least("max_steps", max_steps, 1)
    return st.builds(
        Schedule,
        peak=st.integers(1, 100).map(lambda k: max_peak * k / 100),
        warmup=st.integers(0, max_steps - 1),
        steps=st.integers(1, max_steps),
        decay=st.sampled_from(DECAYS),
    )


def problems(
    kinds: Sequence[str] = MODELS, *, max_steps: int = 5, dtype: torch.dtype = torch.float64
) -> SearchStrategy[Problem]:
    """Small models with data, of 1 to 3 features and 1 to 4 examples a batch."""
    _check_choice("kinds", kinds, MODELS)
    _check_least("max_steps", max_steps, 1)
    _check_dtype("dtype", dtype)
    return st.builds(
        Problem,
        kind=st.sampled_from(list(kinds)),
        features=st.integers(1, 3),
        examples=st.integers(1, 4),
        steps=st.integers(1, max_steps),
        seed=st.integers(0, 1000),
        dtype=st.just(dtype),
    )


# ---- arguments ------------------------------------------------------------------------------------------------------


def _is_int(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _check_least(what: str, given: int, least: int) -> None:
    if not _is_int(given) or given < least:
        raise ValueError(f"{what} is {given!r}; an int of at least {least} is needed")


def _check_dtype(what: str, given: torch.dtype) -> None:
    if given not in DTYPES:
        raise ValueError(f"{what} is {given!r}; one of {', '.join(map(str, DTYPES))} is needed")


def _checked_shape(given: Shape) -> Shape:
    if not isinstance(given, Sequence) or not all(_is_int(n) and n >= 0 for n in given):
        raise ValueError(f"shape is {given!r}; a tuple of ints of at least 0 is needed, or a strategy of such")
    return tuple(given)


def _check_bounds(what: str, low: int, high: int) -> None:
    if not (_is_int(low) and _is_int(high) and 0 <= low <= high):
        raise ValueError(f"min_{what} is {low!r} and max_{what} {high!r}; 0 <= min_{what} <= max_{what} is needed")


def _check_choice(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(given, str) or not isinstance(given, Collection) or not given:
        raise ValueError(f"{what} is {given!r}; a sequence of some of {', '.join(known)} is needed")
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has {name!r}; {hyper.suggest(str(name), known)}")
