"""Hypothesis strategies for what an optimizer takes: pytrees of tensors, gradients, numbers, states, step numbers.

Every function refuses bad arguments when it is called, not when the first example is drawn, and filters out next to
nothing. Examples shrink towards few leaves, few elements, zeros and ones; hyperparameters as `number` says.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import Factory, PureOptimizer
from funcopt.declaration import Rule
from funcopt.hyper import Number
from funcopt.testing.problems import DECAYS, MODELS, Problem, Schedule

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
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


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


# ---- numbers and flags ----------------------------------------------------------------------------------------------


def number(declared: Number, *, nonzero: bool = False) -> SearchStrategy[float]:
    """Numbers in the range that a hyperparameter declares, on a grid of short decimals.

    A number whose default is tiny (eps) is drawn by its exponent. An unbounded range ends at ±1, or at ten times the
    default where that is more; an open end at 1 is approached to 0.999. With `nonzero` the value 0 is left out.
    It shrinks to 0.5 where the range has it, then to the default, and else towards 0.

    Raises:
        TypeError: not a declaration.
        ValueError: there is no such number.
    """
    if not isinstance(declared, Number):
        raise TypeError(f"a funcopt.Number is needed; got {declared!r}")
    return st.one_of([_one_of(group) for group in _values(declared, nonzero)])


def _one_of(values: Sequence[float]) -> SearchStrategy[float]:
    """As `sampled_from`, but with the first and the last more often, and a short repr."""
    return st.integers(0, len(values) - 1).map(lambda k: values[k])


@functools.cache
def _values(declared: Number, nonzero: bool) -> list[list[float]]:
    """What `number` draws from, in groups that are equally likely."""

    def kept(values: Iterable[float]) -> list[float]:
        return [float(x) for x in values if x in declared and not (nonzero and x == 0)]

    default = declared.default if math.isfinite(declared.default) else 0.0
    scale = kept([0.0, *(10.0**-e for e in (8, 6, 4, 3, 2, 1, 10, 12))])
    if declared.low >= 0 and 0 < default < 1e-4 and scale:
        return [scale]
    low = declared.low if declared.low > -math.inf else min(-1.0, 10 * default, declared.high - 1)
    high = declared.high if declared.high < math.inf else max(1.0, 10 * default, low + 1)
    top = high - 0.001 * (high - low) if declared.below_high else high
    rounded = (float(f"{low + (top - low) * k / 1000:.6g}") for k in range(1001))
    grid = sorted({0.0, *(min(max(x, low), top) for x in rounded)}, key=lambda x: (abs(x), x < 0))
    groups = [group for group in (kept([0.5, default, top]), kept(grid)) if group]
    if not groups:
        raise ValueError(f"there is no number in {declared.range}" + " but 0" * nonzero)
    return groups


def numbers(
    spec: hyper.Spec, *, nonzero: Iterable[str] = (), **fixed: Any
) -> SearchStrategy[dict[str, float | tuple[float, ...]]]:
    """A value for each of several declared hyperparameters, `fixed` ones excepted; those of `nonzero` are not 0.

    Raises:
        TypeError: not declarations, or a fixed value that is no number.
        ValueError: a name that there is not, a fixed value out of its range, or no number in a range.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(f"a dict of funcopt.Number by name is needed; got {spec!r}")
    if isinstance(nonzero, str):
        raise TypeError(f"nonzero is {nonzero!r}; a sequence of names is needed")
    nonzero = set(nonzero)
    for name in (*nonzero, *fixed):
        if name not in spec:
            raise ValueError(f"there is no hyperparameter {name!r}; {hyper.suggest(name, spec)}")
    hyper.validate("", {name: spec[name] for name in fixed}, fixed)
    return st.fixed_dictionaries(
        {
            name: st.just(fixed[name])
            if name in fixed
            else st.tuples(*(number(p, nonzero=name in nonzero) for p in part))
            if isinstance(part, tuple)
            else number(part, nonzero=name in nonzero)
            for name, part in spec.items()
        }
    )


def flags(opt: Factory | PureOptimizer | Rule) -> SearchStrategy[dict[str, bool]]:
    """Choices for every flag of a rule; a pure optimizer's are chosen already."""
    chosen = opt.flags if isinstance(opt, PureOptimizer) else {}
    return st.fixed_dictionaries(
        {flag: st.just(chosen[flag]) if flag in chosen else st.booleans() for flag in _rule(opt).flags}
    )


def hparams(
    opt: Factory | PureOptimizer | Rule, flags: Mapping[str, bool] | None = None, **fixed: Any
) -> SearchStrategy[dict[str, Any]]:
    """Full sets of hparams of a rule in their declared ranges, fit for its flags and for each other.

    Args:
        opt: a rule's factory, or a pure optimizer, whose own flags then count.
        flags: the flags they are for; the defaults if left out.
        **fixed: numbers that are not drawn.

    Raises:
        TypeError: no rule, or a flag or number that it does not have.
        ValueError: a number out of its range, or numbers that go with no others.
    """
    rule = _rule(opt)
    if not isinstance(flags, Mapping | None):
        raise TypeError(f"flags is {flags!r}; a dict of True or False by name is needed")
    chosen = rule.choose(getattr(opt, "flags", {}) if flags is None else flags)
    hyper.validate(rule.name, rule.hparams, fixed)
    return allowed(rule.hparams, lambda values: _fits(rule, values, chosen), fixed=fixed)


def allowed(
    spec: hyper.Spec,
    fits: Callable[[Mapping[str, Any]], bool],
    *,
    fixed: Mapping[str, Any],
    nonzero: Iterable[str] = (),
) -> SearchStrategy[dict[str, Any]]:
    """`numbers` that also fit each other.

    Where random draws do not fit often enough (Nesterov's method wants no dampening), the fewest numbers with which
    they do are held at their defaults, or away from 0.

    Raises:
        ValueError: there seems to be no set that fits.
    """
    drawn, known = _settled(spec, fits, fixed, set(nonzero))
    return _fitting(drawn, fits, known)


def some_allowed(spec: hyper.Spec, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """One set of numbers that fit each other, none of them 0 that need not be: the same at each call."""
    return _settled(spec, fits, {}, set(spec))[1][0]


def _settled(
    spec: hyper.Spec, fits: Callable[[Mapping[str, Any]], bool], fixed: Mapping[str, Any], nonzero: set[str]
) -> tuple[SearchStrategy[dict[str, Any]], list[dict[str, Any]]]:
    """What to draw from, so that it fits often enough, and some sets that do."""
    free = [name for name in spec if name not in fixed]
    defaults = hyper.validate("", spec, {})
    for held in (names for size in range(len(free) + 1) for names in itertools.combinations(free, size)):
        for away in ([], [name for name in free if name not in held]):
            pinned = {**{name: defaults[name] for name in held}, **fixed}
            apart = {*nonzero, *away} - set(pinned)
            drawn = numbers(spec, nonzero=apart, **pinned)
            if known := _known(spec, fits, pinned, apart):
                return drawn, known
    raise ValueError(f"no numbers for {', '.join(spec)} with {dict(fixed)} are accepted")


@st.composite
def _fitting(
    draw: Any,
    drawn: SearchStrategy[dict[str, Any]],
    fits: Callable[[Mapping[str, Any]], bool],
    known: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What is drawn if it fits, at the third try one of the known: nothing is filtered out."""
    for _ in range(3):
        values: dict[str, Any] = draw(drawn)
        if fits(values):
            return values
    return dict(known[draw(st.integers(0, len(known) - 1))])


def _known(
    spec: hyper.Spec, fits: Callable[[Mapping[str, Any]], bool], pinned: Mapping[str, Any], nonzero: Collection[str]
) -> list[dict[str, Any]]:
    """Those that fit of a hundred sets as `numbers` draws them; none if they are fewer than forty."""
    chance = random.Random(0)

    def value(name: str, part: Number | hyper.Several) -> Any:
        if isinstance(part, tuple):
            return tuple(value(name, p) for p in part)
        return chance.choice(chance.choice(_values(part, name in nonzero)))

    found: list[dict[str, Any]] = []
    for count in range(100):
        if count >= 10 and not found:
            break
        values = {n: pinned[n] if n in pinned else value(n, part) for n, part in spec.items()}
        found += [values] if fits(values) else []
    return found if len(found) >= 40 else []


def _rule(opt: Factory | PureOptimizer | Rule) -> Rule:
    rule = opt if isinstance(opt, Rule) else getattr(opt, "rule", None)
    if not isinstance(rule, Rule):
        raise TypeError(f"a rule's factory or a pure optimizer is needed, such as funcopt.adamw; got {opt!r}")
    return rule


def _fits(rule: Rule, values: Mapping[str, Any], chosen: Mapping[str, bool]) -> bool:
    return rule.check is None or rule.check(values, chosen) is None


# ---- schedules and problems -----------------------------------------------------------------------------------------


def schedules(*, max_peak: float = 1.0, max_steps: int = 10) -> SearchStrategy[Schedule]:
    """Schedules of a number between 0 and `max_peak`, for every one of `DECAYS`, with warmup or without."""
    if not isinstance(max_peak, int | float) or not 0 < max_peak < math.inf:
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


def _check_least(what: str, given: int, least: int) -> None:
    if not isinstance(given, int) or given < least:
        raise ValueError(f"{what} is {given!r}; an int of at least {least} is needed")


def _check_dtype(what: str, given: torch.dtype) -> None:
    if given not in DTYPES:
        raise ValueError(f"{what} is {given!r}; one of {', '.join(map(str, DTYPES))} is needed")


def _checked_shape(given: Shape) -> Shape:
    if not isinstance(given, Sequence) or not all(isinstance(n, int) and n >= 0 for n in given):
        raise ValueError(f"shape is {given!r}; a tuple of ints of at least 0 is needed, or a strategy of such")
    return tuple(given)


def _check_bounds(what: str, low: int, high: int) -> None:
    if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high):
        raise ValueError(f"min_{what} is {low!r} and max_{what} {high!r}; 0 <= min_{what} <= max_{what} is needed")


def _check_choice(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(given, str) or not isinstance(given, Collection) or not given:
        raise ValueError(f"{what} is {given!r}; a sequence of some of {', '.join(known)} is needed")
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has {name!r}; {hyper.suggest(str(name), known)}")
