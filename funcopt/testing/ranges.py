"""Hypothesis strategies for hyperparameters, in the ranges that rules declare, and for flags."""

import functools
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from funcopt import hyper
from funcopt.core import PureOptimizer
from funcopt.declaration import Rule
from funcopt.factory import Factory
from funcopt.hyper import Number

__all__ = ["allowed", "choices", "flags", "held", "hparams", "number", "numbers", "scaled", "some_allowed"]


def number(declared: Number, *, nonzero: bool = False) -> SearchStrategy[float | None]:
    """Numbers in the range that a hyperparameter declares, on a grid of short decimals.

    A number whose default is tiny (eps) is drawn by its exponent, one whose default is None is None too. An unbounded
    range ends at ±1, or at ten times the default where that is more; an open end at 1 is approached to 0.999. Where the
    declaration says what part of the range is `tried`, it is that part. With `nonzero` the value 0 is left out. It
    shrinks to 0.5 where the range has it, then to the default, and else towards 0.

    Raises:
        TypeError: not a declaration.
        ValueError: there is no such number.
    """
    if not isinstance(declared, Number):
        raise TypeError(f"a funcopt.Number is needed; got {declared!r}")
    return st.one_of([_one_of(group) for group in _values(declared, nonzero)])


def _one_of(values: Sequence[float | None]) -> SearchStrategy[float | None]:
    """As `sampled_from`, but with the first and the last more often, and a short repr."""
    return st.integers(0, len(values) - 1).map(lambda k: values[k])


@functools.cache
def _values(declared: Number, nonzero: bool) -> list[list[float | None]]:
    """What `number` draws from, in groups that are equally likely."""
    least, most = declared.tried or (declared.low, declared.high)

    def kept(values: Iterable[float]) -> list[float | None]:
        return [float(x) for x in values if x in declared and least <= x <= most and not (nonzero and x == 0)]

    default = 1e-8 if declared.default is None else declared.default if math.isfinite(declared.default) else 0.0
    scale = kept([0.0, *(10.0**-e for e in (8, 6, 4, 3, 2, 1, 10, 12))])
    if least >= 0 and 0 < default < 1e-4 and scale:
        return [scale, [None]] if declared.default is None else [scale]
    low = least if least > -math.inf else min(-1.0, 10 * default, most - 1)
    high = most if most < math.inf else max(1.0, 10 * default, low + 1)
    top = high - 0.001 * (high - low) if declared.below_high and high == declared.high else high
    rounded = (float(f"{low + (top - low) * k / 1000:.6g}") for k in range(1001))
    grid = sorted({0.0, *(min(max(x, low), top) for x in rounded)}, key=lambda x: (abs(x), x < 0))
    off = kept([0.0]) if default == 0 else []  # what is off by default is off in many a case: code asks whether it is
    groups = [group for group in (kept([0.5, default, top]), kept(grid), off) if group]
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


def held(spec: hyper.Spec, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Of some numbers those of a spec; a single one stands for each of a tuple."""

    def fit(part: Number | hyper.Several, value: Any) -> Any:
        return (value,) * len(part) if isinstance(part, tuple) and not isinstance(value, tuple) else value

    return {name: fit(spec[name], value) for name, value in numbers.items() if name in spec}


def scaled(spec: hyper.Spec, numbers: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Numbers times a factor, but for those that would leave their range, or are None."""

    def one(part: Number | hyper.Several, value: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(map(one, part, value))
        return value if value is None or value * factor not in part else value * factor

    return {name: one(spec[name], value) if name in spec else value for name, value in numbers.items()}


def choices(rule: Rule, flag: str) -> Sequence[Any]:
    """What a flag is tried with."""
    tried = rule.choices[flag].tried if flag in rule.choices else None
    return rule.values(flag) if tried is None else tried


def flags(opt: Factory | PureOptimizer | Rule) -> SearchStrategy[dict[str, Any]]:
    """Choices for every flag of a rule, of those that its declaration says are tried; a pure optimizer has chosen."""
    rule, chosen = _rule(opt), opt.flags if isinstance(opt, PureOptimizer) else {}
    return st.fixed_dictionaries(
        {flag: st.sampled_from([chosen[flag]] if flag in chosen else choices(rule, flag)) for flag in rule.flags}
    )


def hparams(
    opt: Factory | PureOptimizer | Rule, flags: Mapping[str, Any] | None = None, **fixed: Any
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
        if len(found) >= 40 or (count >= 10 and not found):
            break
        values = {n: pinned[n] if n in pinned else value(n, part) for n, part in spec.items()}
        found += [values] if fits(values) else []
    return found if len(found) >= 40 else []


def _rule(opt: Factory | PureOptimizer | Rule) -> Rule:
    rule = opt if isinstance(opt, Rule) else getattr(opt, "rule", None)
    if not isinstance(rule, Rule):
        raise TypeError(f"a rule's factory or a pure optimizer is needed, such as funcopt.adamw; got {opt!r}")
    return rule


def _fits(rule: Rule, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return rule.check is None or rule.check(values, chosen) is None
