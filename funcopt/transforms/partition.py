"""Optimizers for parts of the parameters: `partition`, `masked`, `freeze`; and the groups that all write by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import PureOptimizer, State, Tree, distinct
from funcopt.factory import rule
from funcopt.leaves import Leaves
from funcopt.step import measured, step

__all__ = ["Partition", "freeze", "masked", "no_decay", "partition", "stays"]


# The optimizer of what stays as it is.
stays = rule("stays", hparams={}, coefficients=lambda t: {}, update=lambda p, g, c: (p, ()))


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """Pure optimizers, each for the parameters of its label; used as a `PureOptimizer`, by `hparams`, `init` and calls.

    A number is called by its label and name, `muon_lr`, unless there is but one optimizer, or all share the number. The
    state has each slot once, a tree like params with None for parameters whose optimizer has no such slot.
    """

    parts: Mapping[str, PureOptimizer | None]
    labels: Any
    shared: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"funcopt.partition({dict(self.parts)!r}, {self.labels!r})"

    @property
    def active(self) -> dict[str, PureOptimizer]:
        """The labels whose parameters are updated."""
        return {label: opt for label, opt in self.parts.items() if opt is not None}

    def called(self, label: str, name: str) -> str:
        """What a number of a part is called."""
        return name if name in self.shared or len(self.active) == 1 else f"{label}_{name}"

    def around(self, transform: Callable[[PureOptimizer], PureOptimizer], shared: Sequence[str]) -> "Partition":
        """The partition of optimizers with a transform around each, whose numbers they share."""
        parts = {label: None if opt is None else transform(opt) for label, opt in self.parts.items()}
        return replace(self, parts=parts, shared=(*self.shared, *shared))

    def hparams(self, **numbers: Any) -> dict[str, Any]:
        """The hyperparameters as a plain dict: those given, by label and name, and the defaults for the rest."""
        known = {self.called(label, name): None for label, opt in self.active.items() for name in opt.rule.hparams}
        for name in numbers:
            if name not in known:
                raise TypeError(f"the partition has no hyperparameter {name!r}; {hyper.suggest(name, known)}")
        out: dict[str, Any] = {}
        for label, opt in self.active.items():
            names = {name: self.called(label, name) for name in opt.rule.hparams}
            own = opt.hparams(**{name: numbers[given] for name, given in names.items() if given in numbers})
            out |= {names[name]: value for name, value in own.items()}
        return out

    def init(
        self,
        params: Tree,
        hparams: Mapping[str, Any] | None = None,
        *,
        slot_dtype: torch.dtype | None = None,
        capturable: bool = False,
    ) -> State:
        """The state before the first step, see `PureOptimizer.init`."""
        leaves, spec = tree.flatten(params)
        numbers = self.hparams() if hparams is None else hparams
        state: dict[str, list[Any]] = {"step": [None] * len(leaves)}
        for label, members in self.members(params).items():
            opt = self.parts[label]
            if opt is not None:
                part = _only(leaves, members, spec)
                own = opt.init(part, self._numbers(label, opt, numbers), slot_dtype=slot_dtype, capturable=capturable)
                for name, value in own.items():
                    column = state.setdefault(name, [None] * len(leaves))
                    for i, leaf in zip(members, tree.flatten(value)[0], strict=True):
                        column[i] = leaf
        return {name: tree.unflatten(column, spec) for name, column in state.items()}

    def __call__(
        self, params: Tree, grads: Tree, state: State, hparams: Mapping[str, Any], *, donate: bool = False
    ) -> tuple[Tree, State]:
        """One step, see `PureOptimizer.__call__`: what is measured is measured of all parts together."""
        leaves, spec = tree.flatten(params)
        flat = {name: tree.flatten_like(t, params, spec, f"state[{name!r}]") for name, t in state.items()}
        gs = tree.flatten_like(grads, params, spec, "grads")
        work: list[tuple[PureOptimizer, list[int], Leaves]] = []
        for label, members in self.members(params).items():
            opt = self.parts[label]
            if opt is not None and members:
                numbers = self._numbers(label, opt, hparams)
                needed = ["step", *opt.rule.slots_for(numbers, opt.flags)]
                given = [n for n, column in flat.items() if n in needed or any(column[i] is not None for i in members)]
                own = {name: _only(flat[name], members, spec) for name in given}
                parts = (_only(leaves, members, spec), _only(gs, members, spec), own, numbers)
                work.append((opt, members, opt.leaves(*parts)[0]))
        sums: dict[str, Any] = {}
        for level in range(max((len(opt.rule.measures) for opt, *_ in work), default=0)):
            sums |= _together(work, level, sums)
        donate = donate and distinct([own for *_, own in work])
        new, columns = list(leaves), {name: list(column) for name, column in flat.items()}
        for opt, members, part in work:
            after = step(
                opt.rule, tuple(opt.flags.values()), part, backend=opt.backend, donate=donate, sums=sums or None
            )
            for k, i in enumerate(members):
                new[i] = after.params[k]
                for name, column in {"step": after.steps, **after.slots, **after.scalars}.items():
                    columns[name][i] = column[k]
        return tree.unflatten(new, spec), {name: tree.unflatten(column, spec) for name, column in columns.items()}

    def members(self, params: Tree) -> dict[str, list[int]]:
        """The places of the leaves of each label; ValueError for a label that there is not."""
        labels = tree.broadcast(self.labels(params) if callable(self.labels) else self.labels, params, "labels")
        members: dict[str, list[int]] = {label: [] for label in self.parts}
        for i, label in enumerate(labels):
            if label not in members:
                path = tree.paths(params, "params")[i]
                raise ValueError(f"{path} has the label {label!r}; the labels are {', '.join(map(repr, self.parts))}")
            members[label].append(i)
        return members

    def _numbers(self, label: str, opt: PureOptimizer, hparams: Mapping[str, Any]) -> dict[str, Any]:
        names = {name: self.called(label, name) for name in opt.rule.hparams}
        for name in names.values():
            if name not in hparams:
                raise ValueError(f"hparams[{name!r}] is missing; opt.hparams(...) makes a complete set")
        return {name: hparams[given] for name, given in names.items()}


def _only(leaves: list[Any], members: list[int], spec: tree.Spec) -> Tree:
    """The tree with these leaves, and nothing in the place of the others."""
    kept = set(members)
    return tree.unflatten([leaf if i in kept else () for i, leaf in enumerate(leaves)], spec)


def _together(work: list[tuple[PureOptimizer, list[int], Leaves]], level: int, sums: dict[str, Any]) -> dict[str, Any]:
    """What the parts measure at a level, of all gradients."""
    found: dict[str, Any] = {}
    for opt, _, own in work:
        if level < len(opt.rule.measures):
            values = measured(opt.rule, tuple(opt.flags.values()), own, level, sums, backend=opt.backend)
            for name, value in values.items():
                found[name] = found[name] + value if name in found else value
    return found


def partition(optimizers: Mapping[str, Any], labels: Any) -> Partition:
    """Different optimizers for different parameters.

        opt = funcopt.partition({"matrix": funcopt.muon(), "rest": funcopt.adamw()}, labels)
        hparams = opt.hparams(matrix_lr=0.02, rest_lr=3e-4)

    Args:
        optimizers: the pure optimizer of each label, None for parameters that stay as they are. A label is a name,
            which precedes those of its optimizer's numbers.
        labels: the label of each parameter: a tree that is a prefix of params, or a function `params -> tree`. A class
            calls it with each group's parameters, a dict where they have names, else a list, and makes a group of each
            label.

    Raises:
        TypeError: no optimizers, or a label that is no name.
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(f"partition takes a dict from labels to pure optimizers; got {optimizers!r}")
    for label, opt in optimizers.items():
        if not isinstance(label, str) or not label.isidentifier():
            raise TypeError(f"a label is the beginning of a name, such as 'matrix'; got {label!r}")
        if opt is not None and not isinstance(opt, PureOptimizer):
            raise TypeError(f"partition takes pure optimizers; {label!r} is a {type(opt).__name__}")
    return Partition(dict(optimizers), labels)


def masked(opt: PureOptimizer, mask: Any) -> Partition:
    """The optimizer for some parameters; the others stay as they are, and have no state.

    Args:
        opt: a pure optimizer.
        mask: whether it is for a parameter: a tree of bools that is a prefix of params, or a function `params -> tree`.

    Raises:
        TypeError: not an optimizer. ValueError, at a step: what is no bool.
    """
    return _masked(opt, mask, True)


def freeze(opt: PureOptimizer, frozen: Any) -> Partition:
    """The optimizer, but for some parameters, which stay as they are, and have no state.

    Args:
        opt: a pure optimizer.
        frozen: whether a parameter is to stay: a tree of bools that is a prefix of params, or a function
            `params -> tree`.

    Raises:
        TypeError: not an optimizer. ValueError, at a step: what is no bool.
    """
    return _masked(opt, frozen, False)


def _masked(opt: PureOptimizer, mask: Any, taken: bool) -> Partition:
    names = {taken: "updated", not taken: "frozen"}

    def named(value: Any) -> Any:
        return names.get(value, value) if isinstance(value, bool) else value

    labels = (lambda params: tree.map(named, mask(params))) if callable(mask) else tree.map(named, mask)
    return partition({"updated": opt, "frozen": None}, labels)


def no_decay(model: torch.nn.Module, **decayed: Any) -> list[dict[str, Any]]:
    """The two groups that everybody writes by hand: biases and the weights of norms do not decay.

        optimizer = funcopt.optim.AdamW(funcopt.no_decay(model), lr=3e-4, weight_decay=0.1)

    Without decay are parameters of fewer than two dimensions: biases, and the weights of torch.nn's norms.

    Args:
        model: whose parameters, those that require a gradient, are grouped; a tied one counts by its first name.
        **decayed: numbers of the group that decays, such as `weight_decay=0.1`; the optimizer's own if left out.

    Returns:
        Two groups of (name, parameter) pairs, the second with weight_decay=0; one where the other would be empty.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"no_decay takes a torch.nn.Module; got a {type(model).__name__}")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def decays(p: Tensor) -> bool:
        return p.dim() >= 2

    groups = [
        {"params": [(name, p) for name, p in named if decays(p)], **decayed},
        {"params": [(name, p) for name, p in named if not decays(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
