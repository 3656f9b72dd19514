"""One step over leaves: the scalars of the equation, the backend that runs it, and the step counts."""

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from funcopt import backends, hyper, observed
from funcopt.declaration import Rule
from funcopt.leaves import Leaves, plain
from funcopt.ops import where

__all__ = ["coefficients", "measured", "measured_together", "step"]


def step(
    rule: Rule,
    flags: tuple[Any, ...],
    leaves: Leaves,
    *,
    backend: str,
    donate: bool,
    advance: bool = True,
    tables: dict[Hashable, Any] | None = None,
    sums: Mapping[str, Any] | None = None,
) -> Leaves:
    """The leaves after one step; they have been checked.

    With `donate` the results overwrite params and slots, unless a derivative is wanted or a transform is at work.
    Without `advance` the counts stay as they are, for a caller that keeps its own. `sums` are what the rule measures,
    for a caller who has more leaves than these.
    """
    active = [i for i, g in enumerate(leaves.grads) if g is not None]
    if not active:
        return leaves
    leaves = _numbers(leaves)
    tracing = torch.compiler.is_compiling()
    differentiated = not tracing and observed.differentiated(_tensors(leaves))
    recorded = differentiated or (
        tracing and torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(leaves))
    )
    donate = donate and not recorded and not observed.transformed()
    with contextlib.nullcontext() if differentiated or tracing else torch.no_grad():
        given, restored = plain(rule, leaves)
        new = _step(
            rule,
            flags,
            given,
            active,
            backend=backend,
            donate=donate,
            advance=advance,
            tables=tables,
            sums=sums,
            differentiated=differentiated,
        )
        return leaves if new is given else restored(new, donate)


def _step(
    rule: Rule,
    flags: tuple[Any, ...],
    leaves: Leaves,
    active: list[int],
    *,
    backend: str,
    donate: bool,
    advance: bool,
    tables: dict[Hashable, Any] | None,
    sums: Mapping[str, Any] | None,
    differentiated: bool,
) -> Leaves:
    """The same of leaves that are dense and real, with numbers that are no schedules; these where it is skipped."""
    tracing = torch.compiler.is_compiling()
    if sums is None:
        sums = {}
        for level in range(len(rule.measures)):
            sums |= _measured(rule, flags, leaves, level, sums, backend=backend)
    sets, rows = _coefficients(rule, leaves, active, tracing, sums)
    if backends.skipped(sets):
        return leaves
    work = _work(rule, flags, leaves, active, sets, rows, donate)
    params, slots = backends.run(work, backend, traced=observed.traced(), differentiated=differentiated, tables=tables)
    return replace(
        leaves,
        params=_put(leaves.params, active, params),
        slots={name: _put(old, active, new) for (name, old), new in zip(leaves.slots.items(), slots, strict=True)},
        steps=_advance(leaves.steps, active, sets, rows, tracing) if advance else leaves.steps,
        scalars={name: _renewed(name, column, active, sets, rows, tracing) for name, column in leaves.scalars.items()},
    )


def measured(
    rule: Rule, flags: tuple[Any, ...], leaves: Leaves, level: int, sums: Mapping[str, Any], *, backend: str
) -> dict[str, Any]:
    """What the rule measures of the gradients of these leaves: floats, or 0-d float64 tensors where one has to wait.

    Args:
        rule: the rule; the leaves have been checked.
        flags: its flags.
        leaves: those whose gradients are measured.
        level: the place in `rule.measures`.
        sums: what has been measured at the levels before.
        backend: as for a step.
    """
    return _measured(rule, flags, plain(rule, _numbers(leaves))[0], level, sums, backend=backend)


def measured_together(
    rules: Sequence[Rule], labels: Sequence[Any], measure: Callable[[int, int, Mapping[str, Any]], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What each of several rules measures, of its own gradients and of those that it measures together with others.

    Args:
        rules: of parts of the parameters.
        labels: of the parts: those of one label measure together, and all do where a measure is shared.
        measure: of the position of a part, a level, and what was measured at the levels before for this part, what it
            measures of its own gradients.
    """
    sums: list[dict[str, Any]] = [{} for _ in rules]
    for level in range(max([0, *(len(rule.measures) for rule in rules)])):
        found: dict[Any, Any] = {}
        for i, rule in enumerate(rules):
            for name, value in measure(i, level, sums[i]).items() if level < len(rule.measures) else ():
                key = None if name.startswith("shared") else labels[i], name
                found[key] = backends.added(found.get(key, 0.0), value)
        for (label, name), value in found.items():
            for i, rule in enumerate(rules):
                if label in (None, labels[i]) and level < len(rule.measures) and name in rule.measures[level]:
                    sums[i][name] = value
    return sums


def _measured(
    rule: Rule, flags: tuple[Any, ...], leaves: Leaves, level: int, sums: Mapping[str, Any], *, backend: str
) -> dict[str, Any]:
    active = [i for i, g in enumerate(leaves.grads) if g is not None]
    tracing = torch.compiler.is_compiling()
    differentiated = not tracing and observed.differentiated(_tensors(leaves))
    with contextlib.nullcontext() if differentiated or tracing else torch.no_grad():
        sets, rows = _coefficients(rule, leaves, active, tracing, sums)
        work = _work(rule, flags, leaves, active, sets, rows, donate=False)
        return backends.measure(
            work, rule.measures[level], backend, traced=observed.traced(), differentiated=differentiated
        )


def _work(
    rule: Rule,
    flags: tuple[Any, ...],
    leaves: Leaves,
    active: list[int],
    sets: list[tuple[Any, ...]],
    rows: list[int],
    donate: bool,
) -> backends.Work:
    """What a backend is to do with the active leaves."""
    return backends.Work(
        update=rule.equation,
        flags=flags,
        params=[leaves.params[i] for i in active],
        grads=[leaves.grads[i] for i in active],  # type: ignore[misc]
        slots=[[values[i] for i in active] for values in leaves.slots.values()],
        present=tuple(slot.name in leaves.slots for slot in rule.tensors),
        coefficients=sets,
        rows=rows,
        donate=donate,
        elementwise=rule.elementwise,
    )


def _numbers(leaves: Leaves) -> Leaves:
    """The leaves with numbers in the place of schedules, those of the steps they have taken."""

    def now(value: Any, leaf: int) -> Any:
        if not callable(value):
            return value
        count = leaves.steps[leaf]
        return value(int(count) if observed.readable(count) and not observed.traced() else _float64(count))

    if not any(any(map(callable, c)) if isinstance(c, hyper.PerLeaf) else callable(c) for c in leaves.columns):
        return leaves
    columns = []
    for column in leaves.columns:
        if isinstance(column, hyper.PerLeaf):
            if any(map(callable, column)):
                column = hyper.PerLeaf([now(value, leaf) for leaf, value in enumerate(column)])
        elif callable(column):
            same = _same(leaves.steps, torch.compiler.is_compiling())
            values = {first: now(column, first) for first in dict.fromkeys(same)}
            column = values[0] if len(values) == 1 else hyper.PerLeaf([values[first] for first in same])
        columns.append(column)
    return replace(leaves, columns=columns)


def _put(old: list[Tensor], active: list[int], new: list[Tensor]) -> list[Tensor]:
    if len(active) == len(old):
        return new
    out = list(old)
    for i, value in zip(active, new, strict=True):
        out[i] = value
    return out


def _advance(
    steps: list[Tensor], active: list[int], sets: list[tuple[Any, ...]], rows: list[int], tracing: bool
) -> list[Tensor]:
    """The counts after the step; leaves that shared a count share the next one. No count is ever written to."""
    new: dict[tuple[int, int], Tensor] = {}
    same = _same([steps[i] for i in active], tracing)
    skips = [getattr(cs, "skip", None) for cs in sets]
    keys = [(first, 0 if skips[row] is None else row) for first, row in zip(same, rows, strict=True)]
    for i, key, row in zip(active, keys, rows, strict=True):
        if key not in new:
            skip = skips[row]
            new[key] = steps[i] + ((1 - skip).to(steps[i]) if isinstance(skip, Tensor) else 1 - (skip or 0))
    return _put(steps, active, [new[key] for key in keys])


def _renewed(
    name: str, old: list[Tensor], active: list[int], sets: list[tuple[Any, ...]], rows: list[int], tracing: bool
) -> list[Tensor]:
    """The new values of a slot that is a scalar; leaves that shared one, and their coefficients, share the next."""
    new: dict[tuple[int, int], Tensor] = {}
    keys = list(zip(_same([old[i] for i in active], tracing), rows, strict=True))
    for i, key in zip(active, keys, strict=True):
        if key not in new:
            found = sets[key[1]]
            value = where(getattr(found, "skip", 0.0) != 0, old[i], getattr(found, name))
            new[key] = value.to(old[i]) if isinstance(value, Tensor) else torch.full_like(old[i], value)
    return _put(old, active, [new[key] for key in keys])


def _same(values: list[Any], tracing: bool) -> list[int]:
    """For each of some objects the position of one, the same object, that stands before it, or its own.

    A tracer would make `id` a condition of its graph, and can compare only neighbours in linear time.
    """
    if tracing:
        out: list[int] = []
        for i, value in enumerate(values):
            out.append(out[-1] if i > 0 and value is values[i - 1] else i)
        return out
    first: dict[int, int] = {}
    return [first.setdefault(id(value), i) for i, value in enumerate(values)]


# ---- scalars --------------------------------------------------------------------------------------------------------


def _coefficients(
    rule: Rule, leaves: Leaves, active: list[int], tracing: bool, sums: Mapping[str, Any]
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The distinct sets of coefficients, and the one for each active leaf.

    They are worked out in float64: from Python floats where every number can be read without waiting, else as tensors,
    differentiable. Leaves with the same step number and the same hparams share a set.
    """
    clocks = {"step": leaves.steps, **leaves.scalars}  # what changes by itself from step to step
    clocks = {name: [column[i] for i in active] for name, column in clocks.items()}
    columns: list[Any] = [
        hyper.PerLeaf([column[i] for i in active]) if isinstance(column, hyper.PerLeaf) else _scalar(column, tracing)
        for column in leaves.columns
    ]
    if tracing and (floats := [k for k, column in enumerate(leaves.columns) if isinstance(column, float | int)]):
        # Of a number that no equation uses (Rprop's lr) a tracer makes a constant after all: together, all are used.
        for k, value in zip(floats, torch.stack([columns[k] for k in floats]).unbind(), strict=True):
            columns[k] = value
    now: dict[str, list[Any]] = {}  # a number where it can be read, else a tensor
    keys: list[list[Any]] = []
    for name, clock in clocks.items():
        same = _same(clock, tracing)
        read = {
            k: clock[k].item() if not tracing and observed.readable(clock[k]) else _float64(clock[k]) for k in set(same)
        }
        now[name] = [read[k] for k in same]
        keys.append([(k,) if isinstance(read[k], Tensor) else read[k] for k in same])
    keys += [_same(column, tracing) for column in columns if isinstance(column, hyper.PerLeaf)]
    first: dict[tuple[Any, ...], int] = {}  # the first leaf with a set, by what makes it differ
    places: dict[tuple[Any, ...], int] = {}
    rows = []
    for leaf, key in enumerate(zip(*keys, strict=True)):
        if key not in first:
            first[key], places[key] = leaf, len(places)
        rows.append(places[key])

    def numbers(leaf: int) -> dict[str, Any]:
        own = [_scalar(c[leaf], tracing) if isinstance(c, hyper.PerLeaf) else c for c in columns]
        return hyper.nest(rule.hparams, own)

    times = [{name: clock[leaf] for name, clock in now.items()} for leaf in first.values()]
    if len(times) > 1 and len(keys) == len(clocks) and _stackable([t for own in times for t in own.values()]):
        together = {name: torch.stack([own[name] for own in times]) for name in clocks}
        return backends.Sets(coefficients(rule, numbers(0), together, sums), len(times)), rows
    sets = [coefficients(rule, numbers(leaf), own, sums) for leaf, own in zip(first.values(), times, strict=True)]
    for slot in rule.scalars:
        for found in sets:
            slot.check_scalar(getattr(found, slot.name))
    return sets, rows


def _stackable(values: list[Any]) -> bool:
    """Whether these are scalars that cannot be read, in one place: what is made of them is then made of all at once."""
    return all(isinstance(v, Tensor) and v.dim() == 0 for v in values) and len({v.device for v in values}) == 1


def coefficients(
    rule: Rule, hparams: Mapping[str, Any], clocks: Mapping[str, Any], sums: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The coefficients of a step; what has not been measured yet counts as 0.

    Args:
        rule: the rule.
        hparams: its numbers.
        clocks: "step", the number of steps before this one, and the slots that are scalars.
        sums: what has been measured.
    """
    numbers = {**hparams, **clocks}
    t = numbers.pop("step") + 1
    measured = {name: sums.get(name, 0.0) for level in rule.measures for name in level}
    found = rule.coefficients(t, **numbers, **measured)
    if isinstance(skip := found.get("skip"), Tensor):
        # Nobody will see the other coefficients of a step that is skipped, but their derivatives must be finite.
        safe = {name: where(skip != 0, 0.0, value) for name, value in measured.items()}
        found = {**rule.coefficients(t, **numbers, **safe), "skip": skip}
    return rule.Coefficients(**found)  # type: ignore[no-any-return]


def _scalar(value: Any, tracing: bool) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.item() if not tracing and value.dim() == 0 and observed.readable(value) else _float64(value)
    # A tracer makes a constant of a float, and a new graph for the next one; of a product with a tensor it does not.
    return torch.ones((), dtype=torch.float64) * value if tracing else float(value)


def _float64(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _tensors(leaves: Leaves) -> list[Tensor]:
    numbers = [v for c in leaves.columns for v in (c if isinstance(c, hyper.PerLeaf) else [c]) if isinstance(v, Tensor)]
    grads = [g for g in leaves.grads if g is not None]
    slots = [s for slot in leaves.slots.values() for s in slot if s is not None]
    scalars = [s for column in leaves.scalars.values() for s in column]
    return [*leaves.params, *grads, *slots, *leaves.steps, *scalars, *numbers]
