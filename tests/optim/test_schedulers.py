"""Every learning rate scheduler of torch, on every class: the same numbers in the groups, the same steps."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler, swa_utils

from tests.optim.runs import packed_groups, plain
from tests.optim.table import (
    INFOS,
    NAMES,
    OURS,
    SIDES,
    TORCH,
    Seen,
    check_near,
    draw,
    each_name,
    float64_by_default,
    much,
    plain_torch,
    rows,
    seen,
    step,
    tolerance,
)

EPOCHS = 8

Make = Callable[[Optimizer], Any]


class Plateau(lr_scheduler.ReduceLROnPlateau):
    """On a loss that falls for some epochs and then rests."""

    LOSSES = (3.0, 2.0, 1.0, *[1.0] * EPOCHS)

    def step(self) -> None:
        super().step(self.LOSSES[self.last_epoch])


s = lr_scheduler
# With its defaults, or as few numbers as it takes, and otherwise.
SCHEDULERS: dict[str, tuple[Make, Make]] = {
    "LambdaLR": (
        lambda o: s.LambdaLR(o, lambda t: 0.9**t),
        lambda o: s.LambdaLR(o, [lambda t, i=i: 1 / (t + i + 1) for i in range(len(o.param_groups))]),
    ),
    "MultiplicativeLR": (lambda o: s.MultiplicativeLR(o, lambda t: 0.9), lambda o: s.MultiplicativeLR(o, lambda t: t)),
    "StepLR": (lambda o: s.StepLR(o, 3), lambda o: s.StepLR(o, 1, gamma=0.7)),
    "MultiStepLR": (lambda o: s.MultiStepLR(o, [2, 5]), lambda o: s.MultiStepLR(o, [1, 1, 4], gamma=0.5)),
    "ConstantLR": (lambda o: s.ConstantLR(o), lambda o: s.ConstantLR(o, 0.1, total_iters=3)),
    "LinearLR": (lambda o: s.LinearLR(o), lambda o: s.LinearLR(o, 0.1, 0.5, total_iters=3)),
    "ExponentialLR": (lambda o: s.ExponentialLR(o, 0.8), lambda o: s.ExponentialLR(o, 1.1)),
    "PolynomialLR": (lambda o: s.PolynomialLR(o), lambda o: s.PolynomialLR(o, total_iters=7, power=2.0)),
    "CosineAnnealingLR": (lambda o: s.CosineAnnealingLR(o, 5), lambda o: s.CosineAnnealingLR(o, 3, eta_min=1e-3)),
    "CosineAnnealingWarmRestarts": (
        lambda o: s.CosineAnnealingWarmRestarts(o, 3),
        lambda o: s.CosineAnnealingWarmRestarts(o, 1, T_mult=2, eta_min=1e-3),
    ),
    "SequentialLR": (
        lambda o: s.SequentialLR(o, [s.ConstantLR(o, 0.1), s.ExponentialLR(o, 0.9)], milestones=[4]),
        lambda o: s.SequentialLR(o, [s.LinearLR(o), s.StepLR(o, 1), s.CosineAnnealingLR(o, 3)], milestones=[2, 5]),
    ),
    "ChainedScheduler": (
        lambda o: s.ChainedScheduler([s.ConstantLR(o), s.ExponentialLR(o, 0.9)]),
        lambda o: s.ChainedScheduler([s.PolynomialLR(o), s.StepLR(o, 2), s.LinearLR(o)], optimizer=o),
    ),
    "ReduceLROnPlateau": (
        lambda o: Plateau(o, patience=1),
        lambda o: Plateau(o, mode="max", factor=0.5, patience=0, threshold_mode="abs", cooldown=1, min_lr=1e-3),
    ),
    "CyclicLR": (
        lambda o: s.CyclicLR(o, 0.01, 0.1, step_size_up=3),
        lambda o: s.CyclicLR(o, 0.01, 0.1, step_size_up=2, mode="exp_range", gamma=0.9, cycle_momentum=False),
    ),
    "OneCycleLR": (
        lambda o: s.OneCycleLR(o, 0.1, total_steps=EPOCHS + 1),
        lambda o: s.OneCycleLR(
            o, 0.1, epochs=3, steps_per_epoch=3, anneal_strategy="linear", cycle_momentum=False, three_phase=True
        ),
    ),
    "SWALR": (
        lambda o: swa_utils.SWALR(o, swa_lr=0.01),
        lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3, anneal_strategy="linear"),
    ),
}
# Of a learning rate that is a float, and, for the first of each two, of one that is a tensor.
ROWS = [
    pytest.param(make, kind, id=f"{name} {i} {kind.__name__}")
    for name, makes in SCHEDULERS.items()
    for i, make, kind in ((0, makes[0], float), (1, makes[1], float), (0, makes[0], torch.tensor))
]


def test_every_scheduler_is_here():
    found = {name for name in [*lr_scheduler.__all__, *swa_utils.__all__] if name.endswith(("LR", "Scheduler"))}
    assert found - {"LRScheduler"} <= SCHEDULERS.keys()
    assert SCHEDULERS.keys() <= {*lr_scheduler.__all__, *swa_utils.__all__}


def make(classes: dict[str, Any], name: str, lr: Any) -> tuple[Optimizer, list[torch.Tensor]]:
    """An optimizer of two groups, where the class takes several."""
    few = rows(name, torch.float64)[:2]
    params = draw(few, torch.float64, 1)
    groups = [{"params": [p]} for p in params] if INFOS[name].supports_param_groups else params
    own = plain_torch(name) if classes is TORCH else {}
    return classes[name](groups, **much(name) | {"lr": lr} | own), params


def groups_of(optimizer: Optimizer) -> Any:
    """The groups, but for the switches that choose among torch's implementations."""
    return [{k: v for k, v in group.items() if k != "foreach"} for group in packed_groups(optimizer)]


def scheduled(classes: dict[str, Any], name: str, schedule: Make, kind: Any = float) -> tuple[list[Any], list[Seen]]:
    """The groups, and what is seen, epoch by epoch."""
    with float64_by_default(), warnings.catch_warnings():
        # A scheduler learns whether `step` was called by wrapping the method.
        warnings.filterwarnings("error", message=r".*lr_scheduler.step\(\)")
        optimizer, params = make(classes, name, kind(0.05))
        try:
            scheduler = schedule(optimizer)
        except ValueError as error:
            return [str(error)], []
        groups, states = [groups_of(optimizer)], []
        for t in range(EPOCHS):
            step(name, optimizer, params, t)
            scheduler.step()
            groups.append((groups_of(optimizer), plain(scheduler.get_last_lr())))
            states.append(seen(optimizer, params))
    return groups, states


@pytest.mark.parametrize(("schedule", "kind"), ROWS)
@each_name
def test_as_torch(name, schedule, kind):
    """Where torch refuses (momentum to be cycled, and a class has none), the same."""
    if kind is torch.tensor and INFOS[name].step_requires_closure:
        pytest.skip("torch's LBFGS keeps that tensor as the length of its last step, which the scheduler then changes")
    (our_groups, ours), (their_groups, theirs) = (scheduled(classes, name, schedule, kind) for classes in SIDES)
    assert our_groups == their_groups
    check_near(ours, theirs, tolerance(name))


CYCLED = [name for name in NAMES if {"momentum", "betas"} & make(TORCH, name, 0.1)[0].defaults.keys()]


@pytest.mark.parametrize("name", CYCLED)
def test_one_cycle_moves_momentum(name):
    """What makes the comparison above one of `momentum` and `betas` too."""
    groups, _ = scheduled(OURS, name, SCHEDULERS["OneCycleLR"][0])
    cycled = [(g[0].get("momentum"), g[0].get("betas")) for g, _ in groups[1:]]
    assert len(set(cycled)) > 3


@each_name
def test_resume(name):
    """From both state_dicts, torch's, the optimizer's loaded after the scheduler is made, as torch's notes say."""
    schedule = lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    with float64_by_default():
        old, params = make(TORCH, name, 0.1)
        old_schedule = schedule(old)
        for t in range(4):
            step(name, old, params, t)
            old_schedule.step()
        new, new_params = make(OURS, name, 0.1)
        new_schedule = schedule(new)
        new_schedule.load_state_dict(copy.deepcopy(old_schedule.state_dict()))
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        ends = []
        for p, q in zip(new_params, params, strict=True):
            p.data.copy_(q.data)
        for optimizer, own, scheduler in ((new, new_params, new_schedule), (old, params, old_schedule)):
            for t in range(4, 8):
                step(name, optimizer, own, t)
                scheduler.step()
            ends.append([seen(optimizer, own)])
    assert groups_of(new) == groups_of(old)
    check_near(*ends, tolerance(name))
