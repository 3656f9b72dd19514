"""Sharpness-aware minimization against the paper's algorithm written by hand, as a function and as a class."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn.utils import clip_grad_norm_

import funcopt

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()


def loss(net):
    return (net(X) - Y).square().mean()


def matrices(params):
    named = params.items() if isinstance(params, dict) else enumerate(params)
    labels = {key: "matrix" if p.dim() == 2 else "rest" for key, p in named}
    return labels if isinstance(params, dict) else list(labels.values())


def by_hand(steps, rho, optimizers, together=lambda net: [list(net.parameters())], signs=None, clip=None):
    """Algorithm 1: up by rho along the gradient of each set of parameters that have a norm of their own, and back."""
    net = network()
    made = optimizers(net)
    for _ in range(steps):
        net.zero_grad()
        loss(net).backward()
        old = {p: p.detach().clone() for p in net.parameters()}
        with torch.no_grad():
            for params in together(net):
                size = torch.cat([p.grad.flatten() for p in params]).norm()
                for p in params:
                    p += (-1 if signs and signs(p) else 1) * rho * p.grad / size
        net.zero_grad()
        loss(net).backward()
        with torch.no_grad():
            for p, value in old.items():
                p.copy_(value)
        if clip is not None:
            clip_grad_norm_(net.parameters(), clip)
        for optimizer in made:
            optimizer.step()
    return net


def closure_of(net, optimizer, calls=None):
    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        if calls is not None:
            calls.append(value)
        return value

    return closure


def train(opt, steps, groups=lambda net: net.parameters(), flat=False, **numbers):
    net = network()
    optimizer = funcopt.optim.from_pure(opt)(groups(net), **numbers)
    if flat:
        optimizer.flatten()
    for _ in range(steps):
        optimizer.step(closure_of(net, optimizer))
    return net


def run(opt, steps, **numbers):
    net = network()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    hparams = opt.hparams(**numbers)
    state = opt.init(params, hparams)
    gradients = grad(lambda p: (functional_call(net, p, (X,)) - Y).square().mean())
    for _ in range(steps):
        params, state = opt(params, gradients, state, hparams)
    return params


def close(got, net):
    got = dict(got.named_parameters()) if isinstance(got, nn.Module) else got
    want = dict(net.named_parameters())
    torch.testing.assert_close(
        {n: p.detach() for n, p in got.items()}, {n: p.detach() for n, p in want.items()}, rtol=1e-10, atol=1e-12
    )


def of_parts(net):
    return [[p for p in net.parameters() if (p.dim() == 2) == matrix] for matrix in (True, False)]


ADAMW = lambda net: [torch.optim.AdamW(net.parameters(), 0.01)]
MOMENTUM = lambda net: [torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)]
PARTS = lambda net: [torch.optim.SGD(of_parts(net)[0], 0.1), torch.optim.AdamW(of_parts(net)[1], 0.01)]
LRS = {"matrix_lr": 0.1, "rest_lr": 0.01}


def parts(matrix=lambda opt: opt, rest=lambda opt: opt):
    return funcopt.partition({"matrix": matrix(funcopt.sgd()), "rest": rest(funcopt.adamw())}, matrices)


def sam(opt):
    return funcopt.sam(opt, 0.1)


# The optimizer, its numbers, and what it is by hand.
CASES = {
    "adamw": (sam(funcopt.adamw()), {"lr": 0.01}, (ADAMW,), {}),
    "eager": (sam(funcopt.adamw(backend="eager")), {"lr": 0.01}, (ADAMW,), {}),
    "clip inside": (
        sam(funcopt.clip_by_global_norm(funcopt.sgd(), 0.05)),
        {"lr": 0.5, "momentum": 0.9},
        (MOMENTUM,),
        {"clip": 0.05},
    ),
    "clip outside": (
        funcopt.clip_by_global_norm(sam(funcopt.sgd()), 0.05),
        {"lr": 0.5, "momentum": 0.9},
        (MOMENTUM,),
        {"clip": 0.05},
    ),
    "around parts": (sam(parts()), LRS, (PARTS,), {}),
    "in each part": (parts(sam, sam), LRS, (PARTS, of_parts), {}),
    "in one part": (parts(matrix=sam), LRS, (PARTS, lambda net: of_parts(net)[:1]), {}),
}


@pytest.mark.parametrize(("opt", "numbers", "hand", "more"), CASES.values(), ids=CASES.keys())
def test_it_is_the_algorithm(opt, numbers, hand, more):
    want = by_hand(4, 0.1, *hand, **more)
    close(run(opt, 4, **numbers), want)
    close(train(opt, 4, **numbers), want)
    close(train(opt, 4, flat=True, **numbers), want)


def test_a_radius_of_its_own_for_each_group_and_one_norm():
    def groups(net):
        first, *rest = net.parameters()
        return [{"params": [first], "rho": 0.3, "lr": 0.01}, {"params": rest}]

    got = train(sam(funcopt.adamw()), 1, groups, lr=0.01)
    net = network()
    loss(net).backward()
    size = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    with torch.no_grad():
        moved = [p + (0.3 if k == 0 else 0.1) * p.grad / size for k, p in enumerate(net.parameters())]
    names = [name for name, _ in net.named_parameters()]
    at_top = grad(lambda p: (functional_call(net, p, (X,)) - Y).square().mean())(dict(zip(names, moved, strict=True)))
    for p, g in zip(net.parameters(), at_top.values(), strict=True):
        p.grad = g
    ADAMW(net)[0].step()
    close(got, net)


def test_groups_that_maximize_go_the_other_way():
    second = []

    def groups(net):
        params = list(net.parameters())
        return [{"params": params[:2]}, {"params": params[2:], "maximize": True}]

    def optimizers(net):
        first, last = groups(net)
        second.extend(last["params"])
        return [torch.optim.SGD(**first, lr=0.1), torch.optim.SGD(**last, lr=0.1)]

    want = by_hand(3, 0.1, optimizers, signs=lambda p: any(p is q for q in second))
    close(train(sam(funcopt.sgd()), 3, groups, lr=0.1), want)


def test_accumulated_gradients_are_each_from_the_top():
    got = train(funcopt.accumulate(sam(funcopt.sgd()), 2), 4, lr=0.1)
    twice = by_hand(2, 0.1, lambda net: [torch.optim.SGD(net.parameters(), 0.1)])  # both are the same
    close(got, twice)


def test_derivatives_go_through_the_ascent():
    """f = p⁴/4 in one dimension: p - lr·(p + ρ)³ for p > 0."""
    opt = funcopt.sam(funcopt.sgd())

    def after(p, rho, lr):
        return opt(p, lambda p: p**3, opt.init(p), opt.hparams(lr=lr, rho=rho))[0]

    p, rho, lr = (torch.tensor(x, dtype=torch.float64) for x in (1.5, 0.2, 0.1))
    got = [after(p, rho, lr), *jacrev(after, argnums=(0, 1, 2))(p, rho, lr)]
    top = p + rho
    want = [p - lr * top**3, 1 - 3 * lr * top**2, -3 * lr * top**2, -(top**3)]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradients_of_none_and_of_0():
    opt = sam(funcopt.sgd())
    params = {"a": torch.full((2,), 3.0, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    state = opt.init(params)
    new, _ = opt(params, lambda p: {"a": 2 * p["a"], "b": None}, state, opt.hparams(lr=1.0))
    assert new["b"] is params["b"]
    torch.testing.assert_close(new["a"], 3 - 2 * (3 + 0.1 / 2**0.5 * torch.ones(2, dtype=torch.float64)))
    still, _ = opt(params, lambda p: {"a": 0 * p["a"], "b": None}, state, opt.hparams(lr=1.0))
    assert torch.equal(still["a"], params["a"])
    same, _ = opt(params, lambda p: None, state, opt.hparams(lr=1.0))
    assert same["a"] is params["a"]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def snapshot(net, optimizer):
    return copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])


@pytest.mark.parametrize("at", [1, 2])
def test_a_closure_that_fails_leaves_parameters_and_state(at):
    net = network()
    optimizer = funcopt.optim.from_pure(sam(funcopt.adamw()))(net.parameters())
    optimizer.step(closure_of(net, optimizer))
    before, calls = snapshot(net, optimizer), []

    def closure():
        calls.append(net[0].weight.detach().clone())
        if len(calls) == at:
            raise KeyError("out of data")
        return closure_of(net, optimizer)()

    with pytest.raises(KeyError, match="out of data"):
        optimizer.step(closure)
    torch.testing.assert_close(snapshot(net, optimizer), before, rtol=0, atol=0)
    assert at == 1 or not torch.equal(*calls)
    optimizer.step(closure_of(net, optimizer))


@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_at_either_point(at):
    net = network()
    optimizer = funcopt.optim.from_pure(funcopt.skip_nonfinite(sam(funcopt.adamw())))(net.parameters())
    optimizer.step(closure_of(net, optimizer))
    before, calls = snapshot(net, optimizer), []

    def closure():
        value = closure_of(net, optimizer, calls)()
        if len(calls) == at:
            net[0].bias.grad[0] = torch.inf
        return value

    optimizer.step(closure)
    torch.testing.assert_close(snapshot(net, optimizer), before, rtol=0, atol=0)


def test_the_loss_is_that_of_where_the_parameters_are():
    net = network()
    optimizer = funcopt.optim.from_pure(sam(funcopt.adamw()))(net.parameters())
    calls, here = [], loss(net)
    assert optimizer.step(closure_of(net, optimizer, calls)) is calls[0]
    assert calls[0] == here < calls[1]
    optimizer.step(closure_of(net, optimizer), zero_grad=True)
    assert all(p.grad.eq(0).all() for p in net.parameters())


def test_parameters_that_require_no_gradient_or_get_theirs_late():
    still, p, late = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    still.requires_grad_(False)
    optimizer = funcopt.optim.from_pure(sam(funcopt.sgd()))([still, p, late], lr=0.5)
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(late.detach().clone())
        value = (p * still).square().sum() + (late.square().sum() if len(calls) > 1 else 0)
        value.backward()
        return value

    optimizer.step(closure)
    assert all(x.eq(1).all() for x in (still, *calls))
    torch.testing.assert_close(p.detach(), 1 - (1 + 0.1 / 2**0.5 * torch.ones_like(p)))
    assert late.eq(0).all()


REFUSED = {
    "twice": (lambda: funcopt.sam(sam(funcopt.sgd()), prefix="outer_"), TypeError, "at another point already"),
    "twice, in a part": (lambda: funcopt.sam(parts(matrix=sam), prefix="outer_"), TypeError, "already"),
    "no closure": (
        lambda: funcopt.optim.from_pure(sam(funcopt.sgd()))(network().parameters()).step(),
        TypeError,
        "SgdSam takes gradients at two points: step takes a closure",
    ),
    "gradients": (lambda: sam(funcopt.sgd())(X, X, {}, {}), TypeError, "a function params -> grads, .* got a Tensor"),
    "gradients of parts": (
        lambda: sam(parts())({"a": X}, {"a": X}, {}, sam(parts()).hparams()),
        TypeError,
        "a function params -> grads, .* got a dict",
    ),
    "a radius": (lambda: funcopt.sam(funcopt.sgd(), -0.1), ValueError, "rho"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
