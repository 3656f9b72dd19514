"""An equation written down instead of worked out: `update` run on these is the graph of its operations."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["CONDITIONS", "Equation", "Expression", "operations", "shaped", "summed", "written"]

# The operations whose values are conditions, not numbers.
CONDITIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})


class Expression:
    """A number of an equation, or a condition: an operation on others, or a name.

    Args:
        operation: "name" for a quantity that is given, else the operation: an operator's, or a function's of
            `funcopt.ops`.
        parts: the name, or what the operation is of: expressions and Python numbers.
        scalar: whether it is the same for all elements: made of coefficients and constants alone.
    """

    __slots__ = ("operation", "parts", "scalar")

    def __init__(self, operation: str, *parts: Any, scalar: bool | None = None) -> None:
        for place, part in enumerate(parts if operation != "name" else ()):
            if not isinstance(part, Expression | float | int):
                raise TypeError(f"{operation} takes numbers of the equation and Python's; got a {type(part).__name__}")
            takes = operation in ("and", "or", "not") or (operation == "where" and place == 0)
            if takes != (getattr(part, "operation", None) in CONDITIONS or (takes and isinstance(part, bool))):
                hint = "; of a condition where(…, 1.0, 0.0) makes a number" if not takes else ""
                raise TypeError(f"{operation} takes a {'condition' if takes else 'number'} here; got {part!r}{hint}")
        self.operation, self.parts = operation, parts
        self.scalar = all(getattr(part, "scalar", True) for part in parts) if scalar is None else scalar

    def __repr__(self) -> str:
        return str(self.parts[0]) if self.operation == "name" else f"{self.operation}{self.parts}"

    def __add__(self, other: Any) -> "Expression":
        return Expression("add", self, other)

    def __radd__(self, other: Any) -> "Expression":
        return Expression("add", other, self)

    def __sub__(self, other: Any) -> "Expression":
        return Expression("sub", self, other)

    def __rsub__(self, other: Any) -> "Expression":
        return Expression("sub", other, self)

    def __mul__(self, other: Any) -> "Expression":
        return Expression("mul", self, other)

    def __rmul__(self, other: Any) -> "Expression":
        return Expression("mul", other, self)

    def __truediv__(self, other: Any) -> "Expression":
        return Expression("div", self, other)

    def __rtruediv__(self, other: Any) -> "Expression":
        return Expression("div", other, self)

    def __neg__(self) -> "Expression":
        return Expression("neg", self)

    def __pos__(self) -> "Expression":
        return self

    def __lt__(self, other: Any) -> "Expression":
        return Expression("lt", self, other)

    def __le__(self, other: Any) -> "Expression":
        return Expression("le", self, other)

    def __gt__(self, other: Any) -> "Expression":
        return Expression("gt", self, other)

    def __ge__(self, other: Any) -> "Expression":
        return Expression("ge", self, other)

    def __eq__(self, other: object) -> "Expression":  # type: ignore[override]
        return Expression("eq", self, other)

    def __ne__(self, other: object) -> "Expression":  # type: ignore[override]
        return Expression("ne", self, other)

    def __and__(self, other: Any) -> "Expression":
        return Expression("and", self, other)

    def __or__(self, other: Any) -> "Expression":
        return Expression("or", self, other)

    def __invert__(self) -> "Expression":
        if self.scalar:
            raise TypeError("~ is for conditions on elements; of coefficients, write the opposite comparison")
        return Expression("not", self)

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise TypeError("`if`, `and`, `or` and `not` need a flag; of numbers take funcopt.ops.where, &, | and ~")

    def __pow__(self, other: Any) -> NoReturn:
        raise TypeError("there is no ** here; write x * x")

    __rpow__ = __pow__

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a number has no .{name} here; there are arithmetic, comparisons and funcopt.ops")


@dataclass(frozen=True)
class Equation:
    """An update written down.

    `fields` are the names of the coefficients, and `slots` how many slots are in use. In `results`, the new p and the
    new slots, the quantities that are given have the names "p", "g", "s0", "s1", … for the slots and "c0", "c1", … for
    the coefficients.
    """

    fields: tuple[str, ...]
    slots: int
    results: tuple[Any, ...]

    @property
    def read(self) -> list[str]:
        """The tensors that are read, in a table's order."""
        return ["p", "g", *(f"s{k}" for k in range(self.slots))]

    @property
    def written(self) -> list[int]:
        """The places in `read` of those that the results belong to."""
        return [0, *range(2, 2 + self.slots)]


class Shaped(threading.local):
    """What equations are being written for: `matrix` tells whether parameters have two dimensions or more."""

    matrix: bool = True


shaped = Shaped()


@functools.lru_cache(maxsize=1024)
def written(
    update: Callable[..., Any], flags: tuple[Any, ...], present: tuple[bool, ...], fields: Any, matrix: bool = True
) -> Equation:
    """An update equation, written down.

    Args:
        update: a rule's.
        flags: its flags.
        present: of each slot that the rule declares whether it is in use.
        fields: the type of its coefficients.
        matrix: whether it is written for parameters of two dimensions or more.

    Raises:
        TypeError, AttributeError: it uses more than arithmetic, comparisons and `funcopt.ops`.
    """
    p, g, slots, c = _given(present, fields)
    before, shaped.matrix = shaped.matrix, matrix
    try:
        new, used = update(p, g, *slots, c, *flags), sum(present)
    finally:
        shaped.matrix = before
    if not isinstance(new, tuple) or len(new) != 2 or not isinstance(new[1], tuple) or len(new[1]) != used:
        raise TypeError(f"it must return (p, slots), slots a tuple of the {used} in use; it returned {_shape_of(new)}")
    results = (new[0], *new[1])
    if not all(isinstance(value, Expression | float | int) for value in results):
        raise TypeError(f"it must return numbers; it returned {_shape_of(new)}")
    return Equation(fields._fields, used, results)


def operations(value: Any) -> set[str]:
    """The operations that an expression is made of."""
    found: dict[int, Expression] = {}
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, Expression) and id(part) not in found:
            found[id(part)] = part
            left.extend(part.parts)
    return {part.operation for part in found.values()}


@functools.lru_cache(maxsize=1024)
def summed(
    summand: Callable[..., Any], before: Callable[..., Any] | None, present: tuple[bool, ...], fields: Any
) -> tuple[Any, Any]:
    """A measure, written down: what becomes of a gradient "g" first, and what is summed of that, "x"."""
    x = Expression("name", "x", scalar=False)
    p, g, slots, c = _given(present, fields)
    return g if before is None else before(p, g, slots, c), summand(x)


def _given(present: tuple[bool, ...], fields: Any) -> tuple[Any, Any, tuple[Any, ...], Any]:
    """The names of what is given: p, g, the slots, with None for those not in use, and the coefficients."""
    slots = [f"s{k}" for k in range(sum(present))]
    p, g, *rest = (Expression("name", name, scalar=False) for name in ("p", "g", *slots))
    following = iter(rest)
    c = fields(*(Expression("name", f"c{k}", scalar=True) for k in range(len(fields._fields))))
    return p, g, tuple(next(following) if there else None for there in present), c


def _shape_of(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shape_of, value))})"
    return "a number" if isinstance(value, Expression | float | int) else f"a {type(value).__name__}"
