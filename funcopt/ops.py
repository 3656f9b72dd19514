"""The op table: the functions an update equation may call, as torch runs them.

A rule's `update` uses arithmetic, comparisons, `if` on its flags, and these functions; on an `Expression` they write
themselves down, for the kernels. Its `coefficients` may use the ones that also take Python floats.

Every function is finite at 0, and so are its first and second derivatives: `sqrt` has slope 0 there, because a zero
gradient must not poison a meta-gradient.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from funcopt.expression import Expression, shaped
from funcopt.observed import wrapped

__all__ = [
    "abs",
    "cos",
    "expm1",
    "floor",
    "is_matrix",
    "log",
    "log1p",
    "maximum",
    "mean",
    "minimum",
    "one_minus_power",
    "power",
    "reciprocal",
    "sign",
    "size",
    "sqrt",
    "total",
    "where",
]

Scalar = float | Tensor
Number = Any  # the same, or an Expression


# ---- elementwise, in `update` -----------------------------------------------------------------------------------


def sqrt(x: Number) -> Number:
    """Square root of x ≥ 0 (NaN below), with derivative 0 at 0."""
    if isinstance(x, Expression):
        return Expression("sqrt", x)
    if not isinstance(x, Tensor):
        return math.sqrt(x)
    if not (x.requires_grad or wrapped(x)):
        return torch.sqrt(x)
    zero = x == 0
    return torch.where(zero, 0 * x, torch.sqrt(torch.where(zero, 1.0, x)))


def maximum(x: Number, y: Number) -> Number:
    """The larger of the two, NaN where either is; where they are equal each gets half of the derivative."""
    if isinstance(x, Expression) or isinstance(y, Expression):
        return Expression("maximum", x, y)
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return x if x > y or x != x else y
    return torch.maximum(*_tensors(x, y))


def minimum(x: Number, y: Number) -> Number:
    """The smaller of the two, NaN where either is; where they are equal each gets half of the derivative."""
    if isinstance(x, Expression) or isinstance(y, Expression):
        return Expression("minimum", x, y)
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return x if x < y or x != x else y
    return torch.minimum(*_tensors(x, y))


def _tensors(x: Number, y: Number) -> tuple[Tensor, Tensor]:
    """Both as tensors, a number like the other."""
    like = x if isinstance(x, Tensor) else y
    x, y = (torch.as_tensor(n, dtype=like.dtype, device=like.device) for n in (x, y))
    return x, y


def abs(x: Number) -> Number:
    """Absolute value, with derivative 0 at 0."""
    if isinstance(x, Expression):
        return Expression("abs", x)
    return torch.abs(x) if isinstance(x, Tensor) else math.fabs(x)


def sign(x: Number) -> Number:
    """-1, 0 or 1; NaN stays NaN."""
    if isinstance(x, Expression):
        return Expression("sign", x)
    if not isinstance(x, Tensor):
        return float((x > 0) - (x < 0)) if x == x else x
    return torch.where(x != x, x, torch.sign(x))


def where(condition: bool | Tensor, x: Number, y: Number) -> Number:
    """x where the condition holds, y elsewhere.

    As with torch.where, a side that is not taken must have a finite derivative all the same.
    """
    if isinstance(condition, Expression):
        return Expression("where", condition, x, y)
    if isinstance(condition, Tensor):
        if not isinstance(x, Tensor) and not isinstance(y, Tensor):  # torch would take its default dtype
            dtype = _arithmetic.dtype or torch.float64
            x = torch.full((), x, dtype=dtype, device=condition.device)
            y = torch.full((), y, dtype=dtype, device=condition.device)
        return torch.where(condition, x, y)
    return x if condition else y


class _Arithmetic(threading.local):
    dtype: torch.dtype | None = None


_arithmetic = _Arithmetic()


@contextlib.contextmanager
def arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Have a choice between two Python numbers in this dtype, an update's: in float64 outside, as coefficients are."""
    before, _arithmetic.dtype = _arithmetic.dtype, dtype
    try:
        yield
    finally:
        _arithmetic.dtype = before


# ---- sums, in the `update` of a rule that is not elementwise ---------------------------------------------------------


def _dimensions(x: Tensor, over: str) -> tuple[int, ...]:
    """The dimensions of torch that a sum goes over, of those that there are."""
    n = x.dim()
    dims = {"rows": range(n - 1, n), "columns": range(n - 2, n - 1), "units": range(1, n), "all": range(n)}[over]
    return tuple([dim for dim in dims if dim >= 0])  # a tracer takes no generator


def total(x: Number, over: str = "all") -> Number:
    """The sum of all elements, or of each of the "rows", "columns" or "units", whose dimensions are then 1.

    It is worked out in float64. A row goes along the last dimension, a column along the last but one; a unit is all
    that belongs to one index of the first.
    """
    if isinstance(x, Expression):
        return Expression(f"total_{over}", x)
    wide = x.dtype if x.device.type == "mps" else torch.float64
    if over == "all":
        return x.sum(dtype=wide).to(x.dtype)
    dimensions = _dimensions(x, over)
    return x.sum(dimensions, keepdim=True, dtype=wide).to(x.dtype) if dimensions else x


def size(x: Number, over: str = "all") -> Number:
    """How many elements `total` sums of x, but 1 where there is none."""
    if isinstance(x, Expression):
        return Expression(f"size_{over}", x)
    return float(max(1, math.prod([x.shape[dim] for dim in _dimensions(x, over)])))  # a tracer takes no generator


def mean(x: Number, over: str = "all") -> Number:
    """`total` by `size`: 0 where there is nothing."""
    return total(x, over) / size(x, over)


def is_matrix(x: Number) -> bool:
    """Whether a parameter, or its gradient, has two dimensions or more."""
    return shaped.matrix if isinstance(x, Expression) else x.dim() > 1


# ---- scalars, in `coefficients` and schedules: a Python float stays one, a tensor is float64 and differentiable -----


def log(x: Scalar) -> Scalar:
    """Natural logarithm of x ≥ 0; log(0) = -inf, for a float too."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0 else -math.inf


def reciprocal(x: Scalar) -> Scalar:
    """1 / x for x ≥ 0, with 1 / 0 = inf, for a float too."""
    if isinstance(x, Tensor):
        return 1 / x
    return 1 / x if x != 0 else math.inf


def expm1(x: Scalar) -> Scalar:
    """exp(x) - 1 without cancellation near 0."""
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log1p(x: Scalar) -> Scalar:
    """log(1 + x) for x > -1 without cancellation near 0."""
    return torch.log1p(x) if isinstance(x, Tensor) else math.log1p(x)


def cos(x: Scalar) -> Scalar:
    """Cosine of x in radians."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def floor(x: Scalar) -> Scalar:
    """The largest whole number ≤ x, with derivative 0 everywhere."""
    return torch.floor(x) if isinstance(x, Tensor) else float(math.floor(x))


def power(base: Scalar, exponent: Scalar) -> Number:
    """base**exponent for base > 0, and for 0 where exponent ≥ 0, 0**0 = 1; inf where it is too large, for a float too.

    At base = 0 the derivative in the base is 1 for the exponent 1 and else 0, where it would be infinite too.
    """
    if not isinstance(base, Tensor) and not isinstance(exponent, Tensor):
        try:
            return float(base) ** exponent
        except OverflowError:
            return math.inf
    zero = base == 0
    at_zero = where(exponent == 1, base, where(exponent == 0, 1.0, 0.0))
    return where(zero, at_zero, where(zero, 1.0, base) ** exponent)


def one_minus_power(base: Scalar, exponent: Scalar) -> Scalar:
    """1 - base**exponent as -expm1(exponent·log(base)), for base in [0, 1): no cancellation, differentiable in both.

    At base = 0 the value is 1 and the derivative that of the polynomial.
    """
    if not isinstance(base, Tensor):
        return -expm1(exponent * log(base)) if base > 0 else 1.0
    positive = base > 0
    inside = -torch.expm1(exponent * torch.log(torch.where(positive, base, 0.5)))
    return torch.where(positive, inside, 1 - torch.where(positive, 0.5, base) ** exponent)
