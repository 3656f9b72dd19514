"""The pure optimizer: `(params, grads, state, hparams) -> (params, state)` over pytrees, of a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import backends, hyper, memory, observed, tree
from funcopt.declaration import Rule, Slot
from funcopt.leaves import Leaves
from funcopt.scheduling import at
from funcopt.step import measured, measured_together, step

__all__ = ["PureOptimizer", "State", "Tree", "at_the_top", "pure", "step_together"]

Tree = Any
State = dict[str, Tree]


def pure(made: Rule, *, backend: str = "auto", **flags: Any) -> "PureOptimizer":
    """The pure optimizer of a rule with these flags, the defaults for the rest; raises TypeError or ValueError."""
    return PureOptimizer(made, made.choose(flags), backends.check_name(backend))


# ---- the optimizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class PureOptimizer:
    """A rule with its flags chosen: three pure functions, `hparams`, `init` and the step itself."""

    rule: Rule
    flags: Mapping[str, Any]
    backend: str = "auto"

    def __repr__(self) -> str:
        if self.rule.made is not None:
            inner, transform, prefix, _, defaults = self.rule.made[1]
            given = [repr(replace(self, rule=inner)), *(str(n) for _, n in defaults)]
            return f"funcopt.{transform}({', '.join([*given, *([f'prefix={prefix!r}'] if prefix else [])])})"
        choices = [f"{name}={value!r}" for name, value in self.flags.items()]
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
            **numbers: each a float, a floating-point tensor (0-d, or broadcastable to the parameters it is for), a
                schedule (a function of the number of steps taken, see `funcopt.schedules`), or a pytree of those that
                is a prefix of params: one learning rate per layer, one per weight. `betas` takes a pair of such.

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
        the CPU. Slots that are scalars are 0-d float64; the others mostly are zeros of each parameter's shape, layout
        and device. Parameters whose counts are equal share one count tensor, which no step ever writes to. A slot that
        is not for all parameters is None for the others.

        Args:
            params: a pytree of floating-point or complex tensors.
            hparams: from `self.hparams`; the defaults if left out. Some slots exist only for some numbers: SGD keeps
                `momentum_buffer` where momentum is not the number 0.
            slot_dtype: dtype of the slots, such as torch.float32 under bfloat16 parameters (for complex parameters the
                complex dtype of that precision); each parameter's own if left out.
            capturable: keep the step count on the parameters' device, so that a CUDA graph may capture the step.
        """
        leaves, spec = tree.flatten(params)
        _check_params(leaves, params, self.rule)
        numbers = self.hparams() if hparams is None else hparams
        where = [leaf.device if capturable else torch.device("cpu") for leaf in leaves]
        state = {}
        for slot in (Slot("step", scalar=True), *self.rule.slots):
            if slot.name != "step" and not self.rule.needs(slot, numbers, self.flags):
                continue
            begins = hyper.PerLeaf([None] * len(leaves))
            init = str(slot.init)
            if init in self.rule.hparams:
                begins = hyper.PerLeaf(tree.broadcast(numbers[init], params, f"hparams[{init!r}]"))
            shared: dict[Any, Tensor | None] = {}
            column = []
            for leaf, device, begin in zip(leaves, where, begins, strict=True):
                key = (device, id(begin)) if slot.scalar else id(leaf)
                if key not in shared or not slot.scalar:
                    dtype = _slot_dtype(leaf, slot_dtype)
                    if slot.scalar:
                        dtype = None if slot.name == "step" or device.type == "mps" else torch.float64
                    shared[key] = slot.first(leaf, {init: at(begin, 0)}, dtype=dtype, device=device)
                column.append(shared[key])
            state[slot.name] = tree.unflatten(column, spec)
        return state

    def __call__(
        self, params: Tree, grads: Tree, state: State, hparams: Mapping[str, Any], *, donate: bool = False
    ) -> tuple[Tree, State]:
        """One step: the new params and the new state, of the same structure, shapes, dtypes and devices.

        Differentiable in everything that is a tensor, and usable under every torch.func transform and torch.compile.

        Args:
            params: a pytree of floating-point or complex tensors; complex ones are taken as pairs of reals.
            grads: a tree like params of tensors of each parameter's shape, dtype and device, or None: a parameter
                without a gradient is returned as it is, with its slots and its step count. None may stand for a
                subtree. Some optimizers take sparse gradients.
            state: from `init` or an earlier step.
            hparams: from `self.hparams`; see there.
            donate: give up params and the slots of the state: the step may write its results into them. What a step
                before left alone, for want of a gradient or as a whole, is still the tensor that it was given. Ignored
                where a derivative is wanted, inside torch.func transforms, and where two of them share memory.

        Raises:
            ValueError, TypeError: a structure, shape, dtype or device that does not fit, naming the leaf by its path.
                Nothing has been changed by then.
        """
        if self.rule.ascent is not None:
            grads = at_the_top(self, params, grads, hparams)
        leaves, spec = self.leaves(params, grads, state, hparams)
        donate = donate and distinct([leaves])
        new = step(self.rule, tuple(self.flags.values()), leaves, backend=self.backend, donate=donate)
        slots = {"step": new.steps, **new.slots, **new.scalars}
        return tree.unflatten(new.params, spec), {name: tree.unflatten(slots[name], spec) for name in state}

    def ascent(self, hparams: Mapping[str, Any]) -> tuple["PureOptimizer", dict[str, Any]]:
        """What leads to the point at which the gradient is to be taken, and its numbers of these."""
        assert self.rule.ascent is not None
        uphill, prefix = self.rule.ascent
        flags = {"maximize": self.flags.get("maximize", False)}
        return PureOptimizer(uphill.rule, flags, self.backend), {
            name: hparams[prefix + name] for name in uphill.rule.hparams
        }

    def leaves(self, params: Tree, grads: Tree, state: State, numbers: Mapping[str, Any]) -> tuple[Leaves, tree.Spec]:
        """Everything checked and flattened, leaf beside leaf; a leaf without a gradient has None among the grads."""
        columns = hyper.columns(self.rule.hparams, numbers)
        self._check_slots(state, numbers)
        ps, spec = tree.flatten(params)
        _check_params(ps, params, self.rule)
        gs = tree.flatten_like(grads, params, spec, "grads")
        flat = {name: tree.flatten_like(value, params, spec, f"state[{name!r}]") for name, value in state.items()}
        steps = flat.pop("step")
        scalars = {slot.name: flat.pop(slot.name) for slot in self.rule.scalars if slot.name in flat}
        _check_columns(self.rule, ps, gs, flat, params)
        _check_scalars({"step": steps, **scalars}, params)
        labels = hyper.labels(self.rule.hparams)
        columns = [hyper.broadcast(c, params, ps, label) for c, label in zip(columns, labels, strict=True)]
        slots = {slot.name: flat[slot.name] for slot in self.rule.tensors if slot.name in flat}
        return Leaves(ps, gs, slots, steps, columns, scalars), spec

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


def _slot_dtype(p: Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
    return dtype.to_complex() if dtype is not None and p.is_complex() and not dtype.is_complex else dtype


def _check_params(leaves: Sequence[Any], params: Tree, rule: Rule) -> None:
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{tree.paths(params, 'params')[index]} is a {type(leaf).__name__}; params holds tensors only"
            )
        if not leaf.dtype.is_floating_point and not leaf.dtype.is_complex:
            path = tree.paths(params, "params")[index]
            raise TypeError(f"{path} has dtype {leaf.dtype}; an optimizer updates floating-point or complex tensors")
        if problem := rule.unfit(leaf):
            path = tree.paths(params, "params")[index]
            raise ValueError(f"{path} cannot be updated by {rule.name}: {problem}")


def _check_columns(rule: Rule, ps: list[Tensor], gs: list[Any], slots: Mapping[str, list[Any]], params: Tree) -> None:
    """Raise TypeError or ValueError where a gradient or a slot is not as its parameter needs it."""
    shapes, devices, dtypes = ([getattr(p, name) for p in ps] for name in ("shape", "device", "dtype"))
    shaped = {slot.name: slot for slot in rule.tensors}
    for name, column in (("grads", gs), *slots.items()):
        wanted = shapes
        like = column
        if name == "grads":
            like = [p if t is None else t for t, p in zip(column, ps, strict=True)]
        elif shaped[name].shape != "like":
            wanted = [shaped[name].shape_for(p) for p in ps]
            like = [p if t is None and shape is None else t for t, p, shape in zip(column, ps, wanted, strict=True)]
            wanted = [p.shape if shape is None else shape for p, shape in zip(ps, wanted, strict=True)]
        if (
            all(isinstance(t, Tensor) and (t.layout == torch.strided or _by_rows(rule, t, name)) for t in like)
            and [t.shape for t in like] == wanted
            and [t.device for t in like] == devices
            and ([t.dtype for t in like] == dtypes or (name != "grads" and all(map(_alike, like, ps))))
        ):
            continue
        root = name if name == "grads" else f"state[{name!r}]"
        for index, (t, p, shape) in enumerate(zip(like, ps, wanted, strict=True)):
            _check_like(t, p, tuple(shape), root, params, index, rule)


def _check_scalars(scalars: Mapping[str, list[Any]], params: Tree) -> None:
    for name, column in scalars.items():
        for index, value in enumerate(column):
            if not isinstance(value, Tensor) or value.dim() != 0:
                path = tree.paths(params, "")[index]
                raise ValueError(f"state[{name!r}]{path} must be a 0-d tensor; got {value!r}")


def _by_rows(rule: Rule, t: Tensor, name: str) -> bool:
    return name == "grads" and rule.rows is not None and t.layout == torch.sparse_coo


def _alike(t: Tensor, p: Tensor) -> bool:
    """Whether a slot's dtype is one that its parameter's may have."""
    return t.dtype.is_complex == p.dtype.is_complex and (t.dtype.is_complex or t.dtype.is_floating_point)


def _check_like(leaf: Any, p: Tensor, shape: tuple[int, ...], root: str, params: Tree, index: int, rule: Rule) -> None:
    sparse = isinstance(leaf, Tensor) and root == "grads" and leaf.layout == torch.sparse_coo
    if sparse and rule.rows is None:
        path = tree.paths(params, root)[index]
        raise TypeError(f"{path} is sparse; {rule.name} does not support sparse gradients, make it dense by to_dense()")
    if not isinstance(leaf, Tensor) or not (sparse or leaf.layout == torch.strided) or not _alike(leaf, p):
        got = f"{leaf.layout}, {leaf.dtype}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
        kind = "complex" if p.is_complex() else "floating-point"
        raise TypeError(f"{tree.paths(params, root)[index]} is {got}; a dense {kind} tensor is needed")
    if tuple(leaf.shape) != shape or leaf.device != p.device:
        path = tree.paths(params, "")[index]
        wanted = "" if shape == tuple(p.shape) else f", so that a shape of {shape} is needed"
        raise ValueError(
            f"{root}{path} has shape {tuple(leaf.shape)} on {leaf.device}, "
            f"but params{path} has shape {tuple(p.shape)} on {p.device}{wanted}"
        )
    if root == "grads" and leaf.dtype != p.dtype:
        path = tree.paths(params, "")[index]
        raise ValueError(f"grads{path} is {leaf.dtype}, but params{path} is {p.dtype}")


def at_the_top(opt: Any, params: Tree, grads: Any, hparams: Mapping[str, Any]) -> Tree:
    """The gradients at the point to which an optimizer's ascent leads; `grads` is a function of params."""
    if not callable(grads):
        raise TypeError(
            f"{opt!r} takes gradients at two points: in the place of grads give a function params -> grads, such "
            f"as torch.func.grad(loss); got a {type(grads).__name__}"
        )
    ascent, numbers = opt.ascent(hparams)
    top, _ = ascent(params, grads(params), ascent.init(params, numbers), numbers)
    return grads(top)


def step_together(
    opts: Sequence[PureOptimizer], labels: Sequence[Any], parts: Sequence[Leaves], *, donate: bool = False
) -> list[Leaves]:
    """One step of several optimizers, each of leaves of its own, which have been checked.

    Args:
        opts: the optimizers.
        labels: what is measured is measured of the parts of one label together, or of all; see `measured_together`.
        parts: the leaves of each.
        donate: as for a step.
    """
    flags = [tuple(opt.flags.values()) for opt in opts]

    def measure(i: int, level: int, sums: Mapping[str, Any]) -> dict[str, Any]:
        return measured(opts[i].rule, flags[i], parts[i], level, sums, backend=opts[i].backend)

    sums = measured_together([opt.rule for opt in opts], labels, measure)
    donate = donate and distinct(parts)
    return [
        step(opt.rule, chosen, leaves, backend=opt.backend, donate=donate, sums=found)
        for opt, chosen, leaves, found in zip(opts, flags, parts, sums, strict=True)
    ]


def distinct(parts: Sequence[Leaves]) -> bool:
    """Whether no tensor that is written shares memory with another: a result would change what is still to be read."""
    columns = [column for leaves in parts for column in (leaves.params, *leaves.slots.values())]
    written = [t for tensors in columns for t in tensors if t is not None and t.numel()]
    grads = [g for leaves in parts for g in leaves.grads if g is not None and g.layout == torch.strided]
    read = {id(g): g for g in grads if g.numel()}
    tensors = [*written, *read.values()]
    if observed.wrapped(*tensors):
        return len({id(t) for t in written}) == len(written)
    return memory.apart(tensors) and not any(map(memory.folded, written))
