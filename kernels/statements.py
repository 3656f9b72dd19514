"""Equations as statements of a language: what the writers of C++ and of Triton's Python share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from funcopt.expression import CONDITIONS, Expression

__all__ = ["ARITHMETIC", "Language", "Statements"]

# What C++ and Python say alike.
ARITHMETIC = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
}


@dataclass(frozen=True)
class Language:
    """How a language says things.

    Args:
        operations: for each operation a template of its operands, where they are numbers of the elements' arithmetic.
        scalar_operations: the same, where they are scalars.
        statement: a template of kind, name and value.
        kinds: what a condition, a scalar and a number of the elements' arithmetic are called.
        literal: a template that makes a scalar of a Python number as Python prints it.
        literals: whole texts for numbers that have none of this form: nan, inf, -inf.
        scalar: a template that makes a scalar of a condition.
        number: a template that makes a number of the elements' arithmetic of a scalar or a condition.
    """

    operations: Mapping[str, str]
    scalar_operations: Mapping[str, str]
    statement: str
    kinds: tuple[str, str, str]
    literal: str
    literals: Mapping[str, str]
    scalar: str
    number: str


class Statements:
    """Writes expressions down as statements, each once: those of scalars, in float64, and those of the elements."""

    def __init__(self, language: Language, prefix: str = "") -> None:
        self.language, self.prefix = language, prefix  # of the names that are given
        self.given: set[str] = set()  # the names of the elements' that are used
        self.scalars: list[str] = []
        self.elements: list[str] = []
        self._written: dict[int, str] = {}
        self._kept: list[Expression] = []  # so that no id is given twice

    def number(self, value: Any) -> str:
        """The name, or the text, of the value as a number of the elements' arithmetic."""
        text = self._value(value)
        return self.language.number.format(text) if getattr(value, "scalar", True) or _condition(value) else text

    def _value(self, value: Any) -> str:
        if not isinstance(value, Expression):
            text = repr(float(value))
            return self.language.literals.get(text) or self.language.literal.format(text)
        if value.operation == "name":
            return self.name(value)
        if id(value) not in self._written:
            self._written[id(value)] = self._stated(value)
            self._kept.append(value)
        return self._written[id(value)]

    def name(self, value: Expression) -> str:
        """What a quantity that is given is called."""
        if not value.scalar:
            self.given.add(value.parts[0])
        return str(value.parts[0])

    def _stated(self, value: Expression) -> str:
        """Add the statement that works the value out; return the name it is given."""
        language, operation, parts = self.language, value.operation, list(value.parts)
        if operation == "div" and not value.scalar and getattr(parts[0], "scalar", True):
            # As torch has it: a number over a tensor is the number times the reciprocal.
            reciprocal = Expression("div", 1.0, parts[1])
            if isinstance(parts[0], Expression) or parts[0] != 1:
                operation, parts = "mul", [reciprocal, parts[0]]
        templates = language.scalar_operations if value.scalar else language.operations
        texts = [self._operand(value, k, part) for k, part in enumerate(parts)]
        kind = language.kinds[0 if _condition(value) else 1 if value.scalar else 2]
        letter, into = self.place(value)
        name = f"{self.prefix}{letter}{len(into)}"
        into.append(language.statement.format(kind=kind, name=name, value=templates[operation].format(*texts)))
        return name

    def place(self, value: Expression) -> tuple[str, list[str]]:
        """Where the statement that works a value out belongs, and a letter for names there."""
        return ("k", self.scalars) if value.scalar else ("t", self.elements)

    def _operand(self, of: Expression, place: int, part: Any) -> str:
        if of.operation in ("and", "or", "not") or (of.operation == "where" and place == 0):
            return self._value(part)
        if not of.scalar:
            return self.number(part)
        return self.language.scalar.format(self._value(part)) if _condition(part) else self._value(part)


def _condition(value: Any) -> bool:
    return isinstance(value, Expression) and value.operation in CONDITIONS
