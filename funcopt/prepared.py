"""A group's steps, prepared: parameters, states and counts that are where they were cost no step from scratch."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from funcopt import backends, memory
from funcopt.backends import Work
from funcopt.core import PureOptimizer
from funcopt.flat import Flat
from funcopt.step import coefficients

__all__ = ["Prepared", "let_go", "work_in_place"]

States = Mapping[Tensor, Mapping[str, Any]]
Grads = list[Tensor | None]


class Prepared:
    """The in-place steps of those parameters of a group that have their state.

    `serves` tells whether it may take the step that is due; where it may not, a new one may. It holds on to the tensors
    that it knows, and to no number.
    """

    def __init__(
        self,
        opt: PureOptimizer,
        names: Sequence[str],
        params: Sequence[Tensor],
        states: States,
        *,
        counted: bool,
        tables: dict[Hashable, Any],
        flats: Sequence[Flat] = (),
    ) -> None:
        """Prepare the steps of a group.

        Args:
            opt: the pure optimizer.
            names: the slots in use.
            params: the group's parameters.
            states: what is kept of each.
            counted: whether a step count is; if not, every step with all slots there is one after the first.
            tables: where a launch keeps what it may use again.
            flats: the flat storages that the parameters are in.
        """
        self.opt, self.names, self.params = opt, list(names), list(params)
        scalars = {slot.name for slot in opt.rule.scalars}
        self._scalars = [name for name in names if name in scalars]
        names = [name for name in names if name not in scalars]
        self._keys = [*names, *self._scalars, "step"] if counted else [*names, *self._scalars]
        there = [all(key in states.get(p, ()) for key in self._keys) for p in params]
        self._members = [p for p, complete in zip(params, there, strict=True) if complete]
        self._states = [states[p] for p in self._members] if self._keys else []
        self._others = [p for p, complete in zip(params, there, strict=True) if not complete]
        self._plan = self._planned(names, self._columns(), tables)
        views = {id(p): grad for flat in flats for p, grad in zip(flat.params, flat.grads, strict=True)}
        if self._plan is not None and all(id(p) in views for p in self._members):
            self._plan.fixed = [views[id(p)] for p in self._members]

    def _columns(self) -> list[list[Tensor]]:
        return [list(map(itemgetter(key), self._states)) for key in self._keys]

    def _planned(self, names: Sequence[str], columns: list[list[Tensor]], tables: dict[Hashable, Any]) -> Any:
        """The plan; None where there is no one kernel that takes all of these tensors as they lie."""
        params, rule = self._members, self.opt.rule
        slots, clocks = columns[: len(names)], columns[len(names) :]
        scalars, steps = clocks[: len(self._scalars)], clocks[-1] if len(clocks) > len(self._scalars) else []
        # A count on the CPU would have to wait for what a device finds.
        waits = "skip" in rule.Coefficients._fields and any(p.device.type != "cpu" for p in params)
        read = all(
            all(map(_countable, clock)) and len({c.dtype for c in clock}) == 1 for clock in (*scalars, steps) if clock
        )
        if not params or waits or not read:
            return None
        work = work_in_place(self.opt, names, params, slots)
        twice = len({id(p) for p in params}) < len(self.params) - len(self._others)
        alike = all(
            isinstance(t, Tensor) and t.layout == torch.strided and t.shape == p.shape and t.device == p.device
            for column in (work.grads, *slots)
            for t, p in zip(column, params, strict=True)
        )
        kernels = None if twice or not alike else backends.kernels(work, self.opt.backend, tables)
        if kernels is None or not memory.apart([*params, *(t for column in slots for t in column)]):
            return None
        from funcopt.kernels.plan import Plan

        try:
            plan = Plan(work, steps, dict(zip(self._scalars, scalars, strict=True)), rule.measures, kernels)
        except backends.CompilationError:
            return None
        return plan if plan.in_place else None

    def serves(self, opt: PureOptimizer, names: Sequence[str], params: Sequence[Tensor]) -> Grads | None:
        """The gradients, if it may take the step of this group as it is now: its flags, its slots, its tensors.

        The states must be the dicts that they were. The kernel has the gradients' addresses, and nothing holds on to
        them but the list.
        """
        if (
            self._plan is None
            or (opt is not self.opt and opt != self.opt)
            or names != self.names
            or len(params) != len(self.params)
        ):
            return None
        if not all(map(is_, params, self.params)) or any(p.grad is not None for p in self._others):
            return None
        try:
            columns = self._columns()
        except KeyError:
            return None
        grads = [p.grad for p in self._members]
        return grads if self._plan.ready([*self._members, *itertools.chain.from_iterable(columns)], grads) else None

    def measure(self, level: int, hparams: Mapping[str, Any], sums: Mapping[str, Any]) -> dict[str, Any]:
        """What the rule measures of the gradients at a level, after those before."""
        measured: dict[str, Any] = self._plan.measure(level, self._coefficients(hparams, sums))
        return measured

    def _coefficients(self, hparams: Mapping[str, Any], sums: Mapping[str, Any]) -> Any:
        return lambda clocks: coefficients(self.opt.rule, hparams, clocks, sums)

    @property
    def zeroes(self) -> bool:
        """Whether a step can set the gradients to 0."""
        return bool(self._plan.zeroes)

    def sets(self, hparams: Mapping[str, Any], sums: Mapping[str, Any]) -> list[Any]:
        """The sets of coefficients of the step that it serves for.

        Args:
            hparams: all of them floats.
            sums: what the rule measures of all gradients.
        """
        sets: list[Any] = self._plan.sets(self._coefficients(hparams, sums))
        return sets

    def step(self, sets: list[Any], *, zero_grad: bool) -> bool:
        """Take the step that it serves for; False where it is to be skipped.

        Args:
            sets: of coefficients.
            zero_grad: set the gradients to 0, but where the step is skipped.
        """
        return bool(self._plan.step(sets, zero_grad=zero_grad))


def work_in_place(opt: PureOptimizer, names: Sequence[str], params: list[Tensor], slots: list[list[Tensor]]) -> Work:
    """The work of a step in place, but for its numbers; a gradient that is not there yet is as its parameter."""
    fields = opt.rule.Coefficients
    return Work(
        update=opt.rule.equation,
        flags=tuple(opt.flags.values()),
        params=params,
        grads=[p if p.grad is None else p.grad for p in params],
        slots=slots,
        present=tuple(slot.name in names for slot in opt.rule.tensors),
        coefficients=[fields(*[0.0] * len(fields._fields))],
        rows=[0] * len(params),
        donate=True,
        elementwise=opt.rule.elementwise,
    )


def let_go(grads: list[Tensor]) -> None:
    """Cut gradients off the graph that made them, as `Optimizer.zero_grad` does."""
    for g in grads:
        if g.grad_fn is not None:
            g.detach_()
        elif g.requires_grad:
            g.requires_grad_(False)


def _countable(step: Tensor) -> bool:
    """Whether a step count can be read, and advanced, where it is."""
    return (
        type(step) is Tensor
        and step.device.type == "cpu"
        and step.dim() == 0
        and step.dtype in (torch.float32, torch.float64)
    )
