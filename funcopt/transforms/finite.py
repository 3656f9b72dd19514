"""Steps with a gradient that is not finite, left out: `skip_nonfinite`."""

from typing import Any

from funcopt.ops import where
from funcopt.transforms.layer import Layer, layered

__all__ = ["skip_nonfinite"]

layer = Layer(
    "skip_nonfinite",
    measures={"nonfinite": lambda x: where(x - x == 0, 0.0, 1.0)},
    coefficients=lambda nonfinite: {"skip": where(nonfinite > 0, 1.0, 0.0)},
)


def skip_nonfinite(opt: Any = None) -> Any:
    """The optimizer, which leaves everything as it is where any gradient has an inf or a NaN: the step count too.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.

    Raises:
        TypeError: not an optimizer.
    """
    return layered(opt, layer)
