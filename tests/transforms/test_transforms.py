"""Transforms against what people do around a step by hand, with torch's own functions."""

import copy
import pickle

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import funcopt
from funcopt import clip_by_global_norm, ema, skip_nonfinite, unscale

SIZES = [(), (0,), (1,), (3, 5), (1030,), (40, 44)]
BACKENDS = ["eager", "compile", "triton"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Sums in another order, and the square root of a rounded one.
CLOSE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2e-2, "atol": 1e-2},
}


def tensors(seed, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {str(i): (scale * torch.randn(size, generator=generator)).to(dtype) for i, size in enumerate(SIZES)}


def run(opt, steps, dtype=torch.float32, hparams=None, change=lambda t, g: g):
    hparams = opt.hparams() if hparams is None else hparams
    p = tensors(0, dtype)
    state = opt.init(p, hparams)
    for t in range(1, steps + 1):
        p, state = opt(p, change(t, tensors(t, dtype)), state, hparams)
    return p, state


def assert_equal(got, want, **tolerance):
    for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        if tolerance:
            torch.testing.assert_close(a, b, **tolerance)
        else:
            assert torch.equal(a, b)


# ---- each by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e9])
def test_clip_is_clip_grad_norm(backend, dtype, max_norm):
    p, _ = run(clip_by_global_norm(funcopt.adamw(backend=backend), max_norm), 3, dtype)
    q = {name: torch.nn.Parameter(t) for name, t in tensors(0, dtype).items()}
    optimizer = torch.optim.AdamW(q.values(), fused=True)
    for t in range(1, 4):
        for name, g in tensors(t, dtype).items():
            q[name].grad = g
        clip_grad_norm_(q.values(), max_norm)
        optimizer.step()
    assert_equal(p, {name: t.detach() for name, t in q.items()}, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ema_is_a_lerp(backend, dtype):
    opt, plain = ema(funcopt.adamw(backend=backend), decay=0.9), funcopt.adamw(backend=backend)
    average = tensors(0, dtype)
    assert_equal(opt.init(tensors(0, dtype))["ema"], average)
    for t in range(1, 4):
        p, state = run(opt, t, dtype)
        q, _ = run(plain, t, dtype)
        assert_equal(p, q)
        average = {name: torch.lerp(a.double(), q[name].double(), 0.1).to(dtype) for name, a in average.items()}
        assert_equal(state["ema"], average, **CLOSE[dtype])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_with_a_gradient_that_is_not_finite_is_as_if_never_taken(backend, bad):
    def spoilt(t, g):
        if t in (1, 3, 4):
            g["4"][1029] = bad
        return g

    opt = skip_nonfinite(funcopt.adamw(amsgrad=True, backend=backend))
    p, state = run(opt, 6, change=spoilt)
    q = tensors(0)
    plain = funcopt.adamw(amsgrad=True, backend=backend)
    want = plain.init(q)
    for t in (2, 5, 6):
        q, want = plain(q, tensors(t), want, plain.hparams())
    assert_equal((p, state), (q, want))
    assert state["step"]["0"] == 3


def test_large_gradients_are_finite_though_their_squares_are_not():
    opt = skip_nonfinite(funcopt.sgd())
    p = torch.zeros(2, dtype=torch.float64)
    new, _ = opt(p, torch.full_like(p, 1e300), opt.init(p), opt.hparams(lr=1e-300))
    torch.testing.assert_close(new, torch.full_like(p, -1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unscale_divides(backend):
    scaled = unscale(funcopt.adamw(backend=backend), grad_scale=1024.0)
    p, state = run(scaled, 3, change=lambda t, g: {name: 1024 * x for name, x in g.items()})
    assert_equal((p, state), run(funcopt.adamw(backend=backend), 3))
    hparams = scaled.hparams(grad_scale=torch.tensor(1.0))
    assert_equal(run(scaled, 3, hparams=hparams), run(funcopt.adamw(backend=backend), 3))


# ---- together -------------------------------------------------------------------------------------------------------


def everything(backend="auto", **flags):
    return unscale(skip_nonfinite(clip_by_global_norm(ema(funcopt.adamw(backend=backend, **flags)), max_norm=0.5)))


@pytest.mark.parametrize("backend", ["compile", "triton"])
def test_one_pass_is_bit_for_bit_the_parts_done_one_by_one(backend):
    """In float32: gradients unscaled, then clipped by the factor of their norm, then the step, then the average."""
    scale, max_norm, decay = 8.0, 0.5, 0.999
    fused, plain = everything(backend), funcopt.adamw(backend=backend)
    p = q = tensors(0)
    hparams = fused.hparams(grad_scale=scale, max_norm=max_norm, ema_decay=decay)
    state, want = fused.init(p, hparams), plain.init(q)
    average = tensors(0)
    for t in range(1, 6):
        g = tensors(t)
        p, state = fused(p, g, state, hparams)
        g = {name: x * (1 / scale) for name, x in g.items()}
        norm = torch.cat([x.flatten().double() for x in g.values()]).norm().item()
        factor = min(max_norm / (norm + 1e-6), 1.0)
        q, want = plain(q, {name: factor * x for name, x in g.items()}, want, plain.hparams())
        average = {name: a + (1 - decay) * (q[name] - a) for name, a in average.items()}
        assert_equal(p, q)
        assert_equal(state, {**want, "ema": average})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backends_agree(dtype):
    want = run(everything("eager"), 4, dtype)
    for backend in ("compile", "triton"):
        assert_equal(run(everything(backend), 4, dtype), want, **CLOSE[dtype])


def test_what_is_measured_is_one_reduction():
    """The outermost sees the gradients first; what changes none is measured together with what comes next."""
    adamw = funcopt.adamw()
    assert [len(level) for level in everything().rule.measures] == [2]
    assert [len(level) for level in clip_by_global_norm(skip_nonfinite(adamw)).rule.measures] == [1, 1]
    assert ema(adamw).rule.measures == ()


def test_two_clips_measure_one_after_the_other():
    inner = clip_by_global_norm(funcopt.sgd(), max_norm=2.0)
    both = clip_by_global_norm(inner, max_norm=1.0, prefix="outer_")
    p, g = torch.zeros(4, dtype=torch.float64), torch.full((4,), 50.0, dtype=torch.float64)
    state = both.init(p)
    new, _ = both(p, g, state, both.hparams(lr=1.0, outer_max_norm=3.0))
    assert new.norm().item() == pytest.approx(2.0, rel=1e-6)
    new, _ = both(p, g, state, both.hparams(lr=1.0))
    assert new.norm().item() == pytest.approx(1.0, rel=1e-6)


def test_none_gradients_count_for_nothing():
    opt = everything()
    p = {"a": torch.ones(3), "b": torch.ones(2)}
    state = opt.init(p)
    new, after = opt(p, {"a": torch.full((3,), 100.0), "b": None}, state, opt.hparams())
    assert new["b"] is p["b"]
    assert after["ema"]["b"] is state["ema"]["b"]
    alone, _ = opt({"a": p["a"]}, {"a": torch.full((3,), 100.0)}, opt.init({"a": p["a"]}), opt.hparams())
    assert torch.equal(new["a"], alone["a"])


def test_numbers_by_layer_and_as_tensors():
    opt = clip_by_global_norm(funcopt.sgd())
    p = {"a": torch.zeros(1), "b": torch.zeros(1)}
    g = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    hparams = opt.hparams(lr=1.0, max_norm={"a": torch.tensor(1.0), "b": 2.5})
    new, _ = opt(p, g, opt.init(p), hparams)
    assert_equal(new, {"a": torch.tensor([-3 / 5]), "b": torch.tensor([-4 / 2])}, rtol=1e-6, atol=0)


# ---- derivatives, batches, tracers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.1, 3.0])
def test_clip_has_the_jacobian_of_its_formula(size):
    """Below the bound the identity; above it max_norm/‖g‖ times the projection beside g, but for the 1e-6."""
    opt = clip_by_global_norm(funcopt.sgd())
    g = torch.randn(5, dtype=torch.float64)
    g = size * g / g.norm()
    p = torch.zeros_like(g)
    hparams, state = opt.hparams(lr=1.0), opt.init(p)
    jacobian = torch.func.jacrev(lambda x: -opt(p, x, state, hparams)[0])(g)
    n = g.norm() + 1e-6
    eye = torch.eye(5, dtype=torch.float64)
    want = eye if size < 1 else eye / n - torch.outer(g, g) / (n * n * g.norm())
    torch.testing.assert_close(jacobian, want, rtol=1e-12, atol=1e-12)


def test_gradcheck_with_all_of_them():
    opt = everything("eager")
    p = {"a": torch.randn(3).double(), "b": torch.randn(()).double()}
    state = opt.init(p)

    def step(a, b, g, lr, max_norm, scale, decay):
        hparams = opt.hparams(lr=lr, max_norm=max_norm, grad_scale=scale, ema_decay=decay)
        new, after = opt({"a": a, "b": b}, {"a": g, "b": b}, state, hparams)
        return new["a"], new["b"], after["ema"]["a"], after["exp_avg"]["a"]

    numbers = [torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.5, 4.0, 0.9)]
    inputs = tuple(t.clone().requires_grad_() for t in (p["a"], p["b"], torch.randn(3).double(), *numbers))
    assert torch.autograd.gradcheck(step, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(step, inputs)


@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan, torch.inf])
def test_derivatives_are_finite_where_a_step_is_skipped_and_where_gradients_are_zero(value):
    opt = everything("eager")
    p, g = torch.ones(3), torch.tensor([value, 0.0, 0.0])
    state = opt.init(p)

    def after(lr, p):
        return opt(p, g, state, opt.hparams(lr=lr))[0].sum()

    by_lr, by_p = grad(after, argnums=(0, 1))(torch.tensor(0.1), p)
    assert by_lr.isfinite()
    assert by_p.isfinite().all()


def test_vmap_over_bounds_and_gradients():
    opt = everything("eager")
    p = torch.ones(4, dtype=torch.float64)
    state = opt.init(p)
    bounds, gs = torch.tensor([0.1, 5.0, 1e9]).double(), torch.randn(3, 4).double()
    gs[1, 2] = torch.nan

    def step(bound, g):
        return opt(p, g, state, opt.hparams(max_norm=bound))

    got = vmap(step)(bounds, gs)
    for i in range(3):
        one = step(bounds[i], gs[i])
        for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(one), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-13)


def test_forward_mode():
    opt = everything("eager")
    p, g = torch.ones(4, dtype=torch.float64), torch.randn(4).double()
    state = opt.init(p)
    step = lambda g: opt(p, g, state, opt.hparams())[0]
    _, forward = jvp(step, (g,), (torch.ones_like(g),))
    torch.testing.assert_close(forward, torch.func.jacrev(step)(g) @ torch.ones_like(g), rtol=1e-10, atol=1e-12)


def test_compiled_by_the_user():
    opt = everything()
    step = torch.compile(opt, fullgraph=True, backend="aot_eager")
    hparams = opt.hparams(lr=torch.tensor(0.01, dtype=torch.float64))
    p = tensors(0)
    state = opt.init(p, hparams)
    want, after = p, state
    for t in range(1, 4):
        g = tensors(t)
        if t == 2:
            g["3"][0, 0] = torch.nan
        p, state = step(p, g, state, hparams)
        want, after = opt(want, g, after, hparams)
    assert_equal(p, want, **CLOSE[torch.float32])
    assert state["step"]["0"] == after["step"]["0"] == 2


# ---- what a transformed optimizer is --------------------------------------------------------------------------------


def test_it_is_copied_pickled_and_compared():
    opt = everything(amsgrad=True)
    assert opt == everything(amsgrad=True) == copy.deepcopy(opt) == pickle.loads(pickle.dumps(opt))
    assert opt != everything()
    assert opt.rule is everything().rule  # so that its kernels are compiled once
    assert repr(opt) == (
        "funcopt.unscale(funcopt.skip_nonfinite(funcopt.clip_by_global_norm(funcopt.ema("
        "funcopt.adamw(amsgrad=True, maximize=False, backend='auto'), 0.999), 0.5)), 1.0)"
    )


def test_defaults_are_its_own_and_may_be_overruled():
    opt = clip_by_global_norm(funcopt.sgd(), max_norm=3.0)
    assert opt.hparams()["max_norm"] == 3.0
    assert opt.hparams(max_norm=5.0)["max_norm"] == 5.0
    assert clip_by_global_norm(funcopt.sgd()).hparams()["max_norm"] == 1.0
    with pytest.raises(ValueError, match="max_norm"):
        opt.hparams(max_norm=-1.0)


REFUSED = [
    (lambda: clip_by_global_norm(clip_by_global_norm(funcopt.sgd())), TypeError, "prefix='outer_'.*'outer_max_norm'"),
    (lambda: ema(ema(funcopt.sgd())), TypeError, "'ema_decay' is a name that sgd_ema has already"),
    (lambda: clip_by_global_norm(funcopt.sgd(), -1.0), ValueError, "max_norm"),
    (lambda: ema(funcopt.sgd(), 1.5), ValueError, "ema_decay"),
    (lambda: ema(funcopt.sgd), TypeError, r"takes a pure optimizer, such as funcopt\.adamw\(\)"),
    (lambda: skip_nonfinite(1.0), TypeError, "got a float"),
    (lambda: ema(funcopt.sgd(), prefix="a b"), TypeError, "prefix is the beginning of a name"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_missing_slot_is_named():
    opt = ema(funcopt.sgd())
    p = torch.ones(2)
    with pytest.raises(ValueError, match="state has no 'ema'"):
        opt(p, p, {"step": torch.tensor(0.0)}, opt.hparams())


# ---- as a class -----------------------------------------------------------------------------------------------------

Everything = funcopt.optim.from_pure(skip_nonfinite(clip_by_global_norm(ema(funcopt.adamw()), max_norm=0.1)))


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
def test_a_training_loop(backend, flat, zero_grad):
    """Two groups, one norm: as by hand, with a gradient that is not finite at some steps, from the first one on."""
    ours, theirs = network(), network()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()

    def groups(net):
        return [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters()), "lr": 2e-3}]

    optimizer, reference = Everything(groups(ours), backend=backend), torch.optim.AdamW(groups(theirs))
    if flat:
        optimizer.flatten()
    average = [p.detach().clone() for p in theirs.parameters()]
    for t in range(9):
        for net in (ours, theirs):
            ((net(x) - y) ** 2).mean().backward()
            if t in (0, 4):
                net[2].weight.grad[0, 0] = torch.inf
        if clip_grad_norm_(theirs.parameters(), 0.1).isfinite():
            reference.step()
            torch._foreach_lerp_(average, list(theirs.parameters()), 0.001)
        reference.zero_grad()
        optimizer.step(zero_grad=zero_grad)
        if zero_grad:
            assert all(p.grad.eq(0).all() for p in ours.parameters())
        else:
            optimizer.zero_grad()
        for p, q, a in zip(ours.parameters(), theirs.parameters(), average, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(optimizer.state[p]["ema"], a, rtol=1e-12, atol=1e-13)
            assert optimizer.state[p]["step"] == reference.state[q].get("step", 0)


def test_its_state_is_saved_and_loaded():
    net = network()
    optimizer = Everything(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    other = Everything(copy.deepcopy(net).parameters(), max_norm=7.0)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert other.param_groups[0]["max_norm"] == 0.1
    for p, q in zip(net.parameters(), other.param_groups[0]["params"], strict=True):
        assert_equal(other.state[q]["ema"], optimizer.state[p]["ema"])
    _, _, state, hparams = optimizer.to_pure()
    assert "ema" in state
    assert hparams["max_norm"] == 0.1


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("transformed", [False, True])
def test_grad_scaler(transformed, backend):
    """The scaler leaves unscaling and skipping to the step; gradients are then as it left them."""
    make = Everything if transformed else funcopt.optim.AdamW
    ours, theirs = network().float(), network().float()
    optimizer, reference = make(ours.parameters(), backend=backend), torch.optim.AdamW(theirs.parameters())
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    x, y = torch.randn(16, 4), torch.randn(16, 3)
    for t in range(8):
        for net, scaler in zip((ours, theirs), scalers, strict=True):
            net.zero_grad()
            scaler.scale(((net(x) - y) ** 2).mean()).backward()
            if t in (0, 5):
                net[0].weight.grad[0, 0] = torch.inf
        scalers[0].step(optimizer)
        scalers[1].unscale_(reference)
        if transformed:
            clip_grad_norm_(theirs.parameters(), 0.1)
        scalers[1].step(reference)
        for scaler in scalers:
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            if t:
                assert optimizer.state[p]["step"] == reference.state[q].get("step", 0)


# ---- measures of what is at the edge --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_their_own_for_leaves_of_several_dtypes(backend):
    """Each leaf's numbers are its own, whatever the dtypes of the others; the norm is of all of them."""
    opt = unscale(clip_by_global_norm(funcopt.sgd(backend=backend), 1.0))
    dtypes = {"a": torch.float32, "b": torch.float64, "c": torch.bfloat16, "d": torch.float64}
    scales, lrs = {"a": 1.0, "b": 100.0, "c": 4.0, "d": 2.0}, {"a": 0.5, "b": 2.0, "c": 1.0, "d": 0.25}
    params = {name: torch.zeros(3, dtype=dtype) for name, dtype in dtypes.items()}
    grads = {name: torch.full((3,), scales[name], dtype=dtype) for name, dtype in dtypes.items()}
    hparams = opt.hparams(grad_scale=scales, lr=lrs)
    new, _ = opt(params, grads, opt.init(params, hparams), hparams)
    for name, p in new.items():  # all gradients are 1: their norm is √12
        want = torch.full((3,), -lrs[name] / 12**0.5, dtype=torch.float64)
        torch.testing.assert_close(p.double(), want, rtol=1e-2 if name == "c" else 1e-5, atol=0)


def test_a_scale_that_has_fallen_to_0():
    """As in a run that diverges: every step is skipped, as with torch's classes."""
    ends = []
    for cls in (funcopt.optim.AdamW, torch.optim.AdamW):
        p = torch.ones(3, requires_grad=True)
        optimizer, scaler = cls([p], lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**-140)
        for _ in range(20):
            optimizer.zero_grad()
            scaler.scale((p * torch.nan).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 0
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_a_group_without_gradients_under_a_dispatch_mode():
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    cls = funcopt.optim.from_pure(clip_by_global_norm(funcopt.sgd(), 1.0))
    optimizer = cls([{"params": [p]} for p in params], lr=1.0)
    params[0].grad = torch.ones(3)
    with FlopCounterMode(display=False):
        for _ in range(2):
            optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((3,), 1 - 2 / 3**0.5))
    assert params[1].eq(1).all()


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_a_norm_that_overflows(backend):
    """To infinity, as torch's: gradients are scaled to 0."""
    opt = clip_by_global_norm(funcopt.sgd(backend=backend), 1.0)
    g = torch.zeros(40_000, dtype=torch.float64)
    g[0] = g[-1] = 1.2e154
    p = torch.ones_like(g)
    new, _ = opt(p, g, opt.init(p), opt.hparams(lr=0.1))
    assert new.eq(1).all()


def test_another_default_device():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = funcopt.optim.from_pure(clip_by_global_norm(funcopt.adamw(), 1.0))([p])
    with torch.device("meta"):
        for _ in range(3):
            optimizer.step()
    assert p.device.type == "cpu"
    assert p.lt(1).all()
