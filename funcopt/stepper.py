"""How an adapter takes a step: what is prepared is used again, the rest is done from scratch.

What can be known to fail fails before anything is changed: tensors that do not fit, kernels that cannot be made,
numbers that are none.
"""

import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from funcopt import backends, hyper, memory, observed
from funcopt.core import PureOptimizer
from funcopt.flat import Flat, check, flats
from funcopt.leaves import Leaves
from funcopt.prepared import Prepared, let_go, work_in_place
from funcopt.step import measured, measured_together, step
from funcopt.transforms.partition import stays

__all__ = ["Stepper"]

# Where torch.optim has fused kernels.
FUSED = ("cpu", "cuda", "hpu", "mps", "mtia", "xpu")


@dataclass(frozen=True)
class Turn:
    """A group's step, prepared: its numbers, and the gradients, which must live until it is taken."""

    kept: Prepared
    hparams: dict[str, Any]
    grads: list[Tensor | None]


class Stepper:
    """What an adapter does at a step, and what it keeps from one to the next: nothing that is saved or copied."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = weakref.ref(optimizer)  # which has this, and goes when nobody else has it
        self.tables: dict[int, dict[Hashable, Any]] = {}  # by group, what a launch uses again
        self._kept: dict[int, Prepared] = {}
        self._known: list[Any] = []  # the states that these know
        self._places: list[int] = []  # the addresses of gradients, of the sizes that these know, that lie apart
        self.flat: dict[int, list[Flat]] | None = None

    @property
    def optimizer(self) -> Any:
        """Whose steps these are."""
        return self._optimizer()

    def forget(self) -> None:
        """Prepare everything anew."""
        self.tables, self._kept, self._known, self._places = {}, {}, [], []

    def step(self, *, zero_grad: bool) -> None:
        """See `Adapter.step`."""
        known = [*self.optimizer.state, *self.optimizer.state.values()]
        if len(known) != len(self._known) or not all(map(is_, known, self._known)):
            self._kept.clear()
            self._known = known
        groups = self.optimizer.param_groups
        self._let_go_of_groups(len(groups))
        turns = [self._turn(index, group) for index, group in enumerate(groups)]
        for group, turn in zip(groups, turns, strict=True):
            if turn is None:
                self._places = []
                self._check(group)
        sums = self._measured(turns)
        grads = [[p.grad for p in group["params"] if p.grad is not None] for group in groups] if zero_grad else []
        in_pass = zero_grad and self._apart([g for column in grads for g in column])
        sets = [[] if turn is None else turn.kept.sets(turn.hparams, sums[i]) for i, turn in enumerate(turns)]
        for index, (group, turn) in enumerate(zip(groups, turns, strict=True)):
            if turn is not None:
                fused = in_pass and turn.kept.zeroes
                if turn.kept.step(sets[index], zero_grad=fused) and fused:
                    torch.autograd.graph.increment_version(grads[index])
                    let_go(grads[index])
                    grads[index] = []
                continue
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                for params in _rounds(self._updated(group)):
                    self._step_group(group, params, self.tables.setdefault(index, {}), sums[index])
        if zero_grad:
            with torch.no_grad():
                for g in (g for column in grads for g in column):
                    let_go([g])
                    g.zero_()
        elif getattr(self.optimizer, "grad_scale", None) is not None:
            self._unscale()

    @torch.no_grad()
    def _unscale(self) -> None:
        """Leave gradients as GradScaler would leave them to a step that knows nothing of scales."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for g in (p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None):
            by_device.setdefault(g.device, []).append(g._values() if _sparse(g) else g)
        for device, grads in by_device.items():
            torch._foreach_mul_(grads, self.optimizer.grad_scale.to(device).reshape(()).double().reciprocal().float())

    def _apart(self, grads: list[Tensor]) -> bool:
        """Whether no gradient is in part another's too, which is still to be read."""
        dense = [g for g in grads if type(g) in backends.PLAIN and g.layout == torch.strided]
        places = list(map(Tensor.data_ptr, dense))
        if places != self._places:
            self._places = places if memory.apart(dense) else []
        return places == self._places

    def _let_go_of_groups(self, count: int) -> None:
        """Forget what belongs to groups that are there no more."""
        for kept in (self._kept, self.tables, self.flat or {}):
            for index in [index for index in kept if index >= count]:
                del kept[index]

    def _turn(self, index: int, group: Mapping[str, Any]) -> Turn | None:
        """A group's step, where one is prepared, and its numbers; None where it is taken from scratch."""
        if group.get("differentiable") or observed.traced() or observed.transformed() or not self._updates(group):
            return None
        opt = self.optimizer._pure(group)
        if not opt.rule.elementwise:
            return None
        hparams = self.optimizer._numbers(opt.rule, group)
        floats = {name: _as_float(name, value) for name, value in hparams.items()}
        if None in floats.values():
            return None
        names = opt.rule.slots_for(hparams, opt.flags)
        kept = self._kept.get(index)
        grads = None if kept is None else kept.serves(opt, names, group["params"])
        if grads is None and any(map(_unusual, group["params"])):
            return None
        if kept is None or grads is None:
            self._places = []
            tables, storages = self.tables.setdefault(index, {}), self._storages(index, group)
            for storage in storages:
                storage.gather(self.optimizer.state)
            kept = Prepared(
                opt,
                names,
                group["params"],
                self.optimizer.state,
                counted=self.optimizer._counts,
                tables=tables,
                flats=storages,
            )
            self._kept[index] = kept
            grads = kept.serves(opt, names, group["params"])
        return None if grads is None else Turn(kept, floats, grads)

    def _updates(self, group: Mapping[str, Any]) -> bool:
        return self.optimizer._rule_of(group) is not stays.rule

    def _updated(self, group: Mapping[str, Any]) -> list[Tensor]:
        """The parameters of a group that a step updates."""
        return [p for p in group["params"] if p.grad is not None] if self._updates(group) else []

    def _measured(self, turns: list[Turn | None]) -> list[dict[str, Any]]:
        """What each group's rule measures, of all gradients together, or of those of its label."""
        groups = self.optimizer.param_groups
        rules = [
            turn.kept.opt.rule if turn else self.optimizer._pure(g).rule for g, turn in zip(groups, turns, strict=True)
        ]
        labels = [self.optimizer._label(group) for group in groups]
        return measured_together(
            rules, labels, lambda i, level, sums: self._measured_of(groups[i], turns[i], level, sums)
        )

    def _measured_of(
        self, group: Mapping[str, Any], turn: Turn | None, level: int, sums: Mapping[str, Any]
    ) -> dict[str, Any]:
        if turn is not None:
            return turn.kept.measure(level, turn.hparams, sums)
        opt = self.optimizer._pure(group)
        leaves = self._leaves(opt, group, self._updated(group))
        with torch.set_grad_enabled(bool(group.get("differentiable"))):
            return measured(opt.rule, tuple(opt.flags.values()), leaves, level, sums, backend=self.optimizer._backend)

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], tables: dict[Hashable, Any], sums: dict[str, Any]
    ) -> None:
        pure = self.optimizer._pure(group)
        in_place = not group.get("differentiable")
        leaves = self._leaves(pure, group, params)
        if not in_place:
            leaves = replace(leaves, params=[p.clone() for p in params])  # autograd keeps what the step reads
        counts, skips = leaves.steps, "skip" in pure.rule.Coefficients._fields
        new = step(
            pure.rule,
            tuple(pure.flags.values()),
            leaves,
            backend=self.optimizer._backend,
            donate=in_place,
            advance=skips,
            tables=tables,
            sums=sums,
        )
        if new is leaves and not self.optimizer._counts:
            return  # a step that is skipped, and where nothing is counted, it was no first one
        if skips:
            for count, advanced in zip(counts, new.steps, strict=True):
                count.copy_(advanced)
        else:
            torch._foreach_add_(counts, 1)
        for i, p in enumerate(params):
            if new.params[i] is not p:  # differentiable, or somebody is looking on
                p.copy_(new.params[i])
            kept = {"step": self.optimizer._counted(counts[i])} if self.optimizer._counts else {}
            kept |= {name: values[i] for name, values in new.slots.items() if values[i] is not None}
            kept |= {name: leaves.scalars[name][i].copy_(values[i]) for name, values in new.scalars.items()}
            if kept:
                self.optimizer.state[p].update(kept)

    def _leaves(self, opt: PureOptimizer, group: Mapping[str, Any], params: list[Tensor]) -> Leaves:
        """Some parameters of a group as they are before the step, and their states, made where there are none yet."""
        numbers = self.optimizer._numbers(opt.rule, group)
        slots = opt.rule.slots_for(numbers, opt.flags)
        scalars = [slot.name for slot in opt.rule.scalars if slot.name in slots]
        states = [self.optimizer._state_of(p, group, slots) for p in params]
        return Leaves(
            params=params,
            grads=[p.grad for p in params],
            slots={name: [state[name] for state in states] for name in slots if name not in scalars},
            steps=[state["step"] for state in states],
            columns=hyper.columns(opt.rule.hparams, numbers),
            scalars={name: [state[name] for state in states] for name in scalars},
        )

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise RuntimeError where a gradient or a state is not as its parameter is, or no kernel can be made for them;
        KeyError where a state is there in part.

        Nothing is changed by then.
        """
        rule, slots = self.optimizer._rule_of(group), self.optimizer._slots(group)
        params = self._updated(group)
        shaped = {slot.name: slot for slot in rule.tensors if slot.name in slots}
        for p in params:
            self._check_kind(group, p)
            if memory.folded(p):
                raise RuntimeError(
                    f"parameter {self.name(group, p)} cannot be updated: elements of it share memory, as those of "
                    "a tensor that was expanded do; make it contiguous"
                )
            assert p.grad is not None
            if not _fits(p.grad, p, tuple(p.shape)) and not (_sparse(p.grad) and p.grad.shape == p.shape):
                raise RuntimeError(self._misfit(group, p, "grad", p.grad))
            own = self.optimizer.state.get(p, {})
            self.optimizer._check_whole(group, p)
            for name, slot in shaped.items():
                if own.get(name) is not None and not _fits(own[name], p, slot.shape_for(p)):
                    raise RuntimeError(self._misfit(group, p, name, own[name]))
        if self.optimizer._backend == "compile" and not group.get("differentiable") and not observed.traced():
            params = [p for p in params if not _unusual(p)]
            states = [self.optimizer._state_of(p, group, slots) for p in params]
            there = [[state[name] for state in states] for name in shaped]
            backends.ready(work_in_place(self.optimizer._pure(group), list(shaped), params, there))

    def _check_kind(self, group: Mapping[str, Any], p: Tensor) -> None:
        """Raise RuntimeError where the rule does not take such a parameter, or such a gradient."""
        rule, name = self.optimizer._rule_of(group), type(self.optimizer).__name__
        if group.get("fused") and not (p.is_floating_point() and p.device.type in FUSED):
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                f"{', '.join(FUSED)}; parameter {self.name(group, p)} is {p.dtype} on {p.device}"
            )
        if p.is_complex() and not rule.complex:
            raise RuntimeError(f"{name} does not support complex parameters; parameter {self.name(group, p)} is one")
        if not _sparse(p.grad):
            if not self.optimizer._dense:
                raise RuntimeError(
                    f"{name} does not support dense gradients, please consider Adam instead; parameter "
                    f"{self.name(group, p)} has one"
                )
            return
        if rule.rows is None:
            raise RuntimeError(
                f"{name} does not support sparse gradients; parameter {self.name(group, p)} has one: consider "
                "SparseAdam, SGD or Adagrad, without transforms that need all elements, or make it dense"
            )
        if _as_float("weight_decay", self.optimizer._numbers(rule, group).get("weight_decay", 0.0)) != 0:
            raise RuntimeError(
                "weight_decay option is not compatible with sparse gradients; parameter "
                f"{self.name(group, p)} has one: put it in a group with weight_decay=0"
            )

    def _misfit(self, group: Mapping[str, Any], p: Tensor, name: str, t: Tensor) -> str:
        return (
            f"parameter {self.name(group, p)} cannot be updated: its {name} is {t.dtype} of shape {tuple(t.shape)} on "
            f"{t.device}, and the parameter {p.dtype} of shape {tuple(p.shape)} on {p.device}; all must be "
            "floating-point or all complex, of one shape, and in one place"
        )

    def name(self, group: Mapping[str, Any], p: Tensor) -> str:
        """What errors call a parameter."""
        return _names(group)[next(i for i, own in enumerate(group["params"]) if own is p)]

    # ---- flat storage -----------------------------------------------------------------------------------------------

    def flatten(self) -> None:
        """See `Adapter.flatten`."""
        groups = self.optimizer.param_groups
        check([p for g in groups for p in g["params"]], [name for g in groups for name in _names(g)])
        if self.flat is None:
            self.flat = {}
        self._kept.clear()
        for index, group in enumerate(groups):
            for storage in self._storages(index, group):
                storage.gather(self.optimizer.state)

    def check_new(self, given: Any) -> None:
        """Raise TypeError or ValueError where flat storage cannot take the parameters of a new group."""
        if self.flat is None:
            return
        given = [given] if isinstance(given, Tensor) else given
        named = [p if isinstance(p, tuple) else (f"{i} of the new group", p) for i, p in enumerate(given)]
        named = [(name, p) for name, p in named if isinstance(p, Tensor)]
        for group in self.optimizer.param_groups:
            named += zip(_names(group), group["params"], strict=True)
        check([p for _, p in named], [name for name, _ in named])

    def zero_grad(self) -> None:
        """Set the gradients in flat storage to 0; those of parameters that require none, to None."""
        groups = self.optimizer.param_groups
        self._let_go_of_groups(len(groups))
        storages = [storage for storages in (self.flat or {}).values() for storage in storages]
        for storage in storages:
            storage.zero_grad()
        flat = {id(p) for storage in storages for p in storage.params}
        for p in (p for group in groups for p in group["params"] if id(p) not in flat):
            p.grad = None

    def _storages(self, index: int, group: Mapping[str, Any]) -> list[Flat]:
        """The flat storages of a group, made anew where its parameters are not what they were."""
        if self.flat is None:
            return []
        storages = self.flat.get(index, [])
        wanted = {id(p) for p in group["params"] if p.requires_grad}
        if wanted != {id(p) for storage in storages for p in storage.params} or not all(s.holds for s in storages):
            check(group["params"], _names(group))
            storages = self.flat[index] = flats(group["params"])
        return storages


def _as_float(name: str, number: Any) -> Any:
    """A number, or a tuple of numbers, as floats; None where one cannot be read now."""
    if type(number) is float:
        return number
    if isinstance(number, tuple):
        parts = tuple([_as_float(name, part) for part in number])
        return None if None in parts else parts
    if isinstance(number, Tensor):
        return float(number) if observed.readable(number) else None
    if not isinstance(number, SupportsFloat):
        raise TypeError(f"{name} in the param_groups must be a number; got {number!r}")
    return float(number)


def _names(group: Mapping[str, Any]) -> list[str]:
    """What errors call a group's parameters."""
    return group.get("param_names") or [f"{index} of its group" for index in range(len(group["params"]))]


def _fits(t: Any, p: Tensor, shape: tuple[int, ...] | None) -> bool:
    """Whether a gradient or a slot is such as the step of a parameter takes: it looks no further."""
    numbers = all(dtype.is_floating_point or dtype.is_complex for dtype in (t.dtype, p.dtype))
    alike = t.shape == shape and t.dtype.is_complex == p.dtype.is_complex
    return bool(numbers and alike and t.device == p.device and t.layout == torch.strided)


def _sparse(g: Any) -> bool:
    return bool(g.layout == torch.sparse_coo)


def _unusual(p: Tensor) -> bool:
    """Whether a parameter is complex, or has a sparse gradient: no kernel steps it as it is."""
    return p.is_complex() or (p.grad is not None and p.grad.layout != torch.strided)


def _rounds(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The params once each; those that a group has again, in a next round: torch.optim steps them again.

    One at a time where some share memory, for a kernel would step them at once.
    """
    plain = [p for p in dict.fromkeys(params) if type(p) in backends.PLAIN and p.layout == torch.strided]
    if not observed.traced() and not observed.transformed() and not memory.apart(plain):
        yield from ([p] for p in params)
        return
    while params:
        seen: set[int] = set()
        once: list[Tensor] = []
        again: list[Tensor] = []
        for p in params:
            (again if id(p) in seen else once).append(p)
            seen.add(id(p))
        yield once
        params = again
