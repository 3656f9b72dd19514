"""Strategies refuse bad arguments at once, filter out next to nothing, and shrink to something simple."""

import collections
import math

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.statistics import collector

import funcopt
from funcopt import Number, nonnegative, tree
from funcopt.rules import RULES
from funcopt.testing import Problem, Schedule, ranges
from funcopt.testing import strategies as s
from funcopt.testing.case import code
from funcopt.testing.strategies import DTYPES, KINDS, LAYOUTS, laid_out
from tests.testing.drawing import ALL, ALL_IDS, MANY, PARAMS, SPEC, P, every, inf, nan, odd, smallest

# ---- what is refused, before anything is drawn ----------------------------------------------------------------------

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
