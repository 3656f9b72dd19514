"""What transforms promise: bounds, identities, and the optimizer inside where their numbers say so."""

import pytest
import torch

import funcopt

SIZES = {"matrix": (3, 5), "vector": (7,), "number": (), "empty": (0, 2), "cube": (2, 3, 2)}


def tensors(seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=random, dtype=torch.float64).to(dtype) for name, size in SIZES.items()}


def run(opt, grads, hparams=None, params=None, **options):
    hparams = opt.hparams() if hparams is None else hparams
    params = tensors(0) if params is None else params
    state = opt.init(params, hparams, **options)
    for g in grads:
        params, state = opt(params, g, state, hparams)
    return params, state


def same(got, want, **tolerance):
    torch.testing.assert_close(got, want, **(tolerance or {"rtol": 0, "atol": 0}))


# ---- clipping -------------------------------------------------------------------------------------------------------


def norm(g):
    return torch.stack([x.square().sum() for x in g.values()]).sum().sqrt()


def unit_norms(x):
    return x.flatten(1).norm(dim=1) if x.dim() > 1 else x.norm().reshape(1)


# Each with the name of its bound, what must not be larger than that, and how far below it aims where it clips at all:
# by 1e-6 of a norm, as torch.nn.utils.clip_grad_norm_.
CLIPS = {
    "clip_by_global_norm": (funcopt.clip_by_global_norm, lambda g, p: [norm(g)], 1e-6),
    "clip_by_norm": (funcopt.clip_by_norm, lambda g, p: [x.norm() for x in g.values()], 1e-6),
    "clip_by_value": (funcopt.clip_by_value, lambda g, p: [x.abs().max() for x in g.values() if x.numel()], 0.0),
    "adaptive_clip": (
        funcopt.adaptive_clip,
        lambda g, p: [(unit_norms(x) / unit_norms(p[n]).clamp(min=1e-3)).max() for n, x in g.items() if x.numel()],
        0.0,
    ),
}
each_clip = pytest.mark.parametrize(("transform", "sizes", "below"), CLIPS.values(), ids=CLIPS.keys())


def clipped(transform, bound, g, params):
    """What SGD with lr = 1 subtracts."""
    opt = transform(funcopt.sgd(backend="eager"), bound)
    new, _ = run(opt, [g], opt.hparams(lr=1.0), params)
    return {name: params[name] - p for name, p in new.items()}


@each_clip
@pytest.mark.parametrize("bound", [0.0, 1e-2, 0.5, 1e9])
def test_a_clip_bounds_is_idempotent_and_the_identity_below(transform, sizes, below, bound):
    params, g = tensors(0), tensors(1)
    once = clipped(transform, bound, g, params)
    assert all(size <= bound * (1 + 1e-12) + 1e-15 for size in sizes(once, params))
    assert bound == 1e9 or any(size >= bound * (1 - 1e-12) - below for size in sizes(once, params))
    again = clipped(transform, bound, once, params)
    same(again, once, rtol=1e-9 + below / max(bound, 1e-9), atol=1e-12)
    if bound == 1e9:
        same(once, g, rtol=1e-12, atol=1e-14)


@each_clip
def test_a_clip_keeps_signs_and_what_is_0(transform, sizes, below):
    params, g = tensors(0), tensors(1)
    g["matrix"] = torch.zeros_like(g["matrix"])
    out = clipped(transform, 0.5, g, params)
    assert out["matrix"].eq(0).all()
    for name, x in out.items():
        assert torch.equal(x.sign(), g[name].sign())


# ---- the optimizer inside -------------------------------------------------------------------------------------------

# With these numbers a transform changes nothing but its own state.
IDLE = {
    "clip_by_global_norm": lambda opt: funcopt.clip_by_global_norm(opt, 1e9),
    "clip_by_norm": lambda opt: funcopt.clip_by_norm(opt, 1e9),
    "clip_by_value": lambda opt: funcopt.clip_by_value(opt, 1e9),
    "adaptive_clip": lambda opt: funcopt.adaptive_clip(opt, 1e9),
    "accumulate": lambda opt: funcopt.accumulate(opt, 1),
    "skip_nonfinite": funcopt.skip_nonfinite,
    "ema": lambda opt: funcopt.ema(opt, 0.5),
    "lookahead": lambda opt: funcopt.lookahead(opt, 2, 1.0),
    "unscale": lambda opt: funcopt.unscale(opt, 1.0),
    "decoupled_weight_decay": lambda opt: funcopt.decoupled_weight_decay(opt, 0.0, prefix="outer_"),
    "masked": lambda opt: funcopt.masked(opt, True),
    "freeze": lambda opt: funcopt.freeze(opt, False),
    "partition": lambda opt: funcopt.partition({"all": opt}, "all"),
    "sam": lambda opt: funcopt.sam(opt, 0.0),
    "chain": lambda opt: funcopt.chain(funcopt.skip_nonfinite, funcopt.lookahead(k=3, alpha=1.0), opt),
}
INNER = {
    "adamw": (funcopt.adamw, {}),
    "sgd": (funcopt.sgd, {"momentum": 0.9, "lr": 0.1}),
    "nadam": (funcopt.nadam, {}),
    "adafactor": (funcopt.adafactor, {}),
}


@pytest.mark.parametrize(("backend", "inner"), [*(("eager", inner) for inner in INNER), ("compile", "sgd")])
@pytest.mark.parametrize("wrap", IDLE.values(), ids=IDLE.keys())
def test_a_transform_that_has_nothing_to_do(wrap, backend, inner):
    """Bit for bit the optimizer inside."""
    factory, numbers = INNER[inner]
    plain = factory(backend=backend)
    opt = wrap(plain)
    grads = [tensors(t, torch.float32) for t in range(1, 5)]
    params = tensors(0, torch.float32)
    calls = [lambda _, g=g: g for g in grads] if "sam" in repr(opt) else grads
    p, state = run(opt, calls, opt.hparams(**numbers), params)
    want, slots = run(plain, grads, plain.hparams(**numbers), params)
    same(p, want)
    same({name: state[name] for name in slots}, slots)


def test_an_average_without_memory_is_the_weights():
    p, state = run(funcopt.ema(funcopt.adamw(), 0.0), [tensors(t) for t in range(1, 4)])
    same(state["ema"], p, rtol=1e-15, atol=1e-15)
    _, state = run(funcopt.ema(funcopt.adamw(), 1.0), [tensors(t) for t in range(1, 4)])
    same(state["ema"], tensors(0))


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("inner", INNER)
def test_the_same_gradient_k_times_is_one_step(inner, backend):
    """Four times a quarter is exact; in between nothing changes but the count and the sum."""
    factory, numbers = INNER[inner]
    plain, opt = factory(backend=backend), funcopt.accumulate(factory(backend=backend), 4)
    p, state = run(opt, [], hparams := opt.hparams(**numbers))
    q, slots = run(plain, [], plain.hparams(**numbers))
    for t in range(1, 4):
        g = tensors(t)
        q, after = plain(q, g, slots, plain.hparams(**numbers))
        for call in range(4):
            before, held = p, state
            p, state = opt(p, g, state, hparams)
            if call < 3:
                same(p, before)
                same(
                    {name: state[name] for name in slots if name != "step"}, {n: held[n] for n in slots if n != "step"}
                )
                assert state["step"]["vector"] == 4 * (t - 1) + call + 1
        slots = after
        same(p, q)
        same({name: state[name] for name in slots if name != "step"}, {n: slots[n] for n in slots if n != "step"})
        assert all(x.eq(0).all() for x in state["accumulated"].values())


def test_decoupled_decay_makes_adamw_of_adam():
    opt = funcopt.decoupled_weight_decay(funcopt.adam(), 0.3, prefix="decoupled_by_")
    grads = [tensors(t) for t in range(1, 5)]
    p, _ = run(opt, grads, opt.hparams(lr=0.1))
    qs = {name: q.clone().requires_grad_() for name, q in tensors(0).items()}
    theirs = torch.optim.AdamW(qs.values(), 0.1, weight_decay=0.3)
    for g in grads:
        for name, q in qs.items():
            q.grad = g[name]
        theirs.step()
    same(p, {name: q.detach() for name, q in qs.items()}, rtol=1e-12, atol=1e-14)


def test_decay_follows_the_learning_rate_of_its_optimizer():
    opt = funcopt.decoupled_weight_decay(funcopt.sgd(), 0.5, prefix="outer_")
    zeros = {name: torch.zeros_like(x) for name, x in tensors(0).items()}
    lrs = {name: 0.1 * (1 + i) for i, name in enumerate(SIZES)}
    p, _ = run(opt, [zeros, zeros], opt.hparams(lr=lrs))
    same(p, {name: x * (1 - lrs[name] * 0.5) ** 2 for name, x in tensors(0).items()}, rtol=1e-14, atol=0)


def test_lookahead_of_two_steps_by_hand():
    opt = funcopt.lookahead(funcopt.sgd(), 2, 0.25)
    p = torch.zeros(1, dtype=torch.float64)
    state, hparams, seen = opt.init(p), opt.hparams(lr=1.0), []
    for _ in range(4):
        p, state = opt(p, -torch.ones_like(p), state, hparams)
        seen.append((p.item(), state["slow"].item()))
    assert seen == [(1.0, 0.0), (0.5, 0.5), (1.5, 0.5), (1.0, 1.0)]


def test_steps_of_their_own_for_parameters_that_are_left_out():
    """Each parameter has its own count, so its own turn."""
    opt = funcopt.accumulate(funcopt.lookahead(funcopt.sgd(), 2, 0.5), 2)
    p = {"a": torch.zeros(()).double(), "b": torch.zeros(()).double()}
    state, hparams = opt.init(p), opt.hparams(lr=1.0)
    one = torch.ones(()).double()
    for t in range(8):
        p, state = opt(p, {"a": one, "b": None if t % 2 else one}, state, hparams)
    assert (state["step"]["a"], state["step"]["b"]) == (8, 4)
    assert (p["a"], p["b"]) == (-2, -1)  # four steps and two, every second of which is halved


# ---- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("inside", [False, True])
def test_a_spoilt_gradient_is_left_out_of_what_is_accumulated(inside, bad):
    """Inside or outside: the step, its count and the sum are as if the gradient had never come."""
    layers = [lambda opt: funcopt.accumulate(opt, 2), funcopt.skip_nonfinite]
    opt = funcopt.chain(*(layers if inside else reversed(layers)), funcopt.adamw())
    grads = [tensors(t) for t in range(1, 6)]
    for t in (1, 2):
        grads[t]["cube"][0, 0, 0] = bad
    same(run(opt, grads), run(opt, [grads[0], *grads[3:]]))


def test_a_number_that_is_not_finite_goes_through_clips_by_value_as_with_torch():
    g = {name: x.clone() for name, x in tensors(1).items()}
    g["vector"][:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    got = clipped(funcopt.clip_by_value, 0.5, g, {name: torch.zeros_like(x) for name, x in g.items()})
    want = {name: x.clamp(-0.5, 0.5) for name, x in g.items()}
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
