"""A rule: one algorithm as data, written once: its numbers, its state, and two functions.

- `coefficients(t, **hparams)` works out, once a step and in float64, the scalars that the equation needs from the step
  number t = 1, 2, … and the hyperparameters (bias corrections, lr·weight_decay), as a dict.
- `update(p, g, *slots, c, *flags)` is the equation for one element: it returns the new p, and a tuple of the new slots.
  `c` has the coefficients as attributes. A slot that is not in use is None, and left out of what is returned. The text
  may use arithmetic, comparisons, `if` on flags and on `slot is None`, other such functions, and `funcopt.ops`.
"""

import importlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.ops import where

__all__ = ["Measure", "Rule", "Slot"]


@dataclass(frozen=True)
class Slot:
    """A state tensor of each parameter's shape: its torch.optim name, and the flag or hyperparameter it depends on.

    With `when` the slot exists only where that flag is set, or where that number is not the Python number 0. It begins
    with zeros, or, with `init="params"`, with a copy of the parameter.
    """

    name: str
    when: str | None = None
    init: str = "zeros"

    def first(self, p: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The slot of a parameter before its first step."""
        if self.init == "params":
            return p.detach().to(dtype or p.dtype, copy=True)
        return torch.zeros_like(p, dtype=dtype).detach()


@dataclass(frozen=True)
class Measure:
    """A sum over all elements of all gradients, in float64, which `coefficients` takes as it takes a number.

    `summand` is x ↦ what is summed, and `before` `(g, c) -> x`, what becomes of a gradient first; c are the
    coefficients, of which those are known that no later measure goes into.
    """

    summand: Callable[[Any], Any]
    before: Callable[[Any, Any], Any] | None = None

    def after(self, first: Callable[[Any, Any], Any]) -> "Measure":
        """The same of gradients that come through another function first."""
        then = self.before
        return replace(self, before=first if then is None else lambda g, c: then(first(g, c), c))


@dataclass(frozen=True, eq=False)
class Rule:
    """One algorithm as data. `funcopt.rule` makes one and wraps it in the factory that users call."""

    name: str
    hparams: hyper.Spec
    slots: tuple[Slot, ...]
    coefficients: Callable[..., dict[str, Any]]
    update: Callable[..., Any]
    flags: Mapping[str, bool]
    check: Callable[[Mapping[str, Any], Mapping[str, bool]], str | None] | None
    Coefficients: Any  # the NamedTuple in which `update` sees what `coefficients` returns
    doc: str | None
    exempt: Mapping[str, str]  # the laws of funcopt.testing that it need not keep, each with the reason
    measures: tuple[Mapping[str, Measure], ...] = ()  # by name; those of a later mapping may need those before
    layers: int = 0  # how many transforms are around it
    made: tuple[Callable[..., "Rule"], tuple[Any, ...]] | None = None  # what makes it again, where no name does
    equation: Callable[..., Any] = field(init=False)  # `update`, but for steps that are to be skipped

    def __post_init__(self) -> None:
        if "skip" in getattr(self.Coefficients, "_fields", ()):
            object.__setattr__(self, "equation", _skipping(self.update, len(self.slots)))
        else:
            object.__setattr__(self, "equation", self.update)

    def choose(self, choices: Mapping[str, bool]) -> dict[str, bool]:
        """All flags, the defaults for those not given; raises TypeError for an unknown one, or one that is no bool."""
        for flag, value in choices.items():
            if flag not in self.flags:
                hint = f"; {flag} is a number: pass it to opt.hparams({flag}=…)" if flag in self.hparams else ""
                known = [*self.flags, "backend"]
                raise TypeError(f"{self.name} has no flag {flag!r}; {hyper.suggest(flag, known)}{hint}")
            if not isinstance(value, bool):
                raise TypeError(f"{self.name}: {flag} takes True or False; got {value!r}")
        return {flag: choices.get(flag, default) for flag, default in self.flags.items()}

    def validate(self, given: Mapping[str, Any], flags: Mapping[str, bool]) -> dict[str, Any]:
        """A full set of hparams from some, each in its range and fit for the others; raises TypeError or ValueError."""
        complete = hyper.validate(self.name, self.hparams, given)
        if self.check is not None and (problem := self.check(complete, flags)):
            raise ValueError(problem)
        return complete

    def slots_for(self, numbers: Mapping[str, Any], flags: Mapping[str, bool]) -> list[str]:
        """The names of the slots that these numbers and flags need, in the order of declaration."""
        return [slot.name for slot in self.slots if self.needs(slot, numbers, flags)]

    def needs(self, slot: Slot, numbers: Mapping[str, Any], flags: Mapping[str, bool]) -> bool:
        """Whether these numbers and flags need a slot."""
        if slot.when is None or slot.when in flags:
            return slot.when is None or flags[slot.when]
        return any(isinstance(leaf, Tensor) or leaf != 0 for leaf in tree.flatten(numbers.get(slot.when, 0))[0])

    def __reduce__(self) -> Any:
        """Pickled as the name of its factory, which must be found in the module that defines `update`."""
        if self.made is not None:
            return self.made
        module = self.update.__module__
        try:
            found = _found(module, self.name)
        except (AttributeError, ImportError):
            found = None
        if found is not self:
            raise pickle.PicklingError(
                f"the rule {self.name!r} is pickled by name: keep what funcopt.rule gives as {module}.{self.name}"
            )
        return _found, (module, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rule":
        return self  # nothing of it changes


def _skipping(update: Callable[..., Any], slots: int) -> Callable[..., Any]:
    """The update that gives back what it is given where the coefficient `skip` is not 0."""

    def equation(p: Any, g: Any, *rest: Any) -> Any:
        skip = rest[slots].skip != 0
        old = [slot for slot in rest[:slots] if slot is not None]
        new_p, new = update(p, where(skip, 0.0, g), *rest)  # a derivative must be finite on the side not taken
        return where(skip, p, new_p), tuple(where(skip, o, n) for o, n in zip(old, new, strict=True))

    return equation


def _found(module: str, name: str) -> Rule:
    return getattr(importlib.import_module(module), name).rule  # type: ignore[no-any-return]
