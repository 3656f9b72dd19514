"""A case as it is printed, Python that builds it again to the bit and the stride; and cases made of other cases."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import funcopt
from funcopt.testing import Case, Problem, Schedule, laws
from funcopt.testing import strategies as s
from funcopt.testing.case import code
from funcopt.testing.strategies import DTYPES, KINDS, LAYOUTS, laid_out
from funcopt.testing.subject import subject_of
from tests.rules_table import COMBINATIONS, IDS

inf, nan = math.inf, math.nan

# The same cases at every run. Of the health checks only the one that looks at the clock is off.
FIXED = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)

# As the head of a counterexample's program has them.
HEAD = """
import torch
from torch import bfloat16, float16, float32, float64, inf, nan, tensor
from funcopt.testing import Case, Problem, Schedule
"""
NAMES = {}
exec(HEAD, NAMES)


def assert_same(got, want):
    """Equal to the bit: types, dtypes, shapes, strides, offsets, the sign of zero; NaN equals NaN."""
    assert type(got) is type(want)
    if isinstance(want, Tensor):
        assert (got.dtype, got.shape, got.layout, got.device) == (want.dtype, want.shape, want.layout, want.device)
        if want.is_sparse:
            got, want = got.coalesce(), want.coalesce()
            assert torch.equal(got.indices(), want.indices())
            return assert_same(got.values(), want.values())
        assert (got.stride(), got.storage_offset()) == (want.stride(), want.storage_offset())
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.signbit() & ~got.isnan(), want.signbit() & ~want.isnan())
    elif isinstance(want, Case):
        assert_same(vars(got), vars(want))
    elif isinstance(want, dict):
        assert list(got) == list(want)
        assert_same(list(got.values()), list(want.values()))
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
    else:
        assert got == want or (got != got and want != want)
    return None


def assert_rebuilt(value):
    assert_same(eval(code(value), NAMES), value)


# ---- code -----------------------------------------------------------------------------------------------------------

anything = s.tensors(s.shapes(max_dims=3), st.sampled_from(DTYPES), include=KINDS, layouts=LAYOUTS)
many = s.gradient_sequences({"w": torch.zeros(2, 3), "b": [torch.zeros(())]}, min_steps=0, missing=True, include=KINDS)
floats = st.floats() | st.integers() | st.booleans() | st.none() | st.text() | st.sampled_from(DTYPES)

WRITTEN = {
    "tensors": anything,
    "sparse tensors": anything.map(Tensor.to_sparse),
    "params": s.params(st.sampled_from(DTYPES), include=KINDS),
    "gradient_sequences": many,
    "states": s.states(funcopt.adam(amsgrad=True), [torch.ones(2, 2)]),
    "hparams": s.hparams(funcopt.adamw),
    "schedules": s.schedules(),
    "problems": s.problems() | s.problems(dtype=torch.bfloat16),
    "nested": s.trees(floats, max_leaves=8),
}


@pytest.mark.parametrize("values", WRITTEN.values(), ids=WRITTEN.keys())
def test_code_builds_the_value_again(values):
    FIXED(given(values)(assert_rebuilt))()


@pytest.mark.parametrize(("factory", "flags"), COMBINATIONS[::3], ids=IDS[::3])
def test_a_case_that_a_law_draws_is_built_again(factory, flags):
    for law in (laws.missing_gradient, laws.late_steps, laws.hypergradient, laws.learning_rate_linearity):
        settings(FIXED, max_examples=6)(given(law.cases(subject_of(factory(**flags))))(assert_rebuilt))()


CASES = st.builds(
    Case,
    params=st.lists(anything, max_size=2),
    grads=st.lists(st.lists(anything | anything.map(Tensor.to_sparse) | st.none(), max_size=2), max_size=2),
    numbers=s.hparams(funcopt.sgd) | st.just({}),
    flags=s.flags(funcopt.sgd) | st.just({}),
    more=st.dictionaries(st.sampled_from(["schedule", "problem"]), s.schedules() | s.problems() | s.step_numbers()),
)


@settings(FIXED)
@given(CASES)
def test_a_case_is_built_again(case):
    assert_rebuilt(case)
    assert code(case) == repr(case)
    assert_rebuilt({"cases": (case, [case])})


t = torch.tensor([[1.0, -0.0], [inf, nan]])
CODE = [
    (t, "tensor([[1.0, -0.0], [inf, nan]], dtype=float32)"),
    (t.double()[0, 0].clone(), "tensor(1.0, dtype=float64)"),
    (torch.tensor([1e-45, -inf]), "tensor([1.401298464324817e-45, -inf], dtype=float32)"),
    (t.bfloat16().T, "torch.empty_strided((2, 2), (1, 2), dtype=bfloat16).copy_(tensor([[1.0, inf], [-0.0, nan]], "),
    (laid_out(t[0, :1], "strided"), "torch.empty_strided((1,), (2,), dtype=float32).copy_(tensor([1.0], "),
    (
        laid_out(t[0], "misaligned"),
        "torch.zeros(3, dtype=float32).as_strided((2,), (1,), 1).copy_(tensor([1.0, -0.0], ",
    ),
    (torch.zeros(2, 0), "torch.zeros((2, 0), dtype=float32)"),
    (torch.zeros(2, 2).to_sparse(), "tensor([[0.0, 0.0], [0.0, 0.0]], dtype=float32).to_sparse()"),
    ((1,), "(1,)"),
    ([], "[]"),
    ((), "()"),
    ({"a": [1, (2.5, None)], 3: True}, "{'a': [1, (2.5, None)], 3: True}"),
    ([-inf, inf, nan], "[-inf, inf, nan]"),
    ([torch.float16, "inf"], "[float16, 'inf']"),
    (Schedule(0.5, 1, 2), "Schedule(peak=0.5, warmup=1, steps=2, decay='constant')"),
    (
        Problem("linear", 1, 2, 3, 4),
        "Problem(kind='linear', features=1, examples=2, steps=3, seed=4, dtype=torch.float64)",
    ),
]


@pytest.mark.parametrize(("value", "text"), CODE, ids=[text[:40] for _, text in CODE])
def test_code_reads_as(value, text):
    assert code(value).startswith(text)
    assert_rebuilt(value)


def test_a_case_reads_as():
    case = Case([torch.ones(2)], [[None], [torch.zeros(2)]], {"lr": 0.1}, more={"count": 3})
    assert repr(case) == (
        "Case(\n"
        "    params=[tensor([1.0, 1.0], dtype=float32)],\n"
        "    grads=[[None], [tensor([0.0, 0.0], dtype=float32)]],\n"
        "    numbers={'lr': 0.1},\n"
        "    more={'count': 3},\n"
        ")"
    )


@pytest.mark.parametrize("case", [Case([], []), Case([torch.ones(2)], []), Case([torch.ones(2)], [[]])])
def test_a_case_without_steps_is_built_again_too(case):
    assert_rebuilt(case)


def test_long_lists_are_broken_into_lines():
    rows = [torch.full((4,), 1 / 3).double() + i for i in range(4)]
    for value in (rows, tuple(rows), {"rows": [rows, [1]]}, Case(rows, [rows, rows], {"by_leaf": [rows]})):
        text = code(value)
        assert all(len(line) <= 120 for line in text.splitlines()), text
        assert_rebuilt(value)


def test_a_tensor_that_wants_a_derivative_is_written_by_its_values():
    assert code(torch.ones(1).requires_grad_()) == "tensor([1.0], dtype=float32)"
    assert code(torch.nn.Parameter(torch.ones(1))) == "tensor([1.0], dtype=float32)"


# ---- one case from another ------------------------------------------------------------------------------------------

p, q, g, h = (torch.full((2,), float(n)) for n in range(4))
CASE = Case([p, q], [[g, None], [g, h], [None, None]], {"lr": 0.1, "momentum": 0.9}, {"nesterov": True}, {"count": 3})

CHANGED = {
    "but": (lambda: CASE.but(), {}),
    "but a field": (lambda: CASE.but(params=[p], flags={}), {"params": [p], "flags": {}}),
    "having": (lambda: CASE.having(), {}),
    "having a number": (
        lambda: CASE.having(lr=0.2, eps=0.0),
        {"numbers": {"lr": 0.2, "momentum": 0.9, "eps": 0.0}},
    ),
    "mapped": (lambda: CASE.mapped(), {}),
    "mapped params": (lambda: CASE.mapped(torch.neg), {"params": [-p, -q]}),
    "mapped grads": (lambda: CASE.mapped(grads=torch.neg), {"grads": [[-g, None], [-g, -h], [None, None]]}),
    "mapped both": (
        lambda: CASE.mapped(Tensor.double, Tensor.half),
        {"params": [p.double(), q.double()], "grads": [[g.half(), None], [g.half(), h.half()], [None, None]]},
    ),
    "only the first": (lambda: CASE.only(0), {"params": [p], "grads": [[g], [g]]}),
    "only the second": (lambda: CASE.only(1), {"params": [q], "grads": [[h]]}),
}


@pytest.mark.parametrize(("change", "fields"), CHANGED.values(), ids=CHANGED.keys())
def test_a_case_made_from_another(change, fields):
    before = {field: getattr(CASE, field) for field in vars(CASE)}
    copied = eval(repr(CASE), NAMES)
    made = change()
    assert_same(made, Case(**{**before, **fields}))
    assert_same(CASE, copied)


def test_a_field_that_there_is_not():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        CASE.but(lr=0.1)
    with pytest.raises(IndexError):
        CASE.only(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CASE.params = []
