"""A rule: one algorithm as data, written once: its numbers, its state, and two functions.

- `coefficients(t, **hparams, **scalars)` works out, once a step and in float64, the scalars that the equation needs
  from the step number t = 1, 2, … and the hyperparameters (bias corrections, lr·weight_decay), as a dict. A slot that
  is a scalar comes in by its name, and goes out by its name with its new value.
- `update(p, g, *slots, c, *flags)` is the equation for one element: it returns the new p, and a tuple of the new slots.
  `c` has the coefficients as attributes. A slot that is not in use is None, and left out of what is returned. The text
  may use arithmetic, comparisons, `if` on flags and on `slot is None`, other such functions, and `funcopt.ops`.
- Where the rule is not elementwise, `update` is a function of a parameter's whole tensors, and may use all of torch.
"""

import importlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.ops import where

__all__ = ["Choice", "Measure", "Rule", "Slot", "scalar_dtype"]


def scalar_dtype() -> torch.dtype:
    """The dtype of step counts and of slots that are scalars, as torch.optim has it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


@dataclass(frozen=True)
class Slot:
    """A state tensor of each parameter: its torch.optim name, and the flag or hyperparameter it depends on.

    Args:
        name: its key in the state.
        when: a flag or a number; the slot exists only where that flag is set, or that number is not Python's 0.
        init: what it begins with: a number, the name of a hyperparameter, or "params", for a copy of the parameter.
        scalar: it is one number, 0-d, which `coefficients` takes and gives anew; float64, and `scalar_dtype()` in a
            class, as torch.optim has it.
        shape: "like" the parameter; or, for rules that are not elementwise, of parameters of two dimensions and more
            one number for each of the "rows", with 1 for the last dimension, or of the "columns", with 1 for the last
            but one; or "vectors": like the parameter, for parameters of fewer dimensions alone.
    """

    name: str
    when: str | None = None
    init: float | str = 0.0
    scalar: bool = False
    shape: str = "like"

    def shape_for(self, p: Tensor) -> tuple[int, ...] | None:
        """Its shape for a parameter; None where that has no such slot."""
        if self.scalar:
            return ()
        if self.shape == "like":
            return tuple(p.shape)
        if (self.shape == "vectors") == (p.dim() > 1):
            return None
        *outer, rows, columns = (1, 1, *p.shape)[-max(2, p.dim()) :]
        return {"vectors": tuple(p.shape), "rows": (*outer, rows, 1), "columns": (*outer, 1, columns)}[self.shape]

    def check_scalar(self, value: Any) -> None:
        """Raise ValueError where a value is none that a scalar may have."""
        if isinstance(value, Tensor) and value.dim() > 0:
            raise ValueError(
                f"the slot {self.name!r} is one number for each parameter, but depends on hparams that differ from "
                f"element to element, in shape {tuple(value.shape)}; give those as one number for each parameter"
            )

    def first(
        self,
        p: Tensor,
        numbers: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor | None:
        """The slot of a parameter before its first step; None where that has no such slot.

        Args:
            p: the parameter; a copy of it, as anything that is made of it, is differentiable in it.
            numbers: its hyperparameters.
            dtype: of the slot; the parameter's if left out, that of a scalar `scalar_dtype()`.
            device: of a scalar; the CPU if left out.

        Raises:
            ValueError: it is a scalar, and begins with a number that differs from element to element.
        """
        if self.init == "params":
            return p.to(dtype or p.dtype, copy=True)
        value = numbers[self.init] if isinstance(self.init, str) else self.init
        if self.scalar:
            self.check_scalar(value)
            zero = torch.zeros((), dtype=dtype or scalar_dtype(), device=device or torch.device("cpu"))
        elif (shape := self.shape_for(p)) is None:
            return None
        else:
            zero = torch.zeros_like(p, dtype=dtype).detach() if shape == p.shape else p.new_zeros(shape, dtype=dtype)
        if not isinstance(value, Tensor):
            return zero.fill_(complex(value, value) if zero.is_complex() else value) if value != 0 else zero
        value = value.to(device=zero.device)
        return (zero + (torch.complex(value, value) if zero.is_complex() else value)).to(zero.dtype)


@dataclass(frozen=True)
class Choice:
    """A structural choice that is not between True and False: its default, and what it may be.

    `complaint` is what an error says, with {} for what was given. `tried` are those of the values that
    `funcopt.testing` draws; all if left out.
    """

    default: Any
    values: Sequence[Any]
    complaint: str
    tried: Sequence[Any] | None = None

    def check(self, value: Any) -> Any:
        """The value, if it may be that; else ValueError."""
        if not any(value is allowed or (type(value) is type(allowed) and value == allowed) for allowed in self.values):
            known = ", ".join(map(repr, self.values)) if len(self.values) < 8 else repr(self.values)
            raise ValueError(f"{self.complaint.format(value)} (allowed: {known})")
        return value


@dataclass(frozen=True)
class Measure:
    """A sum over all elements of all gradients, in float64, which `coefficients` takes as it takes a number.

    All gradients are those of the optimizer, or of its part of a `funcopt.partition`; of all parts where the measure's
    name begins with "shared". `summand` is x ↦ what is summed, and `before` `(p, g, slots, c) -> x`, what becomes of a
    gradient first; c are the coefficients, of which those are known that no later measure goes into.
    """

    summand: Callable[[Any], Any]
    before: Callable[[Any, Any, tuple[Any, ...], Any], Any] | None = None

    def after(self, first: Callable[[Any, Any, tuple[Any, ...], Any], tuple[Any, Any]]) -> "Measure":
        """The same of parameters and gradients that come through `first` first: `(p, g, slots, c) -> (p, g)`."""
        then = self.before
        if then is None:
            return replace(self, before=lambda p, g, slots, c: first(p, g, slots, c)[1])
        return replace(self, before=lambda p, g, slots, c: then(*first(p, g, slots, c), slots, c))


@dataclass(frozen=True, eq=False)
class Rule:
    """One algorithm as data. `funcopt.rule` makes one and wraps it in the factory that users call."""

    name: str
    hparams: hyper.Spec
    slots: tuple[Slot, ...]
    coefficients: Callable[..., dict[str, Any]]
    update: Callable[..., Any]
    flags: Mapping[str, Any]  # the structural choices, each with its default
    check: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] | None
    Coefficients: Any  # the NamedTuple in which `update` sees what `coefficients` returns
    doc: str | None
    exempt: Mapping[str, str]  # the laws of funcopt.testing that it need not keep, each with the reason
    choices: Mapping[str, Choice] = field(default_factory=dict)  # of the flags those that are no bools
    elementwise: bool = (
        True  # whether `update` is of one element: sums over tensors are compiled for the CPU, all else is run by torch
    )
    complex: bool = True  # whether it takes complex parameters, as pairs of reals
    check_param: Callable[[Tensor], str | None] | None = None  # what is wrong with a parameter, if anything is
    # Whether, with these numbers, what has no gradient stays as it is, so that of a sparse gradient the rows are all
    # there is to do; None where sparse gradients are refused.
    rows: Callable[[Mapping[str, Any]], bool] | None = None
    lazy: bool = False  # whether what has no gradient stays where a gradient of 0 would change it
    measures: tuple[Mapping[str, Measure], ...] = ()  # by name; those of a later mapping may need those before
    layers: int = 0  # how many transforms are around it
    made: tuple[Callable[..., "Rule"], tuple[Any, ...]] | None = None  # what makes it again, where no name does
    # An optimizer that goes uphill to where the gradient is to be taken, and what precedes the names of its numbers.
    ascent: tuple[Any, str] | None = None
    equation: Callable[..., Any] = field(init=False)  # `update`, but for steps that are to be skipped

    tensors: tuple[Slot, ...] = field(init=False)  # the slots that `update` takes
    scalars: tuple[Slot, ...] = field(init=False)  # those that `coefficients` takes

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(slot for slot in self.slots if not slot.scalar))
        object.__setattr__(self, "scalars", tuple(slot for slot in self.slots if slot.scalar))
        if "skip" in getattr(self.Coefficients, "_fields", ()):
            object.__setattr__(self, "equation", _skipping(self.update, len(self.tensors)))
        else:
            object.__setattr__(self, "equation", self.update)

    def choose(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """All flags, the defaults for those not given; raises TypeError or ValueError for one that cannot be."""
        for flag, value in choices.items():
            if flag not in self.flags:
                hint = f"; {flag} is a number: pass it to opt.hparams({flag}=…)" if flag in self.hparams else ""
                known = [*self.flags, "backend"]
                raise TypeError(f"{self.name} has no flag {flag!r}; {hyper.suggest(flag, known)}{hint}")
            if flag in self.choices:
                self.choices[flag].check(value)
            elif not isinstance(value, bool):
                raise TypeError(f"{self.name}: {flag} takes True or False; got {value!r}")
        return {flag: choices.get(flag, default) for flag, default in self.flags.items()}

    def values(self, flag: str) -> Sequence[Any]:
        """What a flag may be."""
        return self.choices[flag].values if flag in self.choices else (False, True)

    def validate(self, given: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
        """A full set of hparams from some, each in its range and fit for the others; raises TypeError or ValueError."""
        complete = hyper.validate(self.name, self.hparams, given)
        if self.check is not None and (problem := self.check(complete, flags)):
            raise ValueError(problem)
        return complete

    def unfit(self, p: Tensor) -> str | None:
        """What is wrong with a parameter, if anything is."""
        if p.is_complex() and not self.complex:
            return f"{self.name} does not support complex parameters"
        return None if self.check_param is None else self.check_param(p)

    def slots_for(self, numbers: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
        """The names of the slots that these numbers and flags need, in the order of declaration."""
        return [slot.name for slot in self.slots if self.needs(slot, numbers, flags)]

    def needs(self, slot: Slot, numbers: Mapping[str, Any], flags: Mapping[str, Any]) -> bool:
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
