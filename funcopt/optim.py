"""The optimizers of torch.optim by their names there: the same arguments, numbers, state and state_dicts.

A state_dict of either library loads into the other's class of the same name, in the middle of training.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import rules
from funcopt.adapter import Adapter, from_pure
from funcopt.declaration import Rule

__all__ = ["SGD", "Adam", "AdamW", "from_pure"]


class SGD(Adapter):
    """`torch.optim.SGD` over `funcopt.sgd`, where the equation stands: the same arguments and defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        momentum: μ ≥ 0. The state has `momentum_buffer` where it is not 0.
        dampening: τ, for the momentum's second step and on.
        weight_decay: L2 penalty ≥ 0.
        nesterov: Nesterov's momentum; needs momentum > 0 and no dampening.
        maximize: go uphill.
        foreach, fused: accepted, and without effect.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.

    Raises:
        ValueError: a number out of its range, or a backend that cannot run here, with the reason.
    """

    _counts = False
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
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        self._begin(params, defaults, backend)

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        return rules.sgd.rule


class Adam(Adapter):
    """`torch.optim.Adam` over `funcopt.adam`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the two moments, each in [0, 1): two floats or two 1-element tensors.
        eps: ≥ 0, added to the root of the second moment.
        weight_decay: L2 penalty ≥ 0.
        amsgrad: divide by the largest second moment so far.
        foreach, fused: accepted, and without effect.
        maximize: go uphill.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        decoupled_weight_decay: decay as AdamW does.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.

    Raises:
        ValueError: a number out of its range, or a backend that cannot run here, with the reason.
    """

    _older = {  # noqa: RUF012
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
        "fused": None,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        backend: str = "auto",
    ) -> None:
        if isinstance(betas, tuple | list):
            betas = tuple(beta.squeeze() if isinstance(beta, Tensor) else beta for beta in betas)  # type: ignore[assignment]
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._begin(params, defaults, backend)

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        return (rules.adamw if group["decoupled_weight_decay"] else rules.adam).rule

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        tensors = [isinstance(beta, Tensor) for beta in group["betas"]]
        if any(tensors) != all(tensors) or not all(isinstance(beta, float | Tensor) for beta in group["betas"]):
            raise ValueError(f"betas must be either both floats or both Tensors; got {group['betas']!r}")
        if any(tensors) and group.get("foreach") and not group.get("capturable"):
            raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")


class AdamW(Adam):
    """`torch.optim.AdamW` over `funcopt.adamw`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the two moments, each in [0, 1): two floats or two 1-element tensors.
        eps: ≥ 0, added to the root of the second moment.
        weight_decay: decoupled decay ≥ 0; a step multiplies the weights by 1 - lr·weight_decay.
        amsgrad: divide by the largest second moment so far.
        maximize: go uphill.
        foreach, fused: accepted, and without effect.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.

    Raises:
        ValueError: a number out of its range, or a backend that cannot run here, with the reason.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            backend=backend,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
