"""Classes of pure optimizers: `from_pure` makes a `torch.optim.Optimizer` class of any rule, transformed or parted."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from funcopt import hyper
from funcopt.adapter import Adapter
from funcopt.core import PureOptimizer, Tree
from funcopt.declaration import Rule
from funcopt.transforms.partition import Partition, stays

__all__ = ["from_pure"]


# What schedulers of torch.optim change beside `lr`, in every group, where the optimizer's defaults have it.
_CYCLED = ("betas", "momentum")


def from_pure(opt: PureOptimizer | Partition, name: str | None = None) -> type[Adapter]:
    """A `torch.optim.Optimizer` class over a pure optimizer, of your own rule too.

    Its constructor takes `(params, <hparams>, *, <flags>, capturable=False, differentiable=False, backend=…)` with the
    rule's defaults for the numbers and opt's own flags and backend as the defaults of those; every number and flag may
    differ by group.

    Of a partition it takes the numbers by label and name, `matrix_lr=0.02`, and makes of each group that it is given a
    group for each label, which has the key `label`, and its optimizer's numbers and flags under their own names: a
    scheduler finds an `lr` in each.

    Args:
        opt: what a rule's factory returns, a transform, or `funcopt.partition`.
        name: of the class; the rule's in CamelCase if left out. To pickle an instance, keep the class in a module of
            yours under this name.

    Raises:
        TypeError: not a pure optimizer.
    """
    if not isinstance(opt, PureOptimizer | Partition):
        raise TypeError(f"from_pure takes a pure optimizer, such as funcopt.adamw() returns; got {opt!r}")
    base: type[Adapter]
    own: dict[str, Any]
    if isinstance(opt, Partition):
        numbers, flags = opt.hparams(), {}
        backends = {part.backend for part in opt.active.values()}
        base, own = Parted, {"_partition": opt, "__doc__": Parted.__doc__}
    else:
        numbers, flags = hyper.validate(opt.rule.name, opt.rule.hparams, {}), dict(opt.flags)
        backends = {opt.backend}
        base, own = Adapter, {"_rule": opt.rule, "__doc__": opt.rule.doc}
    switches = {"capturable": False, "differentiable": False}
    keywords = {**flags, **switches, "backend": backends.pop() if len(backends) == 1 else "auto"}
    kind = inspect.Parameter
    signature = inspect.Signature(
        [
            kind("self", kind.POSITIONAL_OR_KEYWORD),
            kind("params", kind.POSITIONAL_OR_KEYWORD),
            *(kind(n, kind.POSITIONAL_OR_KEYWORD, default=default) for n, default in numbers.items()),
            *(kind(n, kind.KEYWORD_ONLY, default=default) for n, default in keywords.items()),
        ]
    )

    def __init__(self: Adapter, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        for unknown in kwargs.keys() - signature.parameters.keys():
            allowed = [n for n in signature.parameters if n != "self"]
            raise TypeError(f"{type(self).__name__} has no argument {unknown!r}; {hyper.suggest(unknown, allowed)}")
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        self._begin(bound.arguments)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    called = "partition" if isinstance(opt, Partition) else opt.rule.name
    return type(
        name or "".join(part.capitalize() for part in called.split("_")),
        (base,),
        {
            "__init__": __init__,
            "__module__": sys._getframe(1).f_globals.get("__name__", "__main__"),
            "_older": {**flags, **switches},
            **own,
        },
    )


class Parted(Adapter):
    """A `torch.optim.Optimizer` over a partition: a group for each label, with the numbers of the label's optimizer."""

    _partition: ClassVar[Partition]

    def _begin(self, given: Mapping[str, Any]) -> None:
        own = [opt.hparams() for opt in self._partition.active.values()]
        cycled = {name: own[0][name] for name in _CYCLED if own and all(name in numbers for numbers in own)}
        super()._begin({**cycled, **given})

    def _rule_of(self, group: Mapping[str, Any]) -> Rule:
        return (self._partition.parts[group["label"]] or stays()).rule

    def _label(self, group: Mapping[str, Any]) -> str | None:
        return str(group["label"])

    def _check_defaults(self, defaults: Mapping[str, Any]) -> None:
        numbers = self._partition.numbers
        self._partition.hparams(**{name: value for name, value in defaults.items() if name in numbers})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as a group for each label.

        Args:
            param_group: "params", and numbers by label and name, or, for all labels that have it, by name.

        Raises:
            TypeError, ValueError: a label, a number or a parameter that does not fit; the optimizer is then as it was.
        """
        given = param_group.get("params") if isinstance(param_group, dict) else None
        if given is None or isinstance(given, set):
            torch.optim.Optimizer.add_param_group(self, param_group)  # which refuses it
            return
        given = [given] if isinstance(given, Tensor) else list(given)
        named = bool(given) and all(isinstance(p, tuple) and len(p) == 2 for p in given)
        labelled: Any = dict(given) if named else given
        if len(labelled) != len(given):
            raise ValueError("two parameters have the same name; give each its own")
        before = len(self.param_groups)
        try:
            for label, members in self._partition.members(labelled).items():
                if members:
                    group = self._of_label(label, [given[i] for i in members], param_group)
                    own = set(group)
                    super().add_param_group(group)  # with the defaults, which have the numbers of all labels
                    for name in group.keys() & set(self._partition.numbers) - own:
                        del group[name]
        except BaseException:
            del self.param_groups[before:]
            raise

    def _of_label(self, label: str, params: list[Any], group: Mapping[str, Any]) -> dict[str, Any]:
        """The group of one label, of what was given for all."""
        opt = self._partition.parts[label] or stays()
        values = {**self.defaults, **group}
        numbers = {name: values[self._partition.called(label, name)] for name in opt.rule.hparams}
        if not numbers:  # what schedulers want to find in every group
            numbers = {"lr": 0.0, **{name: self.defaults[name] for name in _CYCLED if name in self.defaults}}
        known = {name for part in self._partition.active.values() for name in (*part.rule.hparams, *part.flags)}
        known = known.union(self._partition.numbers) - {*opt.rule.hparams, *opt.flags}
        rest = {name: value for name, value in group.items() if name not in known}
        return {**numbers, **opt.flags, **rest, "params": params, "label": label}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and the groups' numbers and flags, see `Adapter.load_state_dict`.

        Raises:
            ValueError: a saved group has another label than the group in its place; nothing has been changed by then.
        """
        groups = list(state_dict["param_groups"])
        for index, (saved, own) in enumerate(zip(groups, self.param_groups, strict=False)):
            groups[index] = {"label": own["label"], **saved}
            if groups[index]["label"] != own["label"]:
                raise ValueError(
                    f"group {index} of the state_dict has the label {saved['label']!r}, and here it has "
                    f"{own['label']!r}: give the parameters in the order and with the labels of those that were saved"
                )
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _whole(self, opts: Mapping[Any, PureOptimizer], labels: Tree) -> Any:
        parts = {label: part and opts.get(label, part) for label, part in self._partition.parts.items()}
        return replace(self._partition, parts=parts, labels=labels)

    def _called(self, group: Mapping[str, Any], numbers: Mapping[str, Any]) -> Mapping[str, Any]:
        return {self._partition.called(group["label"], name): value for name, value in numbers.items()}
