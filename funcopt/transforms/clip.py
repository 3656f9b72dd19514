r"""Clipping: by the global norm, by each parameter's own norm, by value, and by what a weight is large.

    clip_by_global_norm   g ← g · min(1, max_norm / (‖g‖ + 1e-6)),   ‖g‖ the 2-norm of all gradients together
    clip_by_norm          the same, ‖g‖ the 2-norm of each parameter's own gradient
    clip_by_value         g ← min(max(g, -clip_value), clip_value)
    adaptive_clip         gᵢ ← gᵢ · min(1, clipping · max(‖pᵢ‖, eps) / ‖gᵢ‖),   i an index of the first dimension

Differentiable everywhere but at the bound; there the derivative is half of either side's. References: Pascanu, Mikolov
& Bengio 2013, algorithm 1, https://arxiv.org/abs/1211.5063, with the 1e-6 of torch.nn.utils.clip_grad_norm_; Brock et
al. 2021, equation 3, https://arxiv.org/abs/2102.06171
"""

from typing import Any

from funcopt.hyper import nonnegative
from funcopt.ops import is_matrix, maximum, minimum, sqrt, total, where
from funcopt.transforms.layer import Layer, layered

__all__ = ["adaptive_clip", "clip_by_global_norm", "clip_by_norm", "clip_by_value"]


def factor(squares, max_norm):
    return {"factor": minimum(max_norm / (sqrt(squares) + 1e-6), 1.0)}


global_norm = Layer(
    "clip_by_global_norm",
    hparams={"max_norm": nonnegative(1.0, "max_norm")},
    measures={"squares": lambda x: x * x},
    coefficients=factor,
    before=lambda p, g, slots, c: c.factor * g,
)


def clip_by_global_norm(opt: Any = None, max_norm: float = 1.0, *, prefix: str = "") -> Any:
    """The optimizer on gradients that are scaled down, all by one factor, where their 2-norm exceeds a bound.

    The norm is summed in float64. A class takes it over all of its groups; a group that has a max_norm of its own has a
    factor of its own.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        max_norm: the bound ≥ 0, as `torch.nn.utils.clip_grad_norm_` has it; `opt.hparams(max_norm=…)` overrules it.
        prefix: put before the name of the number, where the optimizer has a `max_norm` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative bound.
    """
    return layered(opt, global_norm, prefix, max_norm=max_norm)


def clipped(p, g, slots, c):
    return factor(total(g * g), c.max_norm)["factor"] * g


own_norm = Layer(
    "clip_by_norm",
    hparams={"max_norm": nonnegative(1.0, "max_norm")},
    coefficients=lambda max_norm: {"max_norm": max_norm},
    before=clipped,
    elementwise=False,
    rows=True,
)


def clip_by_norm(opt: Any = None, max_norm: float = 1.0, *, prefix: str = "") -> Any:
    """The optimizer on gradients each of which is scaled down where its own 2-norm exceeds a bound.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        max_norm: the bound ≥ 0 of each parameter's gradient; `opt.hparams(max_norm=…)` overrules it, also by parameter.
        prefix: put before the name of the number, where the optimizer has a `max_norm` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative bound.
    """
    return layered(opt, own_norm, prefix, max_norm=max_norm)


value = Layer(
    "clip_by_value",
    hparams={"clip_value": nonnegative(1.0, "clip_value")},
    coefficients=lambda clip_value: {"most": clip_value, "least": -clip_value},
    before=lambda p, g, slots, c: minimum(maximum(g, c.least), c.most),
)


def clip_by_value(opt: Any = None, clip_value: float = 1.0, *, prefix: str = "") -> Any:
    """The optimizer on gradients whose elements are cut off at a bound, as torch.nn.utils.clip_grad_value_ does.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        clip_value: the bound ≥ 0; `opt.hparams(clip_value=…)` overrules it. Of a complex gradient it is the bound of
            either part.
        prefix: put before the name of the number, where the optimizer has a `clip_value` already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative bound.
    """
    return layered(opt, value, prefix, clip_value=clip_value)


def by_unit(p, g, slots, c):
    most, size = c.clipping * maximum(unit_norm(p), c.eps), unit_norm(g)
    none = size == 0
    return where(none, 1.0, minimum(most / where(none, 1.0, size), 1.0)) * g


def unit_norm(x):
    return sqrt(total(x * x, "units" if is_matrix(x) else "all"))


adaptive = Layer(
    "adaptive_clip",
    hparams={"clipping": nonnegative(0.01, "clipping"), "clipping_eps": nonnegative(1e-3, "clipping_eps")},
    coefficients=lambda clipping, clipping_eps: {"clipping": clipping, "eps": clipping_eps},
    before=by_unit,
    elementwise=False,
    complex=False,
)


def adaptive_clip(opt: Any = None, clipping: float = 0.01, eps: float = 1e-3, *, prefix: str = "") -> Any:
    """The optimizer on gradients clipped, unit by unit, to a part of the weights' norm (AGC).

    A unit is what belongs to one index of a parameter's first dimension, an output of a layer; parameters of fewer than
    two dimensions are one unit. The paper leaves a network's last layer out: see `funcopt.masked`.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        clipping: λ ≥ 0, the largest ratio of a gradient's norm to its weights'; `opt.hparams(clipping=…)` overrules it.
        eps: ≥ 0, the least norm that weights are taken to have; `opt.hparams(clipping_eps=…)` overrules it.
        prefix: put before the names of the numbers, where the optimizer has such already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a negative number; complex parameters.
    """
    return layered(opt, adaptive, prefix, clipping=clipping, clipping_eps=eps)
