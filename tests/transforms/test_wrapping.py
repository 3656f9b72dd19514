"""What putting transforms around optimizers gives: names, copies, chains; and what it refuses."""

import copy
import pickle

import pytest
import torch

import funcopt
from tests.transforms import by_hand
from tests.transforms.test_by_hand import TRANSFORMS

# Every transform with a number of its own, where it has one, and what its repr says beside the optimizer.
ALL = {
    "accumulate": (lambda opt, n=2.0, **o: funcopt.accumulate(opt, n, **o), "2.0"),
    "adaptive_clip": (lambda opt, n=0.5, **o: funcopt.adaptive_clip(opt, n, 0.1, **o), "0.5, 0.1"),
    "clip_by_global_norm": (lambda opt, n=0.5, **o: funcopt.clip_by_global_norm(opt, n, **o), "0.5"),
    "clip_by_norm": (lambda opt, n=0.5, **o: funcopt.clip_by_norm(opt, n, **o), "0.5"),
    "clip_by_value": (lambda opt, n=0.5, **o: funcopt.clip_by_value(opt, n, **o), "0.5"),
    "decoupled_weight_decay": (lambda opt, n=0.5, **o: funcopt.decoupled_weight_decay(opt, n, **o), "0.5"),
    "ema": (lambda opt, n=0.5, **o: funcopt.ema(opt, n, **o), "0.5"),
    "lookahead": (lambda opt, n=2.0, **o: funcopt.lookahead(opt, n, 0.25, **o), "2.0, 0.25"),
    "sam": (lambda opt, n=0.5, **o: funcopt.sam(opt, n, **o), "0.5"),
    "unscale": (lambda opt, n=2.0, **o: funcopt.unscale(opt, n, **o), "2.0"),
}
WITHOUT = {"cautious": funcopt.cautious, "centralize": funcopt.centralize, "skip_nonfinite": funcopt.skip_nonfinite}
each_transform = pytest.mark.parametrize("name", ALL)


@each_transform
def test_it_is_copied_pickled_and_compared(name):
    wrap, shown = ALL[name]
    make = lambda *n, prefix="own_": wrap(funcopt.adamw(amsgrad=True, backend="eager"), *n, prefix=prefix)
    opt = make()
    assert opt == make() == copy.deepcopy(opt) == pickle.loads(pickle.dumps(opt))
    assert opt.rule is make().rule is pickle.loads(pickle.dumps(opt)).rule  # so that kernels are compiled once
    assert hash(opt) == hash(make())
    for other in (make(3.0 if name in ("accumulate", "lookahead") else 0.75), make(prefix="other_"), funcopt.adamw()):
        assert opt != other
    inner = "funcopt.adamw(amsgrad=True, maximize=False, backend='eager')"
    assert repr(opt) == f"funcopt.{name}({inner}, {shown}, prefix='own_')"
    assert repr(wrap(funcopt.rprop())) == f"funcopt.{name}(funcopt.rprop(maximize=False, backend='auto'), {shown})"
    assert opt.rule.name == f"adamw_{name}"


@pytest.mark.parametrize("name", WITHOUT)
def test_those_without_numbers_are_too(name):
    opt = WITHOUT[name](funcopt.adamw())
    assert opt == WITHOUT[name](funcopt.adamw()) == copy.deepcopy(opt) == pickle.loads(pickle.dumps(opt))
    assert repr(opt) == f"funcopt.{name}({funcopt.adamw()!r})"
    assert opt.hparams() == funcopt.adamw().hparams()


@each_transform
def test_two_of_a_kind_need_a_prefix(name):
    wrap, _ = ALL[name]
    inner = wrap(funcopt.sgd(), prefix="a_")
    own = inner.hparams().keys() - funcopt.sgd().hparams().keys()
    assert all(number.startswith("a_") for number in own)
    with pytest.raises(TypeError, match="already"):
        wrap(inner, prefix="a_")
    if name != "sam":
        both = wrap(inner, prefix="b_")
        assert both.hparams().keys() - inner.hparams().keys() == {"b" + number[1:] for number in own}
        p = torch.ones(2, 2)
        slots = {"accumulate": "accumulated", "ema": "ema", "lookahead": "slow"}
        own = {f"{prefix}_{slots[name]}" for prefix in "ab"} if name in slots else set()
        assert both.init(p).keys() - funcopt.sgd().init(p).keys() == own


@each_transform
def test_what_it_is_called_with(name):
    wrap, _ = ALL[name]
    for given in (lambda t: 1.0, torch.tensor(1.0), {"a": 1.0}, None, True, "1"):
        with pytest.raises(TypeError, match=f"{name}|takes a float"):
            wrap(funcopt.sgd(), given, prefix="x_")
    for given in (-1.0, torch.nan):
        with pytest.raises(ValueError, match=r"takes (whole )?numbers in"):
            wrap(funcopt.sgd(), given, prefix="x_")
    for given in (funcopt.sgd, funcopt.optim.SGD, 1.0, funcopt.lbfgs()):
        with pytest.raises(TypeError, match=rf"{name} takes a pure optimizer, such as funcopt\.adamw\(\)"):
            wrap(given, prefix="x_")


WHOLE = [
    (lambda: funcopt.accumulate(funcopt.sgd(), 1.5), "accumulate_every takes whole numbers"),
    (lambda: funcopt.accumulate(funcopt.sgd(), 0), "accumulate_every takes whole numbers"),
    (lambda: funcopt.lookahead(funcopt.sgd(), 2.5), "lookahead_k takes whole numbers"),
    (lambda: funcopt.lookahead(funcopt.sgd(), 2, 1.5), r"lookahead_alpha takes numbers in \[0, 1\]"),
    (lambda: funcopt.ema(funcopt.sgd()).hparams(ema_decay=torch.tensor(2.0)), r"ema_decay takes numbers in \[0, 1\]"),
    (lambda: funcopt.accumulate(funcopt.sgd()).hparams(accumulate_every={"a": 2.0, "b": 0.5}), "whole numbers"),
]


@pytest.mark.parametrize(("make", "message"), WHOLE)
def test_numbers_out_of_their_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- chains ---------------------------------------------------------------------------------------------------------


def test_a_chain_is_one_around_the_other():
    inner = funcopt.partition({"a": funcopt.sgd(), "b": None}, "a")
    for opt in (funcopt.sgd(), inner):
        nested = funcopt.skip_nonfinite(funcopt.clip_by_norm(funcopt.ema(opt, 0.5), 2.0))
        layers = (funcopt.skip_nonfinite, funcopt.clip_by_norm(max_norm=2.0), funcopt.ema(decay=0.5))
        assert funcopt.chain(*layers, opt) == nested
        assert funcopt.chain(*layers)(opt) == nested
        assert funcopt.chain(funcopt.chain(*layers[:2]), layers[2], opt) == nested
        assert funcopt.chain(opt) == opt


@pytest.mark.parametrize(
    "given", [(), (1.0,), (funcopt.sgd(), funcopt.sgd()), (funcopt.ema, 1.0, funcopt.sgd())], ids=range(4)
)
def test_what_is_no_chain(given):
    with pytest.raises(TypeError, match=r"chain takes transforms, such as .*; got "):
        funcopt.chain(*given)


@each_transform
def test_the_transform_without_its_optimizer(name):
    wrap, _ = ALL[name]
    assert wrap(None, prefix="x_")(funcopt.sgd()) == wrap(funcopt.sgd(), prefix="x_")
    with pytest.raises((TypeError, ValueError)):
        wrap(None, -1.0)


# ---- what is not elementwise inside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMS)
def test_muon_inside(name):
    """Against the class of Muon, with the transform by hand: torch.optim's iterates in bfloat16."""
    wrap, layer = TRANSFORMS[name]
    muon = funcopt.muon(ns_dtype=torch.float64)
    opt = wrap(muon)
    draw = lambda t: {"m": torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(t))}
    grads = [draw(t) for t in range(1, 6)]
    hand = layer(by_hand.Inner(lambda ps: funcopt.optim.from_pure(muon)(ps, lr=0.1)))
    want = by_hand.steps(hand, draw(0), grads)
    params, hparams = draw(0), opt.hparams(lr=0.1)
    state = opt.init(params, hparams)
    for g in grads:
        params, state = opt(params, g, state, hparams)
    torch.testing.assert_close(params["m"], want.params["m"].detach(), rtol=1e-9, atol=1e-11)
