"""Every transform, and every pair of them in both orders, against the same written by hand around torch.optim."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import funcopt
from tests.transforms import by_hand

# The transforms with the numbers that `by_hand` has.
TRANSFORMS: dict[str, tuple[Callable[..., Any], type]] = {
    "clip_by_global_norm": (
        lambda opt, prefix="": funcopt.clip_by_global_norm(opt, 1.5, prefix=prefix),
        by_hand.ClipByGlobalNorm,
    ),
    "clip_by_norm": (lambda opt, prefix="": funcopt.clip_by_norm(opt, 1.5, prefix=prefix), by_hand.ClipByNorm),
    "clip_by_value": (lambda opt, prefix="": funcopt.clip_by_value(opt, 0.5, prefix=prefix), by_hand.ClipByValue),
    "adaptive_clip": (lambda opt, prefix="": funcopt.adaptive_clip(opt, 0.3, 0.1, prefix=prefix), by_hand.AdaptiveClip),
    "centralize": (lambda opt, prefix="": funcopt.centralize(opt), by_hand.Centralize),
    "unscale": (lambda opt, prefix="": funcopt.unscale(opt, 4.0, prefix=prefix), by_hand.Unscale),
    "skip_nonfinite": (lambda opt, prefix="": funcopt.skip_nonfinite(opt), by_hand.SkipNonfinite),
    "decoupled_weight_decay": (
        lambda opt, prefix="": funcopt.decoupled_weight_decay(opt, 0.2, prefix="extra_" + prefix),
        by_hand.Decay,
    ),
    "cautious": (lambda opt, prefix="": funcopt.cautious(opt), by_hand.Cautious),
    "ema": (lambda opt, prefix="": funcopt.ema(opt, 0.75, prefix=prefix), by_hand.Ema),
    "lookahead": (lambda opt, prefix="": funcopt.lookahead(opt, 3, 0.25, prefix=prefix), by_hand.Lookahead),
    "accumulate": (lambda opt, prefix="": funcopt.accumulate(opt, 2, prefix=prefix), by_hand.Accumulate),
}
PAIRS = list(itertools.product(TRANSFORMS, TRANSFORMS))

# Sums in another order, over seven steps. Slots that are scalars are in float32.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
SCALARS = {"rtol": 1e-6, "atol": 1e-7}
INNER: dict[str, tuple[Any, Any, dict[str, Any], dict[str, float]]] = {
    "sgd": (funcopt.sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, CLOSE),
    "adamw": (funcopt.adamw, torch.optim.AdamW, {"lr": 0.1}, CLOSE),
    "nadam": (funcopt.nadam, torch.optim.NAdam, {"lr": 0.1}, SCALARS),
    "adafactor": (funcopt.adafactor, torch.optim.Adafactor, {"lr": 0.1}, CLOSE),
    "asgd": (funcopt.asgd, torch.optim.ASGD, {"lr": 0.1, "t0": 2.0}, SCALARS),
    "rprop": (funcopt.rprop, torch.optim.Rprop, {"lr": 0.1}, CLOSE),
}


def tensors(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, dtype=torch.float64, generator=random)
    return {"matrix": draw(3, 4).t(), "vector": draw(5), "number": draw(), "cube": draw(2, 3, 2)}


def gradients(outer, inner):
    """Seven steps; some without a gradient for one parameter, and one that is to be skipped, where that is."""
    out = [tensors(t) for t in range(1, 8)]
    for t, g in enumerate(out):
        if t % 3 == 2:
            g["vector"] = None
        if t == 3 and "skip_nonfinite" in (outer, inner):
            g["cube"][0, 0, 0] = torch.nan
    return out


def reference(name, layers, grads):
    _, cls, numbers, _ = INNER[name]
    hand = by_hand.Inner(lambda ps: cls(ps, **numbers))
    for layer in reversed(layers):
        hand = TRANSFORMS[layer][1](hand)
    return by_hand.steps(hand, tensors(0), grads)


def run(opt, numbers, grads, dtype=torch.float64, donate=False):
    params = {name: p.to(dtype) for name, p in tensors(0).items()}
    hparams = opt.hparams(**numbers)
    state = opt.init(params, hparams)
    for row in grads:
        row = {name: None if g is None else g.to(dtype) for name, g in row.items()}
        params, state = opt(params, row, state, hparams, donate=donate)
    return params, state


def train(opt, numbers, grads):
    params = {name: p.clone().requires_grad_() for name, p in tensors(0).items()}
    optimizer = funcopt.optim.from_pure(opt)(params.items(), **numbers)
    for row in grads:
        for name, p in params.items():
            p.grad = None if row[name] is None else row[name].clone()
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}, optimizer.to_pure()[2]


def check(got, state, hand, close):
    torch.testing.assert_close(dict(got), {name: p.detach() for name, p in hand.params.items()}, **close)
    for slot, column in hand.state().items():
        torch.testing.assert_close(state.get("outer_" + slot, state.get(slot)), column, **close)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_each(name, inner):
    factory, _, numbers, close = INNER[inner]
    opt = TRANSFORMS[name][0](factory(backend="eager"))
    grads = gradients(name, name)
    hand = reference(inner, [name], grads)
    check(*run(opt, numbers, grads), hand, close)
    check(*train(opt, numbers, grads), hand, close)


@pytest.mark.parametrize(("outer", "inner"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_each_pair(outer, inner):
    """The outer one with a prefix, to tell two of a kind apart; as a function, donating, and as a class."""
    name = list(INNER)[PAIRS.index((outer, inner)) % 5]
    factory, _, numbers, close = INNER[name]
    opt = TRANSFORMS[outer][0](TRANSFORMS[inner][0](factory(backend="eager")), "outer_")
    grads = gradients(outer, inner)
    hand = reference(name, [outer, inner], grads)
    got = run(opt, numbers, grads)
    check(*got, hand, close)
    donated = run(opt, numbers, grads, donate=True)
    torch.testing.assert_close(donated, got, rtol=0, atol=0)
    check(*train(opt, numbers, grads), hand, close)


# Those whose layers go together in one kernel: what is held, measured after what is held, and changed on both sides.
DEEP = {
    "accumulated": ["accumulate", "clip_by_global_norm", "clip_by_value"],
    "around": ["clip_by_global_norm", "lookahead", "accumulate", "ema"],
    "twice": ["skip_nonfinite", "decoupled_weight_decay", "unscale", "lookahead", "ema"],
    "whole tensors": ["cautious", "centralize", "accumulate", "adaptive_clip", "clip_by_norm"],
}


@pytest.mark.parametrize(("backend", "inner"), [("compile", "sgd"), ("compile", "nadam"), ("triton", "nadam")])
@pytest.mark.parametrize("layers", DEEP.values(), ids=DEEP.keys())
def test_several_as_a_kernel(backend, layers, inner):
    factory, _, numbers, close = INNER[inner]
    opt = factory(backend=backend)
    for layer in reversed(layers):
        opt = TRANSFORMS[layer][0](opt)
    grads = gradients(*layers[:2])
    hand = reference(inner, layers, grads)
    check(*run(opt, numbers, grads), hand, close)
    check(*train(opt, numbers, grads), hand, close)
    if backend == "triton":  # in the interpreter, which is slow
        return
    small, _ = run(opt, numbers, grads, torch.float32)
    # Each step rounds to 6e-8, and moves by 0.1 of what it rounds.
    torch.testing.assert_close({n: p.double() for n, p in small.items()}, dict(hand.params), rtol=1e-4, atol=1e-5)
