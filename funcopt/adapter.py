"""The adapter: a `torch.optim.Optimizer` over pure optimizers.

State, param_groups and state_dicts have torch.optim's keys, shapes and dtypes; `funcopt.optim` has the classes that
torch.optim has too.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import backends, exchange
from funcopt.core import PureOptimizer, State, Tree, pure
from funcopt.declaration import Rule, scalar_dtype
from funcopt.stepper import Stepper
from funcopt.traced import step_traced, zero_grad_traced
from funcopt.transforms.scaling import scaled
from funcopt.uphill import go_uphill

__all__ = ["Adapter", "deepcopied"]

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class Adapter(torch.optim.Optimizer):
    """What the classes of `funcopt.optim` and of `from_pure` share: a `torch.optim.Optimizer` over pure optimizers.

    A group holds its rule's numbers and flags, and torch.optim's switches: `capturable` keeps step counts on the
    device, as `fused` does; `differentiable` lets autograd through the step. What else `foreach` and `fused` choose is
    among implementations that this library does not have, and changes nothing.
    """

    # GradScaler may leave it to the step to unscale gradients, and to do nothing where one is not finite.
    _step_supports_amp_scaling: ClassVar[bool] = True

    # The rule; of a class whose groups choose among several, `_rule_of`.
    _rule: ClassVar[Rule]

    # Whether it takes gradients that are not sparse.
    _dense: ClassVar[bool] = True

    # Whether state[p] has the step count; torch.optim.SGD has none, and needs only to know a first step from the rest.
    _counts: ClassVar[bool] = True

    # The flags and switches of a group, as one has them that was saved before they existed.
    _older: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, params: ParamsT, *numbers: Any, **options: Any) -> None:
        """What the constructors of classes that `from_pure` makes take; this class itself has no rule to follow."""
        raise TypeError("Adapter has no rule of its own; make a class with funcopt.optim.from_pure(opt)")

    def _begin(self, given: Mapping[str, Any]) -> None:
        """What every constructor does with its arguments, as `locals()` has them."""
        defaults = {n: value for n, value in given.items() if n not in ("self", "params", "backend", "__class__")}
        self._backend = backends.check_name(given["backend"])
        self._stepper = Stepper(self)
        self._check_defaults(defaults)
        super().__init__(given["params"], defaults)

    def _rule_of(self, group: Mapping[str, Any]) -> Rule:
        """The rule that a group's flags choose."""
        return self._rule

    def _label(self, group: Mapping[str, Any]) -> str | None:
        """The part of the optimizer that a group is of; None where there are no parts."""
        return None

    # ---- groups -----------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the numbers and flags in which it differs from the defaults.

        Raises:
            TypeError, ValueError: a number, flag or parameter that does not fit, or a device that the backend does not
                run on; the optimizer is then as it was.
        """
        if isinstance(param_group, dict) and "params" in param_group:
            complete = {**self.defaults, **param_group}
            self._check_group(complete)
            rule, given = self._rule_of(complete), param_group["params"]
            if not isinstance(given, Tensor | set):
                given = param_group["params"] = list(given)
                for p in given:
                    self._check_param(p[1] if isinstance(p, tuple) and len(p) == 2 else p, rule)
            elif isinstance(given, Tensor):
                self._check_param(given, rule)
            self._stepper.check_new(given)
        super().add_param_group(param_group)

    def _check_param(self, p: Any, rule: Rule) -> None:
        if isinstance(p, Tensor) and self._backend != "auto":
            backends.check(self._backend, p.device)
        if isinstance(p, Tensor) and rule.check_param is not None and (problem := rule.check_param(p)):
            raise ValueError(problem)

    def _check_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Raise TypeError, ValueError or RuntimeError for what the constructor was given beside parameters."""
        self._check_group(defaults)

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
        rule = self._rule_of(group)
        given = {flag: group[flag] for flag in rule.flags if flag in group}
        chosen = {flag: value if flag in rule.choices else bool(value) for flag, value in given.items()}
        if torch.compiler.is_compiling():  # which does not see what a cache does
            opt = pure(rule, backend=self._backend, **chosen)
        else:
            opt = _pure(rule, self._backend, tuple(chosen.items()))
        # GradScaler hands attributes over for a step, and takes them away after it.
        return scaled(opt) if hasattr(self, "grad_scale") or hasattr(self, "found_inf") else opt

    def _numbers(self, rule: Rule, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's numbers as the rule takes them; a tensor has one element, of any number of dimensions."""

        def scalar(name: str, value: Any) -> Any:
            if type(value) is float:
                return value
            if isinstance(value, tuple | list):
                return tuple([scalar(f"{name}[{i}]", v) for i, v in enumerate(value)])
            if callable(value) and not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is a schedule; a group of parameters holds numbers, which a scheduler of "
                    "torch.optim.lr_scheduler changes, or you before each step"
                )
            if not isinstance(value, Tensor):
                return value
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element; got one of shape {tuple(value.shape)}")
            if not value.is_floating_point() and not value.is_complex():
                value = value.to(torch.get_default_dtype())
            return value.reshape(()) if value.dim() else value

        return {name: scalar(name, group[name] if name in group else self._of_scaler(name)) for name in rule.hparams}

    def _of_scaler(self, name: str) -> Any:
        """What GradScaler's part of a rule takes, which no group has; KeyError for a number that one should have."""
        without = {"scaler_grad_scale": 1.0, "scaler_found_inf": 0.0}[name]
        given = getattr(self, name.removeprefix("scaler_"), None)
        return without if given is None else given

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
        go_uphill(self, closure)
        if torch.compiler.is_compiling():
            step_traced(self)
            if zero_grad:
                zero_grad_traced(self, set_to_none=False)
        else:
            self._stepper.step(zero_grad=zero_grad)
        return loss

    # ---- flat storage -----------------------------------------------------------------------------------------------

    def flatten(self) -> "Adapter":
        """Lay the parameters, their gradients and their state out in buffers, one behind the other; returns itself.

        A step of many small tensors then costs less. The parameters stay what and where they are in the model, as views
        of a buffer, and so do their gradients: `zero_grad` sets them to 0 whatever `set_to_none` says, so that autograd
        adds to them in place, and a parameter that the loss does not depend on has a gradient of 0, not None. Groups
        that are added, states that are loaded and copies of the optimizer are laid out as well; parameters that a
        model's `to`, or anybody, moves are at the next step. Parameters that require no gradient are left alone. As any
        view, a parameter saved by itself is saved with its whole buffer; save a clone.

        Raises:
            TypeError, ValueError: a parameter that cannot lie in a buffer (a tensor subclass, one with gaps, one that
                shares memory with another), by its name. Nothing has been changed by then.
        """
        self._stepper.flatten()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients: to None; or to 0, where set_to_none is false, and where they are in flat storage."""
        if torch.compiler.is_compiling():
            zero_grad_traced(self, set_to_none and self._stepper.flat is None)
        elif self._stepper.flat is None:
            super().zero_grad(set_to_none)
        else:
            self._stepper.zero_grad()

    def _state_of(self, p: Tensor, group: Mapping[str, Any], slots: list[str]) -> dict[str, Any]:
        """A parameter's state before the step: its own, filled up with zeros; nothing is stored."""
        own = self.state.get(p, {})
        rule = self._rule_of(group)
        on_device = group.get("capturable") or group.get("fused") or "skip" in rule.Coefficients._fields
        device = p.device if on_device else torch.device("cpu")
        state = {name: own.get(name) for name in ["step", *slots]}
        if state["step"] is None:
            count = 0.0 if self._counts or any(state[name] is None for name in slots) else 1.0
            state["step"] = torch.tensor(count, dtype=scalar_dtype(), device=device)
        elif not isinstance(state["step"], Tensor):
            state["step"] = torch.tensor(float(state["step"]), dtype=scalar_dtype(), device=device)
        for slot in rule.slots:
            if slot.name in slots and state[slot.name] is None and slot.shape_for(p) is not None:
                begin = p if group.get("differentiable") else p.detach()
                state[slot.name] = slot.first(begin, self._numbers(rule, group), device=device)
        return state

    def _check_whole(self, group: Mapping[str, Any], p: Tensor) -> None:
        """Raise KeyError where a state lacks what it always has; what transforms and flags add may be new."""
        own, rule = self.state.get(p, {}), self._rule_of(group)
        if not own or rule.layers:
            return
        always = [slot.name for slot in rule.slots if slot.when is None and slot.shape_for(p) is not None]
        if lost := [name for name in [*["step"] * self._counts, *always] if name not in own]:
            raise KeyError(
                f"parameter {self._stepper.name(group, p)} cannot be updated: its state has no {', '.join(lost)}, but "
                f"{', '.join(map(str, own))}; load a whole state_dict, or begin anew with a parameter whose state is "
                "empty"
            )

    def _counted(self, count: Tensor) -> Any:
        """A step count as the state has it."""
        return count

    # ---- saving, loading, copying -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as torch.optim has them; of flat storage copies, saved without its buffers."""
        saved = super().state_dict()
        if self._stepper.flat is not None:
            saved = {**saved, "state": {p: _alone(state) for p, state in saved["state"].items()}}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and the groups' numbers and flags; the state_dict given stays the caller's own.

        Args:
            state_dict: from `state_dict()` of this class, of torch.optim's class of the same name, or of one that lacks
                numbers and slots of this one, as of an optimizer without its transforms: a number that is not there
                stays what it is.
        """
        if isinstance(state_dict, dict) and isinstance(groups := state_dict.get("param_groups"), list):
            # torch.optim looks for each state tensor's parameter in lists; in these it finds it at once.
            quick = [
                {**g, "params": _Quick(g["params"])} if isinstance(g, dict) and "params" in g else g for g in groups
            ]
            for i, (saved, own) in enumerate(zip(quick, self.param_groups, strict=False)):
                if isinstance(saved, dict):
                    names = ("lr", *self._rule_of(own).hparams)
                    quick[i] = saved | {n: own[n] for n in names if n in own and n not in saved}
            state_dict = {**state_dict, "param_groups": quick}
        # A scalar stays in its dtype and where it is, as torch.optim leaves a "step" alone, and nothing else.
        wrap = self.register_load_state_dict_pre_hook(_wrapped)
        unwrap = self.register_load_state_dict_post_hook(_unwrapped, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            wrap.remove()
            unwrap.remove()
        for state in self.state.values():
            if isinstance(state, dict):
                state.update({name: value.clone() for name, value in state.items() if isinstance(value, Tensor)})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_backend": self._backend, "_flattened": self._stepper.flat is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_backend", "auto")
        self.__dict__.setdefault("_stepper", Stepper(self))
        self._stepper.forget()
        for group in self.param_groups:
            for name, value in self._older.items():
                group.setdefault(name, value)
            for p in group["params"]:
                own = self.state.get(p, {})
                if "step" in own and not isinstance(own["step"], Tensor):
                    device = p.device if group.get("capturable") or group.get("fused") else "cpu"
                    count = torch.tensor(float(own["step"]), dtype=scalar_dtype(), device=device)
                    own["step"] = self._counted(count)
        if self.__dict__.pop("_flattened", False):
            self.flatten()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapter":
        return deepcopied(self, memo)

    # ---- out to the pure form and back ------------------------------------------------------------------------------

    def to_pure(self) -> tuple[Any, Tree, State, dict[str, Any]]:
        """The live optimizer as `(opt, params, state, hparams)`, to go on from in a functional loop.

        Params and every slot of the state are a dict by parameter name where the parameters have names, else a list;
        they are copies, so that neither loop disturbs the other. A number in which groups differ is a tree like params.
        A class of a partition gives a partition.

        Raises:
            ValueError: the groups differ in their flags, for which there is no one pure optimizer.
        """
        return exchange.to_pure(self)

    def _whole(self, opts: Mapping[Any, PureOptimizer], labels: Tree) -> Any:
        """The pure optimizer of all groups, of that of each label; without labels there is one."""
        return next(iter(opts.values()))

    def _called(self, group: Mapping[str, Any], numbers: Mapping[str, Any]) -> Mapping[str, Any]:
        """A group's numbers as the pure optimizer of all groups calls them."""
        return numbers

    def load_pure(self, params: Tree, state: State) -> None:
        """Take params and state back, as `to_pure` gives them: their values are copied in.

        Raises:
            ValueError, TypeError: something does not fit, naming it by its path. Nothing has been changed by then.
        """
        exchange.load_pure(self, params, state)


@functools.lru_cache(maxsize=256)
def _pure(rule: Rule, backend: str, flags: tuple[tuple[str, bool], ...]) -> PureOptimizer:
    return pure(rule, backend=backend, **dict(flags))


def _wrapped(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict whose slots that are scalars look like step counts."""
    names = {slot.name for group in optimizer.param_groups for slot in optimizer._rule_of(group).scalars}
    state = state_dict.get("state")
    if not names or not isinstance(state, dict):
        return state_dict

    def wrap(name: str, value: Any) -> Any:
        return {"step": value} if name in names and isinstance(value, Tensor) else value

    return {
        **state_dict,
        "state": {
            p: {name: wrap(name, value) for name, value in own.items()} if isinstance(own, dict) else own
            for p, own in state.items()
        },
    }


def _unwrapped(optimizer: Any) -> None:
    """The states that were loaded from such a one as they are."""
    names = {slot.name for group in optimizer.param_groups for slot in optimizer._rule_of(group).scalars}
    for own in optimizer.state.values() if names else ():
        for name in names & own.keys() if isinstance(own, dict) else ():
            if isinstance(own[name], dict):
                own[name] = own[name]["step"]


def deepcopied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy of an optimizer and of all that it has, with the same hooks."""
    new: Optimizer = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = new
    new.__setstate__(copy.deepcopy(optimizer.__getstate__(), memo))
    for name in _HOOKS:
        setattr(new, name, OrderedDict(getattr(optimizer, name)))
    return new


def _alone(state: Any) -> Any:
    """A parameter's state with tensors that are views of nothing."""
    if not isinstance(state, dict):
        return state
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


class _Quick(list[Any]):
    """A list of numbers that knows at once whether it has one."""

    _members: frozenset[Any] | None = None

    def __contains__(self, item: object) -> bool:
        if self._members is None:
            self._members = frozenset(self)
        return item in self._members
