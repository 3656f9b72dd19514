"""A rule or a pure optimizer under test."""

import contextlib
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt import hyper
from funcopt.core import PureOptimizer, pure
from funcopt.declaration import Rule
from funcopt.testing import ranges
from funcopt.testing.case import Case, Takes

__all__ = ["PureSubject", "Run", "importing", "refusal"]


@dataclass(frozen=True)
class Run:
    """A trajectory: `params[t]` are the parameters after t steps; `state[t]` is each one's state, from step 1 on.

    `state[0]` is the fresh state of a pure optimizer, and empty for a class.
    """

    params: list[list[Tensor]]
    state: list[list[dict[str, Any]]]


@dataclass(frozen=True, eq=False, repr=False)
class PureSubject:
    """A rule, whose flags are drawn, or a pure optimizer, whose flags are chosen."""

    rule: Rule
    fixed: Mapping[str, Any] | None
    backend: str = "auto"
    takes: Takes = field(default_factory=Takes)
    reference: Any = None
    interface = "pure"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def name(self) -> str:
        chosen = [f"{name}={value!r}" for name, value in (self.fixed or {}).items() if value != self.rule.flags[name]]
        return self.rule.name + (f"({', '.join(chosen)})" if chosen else "")

    @property
    def spec(self) -> hyper.Spec:
        return self.rule.hparams

    @cached_property
    def choices(self) -> Mapping[str, Sequence[Any]]:
        """The flags that are drawn, and from what."""
        return {flag: ranges.choices(self.rule, flag) for flag in self.rule.flags} if self.fixed is None else {}

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """How many dimensions its parameters may have."""
        return tuple(d for d in range(5) if not self.rule.unfit(torch.empty((2,) * d, device="meta")))

    def fitted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with dimensions of one element behind, as many as it takes."""
        dims = next(d for d in self.dims if d >= len(shape))
        return (*shape, *[1] * (dims - len(shape)))

    @property
    def exempt(self) -> Mapping[str, str]:
        return self.rule.exempt

    @cached_property
    def slots(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.rule.slots)

    @property
    def expression(self) -> tuple[str, str]:
        """The import and the expression that give it in a program."""
        line, name = importing(self.rule.update.__module__, self.rule.name, lambda found: found.rule is self.rule)
        if self.fixed is None and self.backend == "auto":
            return line, name
        choices = [f"{flag}={value!r}" for flag, value in (self.fixed or {}).items()]
        choices += [f"backend={self.backend!r}"] if self.backend != "auto" else []
        return line, f"{name}({', '.join(choices)})"

    def has(self, name: str) -> bool:
        """Whether there is a hyperparameter, a flag or a slot of this name."""
        return name in self.spec or name in self.rule.flags or name in self.slots

    def unfit(self, flags: Mapping[str, Any], numbers: Mapping[str, Any]) -> str | None:
        """Why its chosen flags are not those wanted; None where they are."""
        for flag, value in flags.items():
            if self.fixed is not None and self.fixed.get(flag, value) != value:
                return f"{flag} is {self.fixed[flag]!r}"
        return refusal(self, flags, numbers)

    def draw_numbers(
        self, flags: Mapping[str, Any], numbers: Mapping[str, Any], nonzero: Sequence[str] = ()
    ) -> SearchStrategy[dict[str, Any]]:
        """Numbers for a choice of flags: some held at a value, some not 0, where it has them."""
        chosen = self.flags(flags)
        check = self.rule.check
        return ranges.allowed(
            self.spec,
            lambda values: check is None or check(values, chosen) is None,
            fixed=ranges.held(self.spec, numbers),
            nonzero=[name for name in nonzero if name in self.spec],
        )

    def some_numbers(self) -> dict[str, Any]:
        """Numbers that it takes with its flags as they are."""
        check, chosen = self.rule.check, self.flags({})
        return ranges.some_allowed(self.spec, lambda values: check is None or check(values, chosen) is None)

    def flags(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """All flags of a case."""
        return {**self.rule.flags, **(self.fixed or {}), **drawn}

    def gradient(self, g: Tensor) -> Tensor:
        return g

    def optimizer(self, case: Case, backend: str | None = None) -> PureOptimizer:
        """The pure optimizer of a case."""
        return pure(self.rule, backend=backend or self.backend, **self.flags(case.flags))

    def run(self, case: Case, backend: str | None = None) -> Run:
        """Run it on a case; numbers that change by step are lists under `more["by_step"]`."""
        opt = self.optimizer(case, backend)
        hparams, by_step = opt.hparams(**case.numbers), case.more.get("by_step", {})
        numbers = [hparams | {name: values[t] for name, values in by_step.items()} for t in range(len(case.grads))]
        params, state = list(case.params), opt.init(list(case.params), numbers[0] if numbers else hparams)
        out = Run([params], [_by_leaf(state)])
        for grads, now in zip(case.grads, numbers, strict=True):
            params, state = opt(params, list(grads), state, now)
            out.params.append(params)
            out.state.append(_by_leaf(state))
        return out

    def final(self, params: Any, grads: Any, numbers: Mapping[str, Any], flags: Mapping[str, Any]) -> list[Tensor]:
        """The parameters after steps through which derivatives go."""
        opt = pure(self.rule, backend=self.backend, **self.flags(flags))
        hparams = {**hyper.validate(self.rule.name, self.spec, {}), **numbers}
        state = opt.init(params, hparams)
        for step in grads:
            params, state = opt(params, step, state, hparams)
        return cast("list[Tensor]", params)


def _by_leaf(state: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    names = list(state)
    return [dict(zip(names, values, strict=True)) for values in zip(*state.values(), strict=True)]


def refusal(subject: Any, flags: Mapping[str, Any], numbers: Mapping[str, Any]) -> str | None:
    """Why a subject takes no numbers with some of these held; None where it does."""
    try:
        subject.draw_numbers({name: v for name, v in flags.items() if name in subject.choices}, numbers)
    except ValueError as error:
        return str(error)
    return None


def importing(module: str, name: str, is_it: Callable[[Any], bool]) -> tuple[str, str]:
    """The import line and the name that give an object in a program."""
    found: Any = sys.modules.get(module)
    if found is not None and module != "__main__":
        with contextlib.suppress(AttributeError):
            if is_it(operator.attrgetter(name)(found)):
                return f"from {module} import {name.partition('.')[0]}", name
        for other, value in vars(found).items():  # it goes by another name there
            with contextlib.suppress(Exception):
                if is_it(value):
                    return f"from {module} import {other}", other
    short = name.rpartition(".")[-1]
    short = short if short.isidentifier() else "opt"
    return f"{short} = ...  # the optimizer under test, from {module}", short
