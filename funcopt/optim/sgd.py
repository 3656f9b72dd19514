"""Plain gradient descent, and its average: SGD and ASGD."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import rules
from funcopt.adapter import Adapter

__all__ = ["ASGD", "SGD"]


class SGD(Adapter):
    """`torch.optim.SGD` over `funcopt.sgd`, where the equation stands: the same arguments and defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        momentum: μ ≥ 0. The state has `momentum_buffer` where it is not 0.
        dampening: τ, for the momentum's second step and on.
        weight_decay: L2 penalty ≥ 0, a number or a 1-element tensor; 0 for parameters with sparse gradients.
        nesterov: Nesterov's momentum; needs momentum > 0 and no dampening.
        maximize: go uphill.
        foreach, fused: accepted, and without effect.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _counts = False
    _rule = rules.sgd.rule
    _older = {"nesterov": False, "maximize": False, "foreach": None, "differentiable": False, "fused": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class ASGD(Adapter):
    """`torch.optim.ASGD` over `funcopt.asgd`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        lambd: decay ≥ 0 of weights and of the learning rate.
        alpha: the power of the learning rate's decay.
        t0: the step at which averaging begins.
        weight_decay: L2 penalty ≥ 0.
        foreach: accepted, and without effect.
        maximize: go uphill.
        differentiable: let autograd through the step.
        capturable: keep scalars of the state on the parameters' device, so that a CUDA graph may capture the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.asgd.rule
    _older = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())
