"""Training loops written for torch.optim: mixed precision, gradient clipping, accumulation, averaging."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.runs import (
    OURS,
    TORCH,
    check_same,
    snapshot,
)


class Model:
    """A small network in float64, its data, and an optimizer over it."""

    def __init__(self, classes: dict[str, Any], name: str, **kwargs: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.x, self.y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
        self.optimizer = classes[name](self.net.parameters(), lr=0.05, **kwargs)

    def loss(self) -> torch.Tensor:
        return (self.net(self.x) - self.y).square().mean()

    def end(self) -> Any:
        return snapshot(self.optimizer, list(self.net.parameters()))


def with_clipping(model: Model) -> None:
    for _ in range(10):
        model.optimizer.zero_grad()
        (100 * model.loss()).backward()
        norm = nn.utils.clip_grad_norm_(model.net.parameters(), 0.5)
        assert norm > 0.5
        model.optimizer.step()


def with_accumulation(model: Model) -> None:
    for step in range(12):
        model.loss().backward()
        if step % 3 == 2:
            model.optimizer.step()
            model.optimizer.zero_grad(set_to_none=step % 2 == 0)


def with_closures(model: Model) -> None:
    def closure() -> torch.Tensor:
        model.optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    losses = [model.optimizer.step(closure).item() for _ in range(10)]
    assert losses[-1] < losses[0]


def with_scaler(model: Model) -> None:
    """Every third loss is too large for a finite gradient: the scaler skips that step and halves its scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for step in range(12):
        model.optimizer.zero_grad()
        scaler.scale(model.loss()).backward()
        if step % 3 == 1:
            model.net[0].weight.grad[0, 0] = float("inf")
        before, scale = model.end(), scaler.get_scale()
        scaler.step(model.optimizer)
        scaler.update()
        if step % 3 == 1:
            check_same(model.end(), before, tolerance=0)
            assert scaler.get_scale() == scale / 2
    assert not hasattr(model.optimizer, "found_inf")


def with_scaler_and_clipping(model: Model) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(9):
        model.optimizer.zero_grad()
        scaler.scale(model.loss()).backward()
        if step % 3 == 1:
            model.net[0].weight.grad[0, 0] = float("nan")
        scaler.unscale_(model.optimizer)
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.unscale_(model.optimizer)
        nn.utils.clip_grad_norm_(model.net.parameters(), 0.1)
        scaler.step(model.optimizer)
        scaler.update()


def with_swa(model: Model) -> None:
    average = torch.optim.swa_utils.AveragedModel(model.net, use_buffers=True)
    for _ in range(6):
        with_closures(model)
        average.update_parameters(model.net)


LOOPS = (with_clipping, with_accumulation, with_closures, with_scaler, with_scaler_and_clipping, with_swa)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize(
    ("name", "kwargs"), [("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("AdamW", {"weight_decay": 0.1})]
)
def test_loops(name, kwargs, loop, fused):
    """Each loop ends where torch's for-loop does, also with `fused=True`, which GradScaler treats in its own way."""
    ends = []
    for classes, switches in ((OURS, {"fused": fused}), (TORCH, {"foreach": False})):
        model = Model(classes, name, **kwargs, **switches)
        loop(model)
        ends.append(model.end())
    check_same(*ends)
