"""Optimizers for parts of the parameters: `partition`, `masked`, `freeze`; and the groups that all write by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper, tree
from funcopt.core import PureOptimizer, State, Tree, at_the_top, step_together
from funcopt.factory import rule
from funcopt.leaves import Leaves

__all__ = ["Partition", "freeze", "masked", "no_decay", "partition", "stays"]


# The optimizer of what stays as it is.
stays = rule("stays", hparams={}, coefficients=lambda t: {}, update=lambda p, g, c: (p, ()))


@dataclass(frozen=True, repr=False)
class Partition:
    """Pure optimizers, each for the parameters of its label; used as a `PureOptimizer`, by `hparams`, `init` and calls.

    A number is called by its label and name, `muon_lr`, unless there is but one optimizer, or all share the number. The
    state has each slot once, a tree like params with None for parameters whose optimizer has no such slot.
    """

    parts: Mapping[str, PureOptimizer | None]
    labels: Any
    shared: tuple[str, ...] = ()  # the numbers of transforms around it
    layers: int = 0  # how many these are

    def __post_init__(self) -> None:
        owners: dict[str, tuple[str | None, str]] = {}
        for label, opt in self.active.items():
            for name in opt.rule.hparams:
                called, owner = self.called(label, name), (None if name in self.shared else label, name)
                if owners.setdefault(called, owner) != owner:
                    both = " and ".join(
                        f"{n!r} of {f'label {own!r}' if own else 'all'}" for own, n in (owners[called], owner)
                    )
                    raise TypeError(f"partition: {both} would both be called {called!r}; change a label or a prefix")

    def __hash__(self) -> int:
        return hash((*self.parts.items(), *self.shared))

    def __repr__(self) -> str:
        text = f"funcopt.partition({dict(self.parts)!r}, {self.labels!r})"
        levels = [level for opt in self.active.values() for level in opt.rule.measures]
        shared = any(name.startswith("shared") for level in levels for name in level)
        return f"<{text}, with what is measured for it measured of all parts together>" if shared else text

    @property
    def active(self) -> dict[str, PureOptimizer]:
        """The labels whose parameters are updated."""
        return {label: opt for label, opt in self.parts.items() if opt is not None}

    def called(self, label: str, name: str) -> str:
        """What a number of a part is called."""
        return name if name in self.shared or len(self.active) == 1 else f"{label}_{name}"

    def around(self, transform: Callable[[PureOptimizer, str], PureOptimizer], shared: Sequence[str]) -> "Partition":
        """The partition of optimizers with a transform around each, whose numbers and measures they share.

        Args:
            transform: of an optimizer, and of what names of measures begin with that are of all parts together.
            shared: the names of its numbers.
        """
        scope = f"shared{self.layers + 1}_"
        parts = {label: None if opt is None else transform(opt, scope) for label, opt in self.parts.items()}
        return replace(self, parts=parts, shared=(*self.shared, *shared), layers=self.layers + 1)

    @property
    def numbers(self) -> list[str]:
        """What all numbers are called."""
        called = (self.called(label, name) for label, opt in self.active.items() for name in opt.rule.hparams)
        return list(dict.fromkeys(called))

    def hparams(self, **numbers: Any) -> dict[str, Any]:
        """The hyperparameters as a plain dict: those given, by label and name, and the defaults for the rest."""
        known = self.numbers
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
        """One step, see `PureOptimizer.__call__`."""
        known = self.numbers
        for name in hparams:
            if name not in known:
                raise ValueError(f"hparams[{name!r}] is unknown; {hyper.suggest(name, known)}")
        if any(opt.rule.ascent is not None for opt in self.active.values()):
            grads = at_the_top(self, params, grads, hparams)
        leaves, spec = tree.flatten(params)
        flat = {name: tree.flatten_like(t, params, spec, f"state[{name!r}]") for name, t in state.items()}
        gs = tree.flatten_like(grads, params, spec, "grads")
        opts: list[PureOptimizer] = []
        labels: list[str] = []
        parts: list[Leaves] = []
        members = self.members(params)
        for label, opt in self.active.items():
            numbers = self._numbers(label, opt, hparams)
            if members[label]:
                needed = ["step", *opt.rule.slots_for(numbers, opt.flags)]
                given = [n for n in flat if n in needed or any(flat[n][i] is not None for i in members[label])]
                own = {name: _only(flat[name], members[label], spec) for name in given}
                tensors = (_only(leaves, members[label], spec), _only(gs, members[label], spec))
                opts, labels = [*opts, opt], [*labels, label]
                parts.append(opt.leaves(*tensors, own, numbers)[0])
        new, columns = list(leaves), {name: list(column) for name, column in flat.items()}
        for label, after in zip(labels, step_together(opts, labels, parts, donate=donate), strict=True):
            for k, i in enumerate(members[label]):
                new[i] = after.params[k]
                for name, column in {"step": after.steps, **after.slots, **after.scalars}.items():
                    columns[name][i] = column[k]
        return tree.unflatten(new, spec), {name: tree.unflatten(column, spec) for name, column in columns.items()}

    def ascent(self, hparams: Mapping[str, Any]) -> tuple["Partition", dict[str, Any]]:
        """What leads to the point at which gradients are to be taken, and its numbers of these."""
        found = {
            label: opt.ascent(self._numbers(label, opt, hparams))
            for label, opt in self.active.items()
            if opt.rule.ascent is not None
        }
        uphill = Partition({label: found[label][0] if label in found else None for label in self.parts}, self.labels)
        return uphill, {
            uphill.called(label, name): value for label, (_, own) in found.items() for name, value in own.items()
        }

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


def partition(optimizers: Mapping[str, Any], labels: Any) -> Partition:
    """Different optimizers for different parameters.

        opt = funcopt.partition({"matrix": funcopt.muon(), "rest": funcopt.adamw()}, labels)
        hparams = opt.hparams(matrix_lr=0.02, rest_lr=3e-4)

    A transform around the partition sees all gradients together, one around a part those of the part.

    Args:
        optimizers: the pure optimizer of each label, None for parameters that stay as they are. A label is a name,
            which precedes those of its optimizer's numbers.
        labels: the label of each parameter: a tree that is a prefix of params, or a function `params -> tree`. A class
            calls it with each group's parameters, a dict where they have names, else a list, and makes a group of each
            label.

    Raises:
        TypeError: no optimizers, a label that is no name, or two numbers of one name.
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(f"partition takes a dict from labels to pure optimizers; got {optimizers!r}")
    for label, opt in optimizers.items():
        if not isinstance(label, str) or not label.isidentifier():
            raise TypeError(f"a label is the beginning of a name, such as 'matrix'; got {label!r}")
        if opt is not None and not isinstance(opt, PureOptimizer):
            flat = "; give its optimizers labels of this one" if isinstance(opt, Partition) else ""
            raise TypeError(f"partition takes pure optimizers; {label!r} is a {type(opt).__name__}{flat}")
    return Partition(dict(optimizers), labels)


def masked(opt: PureOptimizer | Partition, mask: Any) -> Partition:
    """The optimizer for some parameters; the others stay as they are, and have no state.

    Args:
        opt: a pure optimizer, or a partition.
        mask: whether it is for a parameter: a tree of bools that is a prefix of params, or a function `params -> tree`.

    Raises:
        TypeError: not an optimizer. ValueError, at a step: what is no bool.
    """
    return _masked(opt, mask, True)


def freeze(opt: PureOptimizer | Partition, frozen: Any) -> Partition:
    """The optimizer, but for some parameters, which stay as they are, and have no state.

    Args:
        opt: a pure optimizer, or a partition.
        frozen: whether a parameter is to stay: a tree of bools that is a prefix of params, or a function
            `params -> tree`.

    Raises:
        TypeError: not an optimizer. ValueError, at a step: what is no bool.
    """
    return _masked(opt, frozen, False)


def _masked(opt: PureOptimizer | Partition, mask: Any, taken: bool) -> Partition:
    inner = opt if isinstance(opt, Partition) else partition({"updated": opt}, "updated")
    if inner.parts.get("frozen") is not None:
        raise TypeError(f"the label 'frozen' is of what stays as it is; {inner!r} has an optimizer of that label")
    return replace(inner, parts={**inner.parts, "frozen": None}, labels=_Masked(inner.labels, mask, taken))


@dataclass(frozen=True)
class _Masked:
    """The labels of a partition, but "frozen" where a mask says so."""

    labels: Any
    mask: Any
    taken: bool

    def __call__(self, params: Tree) -> Tree:
        labels, mask = (
            tree.broadcast(given(params) if callable(given) else given, params, name)
            for name, given in (("labels", self.labels), ("mask", self.mask))
        )
        if wrong := [i for i, value in enumerate(mask) if not isinstance(value, bool)]:
            path, value = tree.paths(params, "params")[wrong[0]], mask[wrong[0]]
            raise ValueError(f"a mask has True or False for each parameter; for {path} it has {value!r}")
        kept = [label if m is self.taken else "frozen" for label, m in zip(labels, mask, strict=True)]
        return tree.unflatten(kept, tree.flatten(params)[1])


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
