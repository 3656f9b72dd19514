"""Derivatives, batches and tracers through every transform: finite differences, closed forms, and single calls."""

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

import funcopt
from tests.transforms import table

F64 = torch.float64
LABELS = {"a": "first", "b": "second"}
TRANSFORMS = {
    **table.TRANSFORMS,
    "partition": lambda opt: funcopt.clip_by_global_norm(
        funcopt.partition({"first": funcopt.ema(opt, 0.7), "second": funcopt.accumulate(opt, 2)}, LABELS), 0.7
    ),
}
each_transform = pytest.mark.parametrize("name", TRANSFORMS)


def draw(seed):
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(size, generator=random, dtype=F64) for n, size in {"a": (2, 2), "b": (3,)}.items()}


def numbers_of(opt):
    """The numbers that derivatives are taken in: not those that count steps."""
    fixed = ("lookahead_k", "accumulate_every")
    return {n: v for n, v in opt.hparams().items() if isinstance(v, float) and not n.endswith(fixed)}


def two_steps(name, opt, params, first, second, numbers):
    """From the state on that they make: the params and slots after it."""
    hparams = {**opt.hparams(), **numbers}
    state = opt.init(params, hparams)
    for g in (first, second):
        # A gradient that depends on where it is taken.
        given = (lambda p, g=g: {n: g[n] + p[n] ** 3 for n in p}) if name == "sam" else g
        params, state = opt(params, given, state, hparams)
    return params, {slot: column for slot, column in state.items() if slot != "step"}


def case(name, factory):
    opt = TRANSFORMS[name](factory(backend="eager"))
    inputs = [*draw(0).values(), *draw(1).values(), *draw(2).values()]
    numbers = {n: v if "lr" not in n else 0.1 for n, v in numbers_of(opt).items()}
    inputs += [torch.tensor(v, dtype=F64) for v in numbers.values()]

    def function(*values):
        trees = [dict(zip("ab", values[i : i + 2], strict=True)) for i in (0, 2, 4)]
        out = two_steps(name, opt, *trees, dict(zip(numbers, values[6:], strict=True)))
        return tuple(t for t in pytree.tree_leaves(out) if t is not None)

    return function, tuple(t.clone().requires_grad_() for t in inputs)


@each_transform
def test_first_derivatives(name):
    """In reverse and in forward mode, in the parameters that the state begins with too, and in every number."""
    assert torch.autograd.gradcheck(*case(name, funcopt.adamw), check_forward_ad=True, fast_mode=True)


@each_transform
def test_second_derivatives(name):
    function, inputs = case(name, funcopt.sgd)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("factory", [funcopt.sgd, funcopt.adamw], ids=["sgd", "adamw"])
@pytest.mark.parametrize("at", [0.0, 1.0])
@each_transform
def test_derivatives_are_finite_where_gradients_are_0(name, at, factory):
    opt = TRANSFORMS[name](factory(backend="eager"))
    rates = [n for n in numbers_of(opt) if n.endswith("lr")]
    start = draw(0)

    def end(scale, lr):
        params = {n: at * p for n, p in start.items()}
        zeros = {n: scale * torch.zeros_like(p) for n, p in params.items()}
        after, slots = two_steps(name, opt, params, zeros, zeros, dict.fromkeys(rates, lr))
        return sum((t**2).sum() for t in pytree.tree_leaves((after, slots)) if t is not None)

    inputs = (torch.zeros((), dtype=F64), torch.tensor(0.1, dtype=F64))
    for order in (jacrev, jacfwd):
        second = order(grad(end, argnums=(0, 1)), argnums=(0, 1))(*inputs)
        assert all(t.isfinite() for t in pytree.tree_leaves((grad(end, argnums=(0, 1))(*inputs), second)))


# ---- Jacobians ------------------------------------------------------------------------------------------------------


def jacobian(transform, bound, g, p=None):
    """Of what SGD with lr = 1 subtracts, in the gradient."""
    opt = transform(funcopt.sgd(backend="eager"))
    p = torch.zeros_like(g) if p is None else p
    name = next(iter(opt.hparams().keys() - funcopt.sgd().hparams().keys() - {"clipping_eps"}))
    hparams = opt.hparams(lr=1.0, **{name: bound})
    state = opt.init(p, hparams)
    return jacrev(lambda g: p - opt(p, g, state, hparams)[0])(g)


def scaled_to(size, g, add):
    """Of g·size/(‖g‖ + add)."""
    n = g.norm()
    return size * (torch.eye(len(g), dtype=F64) / (n + add) - torch.outer(g, g) / ((n + add) ** 2 * n))


EYE = torch.eye(2, dtype=F64)


@pytest.mark.parametrize("transform", [funcopt.clip_by_global_norm, funcopt.clip_by_norm])
def test_the_jacobian_of_a_norms_clip_below_at_and_above_the_bound(transform):
    """‖g‖ = 5; at the bound, where min(1, ·) has two values, half of either side's."""
    g = torch.tensor([3.0, 4.0], dtype=F64)
    beyond = {bound: scaled_to(bound, g, 1e-6) for bound in (5 + 1e-6, 2.0)}
    for bound, want in ((6.0, EYE), (5 + 1e-6, (EYE + beyond[5 + 1e-6]) / 2), (2.0, beyond[2.0]), (0.0, 0 * EYE)):
        torch.testing.assert_close(jacobian(transform, bound, g), want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(jacobian(transform, 2.0, 0 * g), EYE, rtol=0, atol=0)


def test_the_jacobian_of_a_values_clip_below_at_and_above_the_bound():
    g = torch.tensor([0.5, -1.0, 1.0, 2.0, -3.0, 0.0], dtype=F64)
    want = torch.diag(torch.tensor([1.0, 0.5, 0.5, 0.0, 0.0, 1.0], dtype=F64))
    torch.testing.assert_close(jacobian(funcopt.clip_by_value, 1.0, g), want, rtol=0, atol=0)


def test_the_jacobian_of_an_adaptive_clip_below_at_and_above_the_bound():
    """Weights of norm 10, and none, which counts as 1e-3."""
    g, p = torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([6.0, -8.0], dtype=F64)
    most = {clipping: scaled_to(10 * clipping, g, 0.0) for clipping in (0.5, 0.1)}
    for clipping, want in ((0.6, EYE), (0.5, (EYE + most[0.5]) / 2), (0.1, most[0.1]), (0.0, 0 * EYE)):
        torch.testing.assert_close(jacobian(funcopt.adaptive_clip, clipping, g, p), want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(jacobian(funcopt.adaptive_clip, 0.1, 0 * g, p), EYE, rtol=0, atol=0)
    small = jacobian(funcopt.adaptive_clip, 0.1, g, 0 * p)
    torch.testing.assert_close(small, scaled_to(1e-4, g, 0.0), rtol=1e-12, atol=1e-15)


def test_a_step_that_is_held_passes_derivatives_on_to_the_one_that_is_taken():
    opt = funcopt.accumulate(funcopt.sgd(backend="eager"), 2)
    p, gs = torch.ones(3, dtype=F64), torch.randn(2, 3, dtype=F64)

    def after(p, gs, calls):
        hparams = opt.hparams(lr=0.5)
        state = opt.init(p, hparams)
        for g in gs[:calls]:
            p, state = opt(p, g, state, hparams)
        return p

    eye = torch.eye(3, dtype=F64)
    assert torch.equal(jacrev(lambda gs: after(p, gs, 1))(gs), torch.zeros(3, 2, 3, dtype=F64))
    assert torch.equal(jacrev(lambda gs: after(p, gs, 2))(gs), torch.stack([-0.25 * eye] * 2, 1))
    assert torch.equal(jacrev(lambda p: after(p, gs, 2))(p), eye)


def test_a_step_that_is_skipped_is_the_identity():
    opt = funcopt.skip_nonfinite(funcopt.clip_by_norm(funcopt.adamw(backend="eager")))
    p, g = torch.ones(3, dtype=F64), torch.tensor([1.0, torch.inf, torch.nan], dtype=F64)
    step = lambda p, g: opt(p, g, opt.init(p), opt.hparams())[0]
    by_p, by_g = jacrev(step, argnums=(0, 1))(p, g)
    assert torch.equal(by_p, torch.eye(3, dtype=F64))
    assert by_g.eq(0).all()


def test_the_start_of_lookahead_is_differentiable():
    """p₂ = (1 - α)·p₀ + α·(p₀ - lr·(g₁ + g₂)), where gradients do not depend on p: the identity in p₀."""
    opt = funcopt.lookahead(funcopt.sgd(backend="eager"), 2, 0.25)

    def after(p):
        state = opt.init(p)
        for _ in range(2):
            p, state = opt(p, torch.ones_like(p), state, opt.hparams())
        return p

    torch.testing.assert_close(jacrev(after)(torch.randn(3, dtype=F64)), torch.eye(3, dtype=F64))


# ---- batches and tracers --------------------------------------------------------------------------------------------


@each_transform
def test_a_batch_of_steps_is_step_by_step(name):
    """Of parameters, gradients and learning rates; one gradient is 0, one is not finite."""
    opt = TRANSFORMS[name](funcopt.adamw(backend="eager"))
    stack = lambda seed: pytree.tree_map(lambda *ts: torch.stack(ts), *(draw(10 * seed + k) for k in range(4)))
    params, first, second = stack(1), stack(2), stack(3)
    first["a"][1], first["b"][1], second["b"][2, 0] = 0, 0, torch.nan
    names = [n for n in numbers_of(opt) if n.endswith("lr")]
    lrs = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    step = lambda p, f, s, lr: two_steps(name, opt, p, f, s, dict.fromkeys(names, lr))
    clean = lambda tree: [t for t in pytree.tree_leaves(tree) if t is not None]
    got = clean(vmap(lambda *xs: clean(step(*xs)))(params, first, second, lrs))
    for k in range(4):
        at = pytree.tree_map(lambda t, k=k: t[k], (params, first, second, lrs))
        want = clean(step(*at))
        torch.testing.assert_close([t[k] for t in got], want, rtol=1e-12, atol=1e-14, equal_nan=True)


@each_transform
def test_forward_mode_is_reverse_mode(name):
    opt = TRANSFORMS[name](funcopt.adamw(backend="eager"))
    step = lambda g: two_steps(name, opt, draw(0), g, draw(2), {})[0]["a"]
    tangent = draw(3)
    _, forward = jvp(step, (draw(1),), (tangent,))
    by = jacrev(step)(draw(1))
    want = sum((by[n] * tangent[n]).flatten(2).sum(-1) for n in tangent)
    torch.testing.assert_close(forward, want, rtol=1e-10, atol=1e-12)


def test_compiled_by_the_user():
    """A functional step of all of them, as one graph."""
    first = funcopt.adamw()
    for name, wrap in TRANSFORMS.items():
        if name not in ("clip_by_norm", "clip_by_global_norm", "sam", "partition"):
            first = wrap(first)
    opt = funcopt.partition({"first": first, "second": funcopt.accumulate(funcopt.nadam(), 2)}, LABELS)
    opt = funcopt.sam(funcopt.clip_by_global_norm(opt, 0.7), 0.3)
    hparams = opt.hparams(**{n: torch.tensor(0.1, dtype=F64) for n in ("first_lr", "second_lr")})

    def step(params, g, state):
        return opt(params, lambda p: {n: g[n] + p[n] ** 3 for n in p}, state, hparams)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    params = want = draw(0)
    state = slots = opt.init(params, hparams)
    for t in range(1, 5):
        params, state = compiled(params, draw(t), state)
        want, slots = step(want, draw(t), slots)
        torch.testing.assert_close((params, state), (want, slots), rtol=1e-10, atol=1e-12)
