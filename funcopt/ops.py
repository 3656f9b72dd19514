"""The op table: the functions an update equation may call, as torch runs them.

`funcopt.kernels.ops` holds the same names as Triton runs them. A rule's `update` uses arithmetic, comparisons,
`if` on its flags, and these functions; its `coefficients` may use the ones that also take Python floats.

Every function is finite at 0, and so are its first and second derivatives: `sqrt` has slope 0 there, because a zero
gradient must not poison a meta-gradient.
"""

import math

import torch
from torch import Tensor

from funcopt.observed import wrapped

__all__ = ["abs", "expm1", "log", "maximum", "minimum", "one_minus_power", "sign", "sqrt", "where"]

Number = float | Tensor


# ---- elementwise, in `update` -----------------------------------------------------------------------------------


def sqrt(x: Number) -> Number:
    """Square root of x ≥ 0 (NaN below), with derivative 0 at 0."""
    if not isinstance(x, Tensor):
        return math.sqrt(x)
    if not (x.requires_grad or wrapped(x)):
        return torch.sqrt(x)
    zero = x == 0
    return torch.where(zero, x, torch.sqrt(torch.where(zero, 1.0, x)))


def maximum(x: Tensor, y: Number) -> Tensor:
    """The larger of the two, NaN where either is; where they are equal each gets half of the derivative."""
    return torch.maximum(x, torch.as_tensor(y, dtype=x.dtype, device=x.device))


def minimum(x: Tensor, y: Number) -> Tensor:
    """The smaller of the two, NaN where either is; where they are equal each gets half of the derivative."""
    return torch.minimum(x, torch.as_tensor(y, dtype=x.dtype, device=x.device))


def abs(x: Tensor) -> Tensor:
    """Absolute value, with derivative 0 at 0."""
    return torch.abs(x)


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays NaN."""
    return torch.where(x != x, x, torch.sign(x))


def where(condition: bool | Tensor, x: Number, y: Number) -> Number:
    """x where the condition holds, y elsewhere.

    As with torch.where, a side that is not taken must have a finite derivative all the same.
    """
    if isinstance(condition, Tensor):
        if condition.dim() == 0 and not isinstance(x, Tensor) and not isinstance(y, Tensor):
            x = torch.full((), x, dtype=torch.float64, device=condition.device)  # torch would make float32 of the two
        return torch.where(condition, x, y)
    return x if condition else y


# ---- scalars, in `coefficients`: a Python float stays one, a tensor is float64 and differentiable -------------------


def log(x: Number) -> Number:
    """Natural logarithm of x ≥ 0; log(0) = -inf, for a float too."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0 else -math.inf


def expm1(x: Number) -> Number:
    """exp(x) - 1 without cancellation near 0."""
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def one_minus_power(base: Number, exponent: Number) -> Number:
    """1 - base**exponent as -expm1(exponent·log(base)), for base in [0, 1): no cancellation, differentiable in both.

    At base = 0 the value is 1 and the derivative that of the polynomial.
    """
    if not isinstance(base, Tensor):
        return -expm1(exponent * log(base)) if base > 0 else 1.0
    positive = base > 0
    inside = -torch.expm1(exponent * torch.log(torch.where(positive, base, 0.5)))
    return torch.where(positive, inside, 1 - torch.where(positive, 0.5, base) ** exponent)
