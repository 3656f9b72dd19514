"""Training loops written for torch.optim: learning rate schedulers, mixed precision, gradient clipping."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from tests.optim.runs import (
    NAMES,
    OURS,
    STATEFUL,
    TORCH,
    check_same,
    follow,
    gradients,
    grouped,
    leaves,
    packed_groups,
    plain,
    snapshot,
)

EPOCHS = 12

# ---- schedulers -----------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: schedulers.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (t + 1), lambda t: 0.95**t]),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=5, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=3),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, gamma=0.8),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=EPOCHS + 1),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "ReduceLROnPlateau": lambda o: Plateau(o),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.1, total_iters=3), schedulers.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, total_iters=3), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=5),
}


class Plateau(schedulers.ReduceLROnPlateau):
    """A loss that falls for some epochs and then rests."""

    LOSSES = (3.0, 2.0, 1.0, *[1.0] * EPOCHS)

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, factor=0.5, patience=1)

    def step(self) -> None:
        super().step(self.LOSSES[self.last_epoch])


def scheduled(classes: dict[str, Any], name: str, schedule: Any, lr: Any, **kwargs: Any) -> Any:
    """The groups epoch by epoch, and the state at the end."""
    params = leaves(torch.float64)
    groups = [{"params": group["params"]} for group in grouped(name, params)]
    optimizer = classes[name](groups, lr=lr, **kwargs)
    scheduler = schedule(optimizer)
    seen = []
    for row in gradients(EPOCHS, torch.float64):
        follow(optimizer, params, [row])
        scheduler.step()
        seen.append(packed_groups(optimizer))
    return seen, snapshot(optimizer, params), plain(scheduler.get_last_lr())


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize(
    ("name", "kwargs"), [("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("AdamW", {"weight_decay": 0.1})]
)
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_schedulers(name, kwargs, schedule, kind):
    """The same numbers to the bit, as a scheduler sees the same optimizer, and so the same trajectory.

    It also must not warn that `step` was not called, which it learns by wrapping the optimizer's method.
    """
    runs = []
    for classes in (OURS, TORCH):
        lr = kind(0.05) if kind is float else kind(0.05, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r".*lr_scheduler.step\(\)")
            runs.append(scheduled(classes, name, schedule, lr, **kwargs))
    ours, theirs = runs
    assert ours[0] == theirs[0]
    assert ours[2] == theirs[2]
    lrs = [group["lr"] for groups in ours[0] for group in groups]
    assert len({str(value) for value in lrs}) > 1, "the schedule changes nothing"
    check_same(ours[1], theirs[1])


@pytest.mark.parametrize(("name", "cycled"), [("SGD", "momentum"), ("Adam", "betas"), ("AdamW", "betas")])
def test_one_cycle_moves_momentum(name, cycled):
    """What makes the comparison above one of `momentum` and `betas` too."""
    groups, _, _ = scheduled(OURS, name, SCHEDULERS["OneCycleLR"], 0.05, **STATEFUL[name])
    assert len({epoch[0][cycled] for epoch in groups}) > 3


@pytest.mark.parametrize("name", NAMES)
def test_scheduler_and_optimizer_resume(name):
    """From both state_dicts, the optimizer's loaded after the scheduler is made, as torch's notes say."""
    make = lambda optimizer: schedulers.CosineAnnealingLR(optimizer, T_max=8)
    params = leaves(torch.float64)
    old = TORCH[name](params, lr=0.1)
    old_schedule = make(old)
    for row in gradients(4, torch.float64):
        follow(old, params, [row])
        old_schedule.step()
    new_params = [p.detach().clone().requires_grad_() for p in params]
    new = OURS[name](new_params, lr=0.1)
    new_schedule = make(new)
    new_schedule.load_state_dict(old_schedule.state_dict())
    new.load_state_dict(old.state_dict())
    for optimizer, own, schedule in ((old, params, old_schedule), (new, new_params, new_schedule)):
        # Torch's optimizer comes first: were anything shared, the second would take twice the steps.
        for row in gradients(4, torch.float64, first=4):
            follow(optimizer, own, [row])
            schedule.step()
    assert packed_groups(new) == packed_groups(old)
    check_same(snapshot(new, new_params), snapshot(old, params))


# ---- a model, its loss, and what stands between backward and step ---------------------------------------------------


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
