"""What torch.optim's base class does around a step, with every class: hooks, closures, copies, groups, profiles."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

from tests.optim.runs import packed_groups, plain
from tests.optim.table import (
    INFOS,
    OURS,
    SIDES,
    TORCH,
    check_near,
    draw,
    each_name,
    float64_by_default,
    follow,
    give,
    much,
    plain_torch,
    rows,
    seen,
    step,
    tolerance,
)


def made(classes: dict[str, Any], name: str, **kwargs: Any) -> tuple[Any, list[torch.Tensor]]:
    params = draw(rows(name, torch.float64), torch.float64, 1)
    kwargs = much(name) | kwargs
    return classes[name](params, **(plain_torch(name, **kwargs) if classes is TORCH else kwargs)), params


def trained(classes: dict[str, Any], name: str, steps: int = 4) -> tuple[Any, list[torch.Tensor]]:
    optimizer, params = made(classes, name)
    for t in range(steps):
        step(name, optimizer, params, t)
    return optimizer, params


# ---- hooks ----------------------------------------------------------------------------------------------------------


def hooks_called(classes: dict[str, Any], name: str) -> list[Any]:
    """What is called, in which order, with how many arguments, and whether the parameters have moved by then."""
    calls: list[Any] = []
    optimizer, params = made(classes, name)
    before = params[0].detach().clone()

    def note(what: str) -> Any:
        return lambda opt, *rest: calls.append((what, opt is optimizer, len(rest), torch.equal(params[0], before)))

    handles = [torch_optimizer.register_optimizer_step_pre_hook(note("step pre, of all"))]
    handles.append(torch_optimizer.register_optimizer_step_post_hook(note("step post, of all")))
    for kind in ("step_pre", "step_post"):
        handles += [getattr(optimizer, f"register_{kind}_hook")(note(f"{kind} {i}")) for i in range(2)]
    for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
        register = getattr(optimizer, f"register_{kind}_hook")
        handles += [register(note(f"{kind} {i}"), prepend=i == 1) for i in range(2)]

    def closure() -> float:
        calls.append("closure")
        give(name, params, 0)
        return 7.0

    for _ in range(2):
        calls.append(optimizer.step(closure))
        optimizer.load_state_dict(optimizer.state_dict())
        for handle in handles:
            handle.remove()
    return calls


@each_name
def test_hooks_as_torch(name):
    ours, theirs = (hooks_called(classes, name) for classes in SIDES)
    assert ours == theirs
    assert ours.count(7.0) == 2
    assert len([call for call in ours if isinstance(call, tuple)]) == 14


@each_name
def test_hooks_are_copied(name):
    """By deepcopy, which torch's classes drop them in."""
    calls: list[Any] = []
    optimizer, params = trained(OURS, name)
    optimizer.register_step_pre_hook(lambda opt, *_: calls.append(("pre", opt)))
    optimizer.register_step_post_hook(lambda opt, *_: calls.append(("post", opt)))
    optimizer.register_state_dict_post_hook(lambda opt, saved: calls.append(("saved", opt)))
    optimizer.register_load_state_dict_pre_hook(lambda opt, saved: calls.append(("loading", opt)))
    new, new_params = copy.deepcopy((optimizer, params))
    step(name, new, new_params, 0)
    new.load_state_dict(new.state_dict())
    assert calls == [("pre", new), ("post", new), ("saved", new), ("loading", new)]


@each_name
def test_what_hooks_put_into_the_state_is_left_there(name):
    optimizer, params = trained(OURS, name)
    optimizer.state["test"] = {"ran": torch.ones(1), "times": 3}
    optimizer.state["note"] = "text"
    step(name, optimizer, params, 4)
    new, new_params = made(OURS, name)
    new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(name, new, new_params, 5)
    assert plain(new.state["test"]) == plain({"ran": torch.ones(1), "times": 3})
    assert new.state["note"] == "text"


# ---- closures -------------------------------------------------------------------------------------------------------


@each_name
@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad])
def test_closures(name, surrounding):
    """Are called with gradients enabled, and what the first one returns is returned."""
    optimizer, params = made(OURS, name)
    losses = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        give(name, params, 0)
        losses.append(torch.tensor(float(len(losses)), requires_grad=True))
        return losses[-1]

    with surrounding():
        first = optimizer.step(closure)
        assert first is losses[0] or (INFOS[name].step_requires_closure and torch.equal(first, losses[0]))
        assert torch.is_grad_enabled() is (surrounding is torch.enable_grad)


@each_name
def test_an_error_in_a_closure_passes(name):
    optimizer, params = trained(OURS, name)
    before = seen(optimizer, params)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert torch.is_grad_enabled()
    check_near([seen(optimizer, params)], [before], 0)


# ---- what a step leaves alone ---------------------------------------------------------------------------------------


@each_name
def test_gradients_are_not_written(name):
    optimizer, params = made(OURS, name)
    give(name, params, 0)
    grads = [p.grad for p in params]
    before = [(g._version, g.to_dense().clone()) for g in grads]
    for _ in range(3):
        optimizer.step(lambda: torch.zeros(()))
    for p, g, (version, value) in zip(params, grads, before, strict=True):
        assert p.grad is g
        assert g._version == version
        assert torch.equal(g.to_dense(), value)


@each_name
def test_parameters_without_a_gradient_have_no_state(name):
    optimizer, params = made(OURS, name)
    before = seen(optimizer, params)
    optimizer.step(lambda: torch.zeros(()))
    check_near([{k: v for k, v in seen(optimizer, params).items() if k in before}], [before], 0)
    if not INFOS[name].step_requires_closure:
        assert set(optimizer.state) == set(TORCH[name](params).state)  # Adagrad makes it at once
    step(name, optimizer, params, 0)
    assert all(optimizer.state.values()), "an empty state"


@each_name
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_tensor_for_a_learning_rate_is_read_and_not_written(name, shape):
    ends = []
    for classes in SIDES:
        with float64_by_default():
            lr = torch.full(shape, 0.02)
            optimizer, params = made(classes, name, lr=lr)
            version = lr._version
            step(name, optimizer, params, 0)
            assert lr._version == version
            assert optimizer.param_groups[0]["lr"] is lr
            ends.append([seen(optimizer, params)])
    check_near(*ends, tolerance(name))


@each_name
@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad(name, set_to_none):
    optimizer, params = trained(OURS, name)
    give(name, params, 0)
    grads = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert all(p.grad is None for p in params)
    else:
        assert all(p.grad is g and not g.to_dense().any() for p, g in zip(params, grads, strict=True))


# ---- groups ---------------------------------------------------------------------------------------------------------

each_with_groups = pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.supports_param_groups])


@each_with_groups
def test_groups(name):
    """Their numbers win over the defaults, may be changed, and groups may be added, at any time."""
    ends = []
    for classes in SIDES:
        with float64_by_default():
            params = draw(rows(name, torch.float64), torch.float64, 1)
            kwargs = much(name) if classes is OURS else plain_torch(name, **much(name))
            optimizer = classes[name]([{"params": params[:1]}, {"params": params[1:2], "lr": 0.1}], **kwargs)
            list(follow(name, optimizer, params[:2], range(3)))
            optimizer.add_param_group({"params": params[2:], "lr": 0.02})
            runs = list(follow(name, optimizer, params, range(3, 6)))
            optimizer.param_groups[1]["lr"] = 0.01
            optimizer.param_groups[0]["params"].append(optimizer.param_groups[2]["params"].pop())
            runs += follow(name, optimizer, params, range(6, 9))
        ends.append(runs)
    check_near(*ends, tolerance(name))


@each_name
def test_parameters_twice_have_one_number_in_a_state_dict(name):
    optimizer, _ = trained(OURS, name)
    optimizer.param_groups.extend(optimizer.param_groups)
    groups = packed_groups(optimizer)
    assert groups[0] == groups[-1]


# ---- copies ---------------------------------------------------------------------------------------------------------


@each_name
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike_and_apart(name, duplicate):
    """Also LBFGS's, of whose class torch's cannot be copied."""
    with float64_by_default():
        optimizer, params = trained(OURS, name)
        new, new_params = duplicate((optimizer, params))
        public = lambda opt: {attribute for attribute in vars(opt) if not attribute.startswith("_")}
        assert public(new) == public(optimizer)
        assert packed_groups(new) == packed_groups(optimizer)
        before = seen(new, new_params)
        alone = list(follow(name, optimizer, params, range(4, 8)))
        check_near([seen(new, new_params)], [before], 0)
        # A copy lies in memory in its own way, and so may round in another order.
        check_near(list(follow(name, new, new_params, range(4, 8))), alone, tolerance(name))


@each_name
def test_nothing_waits_for_the_garbage_collector(name):
    """No cycle of references holds an optimizer, and with it the parameters, their gradients and its state."""
    gc.disable()
    try:
        optimizer, params = trained(OURS, name)
        step(name, optimizer, params, 0)
        alive = [weakref.ref(optimizer), *map(weakref.ref, params)]
        del optimizer, params
        assert not any(ref() is not None for ref in alive)
    finally:
        gc.enable()


# ---- profiles, swapping ---------------------------------------------------------------------------------------------


@each_name
def test_profiler_ranges(name):
    optimizer, params = made(OURS, name)
    with torch.autograd.profiler.profile() as profile:
        for t in range(2):
            step(name, optimizer, params, t)
        optimizer.zero_grad()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert {k: v for k, v in counts.items() if k.startswith("Optimizer.step#")} == {f"Optimizer.step#{name}.step": 2}
    assert counts[f"Optimizer.zero_grad#{name}.zero_grad"] >= 1


@pytest.mark.skipif(not hasattr(torch.optim, "swap_in_optimizer_params_and_state"), reason="came with torch 2.13")
@each_with_groups
def test_other_parameters_and_state_swapped_in(name):
    """By torch's context: a step within it changes what was swapped in, and nothing of the optimizer's own."""
    ends = []
    for classes in SIDES:
        with float64_by_default():
            optimizer, params = trained(classes, name)
            state, own = copy.deepcopy(optimizer.state_dict()), seen(optimizer, params)
            others = [p.detach().clone().requires_grad_() for p in params]
            give(name, others, 4)
            with torch.optim.swap_in_optimizer_params_and_state(
                optimizer, {str(i): p for i, p in enumerate(others)}, state
            ):
                optimizer.step()
            check_near([seen(optimizer, params)], [own], 0)
            ends.append([{str(i): p.detach().clone() for i, p in enumerate(others)}])
            assert any(not torch.equal(p, q) for p, q in zip(others, params, strict=True))
            list(follow(name, optimizer, params, range(4, 6)))
            ends[-1].append(seen(optimizer, params))
    check_near(*ends, tolerance(name))
