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

from funcopt import backends, exchange, hyper, observed
from funcopt.core import PureOptimizer, State, Tree, count_dtype, pure
from funcopt.declaration import Rule
from funcopt.flat import Flat, flats
from funcopt.prepared import Prepared
from funcopt.step import Leaves, measured, step
from funcopt.transforms.scaling import scaled

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

    # GradScaler may leave it to the step to unscale gradients, and to do nothing where one is not finite.
    _step_supports_amp_scaling: ClassVar[bool] = True

    # Whether state[p] has the step count; torch.optim.SGD has none, and needs only to know a first step from the rest.
    _counts: ClassVar[bool] = True

    # The flags and switches of a group, as one has them that was saved before they existed.
    _older: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, params: ParamsT, defaults: dict[str, Any], backend: str) -> None:
        self._backend = backends.check_name(backend)
        self._tables: dict[int, dict[Hashable, Any]] = {}
        self._kept: dict[int, Prepared] = {}
        self._known: list[Any] = []  # the states that these know
        self._flat: dict[int, list[Flat]] | None = None  # by group
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
        opt = _pure(rule, self._backend, tuple((flag, bool(group[flag])) for flag in rule.flags if flag in group))
        # GradScaler hands attributes over for a step, and takes them away after it.
        return scaled(opt) if hasattr(self, "grad_scale") or hasattr(self, "found_inf") else opt

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

        return {name: scalar(name, group[name] if name in group else self._of_scaler(name)) for name in rule.hparams}

    def _of_scaler(self, name: str) -> Any:
        """What GradScaler's part of a rule takes: no group has it."""
        given = getattr(self, name.removeprefix("scaler_"), None)
        return given if given is not None else 1.0 if name == "scaler_grad_scale" else 0.0

    def _slots(self, group: Mapping[str, Any]) -> list[str]:
        """The slots that a group's numbers and flags need."""
        pure = self._pure(group)
        return pure.rule.slots_for(self._numbers(pure.rule, group), pure.flags)

    # ---- the step ---------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False) -> Any:  # type: ignore[override]
        """Perform one step: update the parameters that have a gradient, in place.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled.
            zero_grad: set the gradients to 0 in the same pass over memory, for who keeps them from step to step.

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
        turns = [self._turn(index, group) for index, group in enumerate(self.param_groups)]
        for group, turn in zip(self.param_groups, turns, strict=True):
            if turn is None:
                self._check_step(group)
        sums = self._measured(turns)
        for index, (group, turn) in enumerate(zip(self.param_groups, turns, strict=True)):
            if turn is not None:
                kept, numbers = turn
                kept.step(numbers, sums, zero_grad=zero_grad)
                continue
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                for params in _rounds([p for p in group["params"] if p.grad is not None]):
                    self._step_group(group, params, self._tables.setdefault(index, {}), sums)
            if zero_grad:
                torch._foreach_zero_([p.grad for p in group["params"] if p.grad is not None])
        return loss

    def _turn(self, index: int, group: Mapping[str, Any]) -> tuple[Prepared, dict[str, Any]] | None:
        """A group's step, where one is prepared, and its numbers; None where it is taken from scratch."""
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
            tables, storages = self._tables.setdefault(index, {}), self._storages(index, group)
            for storage in storages:
                storage.gather(self.state)
            kept = Prepared(
                opt, names, group["params"], self.state, counted=self._counts, tables=tables, flats=storages
            )
            self._kept[index] = kept
            if not kept.serves(opt, names, group["params"]):
                return None
        return kept, floats

    def _measured(self, turns: list[tuple[Prepared, dict[str, Any]] | None]) -> dict[str, Any]:
        """What the groups' rules measure of all gradients together."""
        sums: dict[str, Any] = {}
        rules = [self._pure(group).rule for group in self.param_groups]
        for level in range(max((len(rule.measures) for rule in rules), default=0)):
            found: dict[str, Any] = {}
            for group, rule, turn in zip(self.param_groups, rules, turns, strict=True):
                if level < len(rule.measures):
                    for name, value in self._measured_of(group, turn, level, sums).items():
                        total = found.get(name, 0.0)
                        found[name] = total + (value.to(total.device) if isinstance(total, Tensor) else value)
            sums |= found
        return sums

    def _measured_of(
        self, group: Mapping[str, Any], turn: tuple[Prepared, dict[str, Any]] | None, level: int, sums: dict[str, Any]
    ) -> dict[str, Any]:
        if turn is not None:
            return turn[0].measure(level, turn[1], sums)
        params = [p for p in group["params"] if p.grad is not None]
        opt = self._pure(group)
        leaves = Leaves(
            params=params,
            grads=[p.grad for p in params],
            slots={},
            steps=[torch.zeros(())] * len(params),  # no measure knows the time
            columns=hyper.columns(opt.rule.hparams, self._numbers(opt.rule, group)),
        )
        with torch.set_grad_enabled(bool(group.get("differentiable"))):
            return measured(opt.rule, tuple(opt.flags.values()), leaves, level, sums, backend=self._backend)

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], tables: dict[Hashable, Any], sums: dict[str, Any]
    ) -> None:
        pure = self._pure(group)
        numbers = self._numbers(pure.rule, group)
        slots = pure.rule.slots_for(numbers, pure.flags)
        states = [self._state_of(p, group, slots) for p in params]
        in_place = not group.get("differentiable")
        counts = [state["step"] for state in states]
        skips = "skip" in pure.rule.Coefficients._fields
        leaves = Leaves(
            params=params if in_place else [p.clone() for p in params],  # autograd keeps what the step reads
            grads=[p.grad for p in params],
            slots={name: [state[name] for state in states] for name in slots},
            steps=counts,
            columns=hyper.columns(pure.rule.hparams, numbers),
        )
        new = step(
            pure.rule,
            tuple(pure.flags.values()),
            leaves,
            backend=self._backend,
            donate=in_place,
            advance=skips,
            tables=tables,
            sums=sums,
        )
        if skips:
            for count, advanced in zip(counts, new.steps, strict=True):
                count.copy_(advanced)
        else:
            torch._foreach_add_(counts, 1)
        for i, p in enumerate(params):
            if not in_place:
                p.copy_(new.params[i])
            kept = {"step": counts[i]} if self._counts else {}
            kept |= {name: values[i] for name, values in new.slots.items()}
            if kept:
                self.state[p].update(kept)

    # ---- flat storage -----------------------------------------------------------------------------------------------

    def flatten(self) -> "Adapter":
        """Lay the parameters, their gradients and their state out in buffers, one behind the other; returns itself.

        A step of many small tensors then costs less. The parameters stay what and where they are in the model, as views
        of a buffer, and so do their gradients: `zero_grad` sets them to 0 whatever `set_to_none` says, so that autograd
        adds to them in place, and a parameter that the loss does not depend on has a gradient of 0, not None. Groups
        that are added, states that are loaded and copies of the optimizer are laid out as well; parameters that a
        model's `to`, or anybody, moves are at the next step. Parameters that require no gradient are left alone.

        Raises:
            TypeError, ValueError: a parameter that cannot lie in a buffer (a tensor subclass, one with gaps, one that
                shares memory with another), by its name. Nothing has been changed by then.
        """
        made = {index: flats(group["params"], _names(group)) for index, group in enumerate(self.param_groups)}
        self._flat = made
        self._kept.clear()
        for storages in made.values():
            for storage in storages:
                storage.gather(self.state)
        return self

    def _storages(self, index: int, group: Mapping[str, Any]) -> list[Flat]:
        """The flat storages of a group, made anew where its parameters are not what they were."""
        if self._flat is None:
            return []
        storages = self._flat.get(index, [])
        wanted = {id(p) for p in group["params"] if p.requires_grad}
        if wanted != {id(p) for storage in storages for p in storage.params} or not all(s.fits for s in storages):
            storages = self._flat[index] = flats(group["params"], _names(group))
        return storages

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients: to None; or to 0, where set_to_none is false, and where they are in flat storage."""
        if self._flat is None:
            super().zero_grad(set_to_none)
            return
        storages = [s for index, group in enumerate(self.param_groups) for s in self._storages(index, group)]
        for storage in storages:
            storage.gather({})
            storage.zero_grad()
        flat = {id(p) for storage in storages for p in storage.params}
        for p in (p for group in self.param_groups for p in group["params"] if id(p) not in flat):
            p.grad = None  # it requires no gradient

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
        param = _names(group)[index]
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
        rule = self._rule(group)
        on_device = group.get("capturable") or group.get("fused") or "skip" in rule.Coefficients._fields
        device = p.device if on_device else torch.device("cpu")
        state = {name: own.get(name) for name in ["step", *slots]}
        if state["step"] is None:
            count = 0.0 if self._counts or any(state[name] is None for name in slots) else 1.0
            state["step"] = torch.tensor(count, dtype=count_dtype(), device=device)
        for slot in rule.slots:
            if slot.name in slots and state[slot.name] is None:
                state[slot.name] = slot.first(p)
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
        return {**super().__getstate__(), "_backend": self._backend, "_flattened": self._flat is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_backend", "auto")
        self.__dict__.setdefault("_flat", None)
        self._tables, self._kept, self._known = {}, {}, []
        for group in self.param_groups:
            for name, value in self._older.items():
                group.setdefault(name, value)
            for p in group["params"]:
                own = self.state.get(p, {})
                if "step" in own and not isinstance(own["step"], Tensor):
                    device = p.device if group.get("capturable") or group.get("fused") else "cpu"
                    own["step"] = torch.tensor(float(own["step"]), dtype=count_dtype(), device=device)
        if self.__dict__.pop("_flattened", False):
            self.flatten()

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
        return exchange.to_pure(self)

    def load_pure(self, params: Tree, state: State) -> None:
        """Take params and state back, as `to_pure` gives them: their values are copied in.

        Raises:
            ValueError, TypeError: something does not fit, naming it by its path. Nothing has been changed by then.
        """
        exchange.load_pure(self, params, state)


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


def _names(group: Mapping[str, Any]) -> list[str]:
    """What errors call a group's parameters."""
    return group.get("param_names") or [f"{index} of its group" for index in range(len(group["params"]))]


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
