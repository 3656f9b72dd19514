"""What the classes refuse: what torch.optim refuses, with its exception and its text, and backends that cannot run."""

from typing import Any

import pytest
import torch

import funcopt
from tests.optim.runs import (
    NAMES,
    OURS,
    TORCH,
    check_same,
    follow,
    gradients,
    packed_groups,
    snapshot,
)
from tests.optim.test_contract import OWN, param, trained

ADAMS = ("Adam", "AdamW")
VALUES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (NAMES, {"lr": -1.0}),
    (NAMES, {"lr": -1}),
    (NAMES, {"lr": torch.tensor(-1.0)}),
    (NAMES, {"lr": torch.ones(2)}),
    (NAMES, {"lr": torch.ones(1, 2)}),
    (NAMES, {"lr": torch.ones(0)}),
    (NAMES, {"weight_decay": -0.1}),
    (NAMES, {"weight_decay": torch.tensor(-0.5)}),
    (ADAMS, {"lr": float("nan")}),
    (ADAMS, {"weight_decay": float("nan")}),
    (ADAMS, {"eps": -1e-8}),
    (ADAMS, {"eps": float("nan")}),
    (ADAMS, {"betas": (1.0, 0.9)}),
    (ADAMS, {"betas": (-0.5, 0.9)}),
    (ADAMS, {"betas": (0.9, 1.5)}),
    (ADAMS, {"betas": (0.9, float("nan"))}),
    (ADAMS, {"betas": (torch.tensor(0.9), torch.tensor(1.5))}),
    (ADAMS, {"betas": (0.9, torch.tensor(0.9))}),
    (ADAMS, {"betas": (torch.tensor(0.9), 0.9)}),
    (ADAMS, {"betas": (0, 0.9)}),
    (ADAMS, {"lr": torch.tensor(0.1), "foreach": True}),
    (ADAMS, {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True}),
    (NAMES, {"fused": True, "foreach": True}),
    (NAMES, {"fused": True, "differentiable": True}),
    (NAMES, {"momentun": 0.9}),
    (("SGD",), {"momentum": -0.5}),
    (("SGD",), {"nesterov": True}),
    (("SGD",), {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
)


def raised(make: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  the two are compared
        make()
    return caught.value


def check_same_error(ours: BaseException, theirs: BaseException) -> None:
    """That an exception is of torch's type, and has torch's text in its own, which may go on."""
    assert type(ours) is type(theirs), (ours, theirs)
    assert str(theirs).rstrip(".") in str(ours)


@pytest.mark.parametrize(
    ("name", "kwargs"), [(name, kwargs) for names, kwargs in VALUES for name in names], ids=lambda x: str(x)
)
def test_refused_as_torch_does(name, kwargs):
    check_same_error(*(raised(lambda c=classes: c[name]([param(2)], **kwargs)) for classes in (OURS, TORCH)))


def non_leaf() -> torch.Tensor:
    return param(2) * 2


def same_twice() -> list[dict[str, Any]]:
    p = param(2)
    return [{"params": [p]}, {"params": [p]}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "params",
    [
        lambda: param(2),
        list,
        lambda: 3,
        lambda: [3],
        lambda: ["weight"],
        lambda: [non_leaf()],
        lambda: [{"params": {param(2)}}],
        lambda: [{"param": [param(2)]}],
        lambda: [{"params": [param(2)]}, [param(2)]],
        lambda: [("a", param(2)), param(2)],
        lambda: [{"params": [("a", param(2))]}, {"params": [param(2)]}],
        same_twice,
    ],
    ids=[
        "a tensor",
        "empty",
        "no iterable",
        "a number",
        "a string",
        "no leaf",
        "a set",
        "no params",
        "a list as group",
        "a name missing",
        "a group without names",
        "in two groups",
    ],
)
def test_params_refused_as_torch_does(name, params):
    check_same_error(*(raised(lambda c=classes: c[name](params())) for classes in (OURS, TORCH)))


# Python's own complaints, on the way to a comparison or an index. Here they are errors on purpose.
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [(name, kwargs) for name in NAMES for kwargs in ({"lr": "fast"}, {"lr": None}, {"weight_decay": None})]
    + [
        (name, kwargs)
        for name in ADAMS
        for kwargs in (
            {"betas": 0.9},
            {"betas": (0.9,)},
            {"betas": None},
            {"eps": "small"},
            {"betas": (torch.ones(2), torch.ones(2))},
        )
    ],
    ids=lambda x: str(x),
)
def test_no_numbers(name, kwargs):
    raised(lambda: TORCH[name]([param(2)], **kwargs))
    with pytest.raises((TypeError, ValueError), match=next(iter(kwargs))):
        OURS[name]([param(2)], **kwargs)


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_unknown_backend(cls):
    with pytest.raises(ValueError, match=r"backend='tritn' is unknown; did you mean 'triton'\? allowed: auto, triton"):
        cls([param(2)], backend="tritn")
    with pytest.raises(ValueError, match="backend=None is unknown; allowed: auto, triton"):
        cls([param(2)], backend=None)


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
def test_triton_without_gpu_says_why(cls, monkeypatch):
    interpreted = cls([param(2)], backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"backend='triton' cannot update parameters on cpu.*TRITON_INTERPRET=1"):
        cls([param(2)], backend="triton")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        interpreted.add_param_group({"params": [("a", param(3))]})
    assert len(interpreted.param_groups) == 1


@pytest.mark.parametrize("cls", OWN, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("change", "exception"),
    [
        (lambda held: {"params": held}, ValueError),
        (lambda held: {"params": [param(2), held]}, ValueError),
        (lambda held: {"params": [("a", param(2))]}, ValueError),
        (lambda held: {"params": [non_leaf()]}, ValueError),
        (lambda held: {"params": {param(2)}}, TypeError),
        (lambda held: {"params": [3]}, TypeError),
        (lambda held: [param(2)], TypeError),
        (lambda held: {"lr": 0.1}, KeyError),
        (lambda held: {"params": param(2), "lr": -0.1}, ValueError),
        (lambda held: {"params": param(2), "lr": "fast"}, TypeError),
        (lambda held: {"params": param(2), "weight_decay": -1.0}, ValueError),
        (lambda held: {"params": param(2), "lr": torch.ones(2)}, ValueError),
    ],
    ids=range(12),
)
def test_a_refused_group_changes_nothing(cls, change, exception):
    optimizer, params = trained(cls)
    before = snapshot(optimizer, params), packed_groups(optimizer), dict(optimizer.defaults)
    with pytest.raises(exception):
        optimizer.add_param_group(change(params[0]))
    check_same(snapshot(optimizer, params), before[0], tolerance=0)
    assert (packed_groups(optimizer), optimizer.defaults) == before[1:]
    follow(optimizer, params, gradients(1, torch.float64))


@pytest.mark.parametrize(("name", "kwargs"), [("SGD", {"weight_decay": 0.1}), ("Adam", {}), ("AdamW", {})])
def test_sparse_gradients_are_refused(name, kwargs):
    p = param(2)
    optimizer = OURS[name]([p], **kwargs)
    p.grad = torch.ones(2, dtype=torch.float64).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()
    assert torch.equal(p, param(2))
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_complex_parameters_are_refused(name):
    p = torch.ones(2, 2, dtype=torch.complex64, requires_grad=True)
    optimizer = getattr(funcopt.optim, name)([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(
        RuntimeError, match=f"{name} does not support complex parameters; parameter 0 of its group is one"
    ):
        optimizer.step()
    assert len(optimizer.state) == 0


def test_a_slot_that_is_complex_and_its_parameter_not():
    p = param(2)
    optimizer = OURS["Adam"]([p])
    p.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].to(torch.complex128)
    with pytest.raises(RuntimeError, match=r"parameter 0 of its group cannot be updated: its exp_avg .*complex128"):
        optimizer.step()


@pytest.mark.parametrize("lost", ["step", "exp_avg", "exp_avg_sq"])
def test_a_state_that_is_there_in_part(lost):
    """As torch.optim's classes, which fail with a KeyError; of two parameters neither has moved."""
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = funcopt.optim.Adam(params, lr=0.1)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    saved = optimizer.state_dict()
    del saved["state"][1][lost]
    optimizer.load_state_dict(saved)
    before = [p.detach().clone() for p in params]
    with pytest.raises(KeyError, match=f"parameter 1 of its group cannot be updated: its state has no {lost}, but"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    del optimizer.state[params[1]]
    optimizer.step()
    assert optimizer.state[params[1]]["step"] == 1


def test_the_state_of_another_optimizer():
    params = [torch.ones(2, requires_grad=True)]
    params[0].grad = torch.ones(2)
    other = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    other.step()
    optimizer = funcopt.optim.AdamW(params)
    optimizer.load_state_dict(other.state_dict())
    with pytest.raises(KeyError, match="no step, exp_avg, exp_avg_sq, but momentum_buffer"):
        optimizer.step()


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_parameter_of_which_elements_share_memory(backend):
    params = [torch.zeros(3, requires_grad=True), torch.zeros(1).expand(3).requires_grad_()]
    optimizer = funcopt.optim.SGD(params, lr=1.0, backend=backend)
    for p in params:
        p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"parameter 1 of its group .* elements of it share memory"):
        optimizer.step()
    assert not params[0].any()
