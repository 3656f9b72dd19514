"""Gradients of a scaled loss, scaled back: `unscale`; and what GradScaler hands to an optimizer."""

from typing import Any

from funcopt.core import PureOptimizer
from funcopt.hyper import Number
from funcopt.ops import reciprocal
from funcopt.transforms.layer import Layer, layered

__all__ = ["scaled", "unscale"]

layer = Layer(
    "unscale",
    hparams={"grad_scale": Number(1.0, "grad_scale", low=0.0)},
    coefficients=lambda grad_scale: {"inverse": reciprocal(grad_scale)},
    before=lambda p, g, slots, c: c.inverse * g,
)

found = Layer(
    "found_inf",
    hparams={"found_inf": Number(0.0, "found_inf", low=0.0)},
    coefficients=lambda found_inf: {"skip": found_inf},
)


def unscale(opt: Any = None, grad_scale: float = 1.0, *, prefix: str = "") -> Any:
    """The optimizer on gradients divided by the scale of the loss, as torch.amp.GradScaler multiplies it.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        grad_scale: the scale > 0; `opt.hparams(grad_scale=…)`, a number or a tensor, overrules it.
        prefix: put before the name of the number, where the optimizer has a `grad_scale` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative scale.
    """
    return layered(opt, layer, prefix, grad_scale=grad_scale)


def scaled(opt: PureOptimizer) -> Any:
    """The optimizer as GradScaler drives it, by the numbers `scaler_grad_scale` and `scaler_found_inf`."""
    return layered(layered(opt, layer, "scaler_"), found, "scaler_")
