"""From the functions of an algorithm to a rule, and to the factory that users call: `rule`, and what it refuses."""

import inspect
import itertools
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from funcopt import expression, hyper
from funcopt.core import PureOptimizer, pure
from funcopt.declaration import Choice, Rule, Slot

__all__ = ["Factory", "rule"]


class Factory(Protocol):
    """What users call: `funcopt.adamw(amsgrad=False, maximize=False, backend="auto")`."""

    rule: Rule
    __name__: str

    def __call__(self, *, backend: str = "auto", **flags: Any) -> "PureOptimizer": ...


def rule(
    name: str,
    *,
    hparams: hyper.Spec,
    slots: Sequence[Slot | str] = (),
    coefficients: Callable[..., dict[str, Any]],
    update: Callable[..., Any],
    flags: Mapping[str, bool | Choice] | None = None,
    check: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] | None = None,
    doc: str | None = None,
    exempt: Mapping[str, str] | None = None,
    elementwise: bool = True,
    complex: bool = True,  # noqa: A002
    rows: Callable[[Mapping[str, Any]], bool] | None = None,
    lazy: bool = False,
    check_param: Callable[[Tensor], str | None] | None = None,
) -> "Factory":
    """Make an algorithm: returns the factory `(*, flag=…, backend="auto") -> PureOptimizer`.

    Args:
        name: what the factory is called, and what error messages say.
        hparams: each number's name and its `Number` (default, range, name in errors), or a tuple of them (`betas`).
        slots: the state tensors, in the order in which `update` takes and returns them.
        coefficients: `(t, **hparams, **scalars) -> dict` of scalars, see `funcopt.declaration`.
        update: `(p, g, *slots, c, *flags) -> (p, slots)`, see `funcopt.declaration`.
        flags: structural choices and their defaults, or `Choice`, in the order in which `update` takes them.
        check: `(hparams, flags) -> None`, or what is wrong with this combination of otherwise valid numbers.
        doc: the factory's docstring.
        exempt: laws of `funcopt.testing` that the algorithm does not keep, each with the reason.
        elementwise: whether `update` is an equation of one element. If not, it is a function of whole tensors, may use
            all of torch; one of operators and sums of `funcopt.ops` is compiled for the CPU, all else is run by torch.
        complex: whether parameters may be complex; they are taken as pairs of reals.
        rows: `hparams -> bool`, whether with these numbers elements without a gradient, and their slots, stay as they
            are; of a sparse gradient the equation then sees those elements that are there. If not, it sees zeros for
            the others. Left out, sparse gradients are refused.
        lazy: whether those elements stay as they are where a gradient of 0 would change them.
        check_param: `p -> None`, or what is wrong with such a parameter.
    """
    choices = {name: flag for name, flag in (flags or {}).items() if isinstance(flag, Choice)}
    made = Rule(
        name=name,
        hparams=dict(hparams),
        slots=tuple(Slot(slot) if isinstance(slot, str) else slot for slot in slots),
        coefficients=coefficients,
        update=update,
        flags={**(flags or {}), **{name: choice.default for name, choice in choices.items()}},
        check=check,
        Coefficients=_coefficients_type(name, hparams, slots, coefficients),
        doc=doc,
        exempt=dict(exempt or {}),
        choices=choices,
        elementwise=elementwise,
        complex=complex,
        rows=rows,
        lazy=lazy,
        check_param=check_param,
    )
    _check_declaration(made)
    if elementwise:
        _check_equation(made)
    _check_update(made)

    def factory(*, backend: str = "auto", **flags: Any) -> PureOptimizer:
        return pure(made, backend=backend, **flags)

    parameters = [inspect.Parameter(f, inspect.Parameter.KEYWORD_ONLY, default=d) for f, d in made.flags.items()]
    parameters.append(inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default="auto"))
    factory.__name__, factory.__qualname__, factory.__module__, factory.__doc__ = name, name, update.__module__, doc
    vars(factory).update(__signature__=inspect.Signature(parameters), rule=made)
    return cast(Factory, factory)


def _coefficients_type(
    name: str, spec: hyper.Spec, slots: Sequence[Slot | str], coefficients: Callable[..., dict[str, Any]]
) -> Any:
    for number in spec.values():
        if not all(isinstance(part, hyper.Number) for part in (number if isinstance(number, tuple) else (number,))):
            raise TypeError(f"{name}: a number is declared by funcopt.Number, nonnegative or fraction; got {number!r}")
    scalars = [slot.name for slot in slots if isinstance(slot, Slot) and slot.scalar]
    wanted = list(inspect.signature(coefficients).parameters)[1:]
    if sorted(wanted) != sorted([*spec, *scalars]):
        raise TypeError(f"{name}: coefficients takes (t, {', '.join([*spec, *scalars])}); got (…, {', '.join(wanted)})")
    defaults = hyper.validate(name, spec, {}) | dict.fromkeys(scalars, 0.5)
    values = coefficients(1.0, **defaults)
    if not isinstance(values, dict):
        raise TypeError(
            f"{name}: coefficients returns a dict of scalars by name; it returned a {type(values).__name__}"
        )
    for scalar in scalars:
        if scalar not in values:
            raise TypeError(f"{name}: coefficients must return the new {scalar!r} too, under this name")
    _check_differentiable(name, coefficients, defaults)
    # Triton's cache of compiled kernels goes by the name of such a type: different fields, different name.
    return namedtuple("_".join(["Coefficients", *values]), list(values))


def _check_differentiable(name: str, coefficients: Callable[..., dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Refuse functions that make a Python number of a tensor: derivatives would be cut off without a word."""

    def with_tensors(x: Tensor) -> list[Tensor]:
        numbers = {n: tuple(map(times(x), v)) if isinstance(v, tuple) else times(x)(v) for n, v in defaults.items()}
        return [torch.as_tensor(c) for c in coefficients(1 + x, **numbers).values() if c is not None]

    def times(x: Tensor) -> Callable[[Any], Any]:
        return lambda value: None if value is None else x * value

    try:
        torch.vmap(with_tensors)(torch.ones(2, dtype=torch.float64))
    except Exception as error:
        raise TypeError(
            f"{name}: coefficients must work on float64 tensors too, for derivatives and tracers: use arithmetic and "
            f"funcopt.ops, and no `if` on a number. It fails with {type(error).__name__}: {error}"
        ) from error


def _check_declaration(made: Rule) -> None:
    slots = [slot.name for slot in made.slots]
    taken = [slot.name for slot in made.tensors]
    names = ["step", *slots], [*made.hparams, *made.flags, "backend"]
    for name in (name for group in names for name in group if group.count(name) > 1):
        raise TypeError(f"{made.name}: the name {name!r} is taken twice, or by the library")
    for slot in made.slots:
        choices = [*made.flags, *made.hparams]
        if slot.when is not None and slot.when not in choices:
            raise TypeError(
                f"{made.name}: slot {slot.name!r} depends on {slot.when!r}, which is neither a flag nor a number; "
                f"{hyper.suggest(slot.when, choices)}"
            )
        if isinstance(slot.init, str) and slot.init != "params" and slot.init not in made.hparams:
            raise TypeError(
                f"{made.name}: slot {slot.name!r} begins with {slot.init!r}, which is no number of the rule; "
                f"{hyper.suggest(slot.init, [*made.hparams, 'params'])}"
            )
        if slot.shape not in ("like", "rows", "columns", "vectors"):
            raise TypeError(f"{made.name}: slot {slot.name!r} has the shape {slot.shape!r}; see funcopt.Slot")
        if made.elementwise and slot.shape != "like":
            raise TypeError(f"{made.name}: slot {slot.name!r} has a shape of its own; that takes elementwise=False")
    update = list(inspect.signature(made.update).parameters)
    expected = 2 + len(taken) + 1 + len(made.flags)
    if len(update) != expected or update[expected - len(made.flags) :] != list(made.flags):
        wanted = ", ".join(["p", "g", *taken, "c", *made.flags])
        raise TypeError(
            f"{made.name}: update takes ({wanted}), the flags under these names and the rest under names of your own; "
            f"got ({', '.join(update)})"
        )


def _check_equation(made: Rule) -> None:
    """Write the equation down with every combination of flags and slots: what cannot be is refused now."""
    depends = [slot.when for slot in made.slots if slot.when in made.hparams]
    defaults = hyper.validate(made.name, made.hparams, {})
    for chosen in itertools.product(*map(made.values, made.flags)):
        flags = dict(zip(made.flags, chosen, strict=True))
        for used in itertools.product((False, True), repeat=len(set(depends))):
            there: dict[Any, bool] = {**flags, **dict(zip(dict.fromkeys(depends), used, strict=True))}
            present = tuple(slot.when is None or there[slot.when] for slot in made.tensors)
            try:
                expression.written(made.update, chosen, present, made.Coefficients)
            except Exception as error:
                if made.check is not None and made.check(defaults, flags):
                    continue  # a combination that is refused with these numbers, and may be with all
                choice = ", ".join(f"{name}={value}" for name, value in flags.items())
                raise TypeError(
                    f"{made.name}: update must be an equation of numbers, in arithmetic, comparisons and funcopt.ops; "
                    f"{f'with {choice} ' if choice else ''}it fails with {type(error).__name__}: {error}"
                ) from error


def _check_update(made: Rule) -> None:
    """Run the equation once with the default flags and numbers, each slot in use where its number would be set."""
    opt = pure(made, backend="eager")
    ones = torch.ones(2, 3, dtype=torch.float64)
    slots = [slot for slot in made.slots if slot.when is None or slot.when in made.hparams or opt.flags[slot.when]]
    shapes = {slot.name: slot.shape_for(ones) for slot in slots}
    state = {n: None if shape is None else torch.ones(shape, dtype=torch.float64) for n, shape in shapes.items()}
    state["step"] = torch.zeros(())
    p, g = ones.clone(), ones.clone()
    try:
        new, _ = opt(p, g, state, hyper.validate(made.name, made.hparams, {}))
    except (AttributeError, IndexError, NameError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{made.name}: update fails on tensors of shape {tuple(p.shape)}, with the default flags and numbers, with "
            f"{type(error).__name__}: {error}"
        ) from error
    tensors = {name: t for name, t in {"p": p, "g": g, **state}.items() if name != "step" and t is not None}
    written = [name for name, t in tensors.items() if not torch.equal(t, torch.ones_like(t))]
    if written:
        raise TypeError(f"{made.name}: update writes to {written[0]}; write {written[0]} = {written[0]} + … for +=")
    if new.shape != ones.shape:
        raise TypeError(
            f"{made.name}: update gave a p of shape {tuple(new.shape)} for one of shape {tuple(ones.shape)}"
        )
