"""What a schedule is: a formula's name and arguments. The formulas stand in `funcopt.schedules`."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from funcopt.hyper import suggest
from funcopt.observed import wrapped
from funcopt.ops import Scalar

__all__ = [
    "Schedule",
    "ascending",
    "at",
    "boolean",
    "list_of",
    "number_or_schedule",
    "one_of",
    "optional",
    "schedule",
    "within",
]

P = ParamSpec("P")
Check = Callable[[str, Any], Any]  # (label, argument) -> the argument, as it is kept; raises where it is wrong

# By name: a formula, its variable, and the check of that.
_FORMULAS: dict[str, tuple[Callable[..., Any], str, Check]] = {}


@dataclass(frozen=True, repr=False)
class Schedule:
    """A function of the step: the name of a function of `funcopt.schedules`, and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]

    def __call__(self, step: Scalar) -> Scalar:
        """The value at a step.

        Args:
            step: a number ≥ 0, or a tensor of any shape.

        Returns:
            A float; or a float64 tensor of the step's shape, if the step or an argument is a tensor.

        Raises:
            TypeError, ValueError: the step is not a number, or is below 0.
        """
        formula, variable, check = _FORMULAS[self.name]
        if not isinstance(step, Tensor):
            step = check(variable, step)
        value = formula(_float64(step), **{name: _float64(value) for name, value in self.arguments.items()})
        for like in _tensors((value, step, self)):
            return value.to(torch.float64) if value is like else torch.full_like(like, value, dtype=torch.float64)
        return float(value)

    def __mul__(self, other: Any) -> "Schedule":
        return Schedule("product", {"schedules": list_of(number_or_schedule)("product", (self, other))})

    __rmul__ = __mul__

    def __hash__(self) -> int:
        return hash(self.name)  # equal tensors have different hashes

    def __repr__(self) -> str:
        (_, first), *rest = self.arguments.items()
        listed = ", ".join([repr(first), *(f"{name}={value!r}" for name, value in rest)])
        return f"funcopt.schedules.{self.name}({listed})"


def at(schedule: Any, step: Scalar) -> Any:
    """What a number or a schedule is at a step: `schedule(step)` of all that can be called, else the number itself."""
    return schedule(step) if callable(schedule) else schedule


def schedule(formula: Callable[Concatenate[Any, P], Any]) -> Callable[P, Schedule]:
    """The function that checks a formula's arguments and makes a `Schedule` of them.

    Args:
        formula: a function of its first argument, the step; for tensors too, so that it chooses by `funcopt.ops.where`,
            with finite derivatives on both sides. Each argument is annotated with its type and one of the checks below.
    """
    name, signature = formula.__name__.lstrip("_"), inspect.signature(formula)
    variable, *names = signature.parameters
    checks = {each: p.annotation.__metadata__[0] for each, p in signature.parameters.items()}
    _FORMULAS[name] = formula, variable, checks[variable]

    @functools.wraps(formula)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        for unknown in kwargs.keys() - set(names):
            raise TypeError(f"{name} has no argument {unknown!r}; {suggest(unknown, names)}")
        try:
            given = signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        given.apply_defaults()
        return Schedule(name, {each: checks[each](f"{name}: {each}", given.arguments[each]) for each in names})

    _, *rest = (p.replace(annotation=p.annotation.__origin__) for p in signature.parameters.values())
    make.__signature__ = inspect.Signature(rest, return_annotation=Schedule)  # type: ignore[attr-defined]
    return make


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)
        elif isinstance(value, Schedule):
            yield from _tensors(value.arguments.values())


def _float64(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_float64, value))
    return value.to(torch.float64) if isinstance(value, Tensor) else value


# ---- checks of arguments --------------------------------------------------------------------------------------------


def within(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """A finite number in [low, high], or above low; a tensor's is looked at only where that waits for nobody."""
    text = f"{'(' if above else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"

    def check(label: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() or value.is_complex() or value.dtype == torch.bool:
                raise ValueError(
                    f"{label} is a tensor of {value.dtype} and shape {tuple(value.shape)}; give a real 0-d tensor, and "
                    "take torch.vmap for several"
                )
            if value.device.type != "cpu" or wrapped(value):
                return value
        elif not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{label} takes a number or a 0-d tensor; got {type(value).__name__}: {value!r}")
        elif not isinstance(value, int):  # nor stays a number NumPy's
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        number = value.item() if isinstance(value, Tensor) else value
        if not low <= number <= high or not math.isfinite(number) or (above and number == low):
            raise ValueError(f"{label} is {number!r}; it takes numbers in {text}")
        return value

    return check


def one_of(*choices: str) -> Check:
    def check(label: str, value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"{label} is {value!r}; {suggest(str(value), choices)}")
        return value

    return check


def boolean(label: str, value: Any) -> Any:
    if not isinstance(value, bool):
        raise TypeError(f"{label} takes True or False; got {value!r}")
    return value


def optional(check: Check) -> Check:
    return lambda label, value: None if value is None else check(label, value)


def list_of(check: Check) -> Check:
    def checked(label: str, values: Any) -> Any:
        if not isinstance(values, tuple | list):
            raise TypeError(f"{label} takes a list; got {type(values).__name__}: {values!r}")
        return tuple(check(f"{label}[{i}]", value) for i, value in enumerate(values))

    return checked


def ascending(label: str, values: Any) -> Any:
    values = list_of(within(0))(label, values)
    known = [value for value in values if not isinstance(value, Tensor)]
    if known != sorted(known):
        raise ValueError(f"{label} is {values!r}; milestones must be in ascending order")
    return values


def number_or_schedule(label: str, value: Any) -> Any:
    return value if callable(value) else within(0)(label, value)
