"""From a rule to a pure optimizer: `(params, grads, state, hparams) -> (params, state)` over pytrees."""

import inspect
import itertools
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from funcopt import backends, expression, hyper, memory, observed, tree
from funcopt.declaration import Rule, Slot
from funcopt.step import Leaves, step

__all__ = ["Factory", "PureOptimizer", "pure", "rule"]

Tree = Any
State = dict[str, Tree]


# ---- making one -----------------------------------------------------------------------------------------------------


class Factory(Protocol):
    """What users call: `funcopt.adamw(amsgrad=False, maximize=False, backend="auto")`."""

    rule: Rule
    __name__: str

    def __call__(self, *, backend: str = "auto", **flags: bool) -> "PureOptimizer": ...


def rule(
    name: str,
    *,
    hparams: hyper.Spec,
    slots: Sequence[Slot | str] = (),
    coefficients: Callable[..., dict[str, Any]],
    update: Callable[..., Any],
    flags: Mapping[str, bool] | None = None,
    check: Callable[[Mapping[str, Any], Mapping[str, bool]], str | None] | None = None,
    doc: str | None = None,
    exempt: Mapping[str, str] | None = None,
) -> "Factory":
    """Make an algorithm: returns the factory `(*, flag=…, backend="auto") -> PureOptimizer`.

    Args:
        name: what the factory is called, and what error messages say.
        hparams: each number's name and its `Number` (default, range, name in errors), or a tuple of them (`betas`).
        slots: the state tensors, in the order in which `update` takes and returns them.
        coefficients: `(t, **hparams) -> dict` of scalars, see `funcopt.declaration`.
        update: `(p, g, *slots, c, *flags) -> (p, slots)`, see `funcopt.declaration`.
        flags: structural choices and their defaults, in the order in which `update` takes them.
        check: `(hparams, flags) -> None`, or what is wrong with this combination of otherwise valid numbers.
        doc: the factory's docstring.
        exempt: laws of `funcopt.testing` that the algorithm does not keep, each with the reason.
    """
    made = Rule(
        name=name,
        hparams=dict(hparams),
        slots=tuple(Slot(slot) if isinstance(slot, str) else slot for slot in slots),
        coefficients=coefficients,
        update=update,
        flags=dict(flags or {}),
        check=check,
        Coefficients=_coefficients_type(name, hparams, coefficients),
        doc=doc,
        exempt=dict(exempt or {}),
    )
    _check_declaration(made)
    _check_equation(made)
    _check_update(made)

    def factory(*, backend: str = "auto", **flags: bool) -> PureOptimizer:
        return pure(made, backend=backend, **flags)

    parameters = [inspect.Parameter(f, inspect.Parameter.KEYWORD_ONLY, default=d) for f, d in made.flags.items()]
    parameters.append(inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default="auto"))
    factory.__name__, factory.__qualname__, factory.__module__, factory.__doc__ = name, name, update.__module__, doc
    vars(factory).update(__signature__=inspect.Signature(parameters), rule=made)
    return cast(Factory, factory)


def _coefficients_type(name: str, spec: hyper.Spec, coefficients: Callable[..., dict[str, Any]]) -> Any:
    for number in spec.values():
        if not all(isinstance(part, hyper.Number) for part in (number if isinstance(number, tuple) else (number,))):
            raise TypeError(f"{name}: a number is declared by funcopt.Number, nonnegative or fraction; got {number!r}")
    wanted = list(inspect.signature(coefficients).parameters)[1:]
    if sorted(wanted) != sorted(spec):
        raise TypeError(f"{name}: coefficients takes (t, {', '.join(spec)}); got (…, {', '.join(wanted)})")
    defaults = hyper.validate(name, spec, {})
    values = coefficients(1.0, **defaults)
    if not isinstance(values, dict):
        raise TypeError(
            f"{name}: coefficients returns a dict of scalars by name; it returned a {type(values).__name__}"
        )
    _check_differentiable(name, coefficients, defaults)
    # Triton's cache of compiled kernels goes by the name of such a type: different fields, different name.
    return namedtuple("_".join(["Coefficients", *values]), list(values))


def _check_differentiable(name: str, coefficients: Callable[..., dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Refuse functions that make a Python number of a tensor: derivatives would be cut off without a word."""

    def with_tensors(x: Tensor) -> list[Tensor]:
        numbers = {n: tuple(x * part for part in v) if isinstance(v, tuple) else x * v for n, v in defaults.items()}
        return [torch.as_tensor(c) for c in coefficients(1 + x, **numbers).values()]

    try:
        torch.vmap(with_tensors)(torch.ones(2, dtype=torch.float64))
    except Exception as error:
        raise TypeError(
            f"{name}: coefficients must work on float64 tensors too, for derivatives and tracers: use arithmetic and "
            f"funcopt.ops, and no `if` on a number. It fails with {type(error).__name__}: {error}"
        ) from error


def _check_declaration(made: Rule) -> None:
    slots = [slot.name for slot in made.slots]
    names = ["step", *slots], [*made.hparams, *made.flags, "backend"]
    for name in (name for group in names for name in group if group.count(name) > 1):
        raise TypeError(f"{made.name}: the name {name!r} is taken twice, or by the library")
    for slot in made.slots:
        choices = [*made.flags, *made.hparams]
        if slot.when is not None and slot.when not in choices:
            raise TypeError(
                f"{made.name}: slot {slot.name!r} depends on {slot.when!r}, which is neither a flag nor a number; "
                f"{hyper.suggest(slot.when, choices)}"
            )
    update = list(inspect.signature(made.update).parameters)
    expected = 2 + len(slots) + 1 + len(made.flags)
    if len(update) != expected or update[expected - len(made.flags) :] != list(made.flags):
        wanted = ", ".join(["p", "g", *slots, "c", *made.flags])
        raise TypeError(
            f"{made.name}: update takes ({wanted}), the flags under these names and the rest under names of your own; "
            f"got ({', '.join(update)})"
        )


def _check_equation(made: Rule) -> None:
    """Write the equation down with every combination of flags and slots: what cannot be is refused now."""
    depends = [slot.when for slot in made.slots if slot.when in made.hparams]
    defaults = hyper.validate(made.name, made.hparams, {})
    for chosen in itertools.product((False, True), repeat=len(made.flags)):
        flags = dict(zip(made.flags, chosen, strict=True))
        for used in itertools.product((False, True), repeat=len(set(depends))):
            there: dict[Any, bool] = {**flags, **dict(zip(dict.fromkeys(depends), used, strict=True))}
            present = tuple(slot.when is None or there[slot.when] for slot in made.slots)
            try:
                expression.written(made.update, chosen, present, made.Coefficients)
            except Exception as error:
                if made.check is not None and made.check(defaults, flags):
                    continue  # a combination that is refused with these numbers, and may be with all
                choice = ", ".join(f"{name}={value}" for name, value in flags.items())
                raise TypeError(
                    f"{made.name}: update must be an equation of numbers, in arithmetic, comparisons and funcopt.ops; "
                    f"{f'with {choice} ' if choice else ''}it fails with {type(error).__name__}: {error}"
                ) from error


def _check_update(made: Rule) -> None:
    """Run the equation once with the default flags and numbers, each slot in use where its number would be set."""
    opt = pure(made, backend="eager")
    ones = torch.ones(2, 3, dtype=torch.float64)
    slots = [slot for slot in made.slots if slot.when is None or slot.when in made.hparams or opt.flags[slot.when]]
    state = {"step": torch.zeros(()), **{slot.name: ones.clone() for slot in slots}}
    p, g = ones.clone(), ones.clone()
    try:
        new, _ = opt(p, g, state, hyper.validate(made.name, made.hparams, {}))
    except (AttributeError, IndexError, NameError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{made.name}: update fails on tensors of shape {tuple(p.shape)}, with the default flags and numbers, with "
            f"{type(error).__name__}: {error}"
        ) from error
    written = [name for name, t in {"p": p, "g": g, **state}.items() if name != "step" and not torch.equal(t, ones)]
    if written:
        raise TypeError(f"{made.name}: update writes to {written[0]}; write {written[0]} = {written[0]} + … for +=")
    if new.shape != ones.shape:
        raise TypeError(
            f"{made.name}: update gave a p of shape {tuple(new.shape)} for one of shape {tuple(ones.shape)}"
        )


def pure(made: Rule, *, backend: str = "auto", **flags: bool) -> "PureOptimizer":
    """The pure optimizer of a rule with these flags, the defaults for the rest; raises TypeError or ValueError."""
    return PureOptimizer(made, made.choose(flags), backends.check_name(backend))


# ---- the optimizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class PureOptimizer:
    """A rule with its flags chosen: three pure functions, `hparams`, `init` and the step itself."""

    rule: Rule
    flags: Mapping[str, bool]
    backend: str = "auto"

    def __repr__(self) -> str:
        if self.rule.made is not None:
            inner, transform, *_, defaults = self.rule.made[1]
            return (
                f"funcopt.{transform}({', '.join([repr(replace(self, rule=inner)), *(str(n) for _, n in defaults)])})"
            )
        choices = [f"{name}={value}" for name, value in self.flags.items()]
        return f"funcopt.{self.rule.name}({', '.join([*choices, f'backend={self.backend!r}'])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PureOptimizer):
            return NotImplemented
        return (self.rule, self.flags, self.backend) == (other.rule, other.flags, other.backend)

    def __hash__(self) -> int:
        return hash((self.rule.name, *self.flags.items(), self.backend))

    def hparams(self, **numbers: Any) -> dict[str, Any]:
        """The hyperparameters as a plain dict: the numbers given, the rule's defaults for the rest.

        Args:
            **numbers: each a float, a floating-point tensor (0-d, or broadcastable to the parameters it is for), or a
                pytree of either that is a prefix of params: one learning rate per layer, one per weight. `betas` takes
                a pair of such.

        Raises:
            TypeError: an unknown name (the message has the closest spelling), or a value that is no number.
            ValueError: a number out of its range. Tensors are looked at on the CPU only, outside of transforms.
        """
        return self.rule.validate(numbers, self.flags)

    def init(
        self,
        params: Tree,
        hparams: Mapping[str, Any] | None = None,
        *,
        slot_dtype: torch.dtype | None = None,
        capturable: bool = False,
    ) -> State:
        """The state before the first step: a plain dict from slot name to a tree like params.

        `state["step"]` has each parameter's number of steps, 0-d float32 (float64 where that is the default dtype) on
        the CPU; the other slots are zeros of each parameter's shape, layout and device. Parameters whose counts are
        equal share one count tensor, which no step ever writes to.

        Args:
            params: a pytree of floating-point tensors.
            hparams: from `self.hparams`; the defaults if left out. Some slots exist only for some numbers: SGD keeps
                `momentum_buffer` where momentum is not the number 0.
            slot_dtype: dtype of the slots, such as torch.float32 under bfloat16 parameters; each parameter's own if
                left out.
            capturable: keep the step count on the parameters' device, so that a CUDA graph may capture the step.
        """
        leaves, spec = tree.flatten(params)
        _check_params(leaves, params)
        numbers = self.hparams() if hparams is None else hparams
        where = [leaf.device if capturable else torch.device("cpu") for leaf in leaves]
        counts = {device: torch.zeros((), dtype=count_dtype(), device=device) for device in dict.fromkeys(where)}
        return {"step": tree.unflatten([counts[device] for device in where], spec)} | {
            slot.name: tree.unflatten([slot.first(leaf, slot_dtype) for leaf in leaves], spec)
            for slot in self.rule.slots
            if self.rule.needs(slot, numbers, self.flags)
        }

    def __call__(
        self, params: Tree, grads: Tree, state: State, hparams: Mapping[str, Any], *, donate: bool = False
    ) -> tuple[Tree, State]:
        """One step: the new params and the new state, of the same structure, shapes, dtypes and devices.

        Differentiable in everything that is a tensor, and usable under every torch.func transform and torch.compile.

        Args:
            params: a pytree of floating-point tensors.
            grads: a tree like params of tensors of each parameter's shape, dtype and device, or None: a parameter
                without a gradient is returned as it is, with its slots and its step count. None may stand for a
                subtree.
            state: from `init` or an earlier step.
            hparams: from `self.hparams`; see there.
            donate: give up params and the slots of the state: the step may write its results into them. Ignored where a
                derivative is wanted, inside torch.func transforms, and where two of them share memory.

        Raises:
            ValueError, TypeError: a structure, shape, dtype or device that does not fit, naming the leaf by its path.
                Nothing has been changed by then.
        """
        leaves, spec = self._leaves(params, grads, state, hparams)
        donate = donate and _distinct(leaves)
        new = step(self.rule, tuple(self.flags.values()), leaves, backend=self.backend, donate=donate)
        slots = {"step": new.steps, **new.slots}
        return tree.unflatten(new.params, spec), {name: tree.unflatten(slots[name], spec) for name in state}

    def _leaves(self, params: Tree, grads: Tree, state: State, numbers: Mapping[str, Any]) -> tuple[Leaves, tree.Spec]:
        """Everything checked and flattened, leaf beside leaf; a leaf without a gradient has None among the grads."""
        columns = hyper.columns(self.rule.hparams, numbers)
        self._check_slots(state, numbers)
        ps, spec = tree.flatten(params)
        _check_params(ps, params)
        gs = tree.flatten_like(grads, params, spec, "grads")
        flat = {name: tree.flatten_like(value, params, spec, f"state[{name!r}]") for name, value in state.items()}
        steps = flat.pop("step")
        _check_columns(ps, gs, flat, steps, params)
        labels = hyper.labels(self.rule.hparams)
        columns = [hyper.broadcast(c, params, ps, label) for c, label in zip(columns, labels, strict=True)]
        slots = {slot.name: flat[slot.name] for slot in self.rule.slots if slot.name in flat}
        return Leaves(ps, gs, slots, steps, columns), spec

    def _check_slots(self, state: State, numbers: Mapping[str, Any]) -> None:
        known = ["step", *(slot.name for slot in self.rule.slots)]
        for name in state:
            if name not in known:
                raise ValueError(f"state[{name!r}] is not a slot of {self.rule.name}; {hyper.suggest(name, known)}")
        if "step" not in state:
            raise ValueError("state has no 'step'; opt.init(params, hparams) makes a complete state")
        for slot in self.rule.slots:
            # A number is looked at only where its slot is missing: a tracer makes a graph for each outcome.
            if slot.name not in state and self.rule.needs(slot, numbers, self.flags):
                raise ValueError(
                    f"state has no {slot.name!r}, which {self!r} needs with these hparams; "
                    "opt.init(params, hparams) makes a complete state"
                )
            if slot.name in state and not self.flags.get(slot.when or "", True):
                raise ValueError(f"state has {slot.name!r}, which is of no use with {slot.when}=False in {self!r}")


# ---- what a call checks ---------------------------------------------------------------------------------------------


def count_dtype() -> torch.dtype:
    """The dtype of a step count, as torch.optim has it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _check_params(leaves: Sequence[Any], params: Tree) -> None:
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{tree.paths(params, 'params')[index]} is a {type(leaf).__name__}; params holds tensors only"
            )
        if not leaf.dtype.is_floating_point:
            path = tree.paths(params, "params")[index]
            raise TypeError(f"{path} has dtype {leaf.dtype}; an optimizer updates floating-point tensors")


def _check_columns(
    ps: list[Tensor], gs: list[Any], slots: Mapping[str, list[Any]], steps: list[Any], params: Tree
) -> None:
    """Raise TypeError or ValueError where a gradient, a slot or a count is not as its parameter needs it."""
    shapes, devices, dtypes = ([getattr(p, name) for p in ps] for name in ("shape", "device", "dtype"))
    for root, column in (("grads", gs), *((f"state[{name!r}]", column) for name, column in slots.items())):
        like = [p if t is None and root == "grads" else t for t, p in zip(column, ps, strict=True)]
        if (
            all(isinstance(t, Tensor) and t.layout == torch.strided and t.dtype.is_floating_point for t in like)
            and [t.shape for t in like] == shapes
            and [t.device for t in like] == devices
            and (root != "grads" or [t.dtype for t in like] == dtypes)
        ):
            continue
        for index, (t, p) in enumerate(zip(like, ps, strict=True)):
            _check_like(t, p, root, params, index)
    for index, count in enumerate(steps):
        if not isinstance(count, Tensor) or count.dim() != 0:
            path = tree.paths(params, "")[index]
            raise ValueError(f"state['step']{path} must be a 0-d tensor; got {count!r}")


def _check_like(leaf: Any, p: Tensor, root: str, params: Tree, index: int) -> None:
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or not leaf.dtype.is_floating_point:
        got = f"{leaf.layout}, {leaf.dtype}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
        raise TypeError(f"{tree.paths(params, root)[index]} is {got}; a dense floating-point tensor is needed")
    if leaf.shape != p.shape or leaf.device != p.device:
        path = tree.paths(params, "")[index]
        raise ValueError(
            f"{root}{path} has shape {tuple(leaf.shape)} on {leaf.device}, "
            f"but params{path} has shape {tuple(p.shape)} on {p.device}"
        )
    if root == "grads" and leaf.dtype != p.dtype:
        path = tree.paths(params, "")[index]
        raise ValueError(f"grads{path} is {leaf.dtype}, but params{path} is {p.dtype}")


def _distinct(leaves: Leaves) -> bool:
    """Whether no tensor that is written shares memory with another: a result would change what is still to be read."""
    written = [t for tensors in (leaves.params, *leaves.slots.values()) for t in tensors if t.numel()]
    read = {id(g): g for g in leaves.grads if g is not None and g.numel()}
    tensors = [*written, *read.values()]
    if observed.wrapped(*tensors):
        return len({id(t) for t in written}) == len(written)
    return memory.apart(tensors)
