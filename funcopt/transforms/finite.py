"""Steps with a gradient that is not finite, left out: `skip_nonfinite`."""

from funcopt.core import PureOptimizer
from funcopt.ops import where
from funcopt.transforms.layer import Layer, layered

__all__ = ["skip_nonfinite"]


def coefficients(nonfinite):
    return {"skip": where(nonfinite > 0, 1.0, 0.0)}


layer = Layer(
    "skip_nonfinite",
    measures={"nonfinite": lambda x: where(x - x == 0, 0.0, 1.0)},
    coefficients=coefficients,
)


def skip_nonfinite(opt: PureOptimizer) -> PureOptimizer:
    """The optimizer, which leaves everything as it is where any gradient has an inf or a NaN: the step count too.

    Args:
        opt: a pure optimizer.

    Raises:
        TypeError: not an optimizer.
    """
    return layered(opt, layer)
