"""The adapter: a `torch.optim.Optimizer` over pure optimizers, and `from_pure`, which makes such a class of any rule.

State, param_groups and state_dicts have torch.optim's keys, shapes and dtypes; `funcopt.optim` has the classes that
torch.optim has too.
"""

import copy
import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import backends, hyper, observed, tree
from funcopt.core import PureOptimizer, State, Tree, count_dtype, pure
from funcopt.declaration import Rule
from funcopt.prepared import Prepared
from funcopt.step import Leaves, step

__all__ = ["Adapter", "from_pure"]

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Adapter(torch.optim.Optimizer):
    """What SGD, Adam, AdamW and the classes of `from_pure` share: a `torch.optim.Optimizer` over pure optimizers.

    A group holds its rule's numbers and flags, and torch.optim's switches: `capturable` keeps step counts on the
    device, `differentiable` lets autograd through the step; `foreach` and `fused` choose among implementations that
    this library does not have, and change nothing.
    """

    # Whether state[p] has the step count; torch.optim.SGD has none, and needs only to know a first step from the rest.
    _counts: ClassVar[bool] = True

    # The flags and switches of a group, as one has them that was saved before they existed.
    _older: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, params: ParamsT, defaults: dict[str, Any], backend: str) -> None:
        self._backend = backends.check_name(backend)
        self._tables: dict[int, dict[Hashable, Any]] = {}
        self._kept: dict[int, Prepared] = {}
        self._known: list[Any] = []  # the states that these know
        self._check_group(defaults)
        super().__init__(params, defaults)

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        """The rule that a group's flags choose."""
        raise NotImplementedError

    # ---- groups -----------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the numbers and flags in which it differs from the defaults.

        Raises:
            TypeError, ValueError: a number or flag that does not fit, or a device that the backend does not run on;
                the optimizer is then as it was.
        """
        if isinstance(param_group, dict) and "params" in param_group:
            self._check_group({**self.defaults, **param_group})
            given = param_group["params"]
            if not isinstance(given, Tensor | set):
                given = param_group["params"] = list(given)
                for p in given:
                    self._check_param(p[1] if isinstance(p, tuple) and len(p) == 2 else p)
            elif isinstance(given, Tensor):
                self._check_param(given)
        super().add_param_group(param_group)

    def _check_param(self, p: Any) -> None:
        if isinstance(p, Tensor) and self._backend != "auto":
            backends.check(self._backend, p.device)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        pure = self._pure(group)
        pure.hparams(**self._numbers(pure.rule, group))
        if isinstance(group.get("lr"), Tensor) and group.get("foreach") and group.get("capturable") is False:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if group.get("fused") and group.get("differentiable"):
            raise RuntimeError("`fused` does not support `differentiable`")
        if group.get("fused") and group.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    def _pure(self, group: Mapping[str, Any]) -> PureOptimizer:
        rule = self._rule(group)
        return _pure(rule, self._backend, tuple((flag, bool(group[flag])) for flag in rule.flags if flag in group))

    def _numbers(self, rule: Rule, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's numbers as the rule takes them; a tensor has one element, of any number of dimensions."""

        def scalar(name: str, value: Any) -> Any:
            if type(value) is float:
                return value
            if isinstance(value, tuple | list):
                return tuple([scalar(f"{name}[{i}]", v) for i, v in enumerate(value)])
            if not isinstance(value, Tensor):
                return value
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element; got one of shape {tuple(value.shape)}")
            return value.reshape(()) if value.dim() else value

        return {name: scalar(name, group[name]) for name in rule.hparams}

    def _slots(self, group: Mapping[str, Any]) -> list[str]:
        """The slots that a group's numbers and flags need."""
        pure = self._pure(group)
        return pure.rule.slots_for(self._numbers(pure.rule, group), pure.flags)

    # ---- the step ---------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Perform one step: update the parameters that have a gradient, in place.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled.

        Returns:
            What the closure returns, or None.
        """
        if "capturable" in self.defaults:
            self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        states = list(self.state.values())
        if len(states) != len(self._known) or not all(map(is_, states, self._known)):
            self._kept.clear()
            self._known = states
        prepared = [self._prepared(index, group) for index, group in enumerate(self.param_groups)]
        for group, take in zip(self.param_groups, prepared, strict=True):
            if take is None:
                self._check_step(group)
        for index, (group, take) in enumerate(zip(self.param_groups, prepared, strict=True)):
            if take is not None:
                take()
                continue
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                for params in _rounds([p for p in group["params"] if p.grad is not None]):
                    self._step_group(group, params, self._tables.setdefault(index, {}))
        return loss

    def _prepared(self, index: int, group: Mapping[str, Any]) -> Callable[[], None] | None:
        """A group's step, where one is prepared; None where it takes one from scratch. Nothing has been changed yet."""
        if group.get("differentiable") or observed.traced() or observed.transformed():
            return None
        opt = self._pure(group)
        hparams = self._numbers(opt.rule, group)
        floats = {name: _as_float(value) for name, value in hparams.items()}
        if None in floats.values():
            return None
        names = opt.rule.slots_for(hparams, opt.flags)
        kept = self._kept.get(index)
        if kept is None or not kept.serves(opt, names, group["params"]):
            tables = self._tables.setdefault(index, {})
            kept = Prepared(opt, names, group["params"], self.state, counted=self._counts, tables=tables)
            self._kept[index] = kept
            if not kept.serves(opt, names, group["params"]):
                return None
        return functools.partial(kept.step, floats)

    def _step_group(self, group: dict[str, Any], params: list[Tensor], tables: dict[Hashable, Any]) -> None:
        pure = self._pure(group)
        numbers = self._numbers(pure.rule, group)
        slots = pure.rule.slots_for(numbers, pure.flags)
        states = [self._state_of(p, group, slots) for p in params]
        in_place = not group.get("differentiable")
        counts = [state["step"] for state in states]
        leaves = Leaves(
            params=params if in_place else [p.clone() for p in params],  # autograd keeps what the step reads
            grads=[p.grad for p in params],
            slots={name: [state[name] for state in states] for name in slots},
            steps=counts,
            columns=hyper.columns(pure.rule.hparams, numbers),
        )
        flags = tuple(pure.flags.values())
        new = step(pure.rule, flags, leaves, backend=self._backend, donate=in_place, advance=False, tables=tables)
        torch._foreach_add_(counts, 1)
        for i, p in enumerate(params):
            if not in_place:
                p.copy_(new.params[i])
            kept = {"step": counts[i]} if self._counts else {}
            kept |= {name: values[i] for name, values in new.slots.items()}
            if kept:
                self.state[p].update(kept)

    def _check_step(self, group: Mapping[str, Any]) -> None:
        """Raise RuntimeError where a gradient or a state is not as its parameter is; nothing is changed by then."""
        slots = self._slots(group)
        for p in group["params"]:
            if p.grad is None:
                continue
            if not _fits(p.grad, p):
                raise RuntimeError(self._misfit(group, p, "grad", p.grad))
            own = self.state.get(p, {})
            for name in slots:
                if own.get(name) is not None and not _fits(own[name], p):
                    raise RuntimeError(self._misfit(group, p, name, own[name]))

    def _misfit(self, group: Mapping[str, Any], p: Tensor, name: str, t: Tensor) -> str:
        index = next(i for i, own in enumerate(group["params"]) if own is p)
        param = group["param_names"][index] if "param_names" in group else f"{index} of its group"
        if t.layout != torch.strided:
            return f"{type(self).__name__} does not support sparse gradients; parameter {param} has one"
        return (
            f"parameter {param} cannot be updated: its {name} is {t.dtype} of shape {tuple(t.shape)} on {t.device}, "
            f"and the parameter {p.dtype} of shape {tuple(p.shape)} on {p.device}; all must be floating-point, of one "
            "shape, and in one place"
        )

    def _state_of(self, p: Tensor, group: Mapping[str, Any], slots: list[str]) -> dict[str, Any]:
        """A parameter's state before the step: its own, filled up with zeros; nothing is stored."""
        own = self.state.get(p, {})
        device = p.device if group.get("capturable") else torch.device("cpu")
        state = {name: own.get(name) for name in ["step", *slots]}
        if state["step"] is None:
            count = 0.0 if self._counts or any(state[name] is None for name in slots) else 1.0
            state["step"] = torch.tensor(count, dtype=count_dtype(), device=device)
        for name in slots:
            if state[name] is None:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format).detach()
        return state

    # ---- saving, loading, copying -----------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and the groups' numbers and flags; the state_dict given stays the caller's own.

        Args:
            state_dict: from `state_dict()` of this class, or of torch.optim's class of the same name.
        """
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if isinstance(state, dict):
                state.update({name: value.clone() for name, value in state.items() if isinstance(value, Tensor)})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_backend": self._backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_backend", "auto")
        self._tables, self._kept, self._known = {}, {}, []
        for group in self.param_groups:
            for name, value in self._older.items():
                group.setdefault(name, value)
            for p in group["params"]:
                own = self.state.get(p, {})
                if "step" in own and not isinstance(own["step"], Tensor):
                    device = p.device if group.get("capturable") or group.get("fused") else "cpu"
                    own["step"] = torch.tensor(float(own["step"]), dtype=count_dtype(), device=device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapter":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        for name in _HOOKS:
            setattr(new, name, OrderedDict(getattr(self, name)))
        return new

    # ---- out to the pure form and back ------------------------------------------------------------------------------

    def to_pure(self) -> tuple[PureOptimizer, Tree, State, dict[str, Any]]:
        """The live optimizer as `(opt, params, state, hparams)`, to go on from in a functional loop.

        Params and every slot of the state are a dict by parameter name where the parameters have names, else a list;
        they are copies, so that neither loop disturbs the other. A number in which groups differ is a tree like params.

        Raises:
            ValueError: the groups differ in their flags, for which there is no one pure optimizer.
        """
        first, *rest = [self._pure(group) for group in self.param_groups]
        for index, opt in enumerate(rest, 1):
            if (opt.rule, opt.flags) != (first.rule, first.flags):
                raise ValueError(f"group 0 is {first}, but group {index} is {opt}; one pure optimizer cannot be both")
        params, spec = tree.flatten(self._named())
        groups = [group for group in self.param_groups for _ in group["params"]]
        numbers = [self._numbers(first.rule, group) for group in self.param_groups]
        by_group = [hyper.columns(first.rule.hparams, n) for n in numbers]
        columns = [
            values[0]
            if all(v is values[0] or (not isinstance(v, Tensor) and v == values[0]) for v in values)
            else tree.unflatten([v for v, g in zip(values, self.param_groups, strict=True) for _ in g["params"]], spec)
            for values in zip(*by_group, strict=True)
        ]
        used = {name for group in self.param_groups for name in self._slots(group)}
        slots = [slot.name for slot in first.rule.slots if slot.name in used]
        states = [self._state_of(p, group, slots) for p, group in zip(params, groups, strict=True)]
        state = {name: tree.unflatten([s[name].detach().clone() for s in states], spec) for name in ["step", *slots]}
        hparams = first.hparams(**hyper.nest(first.rule.hparams, columns))
        return first, tree.unflatten([p.detach().clone() for p in params], spec), state, hparams

    def load_pure(self, params: Tree, state: State) -> None:
        """Take params and state back, as `to_pure` gives them: their values are copied in.

        Raises:
            ValueError, TypeError: something does not fit, naming it by its path. Nothing has been changed by then.
        """
        named = self._named()
        own, spec = tree.flatten(named)
        new = tree.flatten_like(params, named, spec, "params")
        slots = {name: tree.flatten_like(value, named, spec, f"state[{name!r}]") for name, value in state.items()}
        known = ["step", *dict.fromkeys(slot.name for group in self.param_groups for slot in self._rule(group).slots)]
        for name in slots:
            if name not in known:
                raise ValueError(f"state[{name!r}] is unknown; {hyper.suggest(name, known)}")
        groups = [group for group in self.param_groups for _ in group["params"]]
        kept = [names for group in self.param_groups for names in [self._slots(group)] * len(group["params"])]
        for name in ["step", *sorted({name for names in kept for name in names})]:
            if name not in slots:
                raise ValueError(f"state has no {name!r}, which this optimizer keeps; to_pure() gives a complete state")
        for root, values in {"params": new, **{f"state[{name!r}]": v for name, v in slots.items()}}.items():
            for value, p, path in zip(values, own, tree.paths(named, ""), strict=True):
                shape = () if root == "state['step']" else tuple(p.shape)
                if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f"{root}{path} must be a tensor of shape {shape}; got {got}")
        counts = slots.pop("step")
        with torch.no_grad():
            for i, p in enumerate(own):
                p.copy_(new[i])
                if counts[i] == 0:
                    self.state.pop(p, None)
                    continue
                before = self._state_of(p, groups[i], kept[i])
                new_state = {name: slots[name][i] for name in kept[i]} | ({"step": counts[i]} if self._counts else {})
                if new_state:  # in the dtypes, and where, this optimizer has them
                    self.state[p].update({name: before[name].copy_(value) for name, value in new_state.items()})

    def _named(self) -> Tree:
        if "param_names" not in self.param_groups[0]:
            return [p for group in self.param_groups for p in group["params"]]
        pairs = [
            pair for group in self.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
        ]
        if len(dict(pairs)) != len(pairs):
            raise ValueError("two parameters have the same name; a pytree by name needs each to have its own")
        return dict(pairs)


@functools.lru_cache(maxsize=256)
def _pure(rule: Rule, backend: str, flags: tuple[tuple[str, bool], ...]) -> PureOptimizer:
    return pure(rule, backend=backend, **dict(flags))


def _as_float(number: Any) -> Any:
    """A number, or a tuple of numbers, as floats; None where one cannot be read now."""
    if type(number) is float:
        return number
    if isinstance(number, tuple):
        parts = tuple(map(_as_float, number))
        return None if None in parts else parts
    return None if isinstance(number, Tensor) and not observed.readable(number) else float(number)


def _fits(t: Any, p: Tensor) -> bool:
    """Whether a gradient or a slot is such as the step of a parameter takes: it looks no further."""
    return bool(
        t.shape == p.shape and t.device == p.device and t.layout == torch.strided
        and t.dtype.is_floating_point and p.dtype.is_floating_point
    )  # fmt: skip


def _rounds(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The params once each; those that a group has again, in a next round: torch.optim steps them again."""
    while params:
        seen: set[int] = set()
        once: list[Tensor] = []
        again: list[Tensor] = []
        for p in params:
            (again if id(p) in seen else once).append(p)
            seen.add(id(p))
        yield once
        params = again


def from_pure(opt: PureOptimizer, name: str | None = None) -> type[Adapter]:
    """A `torch.optim.Optimizer` class over a pure optimizer, of your own rule too.

    Its constructor takes `(params, <hparams>, *, <flags>, capturable=False, differentiable=False, backend=…)` with the
    rule's defaults for the numbers and opt's own flags and backend as the defaults of those; every number and flag may
    differ by group.

    Args:
        opt: what a rule's factory returns.
        name: of the class; the rule's in CamelCase if left out. To pickle an instance, keep the class in a module of
            yours under this name.
    """
    rule = opt.rule
    numbers = {
        n: part.default if isinstance(part, hyper.Number) else tuple(p.default for p in part)
        for n, part in rule.hparams.items()
    }
    keywords = {**opt.flags, "capturable": False, "differentiable": False, "backend": opt.backend}
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
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        del given["self"]
        Adapter.__init__(self, given.pop("params"), backend=given.pop("backend"), defaults=given)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return type(
        name or "".join(part.capitalize() for part in rule.name.split("_")),
        (Adapter,),
        {
            "__init__": __init__,
            "__doc__": rule.doc,
            "__module__": sys._getframe(1).f_globals.get("__name__", "__main__"),
            "_rule": lambda self, group: rule,
            "_older": {**opt.flags, "capturable": False, "differentiable": False},
        },
    )
