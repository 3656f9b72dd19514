"""The line search for the strong Wolfe conditions (Nocedal & Wright, "Numerical Optimization", 2nd edition, chapter 3).

With φ(t) = f(x + t·d), the loss on a ray along which it falls, a step length t is good where

    φ(t) ≤ φ(0) + c₁·t·φ'(0)    sufficient decrease, equation 3.7a, c₁ = 1e-4
    |φ'(t)| ≤ c₂·|φ'(0)|        strong curvature condition, equation 3.7b, c₂ = 0.9

The trials are those of torch.optim.LBFGS; its float32 and float64 arithmetic is kept, to the bit.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Trial", "strong_wolfe", "trial"]

C1, C2 = 1e-4, 0.9

Number = Any  # a float or a 0-d tensor


class Trial(NamedTuple):
    """A step length t with φ(t), the slope φ'(t) = gᵀd, and the gradient g at x + t·d."""

    t: Number
    f: float
    slope: Tensor
    g: Tensor


def trial(t: Number, f: float, g: Tensor, d: Tensor) -> Trial:
    """The trial; one whose value or slope is no finite number is infinitely high, so that no search ends there."""
    slope = g.dot(d)
    return Trial(t, f if math.isfinite(f) and math.isfinite(slope) else math.inf, slope, g)


def strong_wolfe(
    phi: Callable[[Number], Trial], start: Trial, t: Number, *, budget: int, too_short: Callable[[Number], bool]
) -> Trial:
    """Algorithm 3.5: longer and longer steps, until one is good, or it and the one before have a good one between them.

    Args:
        phi: evaluates a trial.
        start: the trial at t = 0, of negative slope.
        t: the first step length to try.
        budget: how many trials there may be after the first one.
        too_short: whether a bracket of some length is not worth searching.

    Returns:
        A good trial, or the lowest one known where the search has to end without.
    """
    last, new = start, phi(t)
    for i in range(budget):
        # The book compares with the last trial from the second one on; here, as in torch.optim, it is from the third.
        if _too_high(new, start) or (i > 1 and new.f >= last.f):
            return _zoom(phi, start, [last, new], budget - i, too_short)
        if _flat(new, start):
            return new
        if new.slope >= 0:
            return _zoom(phi, start, [last, new], budget - i, too_short)
        t = _interpolated(last, new, least=new.t + 0.01 * (new.t - last.t), most=new.t * 10)
        last, new = new, phi(t)
    return start if start.f <= new.f else new


def _zoom(
    phi: Callable[[Number], Trial], start: Trial, bracket: list[Trial], budget: int, too_short: Callable[[Number], bool]
) -> Trial:
    """Algorithm 3.6: a smaller and smaller bracket around a good step.

    The book's low end has sufficient decrease. Here it is, as in torch.optim, the lower end, with or without.
    """
    low = _lower(bracket)
    near_end = False
    for _ in range(budget):
        ends = bracket[0].t, bracket[1].t
        left, right = min(ends), max(ends)
        if too_short(right - left):
            break
        t = _interpolated(*bracket, least=left, most=right)
        # The second trial in a row that is near an end of the bracket, or one at the end itself, is moved away from it.
        margin = 0.1 * (right - left)
        was_near, near_end = near_end, bool(min(right - t, t - left) < margin)
        if near_end and (was_near or t >= right or t <= left):
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            near_end = False
        new = phi(t)
        if _too_high(new, start) or new.f >= bracket[low].f:
            bracket[1 - low] = new
            low = _lower(bracket)
        elif _flat(new, start):
            return new
        else:
            if new.slope * (bracket[1 - low].t - bracket[low].t) >= 0:
                bracket[1 - low] = bracket[low]
            bracket[low] = new
    return bracket[low]


def _too_high(new: Trial, start: Trial) -> bool:
    return bool(new.f > start.f + C1 * new.t * start.slope)


def _flat(new: Trial, start: Trial) -> bool:
    return bool(abs(new.slope) <= -C2 * start.slope)


def _lower(bracket: list[Trial]) -> int:
    return 0 if bracket[0].f <= bracket[1].f else 1


def _interpolated(a: Trial, b: Trial, *, least: Number, most: Number) -> Number:
    """Where the cubic with both values and slopes has its minimum, equation 3.59, within bounds; or half-way."""
    if a.t > b.t:
        a, b = b, a
    if a.t != b.t:
        d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
        square = d1**2 - a.slope * b.slope
        if square >= 0:
            d2 = square.sqrt()
            t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
            if not math.isnan(t):
                return min(max(t, least), most)
    return (least + most) / 2
