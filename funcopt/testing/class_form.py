"""A class with torch.optim's interface under test."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt import hyper
from funcopt.declaration import Rule
from funcopt.hyper import Number, fraction, nonnegative
from funcopt.testing import ranges
from funcopt.testing.case import Case, Takes
from funcopt.testing.pure_form import Run, importing, refusal

__all__ = ["ClassSubject", "copied"]

# The ranges of numbers that go by these names in torch.optim and around it.
RANGES: Mapping[str, Number] = {
    name: number
    for names, number in [
        (("lr",), nonnegative(1e-3, "learning rate")),
        (("eps",), nonnegative(1e-8, "epsilon value")),
        (("weight_decay", "lr_decay", "lambd"), nonnegative(0.0, "decay")),
        (("momentum", "dampening", "alpha", "rho", "beta", "betas"), fraction(0.9, "fraction")),
    ]
    for name in names
}
DECAY = ("coupled_weight_decay", "decoupled_weight_decay")
FLAGS = ("amsgrad", "nesterov", "maximize", "centered", "decoupled_weight_decay")


@dataclass(frozen=True, eq=False, repr=False)
class ClassSubject:
    """A class with torch.optim's interface: made of parameters, with `step()`; other parts are used where they are."""

    cls: type
    fixed: Mapping[str, Any]
    ranges: Mapping[str, Any]
    sparse: bool = False
    takes: Takes = field(default_factory=Takes)
    reference: Any = None
    interface = "class"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def name(self) -> str:
        return f"{self.cls.__module__}.{self.cls.__qualname__}"

    @cached_property
    def exempt(self) -> Mapping[str, str]:
        """The laws that the rule of one of funcopt's classes need not keep, but for decay that is a flag's."""
        rule = getattr(self.cls, "_rule", None)
        reasons = rule.exempt if isinstance(rule, Rule) else {}
        decay = DECAY if "decoupled_weight_decay" in self.choices else ()
        return {law: reason for law, reason in reasons.items() if law not in decay}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The constructor's arguments but the first, with their defaults."""
        signature = inspect.signature(self.cls)
        _, *rest = signature.parameters.values()
        named = {p.name: p.default for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if any(p.kind == p.VAR_KEYWORD for p in rest):
            named = {**getattr(self.cls([torch.zeros(1).requires_grad_()], **self.fixed), "defaults", {}), **named}
        return named

    @cached_property
    def spec(self) -> hyper.Spec:
        out: dict[str, Any] = {}
        for name, default in self.defaults.items():
            if name in self.fixed:
                continue
            if name in self.ranges:
                out[name] = self.ranges[name]
            elif name in RANGES and _is_number(default):
                out[name] = Number(float(default), RANGES[name].name, 0.0, RANGES[name].high, RANGES[name].below_high)
            elif name in RANGES and isinstance(default, tuple) and all(map(_is_number, default)):
                out[name] = tuple(Number(float(d), name, 0.0, 1.0, below_high=True) for d in default)
            elif name == "lr" and not isinstance(default, bool):
                out[name] = RANGES["lr"]
        return out

    @cached_property
    def choices(self) -> Mapping[str, Sequence[Any]]:
        """The flags that are drawn, and from what."""
        names = (n for n in FLAGS if isinstance(self.defaults.get(n), bool) and n not in self.fixed)
        return dict.fromkeys(names, (False, True))

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """How many dimensions its parameters may have, as far as its constructor says."""
        return tuple(d for d in range(5) if self.accepts({}, {}, shape=(1,) * d)) or tuple(range(5))

    @cached_property
    def kept(self) -> dict[str, Any]:
        """What is in the state of a parameter after two steps; each flag is tried."""
        found: dict[str, Any] = {}
        for flags in ({}, *({flag: True} for flag in self.choices)):
            if self.accepts(self.usual, flags):
                p = self.takes.usual()
                p = torch.linspace(1, 2, p.numel(), dtype=p.dtype).view(p.shape)
                found |= self.run(Case([p], [[self.gradient(p)]] * 2, self.usual, flags)).state[-1][0]
        return found

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The tensors of a parameter's shape that are in its state."""
        shape = self.takes.usual().shape
        return tuple(name for name, t in self.kept.items() if isinstance(t, Tensor) and t.shape == shape)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of torch.optim's interface that it has, as laws name them."""
        opt = self.make([torch.nn.Parameter(self.takes.usual())], Case([], [], self.some_numbers()))
        closure = inspect.signature(self.cls.step).parameters.get("closure")  # type: ignore[attr-defined]
        optional = closure is not None and closure.default is not closure.empty
        there = {"a closure that step may go without": optional, "step in its state": "step" in self.kept}
        there |= {
            name: hasattr(opt, name) for name in ("param_groups", "add_param_group", "state_dict", "load_state_dict")
        }
        return tuple(name for name, has in there.items() if has)

    @property
    def usual(self) -> dict[str, Any]:
        """Numbers with which nothing is switched off, for a look at it."""
        return {
            name: number.default or 0.5 if isinstance(number, Number) else tuple(n.default or 0.5 for n in number)
            for name, number in self.spec.items()
            if name not in ("dampening", "weight_decay", "lr_decay")
        }

    @property
    def expression(self) -> tuple[str, str]:
        """The import and the expression that give it in a program."""
        return importing(self.cls.__module__, self.cls.__qualname__, lambda found: found is self.cls)

    def has(self, name: str) -> bool:
        """Whether there is a hyperparameter, a flag or a slot of this name."""
        return name in self.spec or name in self.choices or name in self.fixed or name in self.slots

    def unfit(self, flags: Mapping[str, Any], numbers: Mapping[str, Any]) -> str | None:
        """Why what it is held at is not what is wanted; None where it is."""
        for name, value in {**flags, **numbers}.items():
            held = self.fixed.get(name, self.defaults.get(name, value) if name not in self.spec else value)
            if name not in self.choices and held != value and _is_number(held):
                return f"{name} is held at {held}"
        return refusal(self, flags, numbers)

    def draw_numbers(
        self, flags: Mapping[str, Any], numbers: Mapping[str, Any], nonzero: Sequence[str] = ()
    ) -> SearchStrategy[dict[str, Any]]:
        """Numbers for a choice of flags: some held at a value, some not 0, where it has them."""
        return ranges.allowed(
            self.spec,
            lambda values: self.accepts(values, flags),
            fixed=ranges.held(self.spec, numbers),
            nonzero=[name for name in nonzero if name in self.spec],
        )

    def accepts(self, numbers: Mapping[str, Any], flags: Mapping[str, Any], *, shape: tuple[int, ...] = (1, 1)) -> bool:
        """Whether the constructor takes these, and a parameter of a shape."""
        try:
            self.cls([torch.zeros(shape).requires_grad_()], **{**self.fixed, **numbers, **flags})
        except Exception:  # a third party's, which may be any
            return False
        return True

    def some_numbers(self) -> dict[str, Any]:
        """Numbers that it takes with its flags as they are."""
        return ranges.some_allowed(self.spec, lambda values: self.accepts(values, {}))

    def flags(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """All flags of a case."""
        known = {n: v for n, v in {**self.defaults, **self.fixed}.items() if isinstance(v, bool)}
        return {**known, **drawn}

    def gradient(self, g: Tensor) -> Tensor:
        """A gradient as the class takes it."""
        return g.to_sparse() if self.sparse else g

    def make(self, params: Any, case: Case, **more: Any) -> Any:
        """An instance over parameters, or groups of them, with a case's numbers and flags."""
        opt = self.cls(params, **{**self.fixed, **case.numbers, **case.flags, **more})
        if callable(getattr(opt, "train", None)):
            opt.train()  # schedule-free methods keep their averages apart in training
        return opt

    def step(self, opt: Any, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """One step on these gradients, which the parameters then hold."""

        def closure() -> Tensor:
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            return torch.zeros(())

        closure()
        opt.step(closure) if self._wants_closure else opt.step()

    @cached_property
    def _wants_closure(self) -> bool:
        given = inspect.signature(self.cls.step).parameters.get("closure")  # type: ignore[attr-defined]
        return given is not None and given.default is given.empty

    def run(self, case: Case, groups: Sequence[Mapping[str, Any]] | None = None) -> Run:
        """Run it on a case; with `groups` each parameter is a group of its own with these numbers."""
        params = [torch.nn.Parameter(copied(p)) for p in case.params]
        opt = self.make([{"params": [p], **g} for p, g in zip(params, groups, strict=True)] if groups else params, case)
        out = Run([snapshot(params)], [[{} for _ in params]])
        for t, grads in enumerate(case.grads):
            for name, values in case.more.get("by_step", {}).items():
                for group in opt.param_groups:
                    group[name] = values[t]
            self.step(opt, params, [None if g is None else copied(g) for g in grads])
            out.params.append(snapshot(params))
            out.state.append([state_of(opt, p) for p in params])
        return out

    def final(self, params: Any, grads: Any, numbers: Mapping[str, Any], flags: Mapping[str, Any]) -> list[Tensor]:
        """The parameters after steps through which derivatives go."""
        own = [p.clone().requires_grad_() if not p.requires_grad else p.clone() for p in params]
        opt = self.make(own, Case([], [], numbers, flags), differentiable=True)
        for step in grads:
            self.step(opt, own, step)
        return own


def copied(t: Tensor) -> Tensor:
    """A copy with the same strides."""
    if t.is_sparse:
        return t.detach().clone()
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t.detach())


def snapshot(params: Sequence[Tensor]) -> list[Tensor]:
    """What tensors are now."""
    return [p.detach().clone() for p in params]


def state_of(opt: Any, p: Tensor) -> dict[str, Any]:
    """A copy of what an optimizer keeps of a parameter; empty where it does not show it as torch.optim does."""
    state = getattr(opt, "state", None)
    own = state[p] if isinstance(state, Mapping) and p in state else {}
    return {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in own.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
