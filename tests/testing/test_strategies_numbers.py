"""Numbers, flags, schedules and problems that are drawn."""

import itertools
import math

import pytest
import torch
from hypothesis import settings

import funcopt
from funcopt import Number, fraction, nonnegative
from funcopt.rules import RULES
from funcopt.testing import Problem, Schedule
from funcopt.testing import strategies as s
from funcopt.testing.case import code
from funcopt.testing.problems import DECAYS, MODELS
from funcopt.testing.strategies import DTYPES
from tests.testing.drawing import ALL, ALL_IDS, FIXED, MANY, SPEC, every, inf, odd, reaches, same_form, smallest

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
    Number(0.9, "a part of its range", 0.0, tried=(0.5, 0.95)),
    Number(1e-7, "a part above 0", tried=(0.0, 1.0)),
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
    drawn, (low, high) = s.number(declared), declared.tried or (declared.low, declared.high)
    if math.isfinite(declared.default) and not 0 < declared.default < 1e-4:
        assert reaches(drawn, lambda x: x == declared.default)
    if low <= 0.0 <= high and 0.0 in declared:
        assert reaches(drawn, lambda x: x == 0)
    if low > -inf:
        assert reaches(drawn, lambda x: x == low)
    if low != high:
        assert reaches(drawn, lambda x: x not in (0.0, 0.5, declared.default))


def test_a_number_is_of_the_part_that_is_tried():
    for declared in (number for number in RANGES if number.tried is not None):
        every(s.number(declared), lambda x, ends=declared.tried: ends[0] <= x <= ends[1], MANY)


def test_a_number_may_be_none_where_that_is_its_default():
    drawn = s.number(Number(None, "eps", 0.0))
    assert reaches(drawn, lambda x: x is None)
    assert reaches(drawn, lambda x: x == 1e-8)
    every(drawn, lambda x: x is None or x >= 0, MANY)


def check_in_spec(spec, drawn):
    assert drawn.keys() == spec.keys()
    for name, part in spec.items():
        assert isinstance(part, tuple) == isinstance(drawn[name], tuple)
        values = zip(drawn[name], part, strict=True) if isinstance(part, tuple) else [(drawn[name], part)]
        assert all(number.default is None if x is None else x in number for x, number in values)


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
    every(s.flags(factory), lambda flags: seen.add(frozenset(flags.items())), settings(MANY, max_examples=300))
    rule = factory.rule
    some = [
        (rule.choices[flag].tried or rule.values(flag)) if flag in rule.choices else (False, True)
        for flag in rule.flags
    ]
    assert seen == {frozenset(zip(rule.flags, chosen, strict=True)) for chosen in itertools.product(*some)}
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
