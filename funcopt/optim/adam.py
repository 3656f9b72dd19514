"""Adam and its kin: Adam, AdamW, Adamax, NAdam, RAdam and SparseAdam."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import rules
from funcopt.adapter import Adapter
from funcopt.declaration import Rule

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam"]


class Adam(Adapter):
    """`torch.optim.Adam` over `funcopt.adam`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the two moments, each in [0, 1): two floats or two 1-element tensors.
        eps: ≥ 0, added to the root of the second moment.
        weight_decay: L2 penalty ≥ 0.
        amsgrad: divide by the largest second moment so far.
        foreach, fused: accepted; fused keeps step counts on the parameters' device, and nothing else changes.
        maximize: go uphill.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        decoupled_weight_decay: decay as AdamW does.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
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
        self._begin(locals())

    def _rule_of(self, group: Mapping[str, Any]) -> Rule:
        return (rules.adamw if group["decoupled_weight_decay"] else rules.adam).rule

    def _check_defaults(self, defaults: Mapping[str, Any]) -> None:
        super()._check_defaults(defaults)
        betas = defaults["betas"]
        tensors = [isinstance(beta, Tensor) for beta in betas]
        if any(tensors) != all(tensors) or not all(isinstance(beta, float | Tensor) for beta in betas):
            raise ValueError(f"betas must be either both floats or both Tensors; got {betas!r}")
        if any(tensors) and defaults.get("foreach") and not defaults.get("capturable"):
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
        foreach, fused: accepted; fused keeps step counts on the parameters' device, and nothing else changes.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
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


class Adamax(Adapter):
    """`torch.optim.Adamax` over `funcopt.adamax`, where the equation stands: the same arguments, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the moment and of the norm, each in [0, 1).
        eps: ≥ 0, added to the gradient's absolute value.
        weight_decay: L2 penalty ≥ 0.
        foreach: accepted, and without effect.
        maximize: go uphill.
        differentiable: let autograd through the step.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.adamax.rule
    _older = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class NAdam(Adapter):
    """`torch.optim.NAdam` over `funcopt.nadam`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: ≥ 0, added to the root of the second moment.
        weight_decay: L2 penalty ≥ 0, or decay beside the step.
        momentum_decay: ψ ≥ 0, how fast the momentum comes up to betas[0].
        decoupled_weight_decay: decay as AdamW does.
        foreach: accepted, and without effect.
        maximize: go uphill.
        capturable: keep scalars of the state on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.nadam.rule
    _older = {  # noqa: RUF012
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class RAdam(Adapter):
    """`torch.optim.RAdam` over `funcopt.radam`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: ≥ 0, added to the root of the second moment.
        weight_decay: L2 penalty ≥ 0, or decay beside the step.
        decoupled_weight_decay: decay as AdamW does.
        foreach: accepted, and without effect.
        maximize: go uphill.
        capturable: keep step counts on the parameters' device, so that a CUDA graph may capture the step.
        differentiable: let autograd through the step.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.radam.rule
    _older = {  # noqa: RUF012
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
        "capturable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class SparseAdam(Adapter):
    """`torch.optim.SparseAdam` over `funcopt.sparse_adam`, where the equation stands: for sparse gradients.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups.
        lr: learning rate, a number or a 1-element tensor > 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: > 0, added to the root of the second moment.
        maximize: go uphill.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.sparse_adam.rule
    _older = {"maximize": False}  # noqa: RUF012
    _dense = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())
        placed = [((k, i), p) for k, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])]
        if places := [list(place) for place, p in placed if p.is_sparse]:
            raise ValueError(f"Sparse params at indices {places}: SparseAdam requires dense parameter tensors")
        if places := [list(place) for place, p in placed if p.is_complex()]:
            raise ValueError(f"Complex params at indices {places}: SparseAdam does not support complex parameters")

    def _counted(self, count: Tensor) -> int:
        return int(count)
