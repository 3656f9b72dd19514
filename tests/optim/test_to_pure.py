"""`to_pure` and `load_pure`: from a live optimizer to the pure form of it, and back."""

from typing import Any

import pytest
import torch
from torch import nn

import funcopt
from tests.optim.runs import (
    FLOAT64,
    LAYOUT,
    NAMES,
    OURS,
    STATEFUL,
    TORCH,
    check_same,
    error,
    follow,
    gradients,
    grouped,
    leaves,
    packed_groups,
    plain,
    snapshot,
    trajectory,
)

BEFORE, PURE, AFTER = 4, 5, 4

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": torch.tensor([0.1], dtype=torch.float64), "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True, "lr": torch.tensor(0.1, dtype=torch.float64)}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"amsgrad": True, "betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor([0.95]).double())}),
)
by_case = pytest.mark.parametrize(("name", "kwargs"), CASES)
by_names = pytest.mark.parametrize("named", [False, True], ids=["list", "dict"])

# The order of the leaves of a list: the groups' order, which is that of LAYOUT.
KEYS = [f"layer{i}.weight" for i in range(len(LAYOUT))]


def make(classes: dict[str, Any], name: str, kwargs: dict[str, Any], named: bool) -> tuple[Any, list[torch.Tensor]]:
    params = leaves(torch.float64)
    optimizer = classes[name](grouped(name, list(zip(KEYS, params, strict=True)) if named else params), **kwargs)
    follow(optimizer, params, gradients(BEFORE, torch.float64))
    return optimizer, params


def tree(values: list[Any], named: bool) -> Any:
    return dict(zip(KEYS, values, strict=True)) if named else values


def flat(values: Any) -> list[Any]:
    return [values[key] for key in KEYS] if isinstance(values, dict) else values


def pure_steps(opt: Any, params: Any, state: Any, hparams: Any, grads: Any, **kwargs: Any) -> tuple[Any, Any]:
    for row in grads:
        params, state = opt(params, tree(row, isinstance(params, dict)), state, hparams, **kwargs)
    return params, state


def middle() -> Any:
    return gradients(PURE, torch.float64, first=BEFORE)


# ---- out ------------------------------------------------------------------------------------------------------------


@by_case
@by_names
def test_form(name, kwargs, named):
    optimizer, params = make(OURS, name, kwargs, named)
    opt, pure_params, state, hparams = optimizer.to_pure()
    assert isinstance(opt, funcopt.PureOptimizer)
    assert type(pure_params) is (dict if named else list)
    assert all(type(slot) is type(pure_params) for slot in state.values())
    assert named is False or list(pure_params) == KEYS
    for p, new in zip(params, flat(pure_params), strict=True):
        assert torch.equal(p, new)
        assert new.dtype == p.dtype
        assert not new.requires_grad
    assert list(state) == list(opt.init(pure_params, hparams))
    assert hparams.keys() == opt.rule.hparams.keys()
    saved = snapshot(optimizer, params)
    for slot, values in state.items():
        for i, value in enumerate(flat(values)):
            # A parameter that has not been stepped has zeros, of which SGD's adapter keeps none.
            assert torch.equal(value, saved.get((i, slot), value))
            assert (i, slot) in saved or slot == "step" or not value.any()


@by_case
@by_names
@pytest.mark.parametrize("donate", [False, True])
def test_pure_loop_goes_on_as_the_adapter_does(name, kwargs, named, donate):
    """And neither disturbs the other, even where the pure loop writes into what it was given."""
    optimizer, params = make(OURS, name, kwargs, named)
    before = snapshot(optimizer, params)
    opt, pure_params, state, hparams = optimizer.to_pure()
    pure_params, state = pure_steps(opt, pure_params, state, hparams, middle(), donate=donate)
    check_same(snapshot(optimizer, params), before, tolerance=0)
    kept = [p.clone() for p in flat(pure_params)]
    follow(optimizer, params, middle())
    after = snapshot(optimizer, params)
    for i, (own, new, unchanged) in enumerate(zip(params, flat(pure_params), kept, strict=True)):
        assert torch.equal(new, unchanged)
        assert error(new, own) <= FLOAT64, i
    for (i, slot), value in after.items():
        if slot != "param":
            assert error(flat(state[slot])[i], value) <= FLOAT64, (i, slot)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_step(name):
    params = leaves(torch.float64)
    optimizer = OURS[name](params, lr=0.1, weight_decay=0.1)
    opt, pure_params, state, hparams = optimizer.to_pure()
    follow(optimizer, params, gradients(3, torch.float64))
    ends, _ = pure_steps(opt, pure_params, state, hparams, gradients(3, torch.float64))
    for own, new in zip(params, ends, strict=True):
        assert error(new, own) <= FLOAT64


@pytest.mark.parametrize(
    ("name", "number", "values"),
    [
        ("SGD", "lr", (0.1, 0.2)),
        ("SGD", "momentum", (0.5, 0.9)),
        ("SGD", "dampening", (0.0, 0.5)),
        ("SGD", "weight_decay", (0.0, 0.5)),
        ("Adam", "lr", (0.1, torch.tensor(0.2))),
        ("Adam", "eps", (1e-8, 0.1)),
        ("Adam", "betas", ((0.9, 0.99), (0.9, 0.95))),
        ("AdamW", "weight_decay", (0.01, 0.0)),
    ],
)
@by_names
def test_numbers_that_differ_by_group_are_trees(name, number, values, named):
    """The component that differs is a tree like params; the others, the other beta too, are single numbers."""
    params = [torch.zeros(n, requires_grad=True) for n in (1, 2, 3)]
    given = list(zip("abc", params, strict=True)) if named else params
    groups = [{"params": given[:1], number: values[0]}, {"params": given[1:], number: values[1]}]
    *_, hparams = OURS[name](groups).to_pure()
    spread = lambda first, second: (
        dict(zip("abc", (first, second, second), strict=True)) if named else [first, second, second]
    )
    expected = (
        tuple(a if a == b else spread(a, b) for a, b in zip(*values, strict=True))
        if number == "betas"
        else spread(*values)
    )
    assert plain(hparams[number]) == plain(expected)
    for other, value in hparams.items():
        assert other == number or not isinstance(value, dict | list)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("SGD", {"maximize": False}, {"maximize": True}),
        ("SGD", {"nesterov": True, "momentum": 0.9}, {"momentum": 0.9}),
        ("Adam", {"amsgrad": True}, {"amsgrad": False}),
        ("Adam", {"decoupled_weight_decay": True}, {"decoupled_weight_decay": False}),
        ("AdamW", {"maximize": True}, {}),
    ],
)
def test_flags_that_differ_by_group_have_no_pure_form(name, first, second):
    optimizer = OURS[name]([{"params": torch.zeros(2), **first}, {"params": torch.zeros(3), **second}])
    with pytest.raises(ValueError, match=r"group 0 is funcopt\.\w+\(.*but group 1 is funcopt\.\w+\("):
        optimizer.to_pure()


@pytest.mark.parametrize("name", NAMES)
def test_two_parameters_of_one_name(name):
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = OURS[name]([("w", p), ("w", q)])
    with pytest.raises(ValueError, match="same name"):
        optimizer.to_pure()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["eager", "triton", "compile"])
def test_backend_goes_along(name, backend):
    opt, *_ = OURS[name]([torch.zeros(2)], backend=backend).to_pure()
    assert opt.backend == backend


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_functional_form(name):
    """The params by name are what torch.func.functional_call takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    optimizer = OURS[name](model.named_parameters(), lr=0.05)
    loss = lambda params: torch.func.functional_call(model, params, (x,)).square().mean()
    opt, params, state, hparams = optimizer.to_pure()
    for _ in range(5):
        params, state = opt(params, torch.func.grad(loss)(params), state, hparams)
        optimizer.zero_grad()
        loss(dict(model.named_parameters())).backward()
        optimizer.step()
    for key, own in model.named_parameters():
        assert error(params[key], own) <= FLOAT64


# ---- and back -------------------------------------------------------------------------------------------------------


@by_case
@by_names
def test_the_adapter_goes_on_from_the_pure_loop(name, kwargs, named):
    """It ends where torch's optimizer does that took all the steps itself."""
    optimizer, params = make(OURS, name, kwargs, named)
    pointers = [p.data_ptr() for p in params]
    opt, pure_params, state, hparams = optimizer.to_pure()
    pure_params, state = pure_steps(opt, pure_params, state, hparams, middle())
    optimizer.load_pure(pure_params, state)
    loaded = [p.clone() for p in flat(pure_params)], plain(state)
    rest = gradients(AFTER, torch.float64, first=BEFORE + PURE)
    reference, reference_params = make(TORCH, name, kwargs, named)
    follow(reference, reference_params, middle())
    check_same(snapshot(optimizer, params), snapshot(reference, reference_params))
    check_same(trajectory(optimizer, params, rest), trajectory(reference, reference_params, rest))
    assert [p.data_ptr() for p in params] == pointers, "the parameters are no longer the model's own"
    assert all(torch.equal(a, b) for a, b in zip(flat(pure_params), loaded[0], strict=True))
    assert plain(state) == loaded[1], "the adapter's steps reach the tree that it was given"


@pytest.mark.parametrize("name", NAMES)
@by_names
def test_back_to_before_the_first_step(name, named):
    """The state goes away with the steps."""
    params = leaves(torch.float64)
    given = list(zip(KEYS, params, strict=True)) if named else params
    optimizer = OURS[name](given, lr=0.1, **STATEFUL[name])
    _, start, state, _ = optimizer.to_pure()
    first = trajectory(optimizer, params, gradients(3, torch.float64))
    optimizer.load_pure(start, state)
    assert len(optimizer.state) == 0
    check_same(trajectory(optimizer, params, gradients(3, torch.float64)), first, tolerance=0)


def wrong(where: str, key: str, change: Any) -> Any:
    """Replace one leaf of params (where = "") or of a slot."""

    def apply(params: Any, state: Any) -> None:
        target = state[where] if where else params
        target[key] = change(target[key])

    return apply


def without(where: str, key: str | None = None) -> Any:
    """Leave out a slot, or one leaf of it or of params (where = "")."""

    def apply(params: Any, state: Any) -> None:
        if key is None:
            del state[where]
        else:
            del (state[where] if where else params)[key]

    return apply


def added(where: str, key: str) -> Any:
    def apply(params: Any, state: Any) -> None:
        (state[where] if where else params)[key] = torch.zeros(2)

    return apply


A, B = "layer0.weight", "layer3.weight"
WRONG: tuple[tuple[Any, str], ...] = (
    (wrong("", A, lambda v: v[:1]), rf"params\['{A}'\].*\(4, 3\).*\(1, 3\)"),
    (wrong("", B, lambda v: v.t()), rf"params\['{B}'\].*\(5, 3\).*\(3, 5\)"),
    (wrong("", A, lambda v: 1.0), rf"params\['{A}'\].*float"),
    (wrong("", A, lambda v: None), rf"params\['{A}'\].*None"),
    (wrong("exp_avg", B, lambda v: v.flatten()), rf"state\['exp_avg'\]\['{B}'\].*\(5, 3\).*\(15,\)"),
    (wrong("exp_avg_sq", A, lambda v: None), rf"state\['exp_avg_sq'\]\['{A}'\].*None"),
    (wrong("step", A, lambda v: torch.ones(2)), rf"state\['step'\]\['{A}'\].*\(\).*\(2,\)"),
    (wrong("step", A, lambda v: 3), rf"state\['step'\]\['{A}'\].*int"),
    (without("", A), rf"params\['{A}'\] is missing"),
    (without("exp_avg", B), rf"state\['exp_avg'\]\['{B}'\] is missing"),
    (without("step", B), rf"state\['step'\]\['{B}'\] is missing"),
    (without("step"), "step"),
    (without("exp_avg"), "exp_avg"),
    (without("exp_avg_sq"), "exp_avg_sq"),
    (added("", "head"), r"params\['head'\] has no counterpart"),
    (added("exp_avg", "head"), r"state\['exp_avg'\]\['head'\] has no counterpart"),
    (lambda params, state: state.update(exp_avq=state["exp_avg"]), r"state\['exp_avq'\] is unknown.*exp_avg"),
)


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
@pytest.mark.parametrize("steps", [0, BEFORE], ids=["fresh", "trained"])
def test_load_pure_names_what_does_not_fit_and_changes_nothing(change, message, steps):
    source, _ = make(OURS, "AdamW", {}, named=True)
    _, pure_params, state, _ = source.to_pure()
    change(pure_params, state)
    params = leaves(torch.float64)
    optimizer = OURS["AdamW"](grouped("AdamW", list(zip(KEYS, params, strict=True))))
    follow(optimizer, params, gradients(steps, torch.float64, first=1))
    before = snapshot(optimizer, params), packed_groups(optimizer), len(optimizer.state)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_pure(pure_params, state)
    check_same(snapshot(optimizer, params), before[0], tolerance=0)
    assert (packed_groups(optimizer), len(optimizer.state)) == before[1:]


def test_the_table_of_wrong_states_starts_from_a_right_one():
    source, _ = make(OURS, "AdamW", {}, named=True)
    _, pure_params, state, _ = source.to_pure()
    optimizer = OURS["AdamW"](grouped("AdamW", list(zip(KEYS, leaves(torch.float64), strict=True))))
    optimizer.load_pure(pure_params, state)


@pytest.mark.parametrize("name", NAMES)
def test_a_list_for_named_parameters(name):
    named, _ = make(OURS, name, {}, named=True)
    unnamed, _ = make(OURS, name, {}, named=False)
    _, params, state, _ = unnamed.to_pure()
    with pytest.raises(ValueError, match=r"params\[0\] has no counterpart"):
        named.load_pure(params, state)


def test_what_comes_back_in_other_dtypes_is_kept_in_the_optimizers_own():
    """A loop in float64 may hand its results to a float32 optimizer."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = funcopt.optim.AdamW([p])
    p.grad = torch.ones(3)
    optimizer.step()
    opt, params, state, hparams = optimizer.to_pure()
    params, state = torch.utils._pytree.tree_map(torch.Tensor.double, (params, state))
    params, state = opt(params, params, state, hparams)
    optimizer.load_pure(params, state)
    assert {t.dtype for t in (p, *optimizer.state[p].values())} == {torch.float32}
    assert torch.equal(p, params[0].float())
    assert optimizer.state[p]["step"] == 2


def test_a_state_that_was_changed_before_the_first_step():
    p = torch.ones(2, requires_grad=True)
    for optimizer in (funcopt.optim.Adagrad([p], lr=0.1), funcopt.optim.Adam([p], lr=0.1)):
        slot = "sum" if isinstance(optimizer, funcopt.optim.Adagrad) else "exp_avg_sq"
        _, params, state, _ = optimizer.to_pure()
        optimizer.load_pure(params, state)
        assert len(optimizer.state) == (slot == "sum")
        state[slot] = [torch.full((2,), 5.0)]
        optimizer.load_pure(params, state)
        assert torch.equal(optimizer.to_pure()[2][slot][0], torch.full((2,), 5.0))
    optimizer = funcopt.optim.Adagrad([p])
    optimizer.load_pure(*optimizer.to_pure()[1:3])
    optimizer.share_memory()
    assert optimizer.state[p]["sum"].is_shared()
