"""The pure optimizer: structure, purity, hparams, errors."""

import copy
import itertools
import pickle
from typing import NamedTuple

import pytest
import torch

import funcopt
from tests.rules_table import COMBINATIONS, IDS, NUMBERS, fitted, tried

leaves_of = torch.utils._pytree.tree_leaves


class Layer(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


def tensors(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


TREES = {
    "tensor": lambda a, b, c: a,
    "list": lambda a, b, c: [a, b, c],
    "tuple": lambda a, b, c: (a, b, c),
    "dict": lambda a, b, c: {"w": a, "b": b, "s": c},
    "nested": lambda a, b, c: {"layers": [{"w": a}, (b, [c])], "none": {}},
    "NamedTuple": lambda a, b, c: {"layers": [Layer(a, b)], "scale": c},
}


def make(tree, factory=funcopt.sgd):
    return TREES[tree](*tensors(*(fitted(factory, shape) for shape in ((3, 4), (4,), ()))))


def slots_of(factory, state, *, scalar):
    """The slots of a state that are scalars, or those that are not."""
    return {slot.name: state[slot.name] for slot in factory.rule.slots if slot.name in state and slot.scalar == scalar}


def run(opt, params, hparams, steps=3, seed=1, **kwargs):
    torch.manual_seed(seed)
    state = opt.init(params, hparams)
    for _ in range(steps):
        grads = torch.utils._pytree.tree_map(torch.randn_like, params)
        params, state = opt(params, grads, state, hparams, **kwargs)
    return params, state


def tensors_of(tree):
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, torch.Tensor)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


@pytest.mark.parametrize("tree", TREES)
def test_any_pytree(factory, tree):
    opt = factory()
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    params = make(tree, factory)
    new, state = run(opt, params, hparams)
    spec = torch.utils._pytree.tree_structure(params)
    assert torch.utils._pytree.tree_structure(new) == spec
    assert all(torch.utils._pytree.tree_structure(slot) == spec for slot in state.values())
    assert type(state) is dict
    flat, flat_state = run(opt, leaves_of(params), hparams)
    assert same(leaves_of(new), flat)
    assert same(state, flat_state)


@pytest.mark.parametrize(("factory", "flags"), COMBINATIONS, ids=IDS)
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_inputs_are_not_modified(factory, flags, backend):
    opt = factory(backend=backend, **flags)
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    params, state = run(opt, make("dict", factory), hparams)
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    grads["s"] = None
    given = (params, grads, state, hparams)
    versions = [t._version for t in tensors_of(given)]
    before = copy.deepcopy(given)
    first = opt(*given)
    assert same(given, before)
    assert versions == [t._version for t in tensors_of(given)]
    assert same(first, opt(*given))


def test_order_of_entries_means_nothing():
    opt = funcopt.adamw()
    a, b = tensors((3,), (2, 2))
    ga, gb = tensors((3,), (2, 2))
    hparams = opt.hparams(lr={"b": 0.1, "a": 0.2})
    params = {"a": a, "b": b}
    state = opt.init(params, hparams)
    want, want_state = opt(params, {"a": ga, "b": gb}, state, hparams)
    turned = {name: dict(reversed(slot.items())) for name, slot in reversed(state.items())}
    got, got_state = opt(params, {"b": gb, "a": ga}, turned, hparams)
    assert list(got) == ["a", "b"]
    assert same(got, want)
    assert all(torch.equal(got_state[n][k], want_state[n][k]) for n, k in itertools.product(want_state, "ab"))


def test_gradients_of_a_list_may_come_as_the_tuple_of_autograd():
    opt = funcopt.sgd()
    params = [p.requires_grad_() for p in tensors((3,), ())]
    grads = torch.autograd.grad(sum((p**2).sum() for p in params), params)
    new, _ = opt(params, grads, opt.init(params), opt.hparams(lr=0.5))
    assert isinstance(new, list)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in new)


def test_a_leaf_without_gradient_is_left_alone(factory):
    opt = factory()
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    params, state = run(opt, make("nested", factory), hparams)
    grads = {"layers": [{"w": torch.ones(3, 4, dtype=torch.float64)}, None], "none": {}}  # None for a subtree
    new, after = opt(params, grads, state, hparams)
    assert new["layers"][1][0] is params["layers"][1][0]
    for name in state:
        assert after[name]["layers"][1][0] is state[name]["layers"][1][0]
        slot = state[name]["layers"][0]["w"]
        assert slot is None or not torch.equal(after[name]["layers"][0]["w"], slot)
    assert float(after["step"]["layers"][0]["w"]) == 4
    assert float(after["step"]["layers"][1][0]) == 3


def test_frozen_leaves_catch_up_by_their_own_count():
    """Bias correction goes by the leaf's own number of steps, as torch.optim's does."""
    opt = funcopt.adam()
    hparams = opt.hparams(lr=0.1)
    params = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    state = opt.init(params, hparams)
    g = torch.ones(2, dtype=torch.float64)
    for t in range(4):
        params, state = opt(params, {"a": g, "b": g if t == 3 else None}, state, hparams)
    torch.testing.assert_close(params["b"], torch.full((2,), -0.1, dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("slot_dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_stay(factory, dtype, slot_dtype):
    opt = factory()
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    shapes = {"w": (3, 4), "s": (), "e": (0,)}
    params = {name: torch.ones(fitted(factory, shape), dtype=dtype) for name, shape in shapes.items()}
    state = opt.init(params, hparams, slot_dtype=slot_dtype)
    new, after = params, state
    for _ in range(2):
        new, after = opt(new, params, after, hparams)
    described = [(t.dtype, t.shape) for t in tensors_of((params, state))]
    assert described == [(t.dtype, t.shape) for t in tensors_of((new, after))]
    assert {t.dtype for t in tensors_of(slots_of(factory, state, scalar=False))} <= {slot_dtype or dtype}
    assert {(t.dtype, t.shape) for t in tensors_of(slots_of(factory, state, scalar=True))} <= {(torch.float64, ())}
    assert {(t.dtype, t.shape) for t in tensors_of(state["step"])} == {(torch.float32, ())}
    assert all(t.isfinite().all() for t in tensors_of((new, after)))


def test_low_precision_computes_in_float32():
    """A step smaller than bfloat16 resolves still moves a float32 moment by the right amount."""
    opt = funcopt.adamw()
    p = torch.ones(4, dtype=torch.bfloat16)
    g = torch.full((4,), 1e-3, dtype=torch.bfloat16)
    hparams = opt.hparams(betas=(0.9, 0.999))
    _, state = opt(p, g, opt.init(p, hparams, slot_dtype=torch.float32), hparams)
    truth = g.double() ** 2 * (1 - 0.999)  # bfloat16(0.999) is 1
    torch.testing.assert_close(state["exp_avg_sq"].double(), truth, rtol=1e-6, atol=0)


def test_float16_at_zero_gradients_has_no_nan(factory):
    """In torch.optim the eps of 1e-8 is zero in float16, and 0 / 0 follows."""
    opt = factory()
    p = torch.ones(fitted(factory, (3,)), dtype=torch.float16)
    decays = dict.fromkeys({"weight_decay", "lambd"} & factory.rule.hparams.keys(), 0.0)
    hparams = opt.hparams(**NUMBERS[factory.__name__] | decays)
    new, _ = opt(p, torch.zeros_like(p), opt.init(p, hparams), hparams)
    assert torch.equal(new, p)


# ---- hparams --------------------------------------------------------------------------------------------------------


def test_hparams_as_floats_tensors_and_trees_are_the_same_numbers(factory):
    opt = factory(**tried(factory))
    numbers = NUMBERS[factory.__name__]
    params = make("nested", factory)
    want = run(opt, params, opt.hparams(**numbers))
    spec = torch.utils._pytree.tree_structure(params)

    def number(v):
        return torch.tensor(v, dtype=torch.float64)

    whole = (
        number,
        lambda v: {"layers": v, "none": {}},
        lambda v: {"layers": [number(v), v], "none": {}},
        lambda v: torch.utils._pytree.tree_unflatten([v] * spec.num_leaves, spec),
    )
    by_weight = (
        lambda v: torch.utils._pytree.tree_map(lambda p: torch.full_like(p, v), params),
        lambda v: torch.utils._pytree.tree_map(lambda p: torch.full(p.shape[-1:], v, dtype=p.dtype), params),
    )
    for form in (*whole, *(() if factory.rule.scalars else by_weight)):
        given = {
            name: tuple(map(form, value)) if isinstance(value, tuple) else form(value)
            for name, value in numbers.items()
        }
        got = run(opt, params, opt.hparams(**given))
        for a, b in zip(tensors_of(got), tensors_of(want), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


def test_a_scalar_takes_no_number_for_each_weight():
    """Neither at the beginning nor later, where it would be found after the parameters have been written."""
    p = torch.ones(3, dtype=torch.float64)
    opt, message = funcopt.asgd(), "slot 'eta' is one number for each parameter.*give those as one number"
    by_weight = opt.hparams(lr=torch.full((3,), 0.1))
    with pytest.raises(ValueError, match=message):
        opt.init(p, by_weight)
    state = opt.init(p, opt.hparams())
    with pytest.raises(ValueError, match=message):
        opt(p, p.clone(), state, by_weight, donate=True)
    assert torch.equal(p, torch.ones_like(p))
    new, _ = opt(p, p.clone(), state, opt.hparams(weight_decay=torch.full((3,), 0.1)))
    torch.testing.assert_close(new, p * (1 - 1e-2 * (1.1 + 1e-4)))


def test_one_number_for_each_leaf_is_a_call_for_each():
    opt = funcopt.adamw()
    params = make("list")
    lrs = [0.1, 0.2, torch.tensor(0.3, dtype=torch.float64)]
    betas = ([0.5, 0.6, 0.7], 0.99)
    got, _ = run(opt, params, opt.hparams(lr=lrs, betas=betas))
    torch.manual_seed(1)
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    for i, p in enumerate(params):
        hparams = opt.hparams(lr=lrs[i], betas=(betas[0][i], 0.99))
        state = opt.init(p, hparams)
        for g in grads:
            p, state = opt(p, g[i], state, hparams)
        assert torch.equal(p, got[i])


def test_one_number_for_each_weight():
    opt = funcopt.sgd()
    lr = torch.arange(4.0, dtype=torch.float64)
    p = torch.zeros(3, 4, dtype=torch.float64)
    new, _ = opt(p, torch.ones_like(p), opt.init(p), opt.hparams(lr=lr))
    assert torch.equal(new, -lr.expand(3, 4))


def test_defaults_are_torch_optims(factory):
    by_name = {name.lower(): cls for name, cls in vars(torch.optim).items()}
    p = torch.zeros(fitted(factory, (1,)), requires_grad=True)
    defaults = by_name[factory.__name__.replace("_", "")]([p]).defaults
    opt = factory()
    hparams = opt.hparams()
    assert {name: defaults[name] for name in hparams} == hparams
    flags = {name: value for name, value in opt.flags.items() if name in defaults}
    assert {name: defaults[name] for name in flags} == flags


# ---- donation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "triton", "compile"])
def test_donated_results_are_in_place_and_the_same(factory, backend):
    opt = factory(backend=backend)
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    params = make("dict", factory)
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    state = opt.init(params, hparams)
    want = opt(params, grads, state, hparams)
    given = params, slots_of(factory, state, scalar=False)
    got = opt(params, grads, state, hparams, donate=True)
    written = got[0], slots_of(factory, got[1], scalar=False)
    assert all(a is b for a, b in zip(leaves_of(written), leaves_of(given), strict=True))
    for a, b in zip(tensors_of(got), tensors_of(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


def test_donation_is_ignored_where_a_derivative_is_wanted_or_leaves_are_tied():
    opt = funcopt.sgd()
    p = torch.ones(2, requires_grad=True)
    new, _ = opt(p, torch.ones(2), opt.init(p), opt.hparams(lr=1.0), donate=True)
    assert torch.equal(p, torch.ones(2))
    assert new.requires_grad
    tied = torch.ones(2)
    params = {"a": tied, "b": tied}
    new, _ = opt(
        params, {"a": torch.ones(2), "b": 2 * torch.ones(2)}, opt.init(params), opt.hparams(lr=1.0), donate=True
    )
    assert torch.equal(new["a"], torch.zeros(2))
    assert torch.equal(new["b"], -torch.ones(2))
    whole = torch.ones(4)
    params = [whole[:3], whole[1:]]
    new, _ = opt(params, [torch.ones(3), torch.ones(3)], opt.init(params), opt.hparams(lr=1.0), donate=True)
    assert all(torch.equal(p, torch.zeros(3)) for p in new)


@pytest.mark.parametrize("backend", ["eager", "triton", "compile"])
def test_a_donated_parameter_that_its_gradient_overlaps(backend):
    memory = torch.arange(100_001.0)
    p, g = memory[1:], memory[:-1]
    opt = funcopt.sgd(backend=backend)
    want, _ = opt(p.clone(), g.clone(), opt.init(p), opt.hparams(lr=0.5))
    new, _ = opt(p, g, opt.init(p), opt.hparams(lr=0.5), donate=True)
    assert torch.equal(new, want)


def test_donated_counts_that_leaves_share():
    """From init all leaves share a count; one without a gradient must keep it."""
    opt = funcopt.adamw()
    p = {"a": torch.ones(2), "b": torch.ones(2)}
    state = opt.init(p)
    _, after = opt(p, {"a": torch.ones(2), "b": None}, state, opt.hparams(), donate=True)
    assert after["step"] == {"a": 1, "b": 0}
    assert state["step"] == {"a": 0, "b": 0}


def test_a_hundred_thousand_leaves():
    opt = funcopt.sgd()
    params = {str(i): torch.zeros(()) for i in range(100_000)}
    state = opt.init(params)
    new, state = opt(params, dict.fromkeys(params) | {"7": torch.ones(())}, state, opt.hparams(lr=1.0))
    assert new["7"] == -1
    assert sum(p.item() for p in new.values()) == -1


def test_pickled_and_compared():
    opt = funcopt.adamw(amsgrad=True)
    again = pickle.loads(pickle.dumps(opt))
    assert again == opt
    assert hash(again) == hash(opt)
    assert again.rule is opt.rule
    assert opt != funcopt.adamw()


def test_momentum_zero_for_one_leaf_of_a_tree():
    """As torch.optim, where momentum 0 takes no dampening."""
    opt = funcopt.sgd()
    p = {"a": torch.zeros(2), "b": torch.zeros(2)}
    hparams = opt.hparams(lr=1.0, momentum={"a": 0.0, "b": 0.9}, dampening=0.5)
    state = opt.init(p, hparams)
    for _ in range(2):
        p, state = opt(p, {"a": torch.ones(2), "b": torch.ones(2)}, state, hparams)
    assert torch.equal(p["a"], torch.full((2,), -2.0))
    torch.testing.assert_close(p["b"], torch.full((2,), -(1 + 0.9 + 0.5)))
