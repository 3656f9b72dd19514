"""Steps scaled by what gradients were before: Adadelta, Adagrad, RMSprop and Rprop."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import rules
from funcopt.adapter import Adapter
from funcopt.core import State, Tree

__all__ = ["Adadelta", "Adagrad", "RMSprop", "Rprop"]


class Adadelta(Adapter):
    """`torch.optim.Adadelta` over `funcopt.adadelta`, where the equation stands: the same arguments, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        rho: decay rate of both averages, in [0, 1].
        eps: ≥ 0, added inside both roots.
        weight_decay: L2 penalty ≥ 0.
        foreach: accepted, and without effect.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        maximize: go uphill.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.adadelta.rule
    _older = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class Adagrad(Adapter):
    """`torch.optim.Adagrad` over `funcopt.adagrad`, where the equation stands: the same arguments, and `backend`.

    Its state is there from the beginning.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        lr_decay: ≥ 0; the learning rate is divided by 1 + (t - 1)·lr_decay at step t.
        weight_decay: L2 penalty ≥ 0; 0 for parameters with sparse gradients.
        initial_accumulator_value: what the sums of squares begin with, ≥ 0.
        eps: ≥ 0, added to the root of the sum.
        foreach, fused: accepted; fused keeps step counts on the parameters' device, and nothing else changes.
        maximize: go uphill.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.adagrad.rule
    _older = {"foreach": None, "maximize": False, "differentiable": False, "fused": None}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())
        self._fill()

    def _fill(self) -> None:
        """Make the state of parameters that have none; torch.optim's has it from the beginning too."""
        for group in self.param_groups:
            slots = self._slots(group)
            for p in group["params"]:
                self.state[p].update(self._state_of(p, group, slots))

    def load_pure(self, params: Tree, state: State) -> None:
        """See `Adapter.load_pure`."""
        super().load_pure(params, state)
        self._fill()

    def share_memory(self) -> None:
        """Move the sums of squares to memory that processes share."""
        for state in self.state.values():
            state["sum"].share_memory_()


class RMSprop(Adapter):
    """`torch.optim.RMSprop` over `funcopt.rmsprop`, where the equation stands: the same arguments, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        alpha: decay rate ≥ 0 of the average square.
        eps: ≥ 0, added to its root.
        weight_decay: L2 penalty ≥ 0.
        momentum: μ ≥ 0. The state has `momentum_buffer` where it is not 0.
        centered: divide by the standard deviation; the state then has `grad_avg`.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        foreach: accepted, and without effect.
        maximize: go uphill.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.rmsprop.rule
    _older = {  # noqa: RUF012
        "momentum": 0,
        "centered": False,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "capturable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class Rprop(Adapter):
    """`torch.optim.Rprop` over `funcopt.rprop`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: the first step size, a number or a 1-element tensor ≥ 0.
        etas: by what step sizes shrink and grow, 0 < etas[0] < 1 < etas[1].
        step_sizes: the least and the greatest step size.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        foreach: accepted, and without effect.
        maximize: go uphill.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.rprop.rule
    _older = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())
