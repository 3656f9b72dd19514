"""Everything that training changes, as one value: parameters, buffers, the optimizer's state, the number of steps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from funcopt import observed, tree

__all__ = ["TrainState"]


@tree.register
@dataclass(frozen=True, eq=False, repr=False)
class TrainState:
    """Parameters, buffers, the state of a pure optimizer and the number of steps: an immutable pytree of tensors.

    The model and the optimizer stay outside, so a state goes through every torch.func transform, through torch.compile,
    to another device and into a checkpoint as a whole:

        opt = funcopt.adamw()
        hparams = opt.hparams(lr=1e-3)
        state = TrainState.create(model, opt, hparams)

        def loss(params, state, x, y):
            output, state = state.replace(params=params).apply(model, x)
            return torch.nn.functional.mse_loss(output, y), state

        for x, y in batches:
            grads, state = torch.func.grad(loss, has_aux=True)(state.params, state, x, y)
            state = state.update(opt, grads, hparams)

    Every method returns a new state, and leaves this one, and the model, as they were. Only `load_into` writes.

    Attributes:
        params: what the optimizer updates, by name: the parameters that require a gradient, once each where they are
            tied.
        buffers: what else the model reads, by name: its buffers, whether its state_dict has them or not, and its
            frozen parameters. `apply` gives buffers new values, `update` never does.
        opt_state: the optimizer's state, of trees like params.
        step: the number of updates, an integer tensor of shape () that is where the optimizer's step counts are, which
            is the CPU unless they are capturable. It counts updates that the optimizer skips, too.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    opt_state: Any
    step: Tensor

    @classmethod
    def create(
        cls, model: nn.Module, opt: Any, hparams: Mapping[str, Any] | None = None, **options: Any
    ) -> "TrainState":
        """The state before the first step. Its tensors are copies, detached: the model keeps its own.

        Args:
            model: the model. A parameter that does not require a gradient counts as a buffer; there is no state of the
                optimizer for it.
            opt: a pure optimizer, such as funcopt.adamw(): anything with `hparams()`, `init(params, hparams)` and a
                call `(params, grads, state, hparams) -> (params, state)`.
            hparams: its numbers, on which its slots may depend; the defaults if left out.
            **options: for `opt.init`, such as slot_dtype and capturable.

        Raises:
            TypeError: no module, no pure optimizer, or a parameter that opt does not take.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a torch.nn.Module; got a {type(model).__name__}")
        if not hasattr(opt, "init"):
            raise TypeError(f"opt is a pure optimizer, such as funcopt.adamw(); got a {type(opt).__name__}: {opt!r}")
        params = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        others = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        buffers = {name: b.detach().clone() for name, b in others.items() if name not in params}
        opt_state = opt.init(params, opt.hparams() if hparams is None else hparams, **options)
        counts, _ = tree.flatten(opt_state.get("step") if isinstance(opt_state, Mapping) else None)
        device = next((count.device for count in counts if isinstance(count, Tensor)), "cpu")
        return cls(params, buffers, opt_state, torch.zeros((), dtype=torch.int64, device=device))

    def replace(self, **changes: Any) -> "TrainState":
        """The state with other params, buffers, opt_state or step."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        sizes = []
        for name in ("params", "buffers", "opt_state"):
            tensors = [t for t in tree.flatten(getattr(self, name))[0] if isinstance(t, Tensor)]
            sizes.append(f"{name}: {len(tensors)} tensors, {sum(t.numel() for t in tensors):,} elements")
        return f"TrainState(step={self.step!r}; {'; '.join(sizes)})"

    # ---- a training step --------------------------------------------------------------------------------------------

    def apply(self, model: nn.Module, /, *args: Any, **kwargs: Any) -> tuple[Any, "TrainState"]:
        """What the model gives with this state's parameters and buffers, and the state with the buffers after it.

        BatchNorm's running statistics, for one, are new in the state that is returned, and as they were in this one and
        in the model. Works inside torch.func transforms. Under vmap over the inputs alone, a module that writes to its
        buffers in place, as BatchNorm does in training, cannot keep one value for each input: stack the state too.
        Frozen parameters are not copied first, so the model's forward must not write to them.

        Args:
            model: the model that the state was made of, or one with the same names; in training or evaluation mode.
            *args: the model's arguments.
            **kwargs: the model's keyword arguments.

        Raises:
            ValueError: the model has other parameters or buffers than the state.
        """
        self._check(model)
        own = {name for name, _ in model.named_buffers()}
        given = {**self.params, **{name: b.clone() if name in own else b for name, b in self.buffers.items()}}
        try:
            output = functional_call(model, given, args, kwargs)
        except RuntimeError as error:
            if observed.transformed() and "place" in str(error):
                error.add_note(
                    "If this is a buffer that the model updates: vmap over the state too; see TrainState.stack."
                )
            raise
        # A module may write to a buffer, or put another tensor in its place, which functional_call puts into the dict.
        return output, self.replace(buffers={name: given[name] for name in self.buffers})

    def update(self, opt: Any, grads: Any, hparams: Mapping[str, Any], **options: Any) -> "TrainState":
        """The state after a step of the optimizer: new params and opt_state, one more step, the very same buffers.

        Args:
            opt: the pure optimizer that the state was made with.
            grads: a dict like params; None for a parameter leaves it and its state alone.
            hparams: the numbers of this step, from `opt.hparams`.
            **options: for the optimizer's call. donate=True gives this state's params and opt_state up.
        """
        params, opt_state = opt(self.params, grads, self.opt_state, hparams, **options)
        return self.replace(params=params, opt_state=opt_state, step=self.step + 1)

    # ---- ensembles --------------------------------------------------------------------------------------------------

    @classmethod
    def stack(cls, states: Sequence["TrainState"]) -> "TrainState":
        """Several states as one, with a new first dimension in every tensor, for torch.vmap.

        Raises:
            ValueError: no states, or states of different structure or shapes.
        """
        if not states:
            raise ValueError("stack takes one state or more; got none")
        first, *rest = states
        leaves, spec = tree.flatten(first)
        for index, state in enumerate(rest, 1):
            others = tree.flatten_like(state, first, spec, f"states[{index}]", "states[0]")
            _check_shapes(leaves, others, tree.paths(first, f"states[{index}]"), "states[0]")
        stacked: TrainState = _each(lambda *tensors: torch.stack(tensors), first, *rest)
        return stacked

    def unbind(self) -> list["TrainState"]:
        """The states that were stacked, as views of this one's tensors.

        Raises:
            ValueError: this state is a single one.
        """
        if self.step.dim() == 0:
            raise ValueError("a single state cannot be taken apart; unbind takes one that TrainState.stack has made")
        return [_each(lambda t, i=i: t[i], self) for i in range(len(self.step))]

    # ---- elsewhere, and back ----------------------------------------------------------------------------------------

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> "TrainState":
        """The state on another device, in another dtype, or both: `to("cuda")`, `to(torch.float64)`, `to(0, dtype)`.

        As by `nn.Module.to`, floating-point tensors are cast, the optimizer's slots too, and all are moved. No module
        is asked: where one keeps a dtype, as RunningMeanStd does, cast the model before `create`. Step counts, and
        slots that are one number for a parameter, as NAdam's `mu_product`, keep their dtype, and stay on the CPU where
        they are there: counts that a CUDA graph may capture are made on the device, by
        `create(model, opt, capturable=True)` with the model there.

        Args:
            device: where to, or the dtype.
            dtype: a floating-point dtype.
            non_blocking: do not wait for copies from pinned memory.

        Raises:
            TypeError: a dtype that is not floating-point.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise TypeError(f"to takes one dtype; got {device} and {dtype}")
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"to takes a floating-point dtype; got {dtype}")

        def moved(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None, non_blocking=non_blocking)

        def moved_count(t: Tensor) -> Tensor:
            return t if t.device.type == "cpu" else t.to(device=device, non_blocking=non_blocking)

        def moved_state(state: Any) -> Any:
            if not isinstance(state, Mapping):
                return _each(moved, state)
            return {
                name: _each(moved_count if name == "step" or self._counted(slot) else moved, slot)
                for name, slot in state.items()
            }

        params, buffers = _each(moved, self.params), _each(moved, self.buffers)
        return TrainState(params, buffers, moved_state(self.opt_state), moved_count(self.step))

    def _counted(self, slot: Any) -> bool:
        """Whether a part of the optimizer's state is a number for each parameter, whatever its shape."""
        if not isinstance(slot, Mapping) or slot.keys() != self.params.keys():
            return False
        numbers = all(t is None or (isinstance(t, Tensor) and t.shape == self.step.shape) for t in slot.values())
        return numbers and any(p.shape != self.step.shape for p in self.params.values())

    def state_dict(self) -> dict[str, Any]:
        """Plain dicts of detached tensors, which torch.save takes, and torch.load with weights_only=True.

        The tensors are this state's own, as those of an nn.Module's state_dict are: copy them where you donate.
        """
        plain: dict[str, Any] = _each(Tensor.detach, vars(self))
        return plain

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> "TrainState":
        """The state with the values of a state_dict, copied, in the dtypes and on the devices that this one has.

        What the state of L-BFGS has grows with its steps: that is `TrainState(**state_dict)`.

        Raises:
            ValueError: a key is missing or one too many, or a tensor has another shape.
        """
        own = vars(self)
        leaves, spec = tree.flatten(own)
        given = tree.flatten_like(state_dict, own, spec, "state_dict", "the state")
        _check_shapes(leaves, given, tree.paths(own, "state_dict"), "the state")

        def loaded(old: Tensor, new: Tensor) -> Tensor:
            return new.detach().to(old.device, old.dtype, copy=True)

        return TrainState(**_each(loaded, own, tree.unflatten(given, spec)))

    def load_into(self, model: nn.Module) -> None:
        """Write params and buffers into a model, in the model's dtypes and on its devices.

        Raises:
            ValueError: the model has other names or shapes than the state; nothing has been written by then.
        """
        self._check(model)
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        values = {name: t for part in (self.params, self.buffers) for name, t in part.items()}
        _check_shapes(own.values(), [values[n] for n in own], [f"the state's {n}" for n in own], "the model")
        with torch.no_grad():
            for name, t in own.items():
                t.copy_(values[name])

    def _check(self, model: nn.Module) -> None:
        """Raise ValueError where the model's parameters and buffers are not those of the state, by name."""
        own = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
        if own == self.params.keys() | self.buffers.keys():
            return
        missing = sorted(own - self.params.keys() - self.buffers.keys())
        unknown = sorted((self.params.keys() | self.buffers.keys()) - own)
        what = [f"the state has no {', '.join(missing)}"] * bool(missing)
        what += [f"the model has no {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{'; '.join(what)}; TrainState.create makes a state of all parameters and buffers of a model")


torch.serialization.add_safe_globals([TrainState])  # torch.load takes it with weights_only=True


def _each(function: Callable[..., Tensor], *trees: Any) -> Any:
    """The tree of what becomes of each tensor; what is none is the last tree's.

    A tensor that the trees have in several places, such as a step count that parameters share, is still one afterwards.
    """
    done: dict[tuple[int, ...], Tensor] = {}

    def once(*leaves: Any) -> Any:
        if not isinstance(leaves[0], Tensor):
            return leaves[-1]
        key = tuple(map(id, leaves))
        if key not in done:
            done[key] = function(*leaves)
        return done[key]

    return tree.map(once, *trees)


def _check_shapes(wanted: Iterable[Any], given: Iterable[Any], paths: Iterable[str], owner: str) -> None:
    for own, new, path in zip(wanted, given, paths, strict=True):
        if isinstance(own, Tensor) and (not isinstance(new, Tensor) or new.shape != own.shape):
            got = f"has shape {tuple(new.shape)}" if isinstance(new, Tensor) else f"is a {type(new).__name__}"
            raise ValueError(f"{path} {got}; {owner} has a tensor of shape {tuple(own.shape)} there")
