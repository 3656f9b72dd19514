r"""Clipping by the global norm (Pascanu, Mikolov & Bengio 2013, algorithm 1).

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),   ‖g‖ the 2-norm of all gradients together

As torch.nn.utils.clip_grad_norm_, with its 1e-6. The norm is summed in float64. Differentiable everywhere but where the
norm is the bound; there the derivative is half of either side's. Reference: https://arxiv.org/abs/1211.5063
"""

from funcopt.core import PureOptimizer
from funcopt.hyper import nonnegative
from funcopt.ops import minimum, sqrt
from funcopt.transforms.layer import Layer, layered

__all__ = ["clip_by_global_norm"]


def coefficients(squares, max_norm):
    return {"factor": minimum(max_norm / (sqrt(squares) + 1e-6), 1.0)}


def before(p, g, c):
    return c.factor * g


layer = Layer(
    "clip_by_global_norm",
    hparams={"max_norm": nonnegative(1.0, "max_norm")},
    measures={"squares": lambda x: x * x},
    coefficients=coefficients,
    before=before,
)


def clip_by_global_norm(opt: PureOptimizer, max_norm: float = 1.0, *, prefix: str = "") -> PureOptimizer:
    """The optimizer on gradients that are scaled down, all by one factor, where their 2-norm exceeds a bound.

    A class takes the norm over all of its groups; a group that has a max_norm of its own has a factor of its own.

    Args:
        opt: a pure optimizer.
        max_norm: the bound ≥ 0, as `torch.nn.utils.clip_grad_norm_` has it; `opt.hparams(max_norm=…)` overrules it.
        prefix: put before the name of the number, where the optimizer has a `max_norm` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative bound.
    """
    return layered(opt, layer, prefix, max_norm=max_norm)
