"""The CPU's kernel, compiled, against torch's run of the same rule, bit for bit."""

import inspect
import math
import threading

import numpy as np
import pytest
import torch

import funcopt
from funcopt import backends, ops
from funcopt.backends import Work
from funcopt.kernels import cpu
from funcopt.transforms import clip_by_global_norm, skip_nonfinite, unscale
from tests.rules_table import ELEMENTWISE, MAXIMIZING, NUMBERS, later

pytestmark = [
    pytest.mark.usefixtures("ieee_sqrt"),
    pytest.mark.skipif(backends.compiler() is None, reason="there is no C++ compiler"),
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = [(), (0,), (1,), (2,), (7,), (15,), (16,), (17,), (63,), (64,), (65,), (33, 77)]
STEPS = 3


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(sizes, dtype):
    return {str(i): torch.randn(size).to(dtype) for i, size in enumerate(sizes)}


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same(got, want, name=""):
    """Bit for bit, the sign of zero too; one NaN is as good as another."""
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a.isnan(), b.isnan()), name
        bits = [
            t.detach().nan_to_num(7.5, torch.inf, -torch.inf).contiguous().view(INTEGERS[t.itemsize]) for t in (a, b)
        ]
        different = bits[0] != bits[1]
        assert not different.any(), f"{name}: {a[different][:5]} and not {b[different][:5]}"


# ---- the library's rules --------------------------------------------------------------------------------------------


def both(factory, hparams=None, *, dtype, slot_dtype=None, sizes=SIZES, **flags):
    """Some steps of the kernel's, pure and donated in turn, and torch's."""
    eager, compiled = factory(backend="eager", **flags), factory(backend="compile", **flags)
    hparams = eager.hparams(**(hparams or NUMBERS[factory.__name__]))
    p_want = draw(sizes, dtype)
    p_got = {name: p.clone() for name, p in p_want.items()}
    s_want = eager.init(p_want, hparams, slot_dtype=slot_dtype)
    s_got = compiled.init(p_got, hparams, slot_dtype=slot_dtype)
    for t in range(STEPS):
        if t == 1:  # RAdam knows its rate from the 6th step on
            s_want, s_got = later(s_want, 4), later(s_got, 4)
        g = draw(sizes, dtype)
        p_want, s_want = eager(p_want, g, s_want, hparams)
        donate, before = t % 2 == 1, {name: (p, p.clone()) for name, p in p_got.items()}
        p_got, s_got = compiled(p_got, g, s_got, hparams, donate=donate)
        for name, (p, copied) in before.items():
            assert (p_got[name] is p) == donate
            assert donate or torch.equal(p, copied)
    return (p_got, s_got), (p_want, s_want)


@pytest.mark.parametrize(("factory", "flags"), ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_torch_run_of_the_rule(factory, flags, dtype):
    assert_same(*both(factory, dtype=dtype, **flags))


@pytest.mark.parametrize("factory", MAXIMIZING.values(), ids=MAXIMIZING)
def test_to_maximize(factory):
    p = {"w": torch.randn(33, 7), "s": torch.randn(())}
    g = {name: torch.randn_like(t) for name, t in p.items()}
    up, down = factory(backend="compile", maximize=True), factory(backend="compile")
    hparams = up.hparams(**NUMBERS[factory.__name__])
    state = up.init(p, hparams)
    assert_same(up(p, g, state, hparams)[0], down(p, {name: -t for name, t in g.items()}, state, hparams)[0])


PAIRS = [(a, b) for a in DTYPES for b in DTYPES if a != b]


@pytest.mark.parametrize(("dtype", "other"), PAIRS, ids=str)
def test_slots_in_another_dtype(dtype, other):
    assert_same(*both(funcopt.adam, dtype=dtype, slot_dtype=other))


@pytest.mark.parametrize(("slot_dtype", "half_ulp"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)], ids=str)
def test_float64_is_rounded_to_half_precision_as_torch_has_it(slot_dtype, half_ulp):
    """By way of float32, which brings what is just above the middle of two numbers down to it."""
    offsets = torch.tensor([1, 1, 3, 1], dtype=torch.float64) * half_ulp
    g = 1 + offsets + torch.tensor([2.0**-40, 0.0, -(2.0**-40), 2.0**-30], dtype=torch.float64)
    ends = []
    for backend in ("compile", "eager"):
        opt = funcopt.sgd(backend=backend)
        hparams = opt.hparams(momentum=0.9)
        ends.append(opt(g, g, opt.init(g, hparams, slot_dtype=slot_dtype), hparams))
    assert_same(*ends)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_that_threads_share(dtype, threads):
    """Their elements are more than 32,768, and the threads' shares end within tensors, large and small."""
    sizes = [(5,), (33_001,), (0,), (), (129,), (257, 131), (3,)]
    assert_same(*both(funcopt.adam, dtype=dtype, sizes=sizes))


@pytest.mark.parametrize(("dtype", "other"), PAIRS, ids=str)
def test_gradients_in_another_dtype(dtype, other):
    p, g = torch.randn(1000).to(dtype), torch.randn(1000).to(other)
    ends = []
    for backend in ("compile", "eager"):
        optimizer = funcopt.optim.SGD([own := p.clone()], lr=0.1, weight_decay=0.1, backend=backend)
        own.grad_dtype = other
        own.grad = g.clone()
        for _ in range(3):
            optimizer.step()
        ends.append(own)
    assert_same(*ends)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("factory", "flags"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_numbers_at_the_edges_of_the_dtype(dtype, factory, flags):
    """Subnormal numbers too: they are none to be flushed."""
    info = torch.finfo(dtype)
    numbers = [0.0, 1.0, 1 + info.eps, info.tiny, info.tiny / 4, info.max, torch.inf]
    edge = torch.tensor([*numbers, *(-x for x in numbers), torch.nan], dtype=torch.float64).to(dtype)
    p, g = (t.flatten().contiguous() for t in torch.meshgrid(edge, edge, indexing="ij"))
    assert edge.abs().eq(torch.tensor(info.tiny / 4, dtype=dtype)).any()
    assert info.tiny / 4 > 0
    eager, compiled = factory(backend="eager", **flags), factory(backend="compile", **flags)
    hparams = eager.hparams(**NUMBERS[factory.__name__])
    state = eager.init(p, hparams)
    for slot in factory.rule.tensors:
        if slot.name in state:
            state[slot.name] = p.flip(0).abs()
    state["step"] += 6
    assert_same(compiled(p, g, state, hparams), eager(p, g, state, hparams))


LAYOUTS = {
    "transposed": lambda t: t.t(),
    "every other column": lambda t: t[:, ::2],
    "a row off": lambda t: t[1:],
    "one element off": lambda t: t.flatten()[1:],
    "cut by index": lambda t: t[:, 3:],
    "expanded": lambda t: t[:, :1].expand(40, 44),
    "channels last": lambda t: t.reshape(1, 4, 40, -1).contiguous(memory_format=torch.channels_last),
    "negative view": lambda t: torch.complex(t, -t).conj().imag,
}


@pytest.mark.parametrize("backend", ["compile", "auto"])
def test_pairs_of_reals_are_run_by_the_kernel(backend, monkeypatch):
    """Complex parameters, also a conjugate view; a rule that takes rows gives the kernel the rows."""
    seen, step = [], cpu.step

    def watched(work):
        seen.extend((p.dtype, tuple(p.shape)) for p in work.params)
        return step(work)

    monkeypatch.setattr(cpu, "step", watched)
    opt, real = funcopt.adam(backend=backend), funcopt.adam(backend="eager")
    p, g = torch.randn(2, 5, 3, dtype=torch.complex64).conj()
    assert p.is_conj()
    got, _ = opt(p, g, opt.init(p), opt.hparams())
    pairs = [torch.view_as_real(t.resolve_conj()) for t in (p, g)]
    want, _ = real(*pairs, real.init(pairs[0]), real.hparams())
    assert_same(torch.view_as_real(got.resolve_conj()), want)
    opt = funcopt.sparse_adam(backend=backend)
    p, g = torch.randn(10, 3), torch.sparse_coo_tensor([[7, 2, 7]], torch.randn(3, 3), (10, 3), check_invariants=True)
    opt(p, g, opt.init(p), opt.hparams())
    assert seen == [(torch.float32, (5, 3, 2)), (torch.float32, (2, 3))]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("what", ["p", "g", "slots", "all"])
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_any_layout(layout, what, donate):
    def make(name, seed):
        torch.manual_seed(seed)
        t = layout(torch.randn(40, 44).abs())
        return t if what in (name, "all") else t.clone(memory_format=torch.contiguous_format)

    p, g = make("p", 1), make("g", 2)
    slots = {"exp_avg": make("slots", 3), "exp_avg_sq": make("slots", 4)}
    eager, compiled = funcopt.adamw(backend="eager"), funcopt.adamw(backend="compile")
    hparams = eager.hparams()
    state = {"step": torch.tensor(2.0), **slots}
    if donate and 0 in p.stride():
        pytest.skip("nothing can be written to a tensor that is expanded")
    want, after = eager(p, g, {**state, "step": torch.tensor(2.0)}, hparams)
    around = p._base.clone() if p._base is not None else None
    donate = donate and not any(0 in slot.stride() for slot in slots.values())
    got, new = compiled(p, g, state, hparams, donate=donate)
    assert_same((got, new), (want, after))
    assert (got is p) == donate
    if around is not None and not p.is_neg():  # what lies between and around the view's elements is another's
        mine = torch.zeros_like(around, dtype=torch.bool)
        mine.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(True)
        assert torch.equal(p._base[~mine], around[~mine])


def test_gradients_are_zeroed_and_nothing_around_them(threads):
    values = [torch.randn(n) for n in (1, 7, 40_001)]
    params = [value.clone().requires_grad_() for value in values]
    optimizer = funcopt.optim.AdamW(params, backend="compile")
    around = [torch.full((p.numel() + 2,), 3.0) for p in params]
    for t in range(3):
        for p, memory in zip(params, around, strict=True):
            p.grad = memory[1:-1]
            p.grad.fill_(-1.0)
        optimizer.step(zero_grad=t > 0)
        for memory in around:
            assert memory[0] == memory[-1] == 3
            assert_same(memory[1:-1], torch.full_like(memory[1:-1], 0.0 if t else -1.0))


# ---- what a rule may say --------------------------------------------------------------------------------------------

SAID = {
    "sqrt": lambda p, g, m, c: ops.sqrt(ops.abs(g)),
    "square root of less than nothing": lambda p, g, m, c: ops.sqrt(g),
    "abs": lambda p, g, m, c: ops.abs(g),
    "sign": lambda p, g, m, c: ops.sign(g),
    "maximum": lambda p, g, m, c: ops.maximum(g, p),
    "maximum of a number": lambda p, g, m, c: ops.maximum(0.25, g) + ops.maximum(g, -1),
    "maximum of a coefficient": lambda p, g, m, c: ops.maximum(g, c.a),
    "minimum": lambda p, g, m, c: ops.minimum(g, p),
    "minimum of a number": lambda p, g, m, c: ops.minimum(0.25, g) + ops.minimum(g, 3),
    "where": lambda p, g, m, c: ops.where(g > p, g, m),
    "where, a number": lambda p, g, m, c: ops.where(g > p, 0.1, m),
    "where, a coefficient": lambda p, g, m, c: ops.where(g > p, m, c.third),
    "where, of scalars": lambda p, g, m, c: g * ops.where(c.a > c.third, c.a, c.third),
    "where, by scalars": lambda p, g, m, c: ops.where(c.a > c.third, g, p),
    "less": lambda p, g, m, c: ops.where(g < p, g, m),
    "at most": lambda p, g, m, c: ops.where(g <= 1, g, m),
    "more": lambda p, g, m, c: ops.where(c.third > g, g, m),
    "at least": lambda p, g, m, c: ops.where(c.third >= g, g, m),
    "equal": lambda p, g, m, c: ops.where(g == ops.abs(g), p, m),
    "not equal": lambda p, g, m, c: ops.where(g != 0, p, m),
    "less than the third": lambda p, g, m, c: ops.where(g < 1 / 3, p, m),
    "and": lambda p, g, m, c: ops.where((g > 0) & (p > 0), p, m),
    "or": lambda p, g, m, c: ops.where((g > 0) | (p > m), p, m),
    "not": lambda p, g, m, c: ops.where(~(g > 0), p, m),
    "and, or, not": lambda p, g, m, c: ops.where(~((g > 0) & (p > 0) | ~(m < p)), p, g),
    "and a scalar": lambda p, g, m, c: ops.where((g > 0) & (c.a > c.third), p, m),
    "or a scalar": lambda p, g, m, c: ops.where((c.a > c.third) | (g > 0), p, m),
    "integers": lambda p, g, m, c: 3 * g + 2 - p * 7 + (1 - m),
    "large integers": lambda p, g, m, c: g * 16777217 + 2**60,
    "signs": lambda p, g, m, c: -g + (+p) - (-m),
    "infinity": lambda p, g, m, c: ops.minimum(g, math.inf) + ops.where(g < math.inf, 0, -math.inf),
    "nan": lambda p, g, m, c: ops.where(g == math.nan, p, m) + ops.where(g > 0, math.nan, p),
    "nan passed on": lambda p, g, m, c: ops.maximum(math.nan, g),
    "small numbers": lambda p, g, m, c: g * 1e-30 * 1e-15 + 5e-324,
    "scalars": lambda p, g, m, c: (c.a * c.third - c.b / 3 + 1 - (2 - c.a) * -c.b) * g,
    "scalars negated": lambda p, g, m, c: -c.a * g + (+c.third) * p,
    "scalars, functions": lambda p, g, m, c: (ops.sqrt(c.a) + ops.abs(-c.b) * ops.sign(c.third - c.a)) * g,
    "scalars, the larger": lambda p, g, m, c: ops.maximum(c.a, c.third) * g + ops.minimum(c.a, 0.3) * p,
    "scalars, conditions": lambda p, g, m, c: ops.where((c.a > c.third) & (c.b < 0), 1.5, c.third) * g,
    "one over": lambda p, g, m, c: 1 / g + 1.0 / p,
    "a number over": lambda p, g, m, c: 2 / g + 0.3 / p,
    "a coefficient over": lambda p, g, m, c: c.third / g,
    "scalars over": lambda p, g, m, c: (c.third + c.a) / g - (1 / c.third) / p,
    "over a number": lambda p, g, m, c: g / 3 + p / 0.7,
    "over a coefficient": lambda p, g, m, c: g / c.third,
    "over": lambda p, g, m, c: g / p / m,
    "product and sum": lambda p, g, m, c: g * p + m,
    "product and difference": lambda p, g, m, c: m - g * p,
    "products": lambda p, g, m, c: g * p - p * m,
    "sum of a scalar": lambda p, g, m, c: c.third * g + p - 1,
    "one thing twice": lambda p, g, m, c: (x := g * p + m) * x + ops.sqrt(ops.abs(x)),
}
# What Python works out before torch sees it, or torch without a tensor whose dtype would count.
ALONE = {
    "where, two numbers": lambda p, g, m, c: p * ops.where(g > p, 0.1, 0.7),
    "where, two coefficients": lambda p, g, m, c: p * ops.where(g > p, c.a, c.third),
    "where, two integers": lambda p, g, m, c: p * ops.where(g > p, 3, -1),
}
EITHER_ZERO = {name for name in SAID if "imum" in name or "larger" in name}  # torch may say 0 or -0


def saying(said):
    """A rule with a slot for each expression."""
    slots = ["m", *(f"s{k}" for k in range(1, len(said)))]

    def update(p, g, m, *rest):
        c = rest[-1]
        return p + 0 * g, tuple(expression(p, g, m, c) for expression in said.values())

    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD
    update.__signature__ = inspect.Signature([inspect.Parameter(n, by_name) for n in ("p", "g", *slots, "c")])
    return funcopt.rule(
        "said",
        hparams={"a": funcopt.nonnegative(0.75, "a")},
        slots=slots,
        coefficients=lambda t, a: {"a": a, "b": -2.5, "third": 1 / 3},
        update=update,
    )


said, alone = saying(SAID), saying(ALONE)


REFUSED = {
    "a condition as a number": (lambda p, g, m, c: (g > 0) * p, "takes a number here; got gt"),
    "conditions added": (lambda p, g, m, c: p * ((g > 0) + (p > 0)), "takes a number here; got gt"),
    "conditions compared": (lambda p, g, m, c: ops.where((g > 0) == (p > 0), p, m), "takes a number here; got gt"),
    "a number as a condition": (lambda p, g, m, c: ops.where(g, p, m), "takes a condition here; got g"),
    "and of numbers": (lambda p, g, m, c: ops.where((g > 0) & p, p, m), "takes a condition here; got p"),
    "not of scalars": (lambda p, g, m, c: ops.where(~(c.a > 1), p, m), "the opposite comparison"),
}


@pytest.mark.parametrize(("expression", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_torch_and_a_kernel_would_take_differently_is_refused(expression, message):
    with pytest.raises(TypeError, match=message):
        saying({"m": expression})


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("shape", [(50,), ()], ids=str)
def test_a_choice_between_two_numbers_is_float64_for_float64(backend, shape):
    opt = alone(backend=backend)
    p, g, m = torch.randn(3, *shape, dtype=torch.float64)
    _, new = opt(p, g, opt.init(p) | {"m": m}, opt.hparams())
    for (a, b), slot in zip([(0.1, 0.7), (0.75, 1 / 3), (3, -1)], alone.rule.slots, strict=True):
        want = p.numpy() * np.where(g.numpy() > p.numpy(), a, b)
        np.testing.assert_allclose(new[slot.name].numpy(), want, rtol=1e-15)


def values(dtype):
    """Three columns of numbers, random and special in every combination."""
    special = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 1e30, 0.75, 1 / 3]
    columns = torch.cartesian_prod(*[torch.tensor(special, dtype=torch.float64)] * 3)
    return torch.cat([columns, torch.randn(3001, 3, dtype=torch.float64)]).to(dtype).unbind(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_rounded_before_they_are_added(dtype):
    """(1 + e)² is 1 + 2e + e² and rounds to 1 + 2e, which a fused multiply-add would not do: e² would be left."""
    e = {torch.float32: 2.0**-12, torch.float64: 2.0**-27}[dtype]
    compiled = said(backend="compile")
    x = torch.full((1000,), 1 + e, dtype=dtype)
    for m, slot in ((-(1 + 2 * e), "product and sum"), (1 + 2 * e, "product and difference")):
        state = compiled.init(x) | {"m": torch.full_like(x, m)}
        _, new = compiled(x, x, state, compiled.hparams())
        assert new[said.rule.slots[list(SAID).index(slot)].name].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["many", "0-d"])
@pytest.mark.parametrize("expressions", [SAID, ALONE], ids=["said", "alone"])
def test_whatever_a_rule_may_say(expressions, dtype, shape):
    made = said if expressions is SAID else alone
    eager, compiled = made(backend="eager"), made(backend="compile")
    p, g, m = (t.contiguous() for t in values(dtype))
    if shape == "0-d":
        p, g, m = ({str(i): t[i].clone() for i in range(1700, 1760)} for t in (p, g, m))
    state = eager.init(p, eager.hparams())
    state["m"] = m
    _, want = eager(p, g, state, eager.hparams())
    _, got = compiled(p, g, state, eager.hparams())
    wrong = []
    for name, slot in zip(expressions, made.rule.slots, strict=True):
        a, b = leaves(got[slot.name]), leaves(want[slot.name])
        if name in EITHER_ZERO:
            a, b = [x + 0 for x in a], [x + 0 for x in b]
        try:
            assert_same(a, b, name)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)


# ---- measures -------------------------------------------------------------------------------------------------------


def measured(opt, params, grads, coefficients=None):
    """What the rule measures, level by level, by the kernel, with coefficients by name."""
    fields = opt.rule.Coefficients._fields
    sets = [opt.rule.Coefficients(*[(coefficients or {}).get(name, 0.5) for name in fields])]
    work = Work(
        update=opt.rule.equation,
        flags=tuple(opt.flags.values()),
        params=params,
        grads=grads,
        slots=[],
        present=(),
        coefficients=sets,
        rows=[0] * len(params),
        donate=False,
    )
    return [cpu.measure(work, level) for level in opt.rule.measures]


def as_numpy(grads):
    return np.concatenate([g.double().numpy().ravel() for g in grads])


MANY = {
    "tails": SIZES,
    "threads": [(5,), (33_001,), (0,), (), (129,), (257, 131), (3,)],
    "hundreds": [(n % 70,) for n in range(700)],
    "nothing": [(0,), (2, 0)],
}


@pytest.mark.parametrize("sizes", MANY.values(), ids=MANY.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_squares(sizes, dtype, threads):
    """Squares of float32 are exact in float64; what is left is the order of the sum."""
    opt = clip_by_global_norm(funcopt.sgd(backend="compile"))
    grads = list(draw(sizes, dtype).values())
    ((sums),) = measured(opt, grads, grads)
    (got,) = sums.values()
    want = math.fsum(as_numpy(grads) ** 2)
    assert got == pytest.approx(want, rel=1e-13, abs=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_are_not_finite_are_counted(dtype, threads):
    opt = skip_nonfinite(funcopt.sgd(backend="compile"))
    grads = list(draw(MANY["threads"], dtype).values())
    for sign, place in ((1, 0), (-1, 33_000), (math.nan, 16_384)):
        grads[1][place] = sign * torch.inf
    grads[4][64] = torch.nan
    grads[3].fill_(-torch.inf)
    grads[5][0, 0] = torch.finfo(dtype).max
    assert [list(sums.values()) for sums in measured(opt, grads, grads)] == [[5.0]]


def test_two_measures_in_one_pass_of_gradients_that_come_through_another_layer():
    opt = unscale(skip_nonfinite(clip_by_global_norm(funcopt.sgd(backend="compile"))))
    (field,) = [name for name in opt.rule.Coefficients._fields if name.endswith("inverse")]
    grads = list(draw(SIZES, torch.bfloat16).values())
    ((sums),) = measured(opt, grads, grads, {field: 0.3})
    scaled = (as_numpy(grads).astype(np.float32) * np.float32(0.3)).astype(np.float64)
    assert sorted(sums.values()) == [0.0, pytest.approx(math.fsum(scaled**2), rel=1e-13)]


def test_measures_over_several_dtypes_and_where_gradients_are_none():
    opt = clip_by_global_norm(funcopt.sgd(backend="compile"), max_norm=0.5)
    params = {f"{dtype}{i}": torch.randn(37).to(dtype) for dtype in DTYPES for i in range(4)}
    grads = {name: None if name.endswith("1") else torch.randn(37).to(p.dtype) for name, p in params.items()}
    new, _ = opt(params, grads, opt.init(params), opt.hparams(lr=1.0))
    norm = np.linalg.norm(as_numpy([g for g in grads.values() if g is not None]))
    for name, p in params.items():
        if grads[name] is None:
            assert new[name] is p
        else:
            want = (p.double() - grads[name].double() * 0.5 / (norm + 1e-6)).to(p.dtype)
            torch.testing.assert_close(new[name], want, rtol=torch.finfo(p.dtype).eps, atol=torch.finfo(p.dtype).eps)


def test_measures_of_gradients_that_lie_otherwise():
    opt = clip_by_global_norm(funcopt.sgd(backend="compile"))
    whole = torch.randn(40, 44)
    grads = [whole.t(), whole[:, ::2], whole[:, :1].expand(40, 3), torch.complex(whole, whole).conj().imag]
    params = [torch.zeros(g.shape) for g in grads]
    ((sums),) = measured(opt, params, grads)
    assert list(sums.values()) == pytest.approx([math.fsum(as_numpy(grads) ** 2)], rel=1e-13)


def test_choices_between_numbers_of_two_threads():
    """An update in one thread does not change what the coefficients of another are."""
    found = []
    with ops.arithmetic(torch.float32):
        outside = threading.Thread(target=lambda: found.append(ops.where(torch.tensor(True), 0.1, 0.3)))
        outside.start()
        outside.join()
        inside = ops.where(torch.tensor(True), 0.1, 0.3)
    assert found[0].dtype == torch.float64
    assert inside.dtype == torch.float32
