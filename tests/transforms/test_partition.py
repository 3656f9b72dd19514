"""Partitions against separate optimizers, torch.optim's and by hand; what they call their numbers; what they refuse."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.utils import clip_grad_norm_
from torch.utils import _pytree as pytree

import funcopt
from funcopt import TrainState

LABELS = {"layer": {"weight": "matrix", "bias": "rest"}, "scales": ["rest", "still"], "number": "rest"}


def draw(seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    r = lambda *size: torch.randn(size, generator=random, dtype=torch.float64).to(dtype)
    return {"layer": {"weight": r(3, 4), "bias": r(3)}, "scales": [r(2, 2), r(4)], "number": r()}


def leaves(tree):
    """The leaves by label: of the matrix, of the rest, and of what stays."""
    return {
        "matrix": [tree["layer"]["weight"]],
        "rest": [tree["layer"]["bias"], tree["scales"][0], tree["number"]],
        "still": [tree["scales"][1]],
    }


def run(opt, seeds, hparams=None, donate=False):
    params = draw(0)
    hparams = opt.hparams() if hparams is None else hparams
    state = opt.init(params, hparams)
    for t in seeds:
        params, state = opt(params, draw(t), state, hparams, donate=donate)
    return params, state


def by_hand(optimizers, seeds, clip=lambda parts: None):
    """A torch.optim optimizer for each label."""
    params = {label: [p.clone().requires_grad_() for p in ps] for label, ps in leaves(draw(0)).items()}
    made = [make(params[label]) for label, make in optimizers.items()]
    for t in seeds:
        for label, gs in leaves(draw(t)).items():
            for p, g in zip(params[label], gs, strict=True):
                p.grad = g
        clip(params)
        for optimizer in made:
            optimizer.step()
    return {label: [p.detach() for p in ps] for label, ps in params.items()}


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


OPT = funcopt.partition({"matrix": funcopt.sgd(), "rest": funcopt.adamw(), "still": None}, LABELS)
NUMBERS = {"matrix_lr": 0.1, "matrix_momentum": 0.9, "rest_lr": 0.01}
TORCH = {
    "matrix": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    "rest": lambda ps: torch.optim.AdamW(ps, 0.01),
}


# ---- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("backend", ["eager", "compile", "triton"])
def test_each_part_is_its_own_optimizer(backend, donate):
    parts = {"matrix": funcopt.sgd(backend=backend), "rest": funcopt.adamw(backend=backend)}
    opt = funcopt.partition({**parts, "still": None}, LABELS)
    params, state = run(opt, (1, 2, 3), opt.hparams(**NUMBERS), donate)
    close(leaves(params), by_hand(TORCH, (1, 2, 3)))
    assert torch.equal(params["scales"][1], draw(0)["scales"][1])
    assert state.keys() == {"step", "momentum_buffer", "exp_avg", "exp_avg_sq"}
    where = {name: [t is not None for t in pytree.tree_leaves(column)] for name, column in state.items()}
    matrix, rest = [True, False, False, False, False], [False, True, True, False, True]
    assert where["momentum_buffer"] == matrix
    assert where["exp_avg"] == where["exp_avg_sq"] == rest
    assert where["step"] == [a or b for a, b in zip(matrix, rest, strict=True)]


def test_labels_as_a_function_and_as_a_prefix():
    def by_dimensions(params):
        return pytree.tree_map(lambda p: "matrix" if p.dim() == 2 else "rest", params)

    full = by_dimensions(draw(0))
    prefix = {**full, "scales": ["matrix", "rest"], "layer": {"weight": "matrix", "bias": "rest"}}
    parts = {"matrix": funcopt.sgd(), "rest": funcopt.adamw()}
    want = run(funcopt.partition(parts, full), (1, 2))
    for labels in (by_dimensions, prefix):
        torch.testing.assert_close(run(funcopt.partition(parts, labels), (1, 2)), want, rtol=0, atol=0)
    everything = funcopt.partition(parts, "matrix")
    assert torch.equal(run(everything, (1,))[0]["number"], run(funcopt.sgd(), (1,))[0]["number"])


def test_a_gradient_that_is_none_and_a_label_of_nobody():
    parts = {"matrix": funcopt.sgd(), "rest": funcopt.adamw(), "still": None, "nobody": funcopt.adafactor()}
    opt = funcopt.partition(parts, LABELS)
    params = draw(0)
    state = opt.init(params)
    new, after = opt(params, {**draw(1), "layer": None}, state, opt.hparams())
    assert new["layer"]["weight"] is params["layer"]["weight"]
    assert after["step"]["layer"] == {"weight": 0, "bias": 0}
    assert after["step"]["number"] == 1
    close(run(opt, (1, 2))[0], run(OPT, (1, 2), OPT.hparams())[0])


@pytest.mark.parametrize(
    "mask", [{"a": True, "b": False}, lambda params: {"a": True, "b": False}], ids=["tree", "call"]
)
def test_masks(mask):
    params, g = {"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.ones(2), "b": torch.ones(3)}
    moved = lambda opt: [n for n, p in opt(params, g, opt.init(params), opt.hparams())[0].items() if not p.eq(1).all()]
    assert moved(funcopt.masked(funcopt.sgd(), mask)) == ["a"]
    assert moved(funcopt.freeze(funcopt.sgd(), mask)) == ["b"]
    assert funcopt.masked(funcopt.sgd(), mask).hparams().keys() == funcopt.sgd().hparams().keys()


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_a_norm_around_the_partition_is_that_of_all_that_moves():
    """Though the parts have layers of their own, not the same number in each."""
    parts = {"matrix": funcopt.ema(funcopt.lookahead(funcopt.sgd())), "rest": funcopt.adamw(), "still": None}
    opt = funcopt.clip_by_global_norm(funcopt.partition(parts, LABELS), 0.5)
    params, _ = run(opt, (1, 2), opt.hparams(matrix_lr=0.1, rest_lr=0.01))
    own = {**TORCH, "matrix": lambda ps: torch.optim.SGD(ps, 0.1)}
    close(leaves(params), by_hand(own, (1, 2), lambda ps: clip_grad_norm_(ps["matrix"] + ps["rest"], 0.5)))


def test_a_norm_within_a_part_is_that_of_the_part():
    parts = {
        "matrix": funcopt.clip_by_global_norm(funcopt.sgd(), 0.5),
        "rest": funcopt.clip_by_global_norm(funcopt.adamw(), 0.25),
    }
    opt = funcopt.partition({**parts, "still": None}, LABELS)
    assert {"matrix_max_norm": 0.5, "rest_max_norm": 0.25}.items() <= opt.hparams().items()
    params, _ = run(opt, (1, 2), opt.hparams(matrix_lr=0.1, rest_lr=0.01))

    def clip(ps):
        clip_grad_norm_(ps["matrix"], 0.5)
        clip_grad_norm_(ps["rest"], 0.25)

    own = {**TORCH, "matrix": lambda ps: torch.optim.SGD(ps, 0.1)}
    close(leaves(params), by_hand(own, (1, 2), clip))


def test_norms_within_and_around():
    inner = funcopt.clip_by_global_norm(funcopt.sgd(), 0.5, prefix="own_")
    opt = funcopt.clip_by_global_norm(
        funcopt.partition({"matrix": inner, "rest": funcopt.clip_by_norm(inner, 0.3), "still": None}, LABELS),
        1.0,
        prefix="all_",
    )
    params, _ = run(opt, (1,), opt.hparams(matrix_lr=0.1, rest_lr=0.1))

    def clip(ps):
        clip_grad_norm_(ps["matrix"] + ps["rest"], 1.0)
        for p in ps["rest"]:
            clip_grad_norm_([p], 0.3)
        clip_grad_norm_(ps["matrix"], 0.5)
        clip_grad_norm_(ps["rest"], 0.5)

    sgd = lambda ps: torch.optim.SGD(ps, 0.1)
    close(leaves(params), by_hand({"matrix": sgd, "rest": sgd}, (1,), clip))


@pytest.mark.parametrize(("around", "skipped"), [(True, ("matrix", "rest")), (False, ("rest",))])
def test_a_part_that_skips_skips_alone(around, skipped):
    parts = {"matrix": funcopt.sgd(), "rest": funcopt.adamw(), "still": None}
    if around:
        opt = funcopt.skip_nonfinite(funcopt.partition(parts, LABELS))
    else:
        wrapped = {label: part and funcopt.skip_nonfinite(part) for label, part in parts.items()}
        opt = funcopt.partition(wrapped, LABELS)
    params, g = draw(0), draw(1)
    g["number"] = g["number"] * torch.nan
    new, state = opt(params, g, opt.init(params), opt.hparams())
    for label in ("matrix", "rest"):
        moved = [not torch.equal(p, q) for p, q in zip(leaves(params)[label], leaves(new)[label], strict=True)]
        counts = leaves(state["step"])[label]
        assert not any(moved) if label in skipped else all(moved)
        assert all(count == (label not in skipped) for count in counts)


def test_accumulation_around_and_within():
    around = funcopt.accumulate(OPT, 2)
    close(run(around, (1, 1, 2, 2), around.hparams(**NUMBERS))[0], run(OPT, (1, 2), OPT.hparams(**NUMBERS))[0])
    within = funcopt.partition(
        {"matrix": funcopt.accumulate(funcopt.sgd(), 2), "rest": funcopt.adamw(), "still": None}, LABELS
    )
    got = leaves(run(within, (1, 1, 2, 2), within.hparams(**NUMBERS))[0])
    close(got["matrix"], by_hand(TORCH, (1, 2))["matrix"])
    close(got["rest"], by_hand(TORCH, (1, 1, 2, 2))["rest"])


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_what_numbers_are_called():
    assert {"matrix_lr", "matrix_momentum", "rest_lr", "rest_betas"} <= OPT.hparams().keys()
    around = funcopt.ema(funcopt.clip_by_norm(OPT, 0.5), 0.9)
    assert {"max_norm": 0.5, "ema_decay": 0.9}.items() <= around.hparams().items()
    alone = funcopt.masked(funcopt.ema(funcopt.sgd()), True)
    assert alone.hparams().keys() == funcopt.ema(funcopt.sgd()).hparams().keys()


def test_numbers_as_trees_tensors_and_schedules():
    lrs = {"layer": {"weight": 7.0, "bias": 0.1}, "scales": [torch.full((2, 2), 0.2), 7.0], "number": 0.3}
    hparams = OPT.hparams(matrix_lr=lambda t: 0.1 * (t + 1), rest_lr=lrs, rest_weight_decay=torch.tensor(0.5))
    new, _ = run(OPT, (1, 2), hparams)
    want = {}
    for name, lr, p, gs in (
        ("bias", 0.1, draw(0)["layer"]["bias"], [draw(t)["layer"]["bias"] for t in (1, 2)]),
        ("scale", 0.2, draw(0)["scales"][0], [draw(t)["scales"][0] for t in (1, 2)]),
        ("number", 0.3, draw(0)["number"], [draw(t)["number"] for t in (1, 2)]),
    ):
        p = p.clone().requires_grad_()
        theirs = torch.optim.AdamW([p], lr, weight_decay=0.5)
        for p.grad in gs:
            theirs.step()
        want[name] = p.detach()
    got = {"bias": new["layer"]["bias"], "scale": new["scales"][0], "number": new["number"]}
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)  # 0.2 is in float32
    g = [draw(t)["layer"]["weight"] for t in (1, 2)]
    close(new["layer"]["weight"], draw(0)["layer"]["weight"] - 0.1 * g[0] - 0.2 * g[1])


A_SGD = {"a": funcopt.sgd(), "b": funcopt.sgd()}
REFUSED = {
    "nothing": (lambda: funcopt.partition({}, "a"), TypeError, "takes a dict from labels to pure optimizers"),
    "no name": (lambda: funcopt.partition({"1": funcopt.sgd()}, "1"), TypeError, "a label is the beginning of a name"),
    "a factory": (lambda: funcopt.partition({"a": funcopt.sgd}, "a"), TypeError, "'a' is a function"),
    "a partition": (lambda: funcopt.partition({"a": OPT}, "a"), TypeError, "'a' is a Partition"),
    "one name for two numbers": (
        lambda: funcopt.partition(
            {"a": funcopt.lookahead(funcopt.sgd(), prefix="b_"), "a_b": funcopt.lookahead(funcopt.sgd())}, "a"
        ),
        TypeError,
        "'b_lookahead_k' of label 'a' and 'lookahead_k' of label 'a_b' would both be called 'a_b_lookahead_k'",
    ),
    "one name for a part's and for all": (
        lambda: funcopt.clip_by_norm(
            funcopt.partition({**A_SGD, "a": funcopt.clip_by_norm(funcopt.sgd())}, "a"), prefix="a_"
        ),
        TypeError,
        "'max_norm' of label 'a' and 'a_max_norm' of all would both be called 'a_max_norm'",
    ),
    "a number that a part has": (
        lambda: funcopt.clip_by_norm(funcopt.partition({**A_SGD, "a": funcopt.clip_by_norm(funcopt.sgd())}, "a")),
        TypeError,
        "prefix='outer_'",
    ),
    "a number of one part": (
        lambda: funcopt.partition(A_SGD, "a").hparams(lr=1.0),
        TypeError,
        "no hyperparameter 'lr'; did you mean '[ab]_lr'",
    ),
    "an unknown label": (
        lambda: funcopt.partition(A_SGD, LABELS).init(draw(0)),
        ValueError,
        r"params\['layer'\]\['weight'\] has the label 'matrix'; the labels are 'a', 'b'",
    ),
    "labels of another structure": (
        lambda: funcopt.partition(A_SGD, {"layer": "a"}).init(draw(0)),
        ValueError,
        r"labels\['scales'\] is missing",
    ),
    "a mask of numbers": (
        lambda: funcopt.masked(funcopt.sgd(), 1).init(torch.ones(2)),
        ValueError,
        "a mask has True or False for each parameter; for params it has 1",
    ),
    "hparams of another": (
        lambda: OPT(draw(0), draw(1), OPT.init(draw(0)), {**OPT.hparams(), "lr": 0.1}),
        ValueError,
        r"hparams\['lr'\] is unknown",
    ),
    "hparams that are not there": (
        lambda: OPT(draw(0), draw(1), OPT.init(draw(0)), {}),
        ValueError,
        r"hparams\['matrix_lr'\] is missing",
    ),
    "a state that is not there": (
        lambda: OPT(draw(0), draw(1), {"step": OPT.init(draw(0))["step"]}, OPT.hparams()),
        ValueError,
        "state has no 'exp_avg'",
    ),
    "a parameter that a part does not take": (
        lambda: funcopt.partition({"a": funcopt.muon()}, "a").init(draw(0)),
        ValueError,
        r"params\['layer'\]\['bias'\] cannot be updated by muon",
    ),
    "decay without a learning rate": (
        lambda: funcopt.decoupled_weight_decay(
            funcopt.partition(
                {"a": funcopt.rule("still", hparams={}, coefficients=lambda t: {}, update=lambda p, g, c: (p, ()))()},
                "a",
            )
        ),
        TypeError,
        "needs an optimizer with 'lr'; still has none",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- what a partition is --------------------------------------------------------------------------------------------


def only_matrices(params):
    return pytree.tree_map(lambda p: p.dim() == 2, params)


def test_it_is_copied_pickled_and_compared():
    again = lambda: funcopt.partition(
        {"matrix": funcopt.sgd(), "rest": funcopt.adamw(), "still": None}, copy.deepcopy(LABELS)
    )
    for make in (
        again,
        lambda: funcopt.clip_by_norm(again(), 2.0),
        lambda: funcopt.masked(funcopt.ema(funcopt.adamw(), 0.5), only_matrices),
    ):
        assert make() == make() == copy.deepcopy(make()) == pickle.loads(pickle.dumps(make()))
        assert hash(make()) == hash(make())
    assert again() != funcopt.clip_by_norm(again(), 2.0) != funcopt.clip_by_norm(again(), 3.0)
    assert repr(funcopt.clip_by_norm(funcopt.partition({"a": funcopt.rprop(), "b": None}, "a"), 2.0, prefix="x_")) == (
        "funcopt.partition({'a': funcopt.clip_by_norm(funcopt.rprop(maximize=False, backend='auto'), 2.0, "
        "prefix='x_'), 'b': None}, 'a')"
    )


def test_a_model_with_a_train_state():
    """Muon for matrices, and what stays; the average begins with the weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    matrices = lambda params: {n: "matrix" if p.dim() == 2 else "rest" for n, p in params.items()}
    opt = funcopt.partition({"matrix": funcopt.muon(ns_dtype=torch.float64), "rest": None}, matrices)
    opt = funcopt.clip_by_global_norm(funcopt.ema(opt, 0.5), 0.1)
    hparams = opt.hparams(lr=0.1)
    state = TrainState.create(model, opt, hparams)
    for _ in range(3):
        grads = grad(lambda p: (functional_call(model, p, (x,)) - y).square().mean())(state.params)
        old, state = state, state.update(opt, grads, hparams)
        for n in ("0.weight", "2.weight"):
            close(state.opt_state["ema"][n], (old.opt_state["ema"][n] + state.params[n]) / 2)
    assert state.step == 3
    assert torch.equal(state.params["0.bias"], model[0].bias)
    assert state.opt_state["ema"]["0.bias"] is None
    loaded = TrainState.create(model, opt, hparams).load_state_dict(copy.deepcopy(state.state_dict()))
    torch.testing.assert_close(loaded.state_dict(), state.state_dict(), rtol=0, atol=0)


def test_a_batch_of_runs():
    """vmap over what makes its state itself, as None in a state is nothing that it can batch."""
    opt = funcopt.clip_by_global_norm(OPT, 0.5)
    hparams = opt.hparams(**NUMBERS)

    def run(scale):
        params = pytree.tree_map(lambda p: scale * p, start)
        state = opt.init(params, hparams)
        for g in grads:
            params, state = opt(params, pytree.tree_map(lambda x: scale * x, g), state, hparams)
        return params

    start, grads = draw(0), [draw(1), draw(2)]
    scales = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    got = torch.vmap(run)(scales)
    for k in range(3):
        close(pytree.tree_map(lambda t, k=k: t[k], got), run(scales[k]))


@pytest.mark.parametrize("mask", [{"a": True, "b": False, "c": False}, lambda params: {n: n == "a" for n in params}])
def test_part_of_a_partition_is_frozen(mask):
    labels = lambda params: {name: "one" if name in "ab" else "two" for name in params}
    parts = {"one": funcopt.sgd(), "two": funcopt.sgd()}
    whole = funcopt.clip_by_global_norm(funcopt.partition(parts, labels), 1e6)
    p, g = {name: torch.ones(2) for name in "abc"}, {name: torch.ones(2) for name in "abc"}
    for opt, still in ((funcopt.freeze(whole, mask), "a"), (funcopt.masked(whole, mask), "bc")):
        hparams = opt.hparams(one_lr=0.5, two_lr=0.25)
        new, state = opt(p, g, opt.init(p, hparams), hparams)
        for name, rate in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
            assert torch.equal(new[name], torch.full((2,), 1.0 if name in still else 1 - rate))
            assert (state["step"][name] is None) == (name in still)
    with pytest.raises(TypeError, match="has an optimizer of that label"):
        funcopt.freeze(funcopt.partition({"frozen": funcopt.sgd()}, "frozen"), False)
    with pytest.raises(TypeError, match="'a' is a Partition; give its optimizers labels of this one"):
        funcopt.partition({"a": whole}, "a")


def test_what_is_measured_of_all_parts_is_told():
    opt = funcopt.partition({"a": funcopt.sgd(), "b": funcopt.sgd()}, "a")
    assert repr(funcopt.clip_by_global_norm(opt, 1.0)).endswith("measured of all parts together>")
    assert not repr(funcopt.ema(opt)).endswith(">")
