"""Tensors and pytrees that are drawn: shapes, dtypes, values, layouts, forms."""

import itertools
import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

import funcopt
from funcopt import tree
from funcopt.testing import strategies as s
from funcopt.testing.strategies import DTYPES, KINDS, LAYOUTS, laid_out
from tests.rules_table import COMBINATIONS, IDS, NUMBERS, fitted
from tests.testing.drawing import FIXED, MANY, PARAMS, P, every, reaches, same_form

# ---- tensors --------------------------------------------------------------------------------------------------------

SHAPES = [
    ({}, lambda shape: len(shape) <= 2 and all(0 <= n <= 3 for n in shape)),
    ({"min_dims": 2, "max_dims": 4}, lambda shape: 2 <= len(shape) <= 4),
    ({"min_side": 1}, lambda shape: 0 not in shape),
    ({"min_side": 5, "max_side": 5}, lambda shape: set(shape) <= {5}),
    ({"max_dims": 0}, lambda shape: shape == ()),
]


@pytest.mark.parametrize(("bounds", "holds"), SHAPES, ids=[str(bounds) for bounds, _ in SHAPES])
def test_shapes(bounds, holds):
    def check(shape):
        assert type(shape) is tuple
        assert holds(shape)

    every(s.shapes(**bounds), check)


@pytest.mark.parametrize("wanted", [(), (0,), (3,), (2, 0), (3, 3)], ids=str)
def test_shapes_are_0d_empty_and_full(wanted):
    assert reaches(s.shapes(), lambda shape: shape == wanted)


def least_normal(dtype):
    return torch.finfo(dtype).smallest_normal


# What every element of a kind is, as float64; huge is what the dtype makes of the root of its largest number, and up.
IN_KIND = {
    "zero": lambda x, dtype: x == 0,
    "unit": lambda x, dtype: (x.abs() >= 0.5) & (x.abs() <= 2),
    "moderate": lambda x, dtype: (x.abs() >= 1 / 64) & (x.abs() <= 64),
    "denormal": lambda x, dtype: (x.abs() > 0) & (x.abs() < least_normal(dtype)),
    "huge": lambda x, dtype: (x.abs() >= root(dtype)) & (x.abs() <= torch.finfo(dtype).max),
    "inf": lambda x, dtype: x.isinf(),
    "nan": lambda x, dtype: x.isnan(),
}


def root(dtype):
    return torch.tensor(math.sqrt(torch.finfo(dtype).max), dtype=dtype).double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_of_the_kind_asked(kind, dtype):
    def check(t):
        assert t.dtype == dtype
        assert IN_KIND[kind](t.double(), dtype).all(), t

    every(s.tensors((4,), dtype, include=[kind]), check)
    if kind not in ("zero", "nan"):
        assert reaches(s.tensors((), dtype, include=[kind]), lambda t: t > 0)
        assert reaches(s.tensors((), dtype, include=[kind]), lambda t: t < 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_beside_the_others(kind):
    assert reaches(s.tensors((2,), torch.float32, include=KINDS), lambda t: IN_KIND[kind](t.double(), t.dtype).all())


def test_elements_are_the_values_of_tensors():
    def check(x):
        assert type(x) is float
        assert x == 0 or 1 / 64 <= abs(x) <= 64

    every(s.elements(), check)


def test_tensors_of_one_shape_and_dtype():
    every(s.tensors((2, 0), torch.float16), lambda t: same_form(t, torch.empty(2, 0, dtype=torch.float16)))
    every(s.tensors([3]), lambda t: same_form(t, torch.empty(3, dtype=torch.float64)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_shape_and_dtype(dtype):
    mixed = s.tensors(dtype=st.sampled_from(DTYPES), layouts=LAYOUTS)
    assert reaches(mixed, lambda t: t.dtype == dtype and t.dim() == 2 and t.numel() > 1)
    assert reaches(mixed, lambda t: t.dtype == dtype and t.dim() == 0)
    assert reaches(mixed, lambda t: t.dtype == dtype and t.numel() == 0)


def contiguous_strides(shape):
    return torch.empty(shape, device="meta").stride()


# The strides and the offset of each layout, from the shape.
LAID_OUT = {
    "contiguous": lambda shape: (contiguous_strides(shape), 0),
    "transposed": lambda shape: (contiguous_strides(shape[::-1])[::-1], 0),
    "strided": lambda shape: (tuple(2 * n for n in contiguous_strides(shape)), 0),
    "misaligned": lambda shape: (contiguous_strides(shape), 1),
}

anything = s.tensors(s.shapes(max_dims=3), st.sampled_from(DTYPES), include=KINDS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_has_its_strides_and_keeps_the_values(layout):
    def check(t):
        out = laid_out(t, layout)
        same_form(out, t)
        torch.testing.assert_close(out, t, rtol=0, atol=0, equal_nan=True)
        if t.numel():
            assert (out.stride(), out.storage_offset()) == LAID_OUT[layout](tuple(t.shape))
            assert out.untyped_storage().data_ptr() != t.untyped_storage().data_ptr()

    every(anything, check, MANY)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_drawn_where_it_is_asked_for(layout):
    def is_laid_out(t):
        return (t.stride(), t.storage_offset()) == LAID_OUT[layout](tuple(t.shape))

    every(s.tensors((2, 3), layouts=[layout]), lambda t: is_laid_out(t))
    assert reaches(s.tensors((2, 3), layouts=LAYOUTS), is_laid_out)
    assert reaches(s.params(shape=(2, 3)), lambda params: any(map(is_laid_out, tree.flatten(params)[0])))


# ---- pytrees --------------------------------------------------------------------------------------------------------


def nodes(drawn):
    """Every container of a tree."""
    children = drawn.values() if isinstance(drawn, dict) else drawn if isinstance(drawn, list | tuple) else None
    return [] if children is None else [drawn, *itertools.chain.from_iterable(map(nodes, children))]


def test_trees_are_of_lists_tuples_and_dicts_and_never_empty():
    def check(drawn):
        leaves, _ = tree.flatten(drawn)
        assert leaves
        assert set(leaves) <= {7, 8}
        assert len(leaves) <= 5
        assert all(len(node) > 0 and type(node) in (list, tuple, dict) for node in nodes(drawn))

    every(s.trees(st.sampled_from([7, 8]), max_leaves=5), check, MANY)
    every(s.trees(st.just(7), max_leaves=1), lambda drawn: tree.flatten(drawn)[0] == [7])


TREES = {
    "a leaf alone": lambda drawn: drawn == 7,
    "list": lambda drawn: isinstance(drawn, list),
    "tuple": lambda drawn: isinstance(drawn, tuple),
    "dict": lambda drawn: isinstance(drawn, dict) and len(drawn) > 1,
    "all of them": lambda drawn: {type(node) for node in nodes(drawn)} == {list, tuple, dict},
    "four leaves": lambda drawn: len(tree.flatten(drawn)[0]) == 4,
}


@pytest.mark.parametrize("wanted", TREES.values(), ids=TREES.keys())
def test_trees_of_every_form_are_drawn(wanted):
    assert reaches(s.trees(st.just(7)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, st.sampled_from(DTYPES)], ids=["one", "several"])
def test_params_go_into_an_optimizer(dtype):
    def check(params):
        leaves, _ = tree.flatten(params)
        assert all(p.dtype in DTYPES and p.isfinite().all() for p in leaves)
        opt = funcopt.adamw()
        opt.init(params)

    every(s.params(dtype), check)


@pytest.mark.parametrize("missing", [False, True])
def test_gradients_are_like_their_params(missing):
    leaves, spec = tree.flatten(PARAMS)

    def check(grads):
        got, own = tree.flatten(grads)
        assert own == spec
        assert missing or None not in got
        for g, p in zip(got, leaves, strict=True):
            assert g is None or (g.dtype, g.shape) == (p.dtype, p.shape)
            assert g is None or g.isfinite().all()

    every(s.gradients(PARAMS, missing=missing), check)


def test_gradients_may_be_missing_and_not_finite_where_that_is_asked_for():
    every(s.gradients([], missing=True), lambda grads: grads == [])
    for wanted in ([True, True], [True, False], [False, True], [False, False]):
        assert reaches(s.gradients(P * 2, missing=True), lambda gs, wanted=wanted: [g is None for g in gs] == wanted)
    assert reaches(s.gradients(P, include=["zero", "nan"]), lambda gs: gs[0].isnan().any())
    every(s.gradients(P, include=["nan"]), lambda gs: gs[0].isnan().all())


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 2), (1, 1), (3, 4)])
def test_gradient_sequences_have_the_lengths_asked(least, most):
    sequences = s.gradient_sequences(P, min_steps=least, max_steps=most, missing=True, include=["inf"])

    def check(sequence):
        assert least <= len(sequence) <= most
        assert all(g is None or g.isinf().all() for step in sequence for g in step)

    every(sequences, check)
    assert all(reaches(sequences, lambda steps, n=n: len(steps) == n) for n in (least, most))


@pytest.mark.parametrize(("factory", "flags"), COMBINATIONS, ids=IDS)
def test_states_are_accepted_by_their_optimizer(factory, flags):
    opt = factory(**flags)
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    params = tree.map(lambda p: p.reshape(fitted(factory, p.shape)), PARAMS)

    def check(state):
        assert all(0 <= count <= 2 and count == count.round() for count in tree.flatten(state["step"])[0])
        grads = tree.map(torch.ones_like, params)
        _, after = opt(params, grads, state, hparams)
        counts = [[n.item() for n in tree.flatten(x["step"])[0]] for x in (state, after)]
        assert counts[1] == [n + 1 for n in counts[0]]

    drawn = s.states(opt, params, hparams, max_steps=2)
    every(drawn, check, settings(FIXED, max_examples=10))
    assert reaches(drawn, lambda state: state["step"]["w"][0] == 2)


def test_states_take_some_hparams_and_have_defaults_for_the_rest():
    opt = funcopt.sgd()
    every(s.states(opt, P), lambda state: list(state) == ["step"])
    kept = s.states(opt, P, {"momentum": 0.9})
    assert reaches(kept, lambda state: state["momentum_buffer"][0].abs().sum() > 0)


def test_step_numbers():
    every(s.step_numbers(), lambda n: type(n) is int and 0 <= n <= 2**53)
    every(s.step_numbers(max_value=3), lambda n: 0 <= n <= 3)
    every(s.step_numbers(max_value=0), lambda n: n == 0)
    for wanted in (0, 1, 10, 2**24 - 1, 2**24, 2**53):
        assert reaches(s.step_numbers(), lambda n, wanted=wanted: n == wanted)
    assert reaches(s.step_numbers(), lambda n: n > 2**40 and n % 1000)
