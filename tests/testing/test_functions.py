"""The laws of clipping and of schedules: they hold for functions that are right, and each finds one that is wrong."""

import math

import pytest
import torch

from funcopt.testing import check_laws

# ---- clipping --------------------------------------------------------------------------------------------------------


def clip(grads, bound):
    square = sum((g * g).sum() for g in grads)
    over = square > bound * bound
    factor = torch.where(over, bound / torch.sqrt(torch.where(over, square, 1.0)), 1.0)
    return [g * factor for g in grads]


def clip_as_torch(grads, bound):
    """As torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm that it divides by."""
    norm = torch.sqrt(sum((g * g).sum() for g in grads))
    return [g * torch.clamp(bound / (norm + 1e-6), max=1.0) for g in grads]


def clip_each(grads, bound):
    return [clip([g], bound)[0] for g in grads]


def clip_always(grads, bound):
    norm = torch.sqrt(sum((g * g).sum() for g in grads))
    return [g * bound / norm if norm > 0 else g for g in grads]


def clip_values(grads, bound):
    return [g.clamp(-bound, bound) for g in grads]


def clip_detached(grads, bound):
    return [g.detach() for g in clip(grads, bound)]


@pytest.mark.parametrize(
    ("function", "broken"),
    [
        (clip, set()),
        (clip_as_torch, {"clip_is_idempotent", "clip_is_differentiable"}),
        (clip_each, {"clip_bound"}),
        (clip_always, {"clip_bound", "clip_is_identity_below"}),
        (clip_values, {"clip_bound"}),
        (clip_detached, {"clip_is_differentiable"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_clipping(function, broken):
    assert {v.law.name for v in check_laws(function, kind="clip").broken} == broken


def test_what_torch_does():
    """The same two laws, for the library's own function in place of the copy above."""

    def torchs(grads, bound):
        params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach().clone()
        torch.nn.utils.clip_grad_norm_(params, bound)
        return [p.grad for p in params]

    report = check_laws(torchs, kind="clip", laws=["clip_bound", "clip_is_identity_below", "clip_is_idempotent"])
    assert [v.law.name for v in report.broken] == ["clip_is_idempotent"]


# ---- schedules -------------------------------------------------------------------------------------------------------

WARMUP, TOTAL = 5, 20


def choose(condition, a, b):
    return torch.where(condition, a, b) if isinstance(condition, torch.Tensor) else a if condition else b


def warm_cosine(t):
    done = choose(t < TOTAL, (t - WARMUP) / (TOTAL - WARMUP), 1.0)
    cosine = (1 + torch.cos(math.pi * torch.as_tensor(done, dtype=torch.float64))) / 2
    return choose(t < WARMUP, 0.1 * (t + 1) / (WARMUP + 1), 0.1 * cosine)


def negative(t):
    return 0.1 - 0.001 * t


def above(t):
    return 1.01 * warm_cosine(t)


def jumping(t):
    return choose(t < WARMUP, 0.1 * (t + 1) / (WARMUP + 1), 0.01 + 0 * t)


def falling(t):
    return 0.1 + 0.0 * t if t == WARMUP else 0.1 / (t + 1)


def of_ints_alone(t):
    return 0.1 if isinstance(t, int) else 0.2


SAYS = {"peak": 0.1, "warmup": WARMUP, "joins": (WARMUP, TOTAL)}


@pytest.mark.parametrize(
    ("function", "says", "broken"),
    [
        (warm_cosine, SAYS, set()),
        (negative, {}, {"schedule_values"}),
        (above, SAYS, {"schedule_values", "schedule_warmup"}),
        (jumping, SAYS, {"schedule_joins", "schedule_warmup"}),
        (falling, {"peak": 0.1, "warmup": WARMUP}, {"schedule_warmup"}),
        (of_ints_alone, {}, {"schedule_of_tensors"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_schedules(function, says, broken):
    report = check_laws(function, kind="schedule", fixed=says, max_examples=50)
    assert {v.law.name for v in report.broken} == broken


def exponential(t):
    return 0.3 * 0.9**t


def off_by_one(t):
    return 0.3 * 0.9 ** (t + 1)


@pytest.mark.parametrize(("function", "status"), [(exponential, "held"), (off_by_one, "broken")])
def test_torchs_scheduler(function, status):
    report = check_laws(
        function,
        kind="schedule",
        laws=["agrees_with_scheduler"],
        fixed={"lr": 0.3},
        reference=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        max_examples=30,
    )
    assert report["agrees_with_scheduler"].status == status


def test_the_program_gives_what_a_schedule_says():
    report = check_laws(above, kind="schedule", laws=["schedule_warmup"], fixed=SAYS)
    assert "fixed={'peak': 0.1, 'warmup': 5, 'joins': (5, 20)}" in report["schedule_warmup"].counterexample.program
