"""Transforms on tensors of every kind, and with numbers of every kind."""

import pytest
import torch
from torch.utils import _pytree as pytree

import funcopt
from tests.transforms.table import TRANSFORMS

each_transform = pytest.mark.parametrize("name", TRANSFORMS)


def given(opt, g):
    """A gradient as the optimizer takes it."""
    return (lambda _: g) if opt.rule.ascent is not None else g


def steps(opt, params, grads, hparams=None, **options):
    hparams = opt.hparams(lr=0.1) if hparams is None else hparams
    state = opt.init(params, hparams, **options)
    for g in grads:
        params, state = opt(params, given(opt, g), state, hparams)
    return params, state


def tensors(seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (3, 4), "vector": (5,), "number": (), "empty": (0, 3)}
    return {n: torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for n, shape in shapes.items()}


# ---- dtypes ---------------------------------------------------------------------------------------------------------

# What is stored is rounded once, of numbers of about 1; float32 besides in each operation.
DTYPES = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-5}


@pytest.mark.parametrize(("dtype", "close"), DTYPES.items(), ids=map(str, DTYPES))
@pytest.mark.parametrize("backend", ["eager", "compile"])
@each_transform
def test_a_step_in_fewer_bits_is_that_in_float64_rounded(name, backend, dtype, close):
    opt, exact = (TRANSFORMS[name](funcopt.adamw(backend=b)) for b in (backend, "eager"))
    double = lambda tree: pytree.tree_map(lambda t: t.double() if t.dtype == dtype else t, tree)
    params = tensors(0, dtype)
    hparams = opt.hparams(lr=0.1)
    state = opt.init(params, hparams)
    for t in range(1, 4):
        g = tensors(t, dtype)
        want = exact(double(params), given(opt, double(g)), double(state), hparams)
        params, state = opt(params, given(opt, g), state, hparams)
        assert all(p.dtype == dtype for p in params.values())
        torch.testing.assert_close(double((params, state)), double(want), rtol=2 * close, atol=close)


@each_transform
def test_slots_in_more_bits_than_the_parameters(name):
    opt = TRANSFORMS[name](funcopt.sgd())
    params = tensors(0, torch.bfloat16)
    hparams = opt.hparams(lr=0.1, momentum=0.9)
    _, state = steps(opt, params, [tensors(1, torch.bfloat16)], hparams, slot_dtype=torch.float32)
    assert {t.dtype for slot in state.values() for t in slot.values()} == {torch.float32}


def test_an_average_in_more_bits_is_not_stuck():
    """In bfloat16 a hundredth of a step of 0.01 is lost beside weights of 1."""
    opt = funcopt.ema(funcopt.sgd(), 0.99)
    params, g = torch.ones(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    for dtype, moves in ((None, False), (torch.float32, True)):
        _, state = steps(opt, params, [g] * 3, opt.hparams(lr=0.01), slot_dtype=dtype)
        assert bool(state["ema"].lt(1).all()) == moves


@each_transform
def test_complex_parameters_are_pairs_of_reals(name):
    opt = TRANSFORMS[name](funcopt.adamw())
    draw = lambda: torch.randn(3, 4, dtype=torch.complex128)
    params, grads = draw(), [draw() for _ in range(3)]
    if not opt.rule.complex:
        with pytest.raises(ValueError, match="does not support complex parameters"):
            opt.init(params)
        return
    p, state = steps(opt, params, grads)
    q, want = steps(opt, torch.view_as_real(params), [torch.view_as_real(g) for g in grads])
    real = lambda t: torch.view_as_real(t) if t.is_complex() else t
    torch.testing.assert_close(pytree.tree_map(real, (p, state)), (q, want), rtol=1e-12, atol=1e-14)


def test_what_complex_parameters_are_refused_for():
    refused = {name for name, wrap in TRANSFORMS.items() if not wrap(funcopt.adamw()).rule.complex}
    assert refused == {"adaptive_clip", "centralize"}


@each_transform
def test_parameters_and_gradients_that_lie_otherwise(name):
    opt = TRANSFORMS[name](funcopt.adamw())
    rows = [torch.randn(6, 8, dtype=torch.float64) for _ in range(4)]
    strided = [t[::2, ::3].t() for t in rows]
    grads = strided[1:]
    got = steps(opt, strided[0], grads)
    want = steps(opt, strided[0].contiguous(), [g.contiguous() for g in grads])
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


# ---- sparse gradients -----------------------------------------------------------------------------------------------


def sparse(seed):
    """Not coalesced: an index may come twice."""
    random = torch.Generator().manual_seed(seed)
    at = torch.randint(0, 6, (1, 3), generator=random)
    values = torch.randn(3, 3, generator=random, dtype=torch.float64)
    return torch.sparse_coo_tensor(at, values, (6, 3), check_invariants=True)


@pytest.mark.parametrize(
    ("factory", "numbers"),
    [(funcopt.sgd, {}), (funcopt.sgd, {"momentum": 0.9}), (funcopt.adagrad, {})],
    ids=["sgd", "momentum", "adagrad"],
)
@each_transform
def test_a_sparse_gradient_is_the_dense_one_with_zeros(name, factory, numbers):
    opt = TRANSFORMS[name](factory())
    grads = [sparse(t) for t in range(4)]
    hparams = opt.hparams(lr=0.1, **numbers)
    p = torch.randn(6, 3, dtype=torch.float64)
    got = steps(opt, p, grads, hparams)
    torch.testing.assert_close(got, steps(opt, p, [g.to_dense() for g in grads], hparams), rtol=1e-12, atol=1e-14)


# What keeps the rows that a gradient does not have as they are, and what becomes of those that it has.
BY_ROWS = {
    "clip_by_global_norm": lambda rows: rows * min(1, 0.7 / (rows.norm() + 1e-6)),
    "clip_by_norm": lambda rows: rows * min(1, 0.7 / (rows.norm() + 1e-6)),
    "clip_by_value": lambda rows: rows.clamp(-0.4, 0.4),
    "unscale": lambda rows: rows / 4,
    "skip_nonfinite": lambda rows: rows,
    "sam": lambda rows: rows,
}


@each_transform
def test_adam_of_rows(name):
    """Moments must not decay where no gradient is: the rows alone, or a refusal, never zeros in their place."""
    opt = TRANSFORMS[name](funcopt.sparse_adam())
    grads = [sparse(t) for t in range(4)]
    p = torch.randn(6, 3, dtype=torch.float64)
    if name not in BY_ROWS:
        with pytest.raises(TypeError, match=rf"sparse_adam_{name} does not support sparse gradients"):
            steps(opt, p, grads)
        return
    got, _ = steps(opt, p, grads)
    want = torch.nn.Parameter(p.clone())
    theirs = torch.optim.SparseAdam([want], lr=0.1)
    for g in grads:
        g = g.coalesce()
        want.grad = torch.sparse_coo_tensor(g.indices(), BY_ROWS[name](g.values()), g.shape, check_invariants=True)
        theirs.step()
    torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=1e-12)


# ---- numbers --------------------------------------------------------------------------------------------------------

# A transform, its number, and two values of that.
NUMBERS = {
    "clip_by_global_norm": ("max_norm", 0.7, 0.2),
    "clip_by_norm": ("max_norm", 0.7, 0.2),
    "clip_by_value": ("clip_value", 0.4, 0.1),
    "adaptive_clip": ("clipping", 0.3, 0.05),
    "unscale": ("grad_scale", 4.0, 0.5),
    "decoupled_weight_decay": ("outer_weight_decay", 0.2, 0.9),
    "ema": ("ema_decay", 0.7, 0.1),
    "lookahead": ("lookahead_alpha", 0.3, 0.8),
    "accumulate": ("accumulate_every", 2.0, 3.0),
}
each_number = pytest.mark.parametrize(("name", "number", "first", "second"), [(n, *v) for n, v in NUMBERS.items()])


@each_number
def test_a_number_as_a_tensor_a_schedule_and_a_tree(name, number, first, second):
    opt = TRANSFORMS[name](funcopt.adamw())
    params, grads = tensors(0), [tensors(t) for t in range(1, 5)]
    tensor = lambda value: torch.tensor(value, dtype=torch.float64)
    want = {value: steps(opt, params, grads, opt.hparams(lr=0.1, **{number: value})) for value in (first, second)}
    assert not all(torch.equal(a, b) for a, b in zip(*map(pytree.tree_leaves, want.values()), strict=True))
    for other in (tensor(first), lambda t: first, dict.fromkeys(params, first), lambda t: tensor(first) + 0 * t):
        got = steps(opt, params, grads, opt.hparams(lr=0.1, **{number: other}))
        torch.testing.assert_close(got, want[first], rtol=1e-12, atol=1e-14)
    if name == "clip_by_global_norm":  # which goes by all gradients
        return
    mixed = {n: tensor(second) if n == "vector" else first for n in params}
    got = steps(opt, params, grads, opt.hparams(lr=0.1, **{number: mixed}))
    for n in params:
        torch.testing.assert_close(got[0][n], want[second if n == "vector" else first][0][n], rtol=1e-12, atol=1e-14)


def test_a_schedule_counts_calls():
    opt = funcopt.accumulate(funcopt.sgd(), 2)
    p, one = torch.zeros(1).double(), torch.ones(1).double()
    state, hparams, seen = opt.init(p), opt.hparams(lr=lambda t: 10.0**t), []
    for _ in range(4):
        p, state = opt(p, -one, state, hparams)
        seen.append(p.item())
    assert seen == [0, 10, 10, 1010]


def test_bounds_of_their_own_for_the_elements_of_a_parameter():
    opt = funcopt.clip_by_value(funcopt.sgd())
    p, bounds = torch.zeros(2, 3).double(), torch.tensor([[1.0], [2.0]]).double()
    for g in (torch.full((2, 3), 5.0).double(), torch.full((2, 3), -5.0).double()):
        new, _ = opt(p, g, opt.init(p), opt.hparams(lr=1.0, clip_value=bounds))
        assert torch.equal(new, -g.sign() * bounds)


# ---- what is not written to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "compile"])
@each_transform
def test_nothing_is_written_to_and_nothing_shared(name, backend):
    opt = TRANSFORMS[name](funcopt.adamw(backend=backend))
    params, hparams = tensors(0), opt.hparams(lr=torch.tensor(0.1))
    state = opt.init(params, hparams)
    for t in range(1, 5):
        grads = tensors(t)
        given_tensors = (params, grads, state, hparams["lr"])
        before = pytree.tree_map(torch.clone, given_tensors)
        new = opt(params, given(opt, grads), state, hparams)
        torch.testing.assert_close(given_tensors, before, rtol=0, atol=0)
        places = [t.untyped_storage().data_ptr() for t in pytree.tree_leaves(new) if t.dim() and t.numel()]
        assert len(set(places)) == len(places)
        assert not set(places) & {t.untyped_storage().data_ptr() for t in pytree.tree_leaves(given_tensors)}
        params, state = new


@pytest.mark.parametrize("backend", ["eager", "compile"])
@each_transform
def test_donated_tensors_are_written_to(name, backend):
    opt = TRANSFORMS[name](funcopt.adamw(backend=backend))
    hparams = opt.hparams(lr=0.1)
    kept, donated = tensors(0), tensors(0)
    kept_state, donated_state = opt.init(kept, hparams), opt.init(donated, hparams)
    places = {name: p.data_ptr() for name, p in donated.items()}
    for t in range(1, 5):
        g = given(opt, tensors(t))
        kept, kept_state = opt(kept, g, kept_state, hparams)
        donated, donated_state = opt(donated, g, donated_state, hparams, donate=True)
        torch.testing.assert_close((donated, donated_state), (kept, kept_state), rtol=0, atol=0)
    assert {name: p.data_ptr() for name, p in donated.items()} == places
