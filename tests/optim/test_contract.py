"""What code written for torch.optim finds in the classes: constructors, groups, hooks, copies."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

import funcopt
from tests.optim.runs import (
    NAMES,
    OURS,
    TORCH,
    check_same,
    follow,
    give,
    gradients,
    grouped,
    leaves,
    packed_groups,
    plain,
    snapshot,
    trajectory,
)

# A class of `from_pure` as users keep it, so that pickle finds it.
PureAdamW = funcopt.optim.from_pure(funcopt.adamw(amsgrad=True), "PureAdamW")

OWN = [*OURS.values(), PureAdamW]


def param(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float64, requires_grad=True)


def trained(make: Any, steps: int = 3) -> tuple[Any, list[torch.Tensor]]:
    """An optimizer of one group after some steps, and its parameters."""
    params = leaves(torch.float64)
    optimizer = make(params)
    follow(optimizer, params, gradients(steps, torch.float64))
    return optimizer, params


# ---- constructors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    ours, theirs = (inspect.signature(classes[name]).parameters for classes in (OURS, TORCH))
    *same, backend = ours.values()
    assert [(p.name, p.default, p.kind) for p in same] == [(p.name, p.default, p.kind) for p in theirs.values()]
    assert (backend.name, backend.default, backend.kind) == ("backend", "auto", inspect.Parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_groups(name):
    ours, theirs = (classes[name](grouped(name, leaves(torch.float32))) for classes in (OURS, TORCH))
    assert isinstance(ours, torch.optim.Optimizer)
    assert ours.defaults == theirs.defaults
    assert packed_groups(ours) == packed_groups(theirs)


def test_adamw_is_an_adam():
    assert issubclass(OURS["AdamW"], OURS["Adam"])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("SGD", (0.1, 0.9, 0, 0.1, True)),
        ("Adam", (0.1, (0.5, 0.6), 0.1, 0.2, True)),
        ("AdamW", (0.1, (0.5, 0.6), 0.1, 0.2, True)),
    ],
)
def test_positional_arguments(name, given):
    ours, theirs = (classes[name]([param(2)], *given) for classes in (OURS, TORCH))
    assert ours.defaults == theirs.defaults


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "params",
    [
        lambda: iter([param(2), param(3)]),
        lambda: {"a": param(2)}.values(),
        lambda: (p for p in [param(2)]),
        lambda: [{"params": param(2)}, {"params": (param(3),), "lr": 0.5, "label": "head"}],
        lambda: [("a", param(2)), ("b", param(3))],
        lambda: torch.nn.Linear(2, 2).named_parameters(),
        lambda: [{"params": [("a", param(2))]}, {"params": iter([("b", param(3))])}],
        lambda: [torch.zeros(2)],
    ],
    ids=["iterator", "values", "generator", "groups", "pairs", "named_parameters", "groups of pairs", "no gradient"],
)
def test_forms_of_params(name, params):
    ours, theirs = (classes[name](params()) for classes in (OURS, TORCH))
    assert packed_groups(ours) == packed_groups(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_a_later_group_come_from_the_defaults(name):
    ours, theirs = (classes[name]([param(2)], lr=0.5, weight_decay=0.1) for classes in (OURS, TORCH))
    for optimizer in (ours, theirs):
        optimizer.add_param_group({"params": param(3), "lr": 0.25})
    assert packed_groups(ours) == packed_groups(theirs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"lr": torch.tensor(0.5), "amsgrad": True}),
        ("AdamW", {"betas": (0.5, 0.6), "maximize": True}),
    ],
)
def test_repr(name, kwargs):
    ours, theirs = (classes[name](grouped(name, leaves(torch.float32)), **kwargs) for classes in (OURS, TORCH))
    assert repr(ours) == repr(theirs)


# ---- closures, gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad])
def test_closure(cls, surrounding):
    p = param(3)
    optimizer = cls([p], lr=0.1)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(p.square().sum())
        losses[-1].backward()
        return losses[-1]

    with surrounding():
        assert optimizer.step(closure) is losses[0]
        assert torch.is_grad_enabled() is (surrounding is torch.enable_grad)
        assert optimizer.step(closure=closure) is losses[1]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert optimizer.step() is None
    assert optimizer.step(lambda: 7) == 7


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_an_error_in_the_closure_passes(cls):
    p = param(3)
    p.grad = torch.ones_like(p)
    with pytest.raises(ZeroDivisionError):
        cls([p]).step(lambda: 1 / 0)
    assert torch.equal(p, param(3))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_zero_grad(cls):
    optimizer, params = trained(cls)
    given = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=False)
    assert [p.grad for p in params] == given
    assert all(g is None or not g.any() for g in given)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


# ---- hooks ----------------------------------------------------------------------------------------------------------


def record_hooks(make: Any) -> list[Any]:
    """What hooks of every kind see, and in which order, on an optimizer that `make` builds over one parameter."""
    seen: list[Any] = []
    p = param(2)
    optimizer = make([p])

    def note(what: str) -> Any:
        return lambda opt, *rest: seen.append((what, opt is optimizer, p.detach().tolist(), len(rest)))

    handles = [
        optimizer.register_step_post_hook(note("local post")),
        optimizer.register_step_pre_hook(note("local pre")),
        torch_optimizer.register_optimizer_step_post_hook(note("global post")),
        torch_optimizer.register_optimizer_step_pre_hook(note("global pre")),
        optimizer.register_state_dict_pre_hook(note("state_dict pre 2")),
        optimizer.register_state_dict_pre_hook(note("state_dict pre 1"), prepend=True),
        optimizer.register_state_dict_post_hook(note("state_dict post 2")),
        optimizer.register_state_dict_post_hook(note("state_dict post 1"), prepend=True),
        optimizer.register_load_state_dict_pre_hook(note("load pre 2")),
        optimizer.register_load_state_dict_pre_hook(note("load pre 1"), prepend=True),
        optimizer.register_load_state_dict_post_hook(note("load post 2")),
        optimizer.register_load_state_dict_post_hook(note("load post 1"), prepend=True),
    ]

    def closure() -> int:
        p.grad = torch.ones_like(p)
        seen.append("closure")
        return 1

    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    optimizer.step()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_called_in_torchs_order(name):
    ours, theirs = (record_hooks(lambda p, c=classes: c[name](p, lr=0.5, weight_decay=0)) for classes in (OURS, TORCH))
    assert [(e[0], e[1], e[3]) if isinstance(e, tuple) else e for e in ours] == [
        (e[0], e[1], e[3]) if isinstance(e, tuple) else e for e in theirs
    ]
    changed = [e[2] for e in ours if isinstance(e, tuple)]
    assert changed[:2] == [[1.0, 1.0]] * 2  # before the step
    assert changed[2] == changed[3] != [1.0, 1.0]  # after it


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_pre_hook_may_change_the_arguments(cls):
    optimizer, _ = trained(cls)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: "other"), {}))
    assert optimizer.step(lambda: "given") == "other"


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_a_subclass_has_its_hooks_called_once(cls):
    class Mine(cls):
        pass

    calls = []
    for made in (Mine([param(2)]), cls([param(2)])):
        made.register_step_pre_hook(lambda *_: calls.append("pre"))
        made.step()
    assert calls == ["pre", "pre"]


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_foreign_entries_in_the_state_are_tolerated(cls):
    """Torch's own tests have hooks put a number and a string there."""
    optimizer, params = trained(cls)
    optimizer.state["test"] = {"ran": torch.ones(1), "times": 3}
    optimizer.state["note"] = "text"
    follow(optimizer, params, gradients(2, torch.float64))
    other = cls(leaves(torch.float64))
    other.load_state_dict(optimizer.state_dict())
    assert plain(other.state["test"]) == plain(optimizer.state["test"])
    assert other.state["note"] == "text"
    follow(other, leaves(torch.float64), gradients(1, torch.float64))


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_profiler_ranges(cls):
    p = param(2)
    optimizer = cls([p])
    with torch.autograd.profiler.profile() as profile:
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.zero_grad()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts[f"Optimizer.step#{cls.__name__}.step"] == 2
    assert counts[f"Optimizer.zero_grad#{cls.__name__}.zero_grad"] == 2
    assert [key for key in counts if key.startswith("Optimizer.step#")] == [f"Optimizer.step#{cls.__name__}.step"]


# ---- copies ---------------------------------------------------------------------------------------------------------


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": by_pickle, "torch.save": by_torch}


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_go_on_alike_and_apart(cls, duplicate):
    optimizer, params = trained(lambda params: cls(params, lr=0.1))
    new, new_params = duplicate((optimizer, params))
    assert type(new) is cls
    assert new.param_groups[0]["params"][0] is new_params[0]
    assert packed_groups(new) == packed_groups(optimizer)
    assert new.defaults == optimizer.defaults
    rest = gradients(5, torch.float64, first=3)
    before = snapshot(new, new_params)
    alone = trajectory(optimizer, params, rest)
    check_same(snapshot(new, new_params), before, tolerance=0)
    # A copy lies in memory in its own way, and so may round in another order.
    check_same(trajectory(new, new_params, rest), alone)
    new.add_param_group({"params": param(2)})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_keep_the_backend(cls, duplicate, monkeypatch):
    p = param(2)
    p.grad = torch.ones_like(p)
    new = duplicate(cls([p], backend="triton"))
    new.param_groups[0]["params"][0].grad = torch.ones_like(p)
    new.step()
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        new.add_param_group({"params": [param(3)]})


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_deepcopy_keeps_public_attributes_and_hooks(cls):
    calls = []
    optimizer = cls([param(2)])
    handle = optimizer.register_step_pre_hook(lambda opt, *_: calls.append(("pre", opt)))
    optimizer.register_step_post_hook(lambda opt, *_: calls.append(("post", opt)))
    optimizer.register_state_dict_post_hook(lambda opt, d: calls.append(("saved", opt)))
    optimizer.register_load_state_dict_pre_hook(lambda opt, d: calls.append(("loading", opt)))
    new = copy.deepcopy(optimizer)
    public = lambda opt: {name for name in vars(opt) if not name.startswith("_")}
    assert public(new) == public(optimizer)
    new.step()
    new.load_state_dict(new.state_dict())
    assert calls == [("pre", new), ("post", new), ("saved", new), ("loading", new)]
    handle.remove()
    calls.clear()
    optimizer.step()
    new.step()
    assert calls == [("post", optimizer), ("pre", new), ("post", new)]


@pytest.mark.parametrize("name", NAMES)
def test_groups_added_or_changed_during_training(name):
    """No parameter, number or flag is remembered from an earlier step."""
    ends = []
    for classes in (OURS, TORCH):
        params = leaves(torch.float64)
        optimizer = classes[name](params[:4], lr=0.1)
        follow(optimizer, params[:4], [row[:4] for row in gradients(3, torch.float64)])
        optimizer.add_param_group({"params": params[4:], "lr": 0.02, "weight_decay": 0.2})
        follow(optimizer, params, gradients(3, torch.float64, first=3))
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.param_groups[1]["maximize"] = True
        follow(optimizer, params, gradients(3, torch.float64, first=6))
        for p in params[:3]:
            p.data = p.data.clone() + 1
        give(params, gradients(1, torch.float64)[0])
        optimizer.step()
        ends.append(snapshot(optimizer, params))
    check_same(*ends)


@pytest.mark.parametrize(
    ("name", "kwargs", "changes"),
    [
        ("SGD", {}, [{"momentum": 0.9, "dampening": 0.3}, {"nesterov": True, "dampening": 0}]),
        ("SGD", {"momentum": 0.9, "dampening": 0.3}, [{"momentum": 0}, {"momentum": 0.9}]),
        ("SGD", {"momentum": 0.9}, [{"lr": torch.tensor(0.1, dtype=torch.float64)}, {"weight_decay": 0.1}]),
        ("Adam", {}, [{"weight_decay": 0.1}, {"decoupled_weight_decay": True}]),
        ("Adam", {"amsgrad": True}, [{"amsgrad": False}, {"amsgrad": True}]),
        ("AdamW", {}, [{"betas": (0.5, 0.6), "eps": 0.1}, {"maximize": True}]),
    ],
)
def test_numbers_and_flags_changed_during_training(name, kwargs, changes):
    """State that a change leaves without use stays, and is taken up again.

    Of the parameters those that have state from the start: torch does not make what a later flag asks for.
    """
    ends = []
    for classes in (OURS, TORCH):
        params = leaves(torch.float64)[:5]
        optimizer = classes[name](params, **kwargs)
        for part, change in enumerate([{}, *changes]):
            optimizer.param_groups[0].update(change)
            follow(optimizer, params, [row[:5] for row in gradients(4, torch.float64, first=4 * part)])
        ends.append(snapshot(optimizer, params))
    check_same(*ends)


def test_a_learning_rate_that_is_a_tensor_of_integers():
    ours, theirs = (torch.ones(2, requires_grad=True) for _ in range(2))
    for cls, p in ((funcopt.optim.SGD, ours), (torch.optim.SGD, theirs)):
        optimizer = cls([p], lr=torch.tensor(1))
        p.grad = torch.full((2,), 0.25)
        optimizer.step()
    assert torch.equal(ours, theirs)


def test_betas_of_a_group_may_be_integers():
    ours, theirs = (torch.ones(2, requires_grad=True) for _ in range(2))
    for cls, p in ((funcopt.optim.Adam, ours), (torch.optim.Adam, theirs)):
        optimizer = cls([{"params": [p], "betas": (0, 0.99)}])
        p.grad = torch.full((2,), 0.25)
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_what_scripts_take_from_torch_optim():
    from funcopt import optim

    p = torch.ones(2, requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    assert isinstance(optimizer, optim.Optimizer)
    optim.lr_scheduler.StepLR(optimizer, 3)
    assert optim.swa_utils.AveragedModel is torch.optim.swa_utils.AveragedModel


def test_sgd_with_its_own_defaults_leaves_the_rows_of_sparse_gradients_alone():
    optimizer = funcopt.optim.SGD([torch.ones(2, requires_grad=True)])
    [group] = optimizer.param_groups
    rule = optimizer._rule_of(group)
    assert rule.rows(optimizer._numbers(rule, group))
    assert not rule.rows({**optimizer._numbers(rule, group), "momentum": 0.9})
