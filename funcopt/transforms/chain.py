"""Transforms one around the other: `chain`."""

from collections.abc import Callable
from typing import Any

__all__ = ["chain"]


def chain(*transforms: Any) -> Any:
    """Several transforms as one, the first outermost: it sees the gradients first.

        opt = chain(skip_nonfinite, clip_by_global_norm(max_norm=1.0), ema(decay=0.999), funcopt.adamw())

    Args:
        *transforms: functions from optimizer to optimizer: transforms, or what they return without an optimizer. The
            last may be a pure optimizer.

    Returns:
        The optimizer, if the last is one, else a function from optimizer to optimizer.

    Raises:
        TypeError: something else, or nothing, among them.
    """
    *outer, last = transforms or (None,)
    is_optimizer = hasattr(last, "hparams") and hasattr(last, "init")
    wrong = [t for t in (outer if is_optimizer else transforms or (None,)) if not callable(t) or hasattr(t, "hparams")]
    if wrong:
        raise TypeError(
            "chain takes transforms, such as funcopt.skip_nonfinite or funcopt.ema(decay=0.99), and at the end a pure "
            f"optimizer; got {wrong[0]!r}"
        )
    if is_optimizer:
        return _around(outer, last)
    return lambda opt: _around(list(transforms), opt)


def _around(transforms: list[Callable[[Any], Any]], opt: Any) -> Any:
    for transform in reversed(transforms):
        opt = transform(opt)
    return opt
