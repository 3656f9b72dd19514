r"""What becomes of weights and steps: decoupled weight decay, gradient centralization, cautious steps.

    decoupled_weight_decay   p ← (1 - lr·λ)·p before the step
    centralize               gᵢ ← gᵢ - mean(gᵢ),   i an index of the first dimension, for parameters of two and more
    cautious                 u ← u·φ·n/(Σφ + 1),   u a step of n elements, φ = 1 where it goes downhill by g, else 0

References: Loshchilov & Hutter 2019, algorithm 1, https://arxiv.org/abs/1711.05101; Yong et al. 2020, equation 1,
https://arxiv.org/abs/2004.01461; Liang et al. 2024, algorithm 1, https://arxiv.org/abs/2411.16085
"""

from typing import Any

from funcopt.hyper import nonnegative
from funcopt.ops import is_matrix, mean, size, total, where
from funcopt.transforms.layer import Layer, layered

__all__ = ["cautious", "centralize", "decoupled_weight_decay"]

decay = Layer(
    "decoupled_weight_decay",
    hparams={"weight_decay": nonnegative(1e-2, "weight_decay value")},
    coefficients=lambda lr, weight_decay: {"decay": 1 - lr * weight_decay},
    weights=lambda p, c: c.decay * p,
    takes=("lr",),
)


def decoupled_weight_decay(opt: Any = None, weight_decay: float = 1e-2, *, prefix: str = "") -> Any:
    """The optimizer, before whose steps weights decay, by the factor 1 - lr·weight_decay.

    Args:
        opt: a pure optimizer with a learning rate; left out, the function that puts the transform around one is
            returned.
        weight_decay: λ ≥ 0; `opt.hparams(weight_decay=…)` overrules it.
        prefix: put before the name of the number, where the optimizer has a `weight_decay` already, as most have.

    Raises:
        TypeError, ValueError: not an optimizer, one without lr, a name that is taken, a negative number.
    """
    return layered(opt, decay, prefix, weight_decay=weight_decay)


def centered(p, g, slots, c):
    return g - mean(g, "units") if is_matrix(g) else g


center = Layer("centralize", before=centered, elementwise=False, complex=False)


def centralize(opt: Any = None) -> Any:
    """The optimizer on gradients whose mean, for each index of a parameter's first dimension, is taken off.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.

    Raises:
        TypeError: not an optimizer. ValueError, at a step: complex parameters.
    """
    return layered(opt, center)


def downhill(old, g, p, slots, c, flags):
    step = p - old
    agrees = step * g > 0 if flags.get("maximize") else step * g < 0
    scale = size(step) / (total(where(agrees, 1.0, 0.0)) + 1)
    return old + where(agrees, scale * step, 0.0), ()


agreeing = Layer("cautious", after=downhill, elementwise=False)


def cautious(opt: Any = None) -> Any:
    """The optimizer, of whose steps only those elements are taken that the gradient agrees with, the larger for it.

    A step is the whole change of a parameter, weight decay with it. Differentiable with the choice held fixed.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.

    Raises:
        TypeError: not an optimizer.
    """
    return layered(opt, agreeing)
