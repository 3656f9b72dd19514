"""What transforms are made of: a layer around a rule, which gives a rule again."""

import functools
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from funcopt import hyper
from funcopt.core import PureOptimizer
from funcopt.declaration import Measure, Rule, Slot
from funcopt.ops import maximum, where

__all__ = ["Layer", "layered"]


@dataclass(frozen=True, eq=False)
class Layer:
    """What a transform does around an update equation. Functions of elements are written as `update` is.

    Args:
        name: the transform's.
        hparams: its numbers. Their defaults are replaced by what the transform is called with.
        slots: its state.
        measures: sums over all elements of all gradients, as they come to this layer: x ↦ what is summed, in float64.
        coefficients: `(**measures, **hparams) -> dict` of scalars, for the functions below. One named "skip" that is
            not 0 makes the step leave everything as it is, the step count too; one named "hold" makes the optimizer
            inside leave everything as it is.
        before: `(p, g, slots, c) -> g`, what becomes of a gradient before the equation sees it.
        weights: `(p, c) -> p`, what becomes of the parameter before.
        after: `(old, g, p, slots, c, flags) -> (p, slots)`, what becomes of the new p that the equation gave for the
            old one and the gradient that it saw, and of the layer's own slots.
        time: `(t, **hparams) -> t`, the number of the step as the optimizer inside sees it.
        takes: what `coefficients` takes too: "t", and numbers of the optimizer inside, such as "lr".
        elementwise: whether these are functions of elements; if not, of whole tensors, see `funcopt.rule`.
        rows: whether functions of whole tensors make the same of those rows alone that a sparse gradient has.
        complex: whether parameters may be complex.
        ascent: from a scope, see `layered`, to an optimizer that goes uphill to where the gradient is to be taken; its
            numbers are the layer's.
    """

    name: str
    hparams: Mapping[str, hyper.Number] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    measures: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    coefficients: Callable[..., dict[str, Any]] = lambda **numbers: {}
    before: Callable[[Any, Any, tuple[Any, ...], Any], Any] | None = None
    weights: Callable[[Any, Any], Any] | None = None
    after: Callable[..., tuple[Any, tuple[Any, ...]]] | None = None
    time: Callable[..., Any] | None = None
    takes: tuple[str, ...] = ()
    elementwise: bool = True
    rows: bool = False
    complex: bool = True
    ascent: Callable[[str], PureOptimizer] | None = None

    def __post_init__(self) -> None:
        LAYERS[self.name] = self


LAYERS: dict[str, Layer] = {}  # by name, for pickle


def layered(opt: Any, layer: Layer, prefix: str = "", scope: str = "", **defaults: Any) -> Any:
    """The pure optimizer with a layer around it; around each part of one that has parts.

    Args:
        opt: the optimizer; None for the function that puts the layer around one.
        layer: what goes around it.
        prefix: put before the names of the layer's numbers and slots, to tell them from others of the same name.
        scope: what names of measures begin with that are of all parts together; left out, they are the optimizer's own.
        **defaults: the layer's numbers, where hparams do not give them.

    Raises:
        TypeError: no optimizer, or a name that is taken.
        ValueError: a number out of its range.
    """
    if not isinstance(prefix, str) or not (prefix + "x").isidentifier():
        raise TypeError(f"{layer.name}: prefix is the beginning of a name, such as 'outer_'; got {prefix!r}")
    numbers = hyper.validate(layer.name, layer.hparams, defaults)
    for name in defaults:
        if not isinstance(numbers[name], float):
            raise TypeError(
                f"{layer.name}: {name} is a {type(numbers[name]).__name__}; a transform is called with floats, which "
                f"opt.hparams({prefix}{name}=…) overrules by tensors, schedules and trees"
            )
    if opt is None:
        return functools.partial(layered, layer=layer, prefix=prefix, **defaults)
    if callable(parts := getattr(opt, "around", None)):
        shared = [prefix + name for name in layer.hparams]
        return parts(lambda part, scope: layered(part, layer, prefix, scope, **defaults), shared)
    if not isinstance(opt, PureOptimizer):
        raise TypeError(
            f"{layer.name} takes a pure optimizer, such as funcopt.adamw(), with an update equation, or a partition; "
            f"got a {type(opt).__name__}"
        )
    for name in layer.takes:
        if name != "t" and name not in opt.rule.hparams:
            raise TypeError(f"{layer.name} needs an optimizer with {name!r}; {opt.rule.name} has none")
    if layer.ascent is not None and opt.rule.ascent is not None:
        raise TypeError(f"{layer.name}: {opt.rule.name} takes its gradients at another point already; once is enough")
    return replace(opt, rule=_rule(opt.rule, layer, prefix, scope, tuple((name, numbers[name]) for name in defaults)))


@functools.lru_cache(maxsize=1024)
def _rule(inner: Rule, layer: Layer, prefix: str, scope: str, defaults: tuple[tuple[str, float], ...]) -> Rule:
    """The rule with the layer around it: the same for the same arguments, so that its kernels are compiled once."""
    given = dict(defaults)
    numbers = {prefix + n: replace(part, default=given.get(n, part.default)) for n, part in layer.hparams.items()}
    slots = tuple(replace(slot, name=prefix + slot.name) for slot in layer.slots)
    _check_names(inner, layer, [*numbers, *(slot.name for slot in slots)])
    own = scope or f"layer{inner.layers + 1}_"  # what the layer's measures and coefficients are called among the others
    measured = {own + name: Measure(summand) for name, summand in layer.measures.items()}
    first, count, flags = len(inner.tensors), len(inner.tensors) + len(slots), list(inner.flags)

    def coefficients(t: Any, **values: Any) -> dict[str, Any]:
        mine = {name: values.pop(prefix + name) for name in layer.hparams}
        time = t if layer.time is None else layer.time(t, **mine)
        mine |= {name.removeprefix(own): values.pop(name) for name in measured}
        mine |= {name: t if name == "t" else values[name] for name in layer.takes}
        out, scalars = inner.coefficients(time, **values), layer.coefficients(**mine)
        if "hold" in scalars:
            out |= {s.name: where(scalars["hold"] != 0, values[s.name], out[s.name]) for s in inner.scalars}
        if "skip" in scalars:
            skip = scalars.pop("skip")
            out["skip"] = maximum(out["skip"], skip) if "skip" in out else skip
        return out | {own + name: value for name, value in scalars.items()}

    def of(c: Any) -> Any:
        return Own(*[getattr(c, own + name) for name in fields])

    def seen(p: Any, g: Any, slots: tuple[Any, ...], scalars: Any) -> tuple[Any, Any]:
        """The parameter and the gradient as the optimizer inside sees them."""
        g = g if layer.before is None else layer.before(p, g, slots[first:count], scalars)
        return (p if layer.weights is None else layer.weights(p, scalars)), g

    def measured_of(p: Any, g: Any, slots: tuple[Any, ...], c: Any) -> tuple[Any, Any]:
        """The same for what it measures: where it is held it sees no gradient, but what is not finite shows early."""
        scalars = of(c)
        p, g = seen(p, g, slots, scalars)
        return p, ((1 - scalars.hold) * g if "hold" in fields else g)

    def update(p: Any, g: Any, *rest: Any) -> Any:
        inside, mine, (c, *chosen) = rest[:first], rest[first:count], rest[count:]
        scalars = of(c)
        seen_p, g = seen(p, g, rest, scalars)
        new_p, new = inner.update(seen_p, g, *inside, c, *chosen)
        if "hold" in fields:
            held = scalars.hold != 0
            old = [slot for slot in inside if slot is not None]
            new_p, new = where(held, p, new_p), tuple(where(held, o, n) for o, n in zip(old, new, strict=True))
        if layer.after is None:
            return new_p, new
        new_p, changed = layer.after(p, g, new_p, mine, scalars, dict(zip(flags, chosen, strict=True)))
        return new_p, (*new, *changed)

    levels = tuple({n: m.after(measured_of) for n, m in level.items()} for level in inner.measures)
    if measured and layer.before is None and levels:
        levels = ({**measured, **levels[0]}, *levels[1:])  # what changes no gradient is measured with what comes next
    elif measured:
        levels = (measured, *levels)
    hparams = {**inner.hparams, **numbers}
    others = [*(name for level in levels for name in level), *(slot.name for slot in inner.scalars)]
    names = list(coefficients(1.0, **hyper.validate(inner.name, hparams, {}), **dict.fromkeys(others, 0.0)))
    fields = [name.removeprefix(own) for name in names if name.startswith(own)]
    Own: Any = namedtuple("Own", fields)  # type: ignore[misc]  # what the layer's functions see
    return replace(
        inner,
        name=f"{inner.name}_{layer.name}",
        hparams=hparams,
        slots=(*inner.slots, *slots),
        coefficients=coefficients,
        update=update,
        measures=levels,
        Coefficients=namedtuple("_".join(["Coefficients", *names]), names),
        doc=f"{inner.name} with {layer.name} around it; see funcopt.transforms.{layer.name}.",
        layers=inner.layers + 1,
        elementwise=inner.elementwise and layer.elementwise,
        complex=inner.complex and layer.complex,
        rows=_rows(inner, layer),
        made=(_again, (inner, layer.name, prefix, scope, defaults)),
        ascent=inner.ascent if layer.ascent is None else (layer.ascent(scope), prefix),
    )


def _check_names(inner: Rule, layer: Layer, names: list[str]) -> None:
    taken = {"step", "backend", *inner.hparams, *inner.flags, *(slot.name for slot in inner.slots)}
    for name in names:
        if name in taken:
            raise TypeError(
                f"{layer.name}: {name!r} is a name that {inner.name} has already; give this one's names a prefix: "
                f"{layer.name}(…, prefix='outer_') calls it 'outer_{name}'"
            )


def _rows(inner: Rule, layer: Layer) -> Callable[[Mapping[str, Any]], bool] | None:
    """Of a sparse gradient the rows, where those are all there is to do; else zeros too, where they do the same."""
    if (layer.elementwise or layer.rows) and not (layer.weights or layer.after):
        return inner.rows
    return None if inner.rows is None or inner.lazy else _never


def _never(numbers: Mapping[str, Any]) -> bool:
    return False


def _again(inner: Rule, layer: str, prefix: str, scope: str, defaults: tuple[tuple[str, float], ...]) -> Rule:
    return _rule(inner, LAYERS[layer], prefix, scope, defaults)
