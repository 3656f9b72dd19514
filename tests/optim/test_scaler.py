"""torch.amp.GradScaler, with every class, as with torch's: steps that are skipped, gradients that are unscaled."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim.table import (
    INFOS,
    NAMES,
    OURS,
    SIDES,
    TORCH,
    check_near,
    draw,
    float64_by_default,
    give,
    much,
    plain_torch,
    rows,
    seen,
    tolerance,
)

STEPS = 7
WITHOUT_CLOSURE = [name for name in NAMES if not INFOS[name].step_requires_closure]


def made(classes: dict[str, Any], name: str, dtype: torch.dtype = torch.float64) -> Any:
    kwargs = much(name) | {"lr": 0.05}
    params = draw(rows(name, dtype), dtype, 1)
    return classes[name](params, **(plain_torch(name, **kwargs) if classes is TORCH else kwargs)), params


def entry(p: Tensor) -> Tensor:
    """Where a gradient has its numbers."""
    return p.grad._values() if p.grad.is_sparse else p.grad


@pytest.mark.parametrize("unscale_before", [False, True])
@pytest.mark.parametrize("name", WITHOUT_CLOSURE)
def test_as_torch(name, unscale_before):
    """Steps 1 and 4 have an infinite gradient, or NaN; the scale grows after two steps without.

    In float64, where the gradients of a loss times a power of two are as many times the loss's.
    """
    runs = []
    for classes in SIDES:
        with float64_by_default():
            optimizer, params = made(classes, name)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
            states = []
            for t in range(STEPS):
                give(name, params, t, size=scaler.get_scale())
                scaler.scale(torch.zeros(()))  # makes the scale a tensor, as a loss would
                if t in (1, 4):
                    entry(params[0])[0] = torch.inf if t == 1 else torch.nan
                if unscale_before:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                states.append(seen(optimizer, params) | {"scale": torch.tensor(scaler.get_scale())})
            assert not hasattr(optimizer, "found_inf")
            assert not hasattr(optimizer, "grad_scale")
        runs.append(states)
    check_near(*runs, tolerance(name))
    assert len({state["scale"].item() for state in runs[0]}) > 1


@pytest.mark.parametrize("name", WITHOUT_CLOSURE)
def test_a_first_step_that_is_skipped(name):
    runs = []
    for classes in SIDES:
        with float64_by_default():
            optimizer, params = made(classes, name)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for t in range(3):
                give(name, params, t, size=scaler.get_scale())
                scaler.scale(torch.zeros(()))
                if t == 0:
                    entry(params[0])[0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
            runs.append([seen(optimizer, params)])
    check_near(*runs, tolerance(name))


@pytest.mark.parametrize("name", WITHOUT_CLOSURE)
@pytest.mark.parametrize("scale", [None, 8.0])
def test_what_the_scaler_hands_over(name, scale):
    """`found_inf` and `grad_scale` on the optimizer: where the first is set nothing is changed, and nothing counted."""
    if not getattr(OURS[name], "_step_supports_amp_scaling", False):
        pytest.skip("leaves both to the scaler")
    optimizer, params = made(OURS, name, torch.float32)
    reference, own = made(OURS, name, torch.float32)
    optimizer.found_inf = torch.zeros(())
    for t in range(STEPS):
        optimizer.grad_scale = None if scale is None else torch.full((1,), scale)
        optimizer.found_inf.fill_(t in (0, 3))
        give(name, params, t, size=scale or 1.0)
        if t not in (0, 3):
            give(name, own, t)
            reference.step()
        before = seen(optimizer, params)
        optimizer.step()
        if t in (0, 3):
            after = seen(optimizer, params)
            check_near([{key: after[key] for key in before}], [before], 0)
            assert not any(value.item() for key, value in after.items() if "'step'" in key and t == 0)
    check_near([seen(optimizer, params)], [seen(reference, own)], 0)


@pytest.mark.parametrize("name", [name for name in NAMES if INFOS[name].step_requires_closure])
def test_a_closure_is_refused(name):
    """By the scaler itself."""
    for classes in SIDES:
        optimizer, params = made(classes, name, torch.float32)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(sum(p.sum() for p in params)).backward()
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            scaler.step(optimizer, closure=lambda: 0.0)


@pytest.mark.parametrize("name", WITHOUT_CLOSURE)
def test_gradients_are_left_unscaled(name):
    """As torch leaves them, fused or not: for who looks at their norms after a step."""
    optimizer, params = made(OURS, name, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    give(name, params, 0, size=8.0)
    scaler.scale(torch.zeros(()))
    before = [entry(p).clone() for p in params]
    scaler.step(optimizer)
    for p, g in zip(params, before, strict=True):
        assert torch.equal(entry(p), g / 8)
