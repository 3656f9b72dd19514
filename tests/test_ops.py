"""Operations on scalars: floats as tensors, and derivatives at the ends of their ranges."""

import math

import pytest
import torch
from torch.func import grad, hessian

from funcopt import ops


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


POWERS = [(base, exponent) for base in (0.0, 0.5, 1.0, 3.0) for exponent in (0.0, 0.5, 1.0, 1.5, 2.0, 7.0)]


@pytest.mark.parametrize(("base", "exponent"), POWERS)
def test_power(base, exponent):
    """Slopes: exponent·base^(exponent - 1) in the base, or 0 for inf; base^exponent·log(base) in the exponent, or 0."""
    want = base**exponent
    for args in ((tensor(base), exponent), (base, tensor(exponent)), (tensor(base), tensor(exponent))):
        assert ops.power(*args).item() == pytest.approx(want, rel=1e-15)
    assert ops.power(base, exponent) == want
    slopes = grad(ops.power, argnums=(0, 1))(tensor(base), tensor(exponent))
    infinite = base == 0 and 0 < exponent < 1
    in_base = 0.0 if exponent == 0 or infinite else exponent * base ** (exponent - 1)
    in_exponent = want * math.log(base) if base else 0.0
    assert [slope.item() for slope in slopes] == pytest.approx([in_base, in_exponent], rel=1e-14)
    second = hessian(ops.power, argnums=(0, 1))(tensor(base), tensor(exponent))
    assert all(value.isfinite() for row in second for value in row)


def test_too_large_a_power_is_inf():
    assert ops.power(10, 400) == ops.power(tensor(10.0), 400).item() == math.inf


def test_the_root_is_flat_at_0():
    assert grad(ops.sqrt)(tensor(0.0)) == grad(grad(ops.sqrt))(tensor(0.0)) == 0
    assert grad(ops.sqrt)(tensor(4.0)) == 0.25


@pytest.mark.parametrize("value", [-1.5, 0.0, 1.0, 2.75])
def test_floats_as_tensors(value):
    for function, want in ((ops.floor, math.floor), (ops.cos, math.cos), (ops.expm1, math.expm1)):
        assert function(value) == pytest.approx(want(value), rel=1e-15)
        assert type(function(value)) is float
        assert function(tensor(value)).item() == pytest.approx(want(value), rel=1e-15)
    assert grad(ops.floor)(tensor(value)) == 0
    assert ops.log1p(abs(value)) == ops.log1p(tensor(abs(value))).item() == math.log1p(abs(value))
