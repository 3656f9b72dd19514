"""What looks at a parameter as a matrix: Adafactor and Muon."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import rules
from funcopt.adapter import Adapter

__all__ = ["Adafactor", "Muon"]


class Adafactor(Adapter):
    """`torch.optim.Adafactor` over `funcopt.adafactor`, where the equation stands: the same arguments, and `backend`.

    Args:
        params: parameters, (name, parameter) pairs, or dicts of groups; not complex ones.
        lr: the largest relative step, a number or a 1-element tensor ≥ 0.
        beta2_decay: τ ≤ 0; the second moment's decay rate is 1 - t^τ at step t.
        eps: two numbers ≥ 0, or None for the first, which is then the resolution of each parameter's dtype.
        d: clipping threshold ≥ 1.
        weight_decay: decoupled decay ≥ 0; a step multiplies the weights by 1 - lr·weight_decay.
        foreach: accepted, and without effect.
        maximize: go uphill.
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _rule = rules.adafactor.rule
    _older = {"foreach": None, "maximize": False}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())


class Muon(Adapter):
    """`torch.optim.Muon` over `funcopt.muon`, where the equation stands: the same arguments, defaults, and `backend`.

    Args:
        params: matrices, (name, matrix) pairs, or dicts of groups; the other parameters of a model need an optimizer of
            their own.
        lr: learning rate, a number or a 1-element tensor ≥ 0.
        weight_decay: decoupled decay ≥ 0; a step multiplies the weights by 1 - lr·weight_decay.
        momentum: μ ≥ 0.
        nesterov: Nesterov's momentum.
        ns_coefficients: three numbers, the coefficients of Newton and Schulz's iteration.
        eps: the least norm by which a matrix is divided before it.
        ns_steps: how often it is repeated, an int from 0 to 99.
        adjust_lr_fn: None or "original", or "match_rms_adamw".
        backend: "auto", "triton", "compile" or "eager", see `funcopt.backends`.
    """

    _counts = False
    _rule = rules.muon.rule

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        self._begin(locals())
