"""Derivatives through one step and many, against finite differences, hand-written unrolls and each other."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import funcopt
from tests.by_hand import BY_HAND
from tests.rules_table import COMBINATIONS, FULLEST, IDS, NUMBERS, fitted, later, tried

BACKENDS = ["eager", "triton"]  # the kernel's derivatives are the rule's, by a Function of its own

leaves_of = torch.utils._pytree.tree_leaves


def random_problem(factory, opt):
    """Params, gradients and a state after a step, away from the kinks of max and sqrt; numbers as tensors."""
    params = {k: torch.randn(fitted(factory, s), dtype=torch.float64) for k, s in (("w", (2, 2)), ("s", ()))}
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    state = opt.init(params, hparams)
    state = opt(params, {k: torch.randn_like(p) for k, p in params.items()}, state, hparams)[1]
    grads = {k: 3 + torch.randn_like(p) for k, p in params.items()}
    numbers = torch.utils._pytree.tree_map(lambda x: torch.tensor(x, dtype=torch.float64), hparams)
    return params, grads, later(state, 5), numbers


def flat_function(opt, params, grads, state, hparams):
    """The step as a function of a tuple of tensors to a tuple of tensors: params, grads, slots, every number."""
    step = state["step"]
    tree = (params, grads, {name: slot for name, slot in state.items() if name != "step"}, hparams)
    flat, spec = torch.utils._pytree.tree_flatten(tree)
    there = [t is not None for t in flat]  # not every parameter has every slot

    def function(*flat):
        rest = iter(flat)
        leaves = [next(rest) if is_there else None for is_there in there]
        params, grads, slots, hparams = torch.utils._pytree.tree_unflatten(leaves, spec)
        new, after = opt(params, grads, {"step": step, **slots}, hparams)
        return tuple(t for t in leaves_of((new, {name: after[name] for name in slots})) if t is not None)

    return function, tuple(t.detach() for t in flat if t is not None)


@pytest.mark.parametrize(
    ("factory", "flags", "backend"),
    [
        *((*combination, "eager") for combination in COMBINATIONS),
        *((*fullest, "triton") for fullest in FULLEST.values()),
    ],
    ids=[*(f"{name}-eager" for name in IDS), *(f"{name}-triton" for name in FULLEST)],
)
def test_gradcheck_in_everything(factory, flags, backend):
    opt = factory(backend=backend, **flags)
    function, inputs = flat_function(opt, *random_problem(factory, opt))
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    if backend == "eager":
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)
    else:  # the same derivatives by another way, in which the interpreter takes its time: along some directions
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, sloped(function, inputs), fast_mode=True)


def sloped(function, inputs):
    """The inputs, those detached whose derivatives are 0 whatever they are: gradgradcheck loses count of these."""
    outputs = [t for t in function(*inputs) if t.requires_grad]
    cotangents = [torch.ones_like(t).requires_grad_() for t in outputs]
    grads = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True)
    return tuple(t if g is not None and g.requires_grad else t.detach() for t, g in zip(inputs, grads, strict=True))


def transforms(loss, x, y):
    """Every transform of a scalar function of two scalars-or-vectors, and some nestings."""
    xs = torch.stack([x, 2 * x, 3 * x])
    return {
        "grad": grad(loss)(x, y),
        "grad of the other": grad(loss, argnums=1)(x, y),
        "vjp": vjp(loss, x, y)[1](torch.ones((), dtype=x.dtype)),
        "jvp": jvp(loss, (x, y), (torch.ones_like(x), torch.ones_like(y)))[1],
        "vmap": vmap(loss, in_dims=(0, None))(xs, y),
        "jacrev": jacrev(loss)(x, y),
        "jacfwd": jacfwd(loss)(x, y),
        "hessian": hessian(loss)(x, y),
        "grad of grad": grad(lambda x: grad(loss)(x, y).pow(2).sum())(x),
        "vmap of grad": vmap(grad(loss), in_dims=(0, None))(xs, y),
        "grad of vmap": grad(lambda x: vmap(loss, in_dims=(0, None))(torch.stack([x, 2 * x]), y).sum())(x),
        "jvp of grad": jvp(lambda x: grad(loss)(x, y), (x,), (torch.ones_like(x),))[1],
        "vmap of jvp": vmap(lambda t: jvp(lambda x: loss(x, y), (x,), (t,))[1])(xs),
    }


@pytest.mark.parametrize(
    ("backend", "shape", "start"),
    [("eager", (3,), 0), ("eager", (2, 2), 5), ("triton", (3,), 0)],
    ids=["eager", "eager-late", "triton"],
)
def test_every_transform(factory, backend, shape, start):
    """Against the algorithm written out for two steps, also matrices and at a time when RAdam knows its rate."""
    opt, by_hand = factory(backend=backend, **tried(factory)), BY_HAND[factory.__name__]
    numbers = NUMBERS[factory.__name__]
    p = torch.randn(fitted(factory, shape), dtype=torch.float64)

    def ours(g, lr):
        hparams = opt.hparams(**numbers | {"lr": lr})
        params, state = p, later(opt.init(p, hparams), start)
        for t in range(2):
            params, state = opt(params, g * (t + 1), state, hparams)
        return (params**2).sum()

    def theirs(g, lr):
        return (by_hand(p, [g, 2 * g], start, **numbers | {"lr": lr}) ** 2).sum()

    g, lr = 1 + torch.rand_like(p), torch.tensor(0.1, dtype=torch.float64)
    got, want = transforms(ours, g, lr), transforms(theirs, g, lr)
    for name in want:
        for a, b in zip(leaves_of(got[name]), leaves_of(want[name]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_everything_is_a_loop(factory, backend):
    opt = factory(backend=backend, **tried(factory))
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    n = 3
    shapes = {"w": (4,), "s": ()}
    params = {k: torch.randn(n, *fitted(factory, shape), dtype=torch.float64) for k, shape in shapes.items()}
    grads = {k: torch.randn_like(p) for k, p in params.items()}
    lrs = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def run(params, grads, lr):
        numbers = hparams | {"lr": lr}
        state = opt.init(params, numbers)
        for _ in range(3):
            params, state = opt(params, grads, state, numbers)
        return params, [t for t in leaves_of(state) if t is not None]  # vmap returns tensors alone

    got = vmap(run)(params, grads, lrs)
    some = vmap(run, in_dims=(None, 0, None))({k: p[0] for k, p in params.items()}, grads, lrs[0])
    for i in range(n):
        pick = lambda tree, i=i: {k: t[i] for k, t in tree.items()}
        for batched, single in (
            (got, run(pick(params), pick(grads), lrs[i])),
            (some, run({k: p[0] for k, p in params.items()}, pick(grads), lrs[0])),
        ):
            for a, b in zip(leaves_of(batched), leaves_of(single), strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-13, atol=1e-14)


def test_vmap_over_the_step_number():
    """A batch of runs that have come differently far: the state is batched, the step count in it too."""
    opt = funcopt.adam()
    hparams = opt.hparams(lr=0.1)
    p, g = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    states = [opt.init(p, hparams)]
    for _ in range(2):
        states.append(opt(p, g, states[-1], hparams)[1])
    stacked = torch.utils._pytree.tree_map(lambda *s: torch.stack(s), *states)
    new, _ = vmap(lambda state: opt(p, g, state, hparams))(stacked)
    for i, state in enumerate(states):
        torch.testing.assert_close(new[i], opt(p, g, state, hparams)[0], rtol=1e-14, atol=0)


def test_batched_steps_keep_float64_numbers():
    """A choice between two Python floats by a batched step number must not be made in float32."""
    opt = funcopt.sgd()
    hparams = opt.hparams(lr=1.0, momentum=0.9, dampening=0.3)
    p, g = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    state = opt(p, g, opt.init(p, hparams), hparams)[1]
    want, _ = opt(p, g, state, hparams)
    stacked = torch.utils._pytree.tree_map(lambda s: torch.stack([s, s]), state)
    got = vmap(lambda state: opt(p, g, state, hparams)[0])(stacked)
    torch.testing.assert_close(got[0], want, rtol=1e-15, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("factory", "flags"), COMBINATIONS, ids=IDS)
def test_finite_at_zero(factory, flags, backend):
    """At zero gradients and moments, as behind a dead ReLU, where a plain sqrt gives NaN; first and second order."""
    opt = factory(backend=backend, **flags)
    numbers = NUMBERS[factory.__name__]

    def loss(p, g, lr):
        hparams = opt.hparams(**numbers | {"lr": lr})
        state = opt.init(p, hparams)
        for _ in range(3):
            p, state = opt(p, g * p.sum(), state, hparams)
        return (p**2).sum()

    p = torch.ones(fitted(factory, (3,)), dtype=torch.float64)
    args = p, torch.zeros_like(p), torch.tensor(0.1, dtype=torch.float64)
    first = grad(loss, argnums=(0, 1, 2))(*args)
    second = hessian(loss, argnums=(0, 1, 2))(*args)
    assert all(t.isfinite().all() for t in leaves_of((first, second)))


def test_relu_network_meta_gradient_is_finite():
    """A network with dead units: torch.optim with differentiable=True, run beside it, is NaN almost everywhere."""
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    params = {"w1": torch.randn(4, 16), "b1": -3 * torch.ones(16), "w2": torch.randn(16, 1)}

    def loss(p):
        return ((torch.relu(x @ p["w1"] + p["b1"]) @ p["w2"] - y) ** 2).mean()

    opt = funcopt.adam()

    def meta(params, lr):
        hparams = opt.hparams(lr=lr)
        state = opt.init(params, hparams)
        for _ in range(5):
            params, state = opt(params, grad(loss)(params), state, hparams)
        return loss(params)

    got = grad(meta, argnums=(0, 1))(params, torch.tensor(0.01))
    assert all(t.isfinite().all() for t in leaves_of(got))
    assert got[1] != 0


def test_differentiable_beta_eagerly_batched_and_compiled():
    opt = funcopt.adamw()
    p, g = torch.ones(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def loss(beta1, beta2):
        hparams = opt.hparams(lr=0.1, betas=(beta1, beta2))
        params, state = p, opt.init(p, hparams)
        for t in range(3):
            params, state = opt(params, g * (t + 1), state, hparams)
        return (params**2).sum()

    betas = torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.99, dtype=torch.float64)
    got = grad(loss, argnums=(0, 1))(*betas)
    h = 1e-6
    for i in range(2):
        moved = [[b + (h * s if j == i else 0) for j, b in enumerate(betas)] for s in (1, -1)]
        numeric = (loss(*moved[0]) - loss(*moved[1])) / (2 * h)
        torch.testing.assert_close(got[i], numeric, rtol=1e-7, atol=1e-9)
    batched = vmap(grad(loss), in_dims=(0, None))(torch.stack([betas[0], betas[0] / 2]), betas[1])
    torch.testing.assert_close(batched[0], got[0], rtol=1e-13, atol=0)
    compiled = torch.compile(grad(loss, argnums=(0, 1)), backend="aot_eager", fullgraph=True)(*betas)
    for a, b in zip(compiled, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_beta_of_zero_has_a_derivative():
    opt = funcopt.adam()
    p, g = torch.ones(2, dtype=torch.float64), torch.tensor([0.5, -2.0], dtype=torch.float64)

    def loss(beta):
        hparams = opt.hparams(lr=0.1, betas=(beta, 0.99))
        params, state = p, opt.init(p, hparams)
        for t in range(2):
            params, state = opt(params, g * (t + 1), state, hparams)
        return params.sum()

    h = 1e-7
    numeric = (loss(torch.tensor(h, dtype=torch.float64)) - loss(torch.tensor(0.0, dtype=torch.float64))) / h
    got = grad(loss)(torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(got, numeric, rtol=1e-5, atol=1e-7)  # a one-sided difference: h in relative error


def test_bias_correction_is_exact_for_a_tensor_beta():
    """1 - 0.999^t by a float32 power loses four digits; -expm1(t·log β) in float64 loses none."""
    opt = funcopt.adam()
    p, g = torch.zeros(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for number in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
        hparams = opt.hparams(lr=1e-2, betas=(number(0.9), number(0.999)))
        reference = torch.nn.Parameter(p.clone())
        adam = torch.optim.Adam([reference], lr=1e-2)
        params, state = p, opt.init(p, hparams)
        for t in range(30):
            reference.grad = g * math.cos(t)
            adam.step()
            params, state = opt(params, g * math.cos(t), state, hparams)
        torch.testing.assert_close(params, reference.detach(), rtol=1e-13, atol=1e-16)


def test_forward_mode_of_plain_autograd():
    import torch.autograd.forward_ad as fwd

    opt = funcopt.adam()
    p, g = torch.ones(2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    with fwd.dual_level():
        lr = fwd.make_dual(torch.tensor(0.1, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
        new, _ = opt(p, g, opt.init(p), opt.hparams(lr=lr))
        tangent = fwd.unpack_dual(new).tangent
    torch.testing.assert_close(tangent, -g.sign(), rtol=1e-6, atol=0)  # Adam's first step is lr·sign(g), but for eps


def test_what_radam_leaves_out_costs_no_derivative():
    # Without eps the adaptive step of a gradient of 0 is 0/0; in the first steps it is not taken.
    opt, params = funcopt.radam(), {"w": torch.ones(3, requires_grad=True)}
    hparams = opt.hparams(lr=0.1, eps=0.0)
    new, state = opt(params, {"w": 0 * params["w"]}, opt.init(params), hparams)
    [slope] = torch.autograd.grad(new["w"].sum() + state["exp_avg_sq"]["w"].sum(), params["w"])
    assert torch.equal(slope, torch.ones(3))
