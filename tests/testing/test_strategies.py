"""The strategies as a user of hypothesis meets them: what they refuse, draw, filter out, and shrink to."""

import collections
import itertools
import math
import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.statistics import collector

import funcopt
from funcopt import Number, fraction, nonnegative, tree
from funcopt.rules import RULES
from funcopt.testing import Problem, Schedule, ranges
from funcopt.testing import strategies as s
from funcopt.testing.case import code
from funcopt.testing.problems import DECAYS, MODELS
from funcopt.testing.strategies import DTYPES, KINDS, LAYOUTS, laid_out
from tests.rules_table import COMBINATIONS, IDS, NUMBERS

# The same cases at every run. Of the health checks only the one that looks at the clock is off.
FIXED = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
MANY = settings(FIXED, max_examples=75)
inf, nan = math.inf, math.nan


def every(strategy, check, settings=FIXED):
    """Call a check on what a strategy draws: it asserts, or returns whether all is well."""

    def test(drawn):
        assert check(drawn) in (None, True)

    settings(given(strategy)(test))()


def smallest(strategy, predicate=lambda drawn: True, phases=FIXED.phases):
    """The example that hypothesis shrinks to."""
    return find(
        strategy, predicate, settings=settings(FIXED, max_examples=1000, phases=phases), random=random.Random(0)
    )


def reaches(strategy, predicate):
    """Whether a strategy draws what a predicate wants; hypothesis raises NoSuchExample where it does not."""
    return predicate(smallest(strategy, predicate, phases=[Phase.generate]))


# ---- a rule of one's own, with ranges that torch's rules do not have ------------------------------------------------

SPEC = {
    "rate": Number(0.3, "rate", low=0.25, high=0.75),
    "share": Number(0.5, "share", low=1 / 3, high=2 / 3),
    "pull": Number(-0.5, "pull", low=-2.0, high=0.25),
    "three": (fraction(0.9, "three[0]"), nonnegative(3.0, "three[1]"), Number(0.0, "three[2]")),
    "low": nonnegative(0.5, "low"),
    "high": nonnegative(0.5, "high"),
    "tiny": Number(4e-6, "tiny", low=3e-6, high=5e-6),
}


def coefficients(t, rate, share, pull, three, low, high, tiny):
    return {"rate": rate + share + pull + three[0] + low + high + tiny}


def update(p, g, c, ordered, pulled):
    return p - c.rate * g, ()


def check(hparams, flags):
    low, high, pull = (hparams[name] for name in ("low", "high", "pull"))
    wanted = (not flags["ordered"] or low < high) and (not flags["pulled"] or pull < 0)
    return None if wanted else f"low < high and pull < 0 are needed; got {low}, {high} and {pull}"


odd = funcopt.rule(
    "odd",
    hparams=SPEC,
    flags={"ordered": False, "pulled": False},
    coefficients=coefficients,
    update=update,
    check=check,
)
ODD = [(odd, {"ordered": a, "pulled": b}) for a, b in itertools.product([False, True], repeat=2)]
ALL = [*COMBINATIONS, *ODD]
ALL_IDS = [*IDS, *("-".join(["odd", *(flag for flag in flags if flags[flag])]) for _, flags in ODD)]

# ---- what is refused, before anything is drawn ----------------------------------------------------------------------

P = [torch.zeros(2)]
REFUSED = [
    (lambda: s.shapes(min_dims=-1), ValueError, "min_dims is -1 and max_dims 2; 0 <= min_dims <= max_dims is needed"),
    (lambda: s.shapes(min_dims=3), ValueError, "min_dims is 3 and max_dims 2"),
    (lambda: s.shapes(max_side=2.5), ValueError, r"min_side is 0 and max_side 2\.5"),
    (lambda: s.elements(torch.int64), ValueError, "dtype is torch.int64; one of torch.float64, .* is needed"),
    (lambda: s.elements("float32"), ValueError, "dtype is 'float32'; one of torch.float64"),
    (lambda: s.elements(include=["nought"]), ValueError, "include has 'nought'; allowed: zero, unit, moderate, denorm"),
    (lambda: s.elements(include=["zeros"]), ValueError, "include has 'zeros'; did you mean 'zero'"),
    (lambda: s.elements(include="zero"), ValueError, "include is 'zero'; a sequence of some of zero, unit"),
    (lambda: s.elements(include=[]), ValueError, r"include is \[\]; a sequence of some of zero"),
    (lambda: s.elements(include=3), ValueError, "include is 3; a sequence of some of zero"),
    (lambda: s.tensors(3), ValueError, "shape is 3; a tuple of ints of at least 0 is needed, or a strategy"),
    (lambda: s.tensors((2, -1)), ValueError, r"shape is \(2, -1\); a tuple of ints"),
    (lambda: s.tensors((2.0,)), ValueError, r"shape is \(2\.0,\); a tuple of ints"),
    (lambda: s.tensors((2,), torch.int64), ValueError, "dtype is torch.int64; one of"),
    (lambda: s.tensors((2,), None), ValueError, "dtype is None; one of"),
    (lambda: s.tensors(dtype=st.just(torch.float32), include=["none"]), ValueError, "include has 'none'"),
    (lambda: s.tensors(layouts="strided"), ValueError, "layouts is 'strided'; a sequence of some of contiguous, trans"),
    (lambda: s.tensors(layouts=["stride"]), ValueError, "layouts has 'stride'; did you mean 'strided'"),
    (lambda: laid_out(torch.zeros(2), "diagonal"), ValueError, "layout has 'diagonal'; allowed: contiguous, transpos"),
    (lambda: s.trees(5), TypeError, r"leaves is 5; a strategy is needed, such as tensors\(\)"),
    (lambda: s.trees(s.tensors(), max_leaves=0), ValueError, "max_leaves is 0; an int of at least 1 is needed"),
    (lambda: s.params(max_leaves=1.5), ValueError, r"max_leaves is 1\.5; an int of at least 1"),
    (lambda: s.params(torch.int32), ValueError, "dtype is torch.int32"),
    (lambda: s.params(layouts=["packed"]), ValueError, "layouts has 'packed'"),
    (lambda: s.gradients({"a": [1.0]}), TypeError, r"params\['a'\]\[0\] is a float; params holds tensors only"),
    (lambda: s.gradients([torch.ones(2).int()]), ValueError, r"the dtype of params\[0\] is torch.int32; one of"),
    (lambda: s.gradients(P, include=["big"]), ValueError, "include has 'big'"),
    (lambda: s.gradient_sequences(P, min_steps=3, max_steps=2), ValueError, "min_steps is 3 and max_steps 2"),
    (lambda: s.gradient_sequences(P, mising=True), TypeError, "unexpected keyword argument 'mising'"),
    (lambda: s.states(funcopt.adam, P), TypeError, r"a pure optimizer is needed, such as funcopt.adamw\(\); got <func"),
    (lambda: s.states(funcopt.adam(), [1.0]), TypeError, r"params\[0\] is a float"),
    (lambda: s.states(funcopt.adam(), P, {"lr": -1.0}), ValueError, r"Invalid learning rate: -1\.0 .*\[0, inf\)"),
    (lambda: s.states(funcopt.adam(), P, {"lrr": 1.0}), TypeError, "adam has no hyperparameter 'lrr'; did you mean"),
    (lambda: s.states(funcopt.adam(), P, {"lr": [0.1, 0.2]}), ValueError, r"hparams\['lr'\]\[1\] has no counterpart"),
    (lambda: s.states(funcopt.adam(), P, max_steps=-1), ValueError, "max_steps is -1; an int of at least 0"),
    (lambda: s.step_numbers(max_value=-1), ValueError, "max_value is -1; an int of at least 0 is needed"),
    (lambda: s.step_numbers(max_value=1e6), ValueError, r"max_value is 1000000\.0; an int"),
    (lambda: s.number(0.1), TypeError, r"a funcopt.Number is needed; got 0\.1"),
    (lambda: s.number(Number(1.0, "n", 2.0, 1.0)), ValueError, r"there is no number in \[2, 1\]"),
    (lambda: s.number(Number(0.0, "n", 0, 0), nonzero=True), ValueError, r"there is no number in \[0, 0\] but 0"),
    (lambda: s.numbers(funcopt.adam), TypeError, "a dict of funcopt.Number by name is needed; got <function adam"),
    (lambda: s.numbers({"lr": 0.1}), TypeError, r"a funcopt.Number is needed; got 0\.1"),
    (lambda: s.numbers(SPEC, rat=1), ValueError, "no hyperparameter 'rat'; did you mean 'rate'.*allowed: rate, share"),
    (lambda: s.numbers(SPEC, rate=1.0), ValueError, r"Invalid rate: 1\.0 \(rate takes numbers in \[0\.25, 0\.75\]\)"),
    (lambda: s.numbers(SPEC, rate="a lot"), TypeError, "rate takes a float"),
    (lambda: s.numbers(SPEC, three=(1.0, 2.0)), ValueError, "three takes a tuple of 3 values"),
    (lambda: s.numbers(SPEC, nonzero=["hihg"]), ValueError, "no hyperparameter 'hihg'; did you mean 'high'"),
    (lambda: s.numbers(SPEC, nonzero="high"), TypeError, "nonzero is 'high'; a sequence of names is needed"),
    (lambda: s.flags(torch.optim.SGD), TypeError, "a rule's factory or a pure optimizer is needed, such as funcopt.ad"),
    (lambda: s.hparams("adam"), TypeError, "a rule's factory or a pure optimizer is needed.*got 'adam'"),
    (lambda: s.hparams(funcopt.adam, {"amsgrd": True}), TypeError, "no flag 'amsgrd'; did you mean 'amsgrad'"),
    (lambda: s.hparams(funcopt.adam, {"amsgrad": 1}), TypeError, "amsgrad takes True or False; got 1"),
    (lambda: s.hparams(funcopt.adam, "amsgrad"), TypeError, "flags is 'amsgrad'; a dict of True or False by name"),
    (lambda: s.hparams(funcopt.adam, lrr=1), TypeError, "adam has no hyperparameter 'lrr'; did you mean 'lr'"),
    (lambda: s.hparams(funcopt.adam, lr=-1), ValueError, r"Invalid learning rate: -1 .*\[0, inf\)"),
    (
        lambda: s.hparams(funcopt.sgd, {"nesterov": True}, momentum=0.0),
        ValueError,
        r"no numbers for lr, momentum, .* with \{'momentum': 0\.0\} are accepted",
    ),
    (lambda: s.schedules(max_peak=0), ValueError, "max_peak is 0; a finite number above 0 is needed"),
    (lambda: s.schedules(max_peak=inf), ValueError, "max_peak is inf"),
    (lambda: s.schedules(max_peak="1"), ValueError, "max_peak is '1'"),
    (lambda: s.schedules(max_steps=0), ValueError, "max_steps is 0; an int of at least 1"),
    (lambda: s.schedules(max_steps=2.5), ValueError, r"max_steps is 2\.5; an int"),
    (lambda: s.problems("linear"), ValueError, "kinds is 'linear'; a sequence of some of linear, logistic, relu"),
    (lambda: s.problems(["lin"]), ValueError, "kinds has 'lin'; .*allowed: linear, logistic, relu"),
    (lambda: s.problems(max_steps=0), ValueError, "max_steps is 0; an int of at least 1"),
    (lambda: s.problems(dtype=torch.int64), ValueError, "dtype is torch.int64; one of"),
    (lambda: Problem("linaer", 1, 1, 1, 0), ValueError, "kind is 'linaer'; did you mean 'linear'"),
    (lambda: Schedule(1.0, 0, 1, "cosin"), ValueError, "decay is 'cosin'; did you mean 'cosine'"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_a_bad_argument_is_refused_at_once(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_dtype_that_a_strategy_of_dtypes_draws_is_refused():
    with pytest.raises(ValueError, match="the dtype drawn is "):
        smallest(s.tensors((2,), st.just(torch.int64)))


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


def same_form(t, like):
    assert (t.dtype, t.shape, t.device) == (like.dtype, like.shape, like.device)


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


PARAMS = {"w": [torch.ones(2, 3), torch.ones((), dtype=torch.float16)], "b": (torch.ones(0), torch.ones(4).double())}


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

    def check(state):
        assert all(0 <= count <= 2 and count == count.round() for count in tree.flatten(state["step"])[0])
        grads = tree.map(torch.ones_like, PARAMS)
        _, after = opt(PARAMS, grads, state, hparams)
        counts = [[n.item() for n in tree.flatten(x["step"])[0]] for x in (state, after)]
        assert counts[1] == [n + 1 for n in counts[0]]

    drawn = s.states(opt, PARAMS, hparams, max_steps=2)
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


# ---- numbers and flags ----------------------------------------------------------------------------------------------

RANGES = [
    nonnegative(1e-3, "lr"),
    fraction(0.999, "beta"),
    nonnegative(1e-8, "eps"),
    Number(0.0, "any"),
    Number(-100.0, "far below"),
    Number(30.0, "far above"),
    Number(0.35, "on no grid", 1 / 3, 2 / 3),
    Number(0.2, "above 0, open", 0.1, 0.7, below_high=True),
    Number(5.0, "above 1", 2.0, 9.0),
    Number(100.0, "above 1, unbounded", 50.0),
    Number(-4.0, "below -1, unbounded", high=-3.0),
    Number(-0.5, "up to 0", -1.0, 0.0),
    Number(-3.0, "below 0", -5.0, -2.0),
    Number(0.1, "around 0", -2.0, 0.25),
    Number(4e-6, "tiny, no power of ten", 3e-6, 5e-6),
    Number(1e-6, "tiny", 0.0, 1e-5),
    Number(inf, "infinite by default", 0.0),
    Number(1.0, "one value", 1.0, 1.0),
    Number(1, "of ints", 0, 2),
]


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("declared", RANGES, ids=lambda n: n.name)
def test_a_number_is_in_its_range(declared, nonzero):
    def check(x):
        assert type(x) is float
        assert math.isfinite(x)
        assert x in declared
        assert x != 0 or not nonzero

    every(s.number(declared, nonzero=nonzero), check, MANY)


@pytest.mark.parametrize("declared", RANGES, ids=lambda n: n.name)
def test_a_number_is_its_default_0_the_low_end_and_others_too(declared):
    drawn = s.number(declared)
    if math.isfinite(declared.default) and not 0 < declared.default < 1e-4:
        assert reaches(drawn, lambda x: x == declared.default)
    if 0.0 in declared:
        assert reaches(drawn, lambda x: x == 0)
    if declared.low > -inf:
        assert reaches(drawn, lambda x: x == declared.low)
    if declared.low != declared.high:
        assert reaches(drawn, lambda x: x not in (0.0, 0.5, declared.default))


def check_in_spec(spec, drawn):
    assert drawn.keys() == spec.keys()
    for name, part in spec.items():
        if isinstance(part, tuple):
            assert type(drawn[name]) is tuple
            assert all(x in number for x, number in zip(drawn[name], part, strict=True))
        else:
            assert drawn[name] in part


@pytest.mark.parametrize(("factory", "flags"), ALL, ids=ALL_IDS)
def test_hparams_are_in_their_ranges_and_valid(factory, flags):
    opt = factory(**flags)

    def check(drawn):
        check_in_spec(factory.rule.hparams, drawn)
        assert opt.hparams(**drawn) == drawn

    every(s.hparams(factory, flags), check)
    for drawn in (s.hparams(opt), s.hparams(factory.rule, flags)):
        every(drawn, check, settings(FIXED, max_examples=5))


def test_numbers_of_a_spec():
    every(s.numbers(SPEC), lambda drawn: check_in_spec(SPEC, drawn))
    every(s.numbers({}), lambda drawn: drawn == {})

    def check(drawn):
        check_in_spec(SPEC, drawn)
        assert drawn["low"] == 7
        assert drawn["pull"] != 0
        assert 0 not in drawn["three"]

    every(s.numbers(SPEC, nonzero=["pull", "three"], low=7), check, MANY)


def test_fixed_hparams_are_as_given():
    lr, betas = torch.tensor(0.1), (0.0, 0.5)

    def check(drawn):
        assert drawn["lr"] is lr
        assert drawn["betas"] == betas

    every(s.hparams(funcopt.adamw, lr=lr, betas=betas), check)
    every(s.hparams(odd, {"ordered": True}, low=1), lambda drawn: drawn["high"] > 1)


VARIED = [
    (odd, {"ordered": True}, lambda h: h["low"] not in (0.0, 0.5) and h["high"] not in (0.5, 1.0)),
    (odd, {"ordered": True}, lambda h: h["low"] > 0.6),
    (odd, {"pulled": True}, lambda h: h["pull"] < -1),
    (odd, {}, lambda h: h["low"] > h["high"]),
    (funcopt.sgd, {"nesterov": True}, lambda h: h["momentum"] not in (0.5, 1.0) and h["weight_decay"] == 0),
    (funcopt.sgd, {"nesterov": True}, lambda h: h["lr"] == 0),
    (funcopt.sgd, {}, lambda h: h["dampening"] < 0),
    (funcopt.sgd, {}, lambda h: h["dampening"] > 0 and h["momentum"] > 0),
]


@pytest.mark.parametrize(("factory", "flags", "wanted"), VARIED)
def test_numbers_that_a_check_relates_are_varied_all_the_same(factory, flags, wanted):
    assert reaches(s.hparams(factory, flags), wanted)


@pytest.mark.parametrize("factory", [*RULES.values(), odd], ids=lambda f: f.__name__)
def test_flags_are_every_choice(factory):
    seen = set()
    every(s.flags(factory), lambda flags: seen.add(frozenset(flags.items())), MANY)
    assert seen == {frozenset(flags.items()) for f, flags in ALL if f is factory}
    for opt in (factory(), factory.rule):
        every(s.flags(opt), lambda flags: flags.keys() == factory.rule.flags.keys())


# ---- schedules and problems -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", DECAYS)
def test_schedules_stay_between_0_and_their_peak(decay):
    def check(schedule):
        assert 0 < schedule.peak <= 3
        values = [schedule(t) for t in range(20)]
        assert all(0 <= value <= schedule.peak for value in values)
        assert max(values) == schedule.peak
        rising, falling = values[: schedule.warmup + 1], values[schedule.warmup :]
        assert rising == sorted(rising)
        assert falling == sorted(falling, reverse=True)

    schedules = s.schedules(max_peak=3, max_steps=6)
    every(schedules, check)
    assert reaches(schedules, lambda schedule: schedule.decay == decay and schedule.warmup and schedule.steps == 6)


# Two steps of warmup to 4 and four of decay.
VALUES = {
    "constant": [4, 4, 4, 4, 4, 4],
    "linear": [4, 3, 2, 1, 0, 0],
    "cosine": [4, 2 + 2**0.5, 2, 2 - 2**0.5, 0, 0],
    "exponential": [4, 2, 1, 0.5, 0.25, 0.125],
    "step": [4, 4, 0.4, 0.4, 0.4, 0.4],
}


@pytest.mark.parametrize("decay", VALUES)
def test_values_of_a_schedule(decay):
    schedule = Schedule(peak=4.0, warmup=2, steps=6, decay=decay)
    assert [schedule(t) for t in range(8)] == pytest.approx([4 / 3, 8 / 3, *VALUES[decay]], rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_problems_have_a_finite_loss_with_a_gradient(kind, dtype):
    def check(problem):
        assert problem.kind == kind
        params, batches = problem.params, problem.batches
        assert 1 <= len(batches) == problem.steps <= 3
        for batch in batches:
            leaves = {name: p.requires_grad_() for name, p in problem.params.items()}
            loss = problem.loss(leaves, batch)
            same_form(loss, torch.empty((), dtype=dtype))
            assert loss.isfinite()
            for p, g in zip(leaves.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
                same_form(g, p)
                assert g.isfinite().all()
        assert code([params, batches]) == code([problem.params, problem.batches])

    every(s.problems([kind], max_steps=3, dtype=dtype), check, settings(FIXED, max_examples=20))


@pytest.mark.parametrize("kind", MODELS)
def test_problems_of_every_kind_are_drawn_again_the_same(kind):
    found = [smallest(s.problems(), lambda problem: problem.kind == kind and problem.features == 2) for _ in range(2)]
    assert found[0] == found[1]
    assert code([found[0].params, found[0].batches]) == code([found[1].params, found[1].batches])
    steps = found[0].batches, Problem(kind, 2, found[0].examples, found[0].steps, found[0].seed + 1).batches
    assert code(steps[0]) != code(steps[1])


# ---- what is filtered out -------------------------------------------------------------------------------------------

DRAWN = {
    "shapes": s.shapes(max_dims=4),
    "elements": s.elements(torch.float16, KINDS),
    "tensors": s.tensors(dtype=st.sampled_from(DTYPES), include=KINDS, layouts=LAYOUTS),
    "trees": s.trees(st.just(0), max_leaves=6),
    "params": s.params(),
    "gradients": s.gradients(PARAMS, missing=True),
    "gradient_sequences": s.gradient_sequences(P, max_steps=3, missing=True),
    "states": s.states(funcopt.adamw(amsgrad=True), P),
    "step_numbers": s.step_numbers(),
    "schedules": s.schedules(),
    "problems": s.problems(),
    **{f"flags of {factory.__name__}": s.flags(factory) for factory in RULES.values()},
    **{f"hparams of {name}": s.hparams(factory, flags) for name, (factory, flags) in zip(ALL_IDS, ALL, strict=True)},
}


@pytest.mark.parametrize("strategy", DRAWN.values(), ids=DRAWN.keys())
def test_next_to_nothing_is_filtered_out(strategy):
    """By hypothesis' own count: `invalid` is what a filter gave up on, under 5% of all."""
    seen = []
    with collector.with_value(seen.append):
        every(strategy, lambda drawn: None, MANY)
    counts = collections.Counter(case["status"] for case in seen[0]["generate-phase"]["test-cases"])
    assert counts["invalid"] <= 0.05 * counts["valid"], counts


def test_what_a_check_refuses_is_never_handed_out():
    def fits(h):
        return h["low"] < h["high"] and h["pull"] < h["three"][2]

    every(ranges.allowed(SPEC, fits, fixed={}), fits, MANY)


# ---- what is shrunk to ----------------------------------------------------------------------------------------------


def has(wanted):
    return lambda t: bool(wanted(t).any())


def leaves_of(drawn):
    return tree.flatten(drawn)[0]


SHRUNK = {
    "a shape": (s.shapes(), lambda shape: True, ()),
    "a shape of elements": (s.shapes(), lambda shape: math.prod(shape) > 1, (2,)),
    "a matrix": (s.shapes(), lambda shape: len(shape) == 2 and math.prod(shape) > 0, (1, 1)),
    "a tensor": (s.tensors(), lambda t: True, torch.tensor(0.0).double()),
    "two elements": (s.tensors(), lambda t: t.numel() >= 2, torch.zeros(2).double()),
    "an empty one": (s.tensors(), lambda t: t.numel() == 0, torch.zeros(0).double()),
    "not 0": (s.tensors(), has(lambda t: t != 0), torch.tensor(1.0).double()),
    "not 0, by kind": (s.tensors(include=["unit"]), lambda t: True, torch.tensor(1.0).double()),
    "below 0": (s.tensors(), has(lambda t: t < 0), torch.tensor(-1.0).double()),
    "above 1": (s.tensors((2, 2)), has(lambda t: t > 1), torch.tensor([[0.0, 0.0], [0.0, 2.0]]).double()),
    "NaN": (s.tensors(include=KINDS, layouts=LAYOUTS), has(torch.isnan), torch.tensor(nan).double()),
    "infinite": (s.tensors(s.shapes(min_dims=1), include=KINDS), has(torch.isinf), torch.tensor([inf]).double()),
    "a dtype": (
        s.tensors((), st.sampled_from(DTYPES)),
        lambda t: t.dtype.itemsize == 2,
        torch.tensor(0.0).bfloat16(),
    ),
    "strides": (
        s.tensors((2, 1), layouts=LAYOUTS),
        lambda t: t.stride(0) == 2,
        laid_out(torch.zeros(2, 1).double(), "strided"),
    ),
    "no strides": (s.tensors((2, 2), layouts=LAYOUTS), lambda t: True, torch.zeros(2, 2).double()),
    "a tree": (s.trees(st.just(0)), lambda drawn: True, 0),
    "two leaves": (s.trees(st.just(0)), lambda drawn: len(leaves_of(drawn)) > 1, [0, 0]),
    "a dict": (s.trees(st.just(0)), lambda drawn: isinstance(drawn, dict), {"w": 0}),
    "params": (s.params(torch.float32), lambda drawn: True, torch.tensor(0.0)),
    "NaN params": (
        s.params(torch.float32, include=KINDS),
        lambda drawn: any(p.isnan().any() for p in leaves_of(drawn)),
        torch.tensor(nan),
    ),
    "gradients": (s.gradients(P), lambda drawn: True, [torch.zeros(2)]),
    "a gradient missing": (s.gradients(P, missing=True), lambda gs: None in gs, [None]),
    "a sequence": (s.gradient_sequences(P), lambda drawn: True, [[torch.zeros(2)]]),
    "two steps": (s.gradient_sequences(P), lambda drawn: len(drawn) > 1, [[torch.zeros(2)]] * 2),
    "a fresh state": (s.states(funcopt.sgd(), P), lambda drawn: True, {"step": [torch.tensor(0.0)]}),
    "a step number": (s.step_numbers(), lambda n: True, 0),
    "a late step number": (s.step_numbers(), lambda n: n >= 2**24, 2**24),
    "a number": (s.number(nonnegative(1e-3, "lr")), lambda x: True, 0.5),
    "a small number": (s.number(nonnegative(1e-3, "lr")), lambda x: 0.02 < x < 0.3, 0.021),
    "eps": (s.number(nonnegative(1e-8, "eps")), lambda x: True, 0.0),
    "a negative number": (s.number(Number(0.0, "any")), lambda x: x < 0, -0.002),
    "numbers": (
        s.hparams(funcopt.sgd),
        lambda h: True,
        {"lr": 0.5, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.5},
    ),
    "Nesterov's": (
        s.hparams(funcopt.sgd, {"nesterov": True}),
        lambda h: True,
        {"lr": 0.5, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.5},
    ),
    "flags": (s.flags(funcopt.adam), lambda h: True, {"amsgrad": False, "maximize": False}),
    "a schedule": (s.schedules(), lambda drawn: True, Schedule(0.01, 0, 1, "constant")),
    "a problem": (s.problems(), lambda drawn: True, Problem("linear", 1, 1, 1, 0)),
}


@pytest.mark.parametrize(("strategy", "wanted", "expected"), SHRUNK.values(), ids=SHRUNK.keys())
def test_examples_shrink_to(strategy, wanted, expected):
    assert code(smallest(strategy, wanted)) == code(expected)


def test_numbers_in_an_order_shrink_to_simple_ones():
    found = smallest(s.hparams(odd, {"ordered": True}))
    assert (found["rate"], found["three"], found["low"]) == (0.5, (0.5, 0.5, 0.5), 0.5)
    assert found["high"] in (5.0, 0.505)


# ---- the names ------------------------------------------------------------------------------------------------------


def test_every_public_name_has_a_docstring():
    functions = [name for name in s.__all__ if callable(getattr(s, name))]
    assert set(functions) >= {"params", "gradients", "hparams", "states", "problems"}
    assert all(getattr(s, name).__doc__ for name in functions)
