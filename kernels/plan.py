"""A step prepared: what of it is the same at the next step is kept, and looked at before it is used again."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any

import torch
from torch import Tensor

from funcopt import backends
from funcopt.backends import PLAIN, Kernels, Work
from funcopt.declaration import Measure
from funcopt.kernels import table
from funcopt.kernels.host import Counts, Seen

__all__ = ["Plan"]


# From the number of steps before, "step", and the slots that are scalars to the scalars of the equation.
Coefficients = Callable[[Mapping[str, float]], Any]


class Plan:
    """Parameters, slots and counts that are stepped in place, and the tables in which a kernel finds them.

    It serves as long as these are the same tensors in the same places, which `ready` finds out in a fraction of the
    time that a step from scratch takes. Gradients may come, go and move, and every number may change.
    """

    def __init__(
        self,
        work: Work,
        steps: list[Tensor],
        scalars: Mapping[str, list[Tensor]],
        measures: Sequence[Mapping[str, Measure]],
        kernels: Kernels,
    ) -> None:
        """Prepare steps like this one.

        Args:
            work: to be done in place; its gradients and coefficients stand for those of later steps.
            steps: the step counts, 0-d on the CPU and of one dtype; none where no step is the first.
            scalars: the slots that are scalars, as the counts are.
            measures: of the gradients, see `Rule.measures`.
            kernels: what runs them.

        Raises:
            CompilationError: there is none.
        """
        self.steps, self.bound = steps, kernels.bound
        self.work = replace(work, grads=[])  # gradients belong to the step that they are for
        self.columns = [work.params, *work.slots, *scalars.values(), *([steps] if steps else [])]
        self.tensors = [t for column in self.columns for t in column]
        self.tables = table.tables(work)
        self.kernels = {False: [kernels.bound(work, part) for part in self.tables]}  # by whether gradients are zeroed
        self.measures = [[kernels.bound_measure(work, part, level) for part in self.tables] for level in measures]
        self.seen, self.grads = Seen(self.tensors, self.tensors), Seen(work.grads, work.params)
        self.fixed: list[Tensor] = []  # gradients that are looked at less closely: views of a buffer of ours
        self.places = array("q")  # the addresses of the gradients in the tables
        self.active: list[int] | None = None  # the leaves that have a gradient; None for all
        own = set(map(id, self.tensors))
        # Whether the tables have the tensors themselves, and no copies that a kernel can walk.
        self.in_place = all(id(t) in own for part in self.tables for column in part.outputs for t in column)
        for part in self.tables:
            part.inputs.clear()
            part.outputs.clear()
        self.rows = self.alike = [0] * len(work.params)
        self.written = [t for column in self.columns[: 1 + len(work.slots)] for t in column]
        self.counts = Counts(steps) if steps else None
        self.scalars = {name: Counts(column) for name, column in scalars.items()}

    def ready(self, tensors: list[Tensor], grads: list[Tensor | None]) -> bool:
        """Whether the plan serves for these tensors; the tables then have the addresses of the gradients.

        Args:
            tensors: the params, the slots and the counts, as in `self.tensors`.
            grads: None for parameters that are to be left alone; the caller holds on to them until the step is taken.
        """
        return self.seen.same(tensors, self.tensors) and self._take(grads)

    def _take(self, grads: list[Tensor | None]) -> bool:
        kinds = set(map(type, grads))
        active = None
        if type(None) in kinds:
            kinds.remove(type(None))
            active = [i for i, g in enumerate(grads) if g is not None]
            grads = [p if g is None else g for g, p in zip(grads, self.work.params, strict=True)]
        filled: list[Tensor] = grads  # type: ignore[assignment]
        known = len(filled) == len(self.fixed) and all(map(is_, filled, self.fixed))
        if not kinds <= PLAIN or (not known and any(map(Tensor.is_neg, filled))) or not self.grads.take(filled):
            return False
        if self.places != self.grads.addresses:
            self.places = self.grads.addresses
            for part in self.tables:
                part.set(table.GRAD, self.places)
        if active != self.active:
            present = set(range(len(grads)) if active is None else active)
            sizes = [p.numel() if i in present else 0 for i, p in enumerate(self.work.params)]
            for part in self.tables:
                part.set(table.SIZE, sizes)
            self.active = active
        return True

    def sets(self, coefficients: Coefficients) -> list[Any]:
        """The distinct sets of coefficients; the tables then have the row of each leaf."""
        clocks = [[1.0] if self.counts is None else self.counts.read(), *(s.read() for s in self.scalars.values())]
        if any(len(clock) > 1 for clock in clocks):
            clocks = [clock * (len(self.alike) // len(clock)) for clock in clocks]
        past = list(zip(*clocks, strict=True))
        places = {now: place for place, now in enumerate(dict.fromkeys(past))}
        rows = [places[now] for now in past] if len(places) > 1 else self.alike
        if rows is not self.rows:
            for part in self.tables:
                part.set(table.OWN, rows)
            self.rows = rows
        return [coefficients(dict(zip(("step", *self.scalars), now, strict=True))) for now in places]

    def measure(self, level: int, coefficients: Coefficients) -> dict[str, Any]:
        """The measures of a level, of the gradients that `ready` has been asked for."""
        sets, totals = self.sets(coefficients), {}
        for measure in self.measures[level]:
            for name, value in measure(sets).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    @property
    def zeroes(self) -> bool:
        """Whether a step can set the gradients to 0: that takes a kernel of its own."""
        if True not in self.kernels:
            try:
                self.kernels[True] = [self.bound(self.work, part, zero_grad=True) for part in self.tables]
            except backends.CompilationError:
                return False
        return True

    def step(self, sets: list[Any], *, zero_grad: bool = False) -> bool:
        """Take the step that `ready` has been asked for; False where it is to be skipped.

        Args:
            sets: of coefficients, from `self.sets`.
            zero_grad: write zeros to the gradients.
        """
        if backends.skipped(sets):
            return False
        for kernel in self.kernels[zero_grad]:
            kernel(sets)
        if self.counts is not None:
            self.counts.advance(self.active)
        for name, column in self.scalars.items():
            column.write([float(getattr(cs, name)) for cs in sets], self.rows, self.active)
        written = self.written
        if self.active is not None:
            written = [column[i] for column in self.columns[: 1 + len(self.work.slots)] for i in self.active]
        torch.autograd.graph.increment_version(written)
        return True
