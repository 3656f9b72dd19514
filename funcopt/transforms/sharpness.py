r"""Sharpness-aware minimization (Foret et al. 2021, algorithm 1): steps by the gradient at the worst point nearby.

    ĝ = ∇f(p),   p̂ = p + ρ·ĝ/‖ĝ‖,   ‖ĝ‖ the 2-norm of all gradients together
    p ← the optimizer's step from p by ∇f(p̂)

Reference: https://arxiv.org/abs/2010.01412
"""

from typing import Any

from funcopt.factory import rule
from funcopt.hyper import nonnegative
from funcopt.ops import sqrt
from funcopt.transforms.layer import Layer, layered

__all__ = ["sam"]

normalized = Layer(
    "normalized",
    measures={"squares": lambda x: x * x},
    coefficients=lambda squares: {"rate": 1 / (sqrt(squares) + 1e-12)},
    before=lambda p, g, slots, c: c.rate * g,
)

uphill = rule(
    "uphill",
    hparams={"rho": nonnegative(0.05, "rho value")},
    coefficients=lambda t, rho: {"rho": rho},
    update=lambda p, g, c, maximize: (p - c.rho * g if maximize else p + c.rho * g, ()),
    flags={"maximize": False},
    rows=lambda numbers: True,
)

layer = Layer(
    "sam",
    hparams={"rho": nonnegative(0.05, "rho value")},
    coefficients=lambda rho: {},
    ascent=lambda scope: layered(uphill(), normalized, scope=scope),
)


def sam(opt: Any = None, rho: float = 0.05, *, prefix: str = "") -> Any:
    """The optimizer by the gradient at the worst point within rho: it takes two gradients a step.

    In the place of grads it takes a function `params -> grads`, such as `torch.func.grad(loss)`; a class takes a
    closure that zeroes gradients, computes the loss and calls backward(), as for LBFGS.

        params, state = funcopt.sam(funcopt.adamw())(params, torch.func.grad(loss), state, hparams)

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        rho: ρ ≥ 0, how far to look; `opt.hparams(rho=…)` overrules it.
        prefix: put before the name of the number, where the optimizer has a `rho` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative number.
    """
    return layered(opt, layer, prefix, rho=rho)
