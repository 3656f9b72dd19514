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
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from funcopt import hyper, tree

__all__ = ["Rule", "Slot"]


@dataclass(frozen=True)
class Slot:
    """A state tensor of each parameter's shape: its torch.optim name, and the flag or hyperparameter it depends on.

    With `when` the slot exists only where that flag is set, or where that number is not the Python number 0.
    """

    name: str
    when: str | None = None


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


def _found(module: str, name: str) -> Rule:
    return getattr(importlib.import_module(module), name).rule  # type: ignore[no-any-return]
