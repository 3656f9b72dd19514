"""BatchSizeLRScheduler: rates by the batch size, on optimizers of torch's and of funcopt's."""

import copy
import io
import math
import warnings

import pytest
import torch

import funcopt
from funcopt.batch_size import BatchSizeLRScheduler

OPTIMIZERS = [torch.optim.SGD, torch.optim.AdamW, funcopt.optim.SGD, funcopt.optim.AdamW]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def groups_of(*lrs):
    return [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for lr in lrs]


def lrs_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_rates_grow_with_the_root_of_the_batch_size(cls):
    """A batch of twice the base's gets √2 times the rate, before the optimizer's step as after it."""
    optimizer = cls(groups_of(0.1, 0.2, 0.3))
    scheduler = BatchSizeLRScheduler(optimizer, base_lrs=(0.001, 0.002, 0.003))
    assert lrs_of(optimizer) == scheduler.get_last_lr() == [0.001, 0.002, 0.003]
    for batch_size, rates in {
        128: [0.0014142135623730951, 0.0028284271247461903, 0.004242640687119286],
        64: [0.001, 0.002, 0.003],
        16: [0.0005, 0.001, 0.0015],
    }.items():
        scheduler.step(batch_size)
        assert lrs_of(optimizer) == scheduler.get_last_lr() == pytest.approx(rates, rel=1e-15)
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        optimizer.step()
    scheduler.step()
    assert lrs_of(optimizer) == pytest.approx([0.0005, 0.001, 0.0015], rel=1e-15)


def test_a_step_moves_by_the_rate():
    optimizer = funcopt.optim.SGD(groups_of(0.5))
    scheduler, (group,) = BatchSizeLRScheduler(optimizer, base_batch_size=32), optimizer.param_groups
    moved = 0.0
    for batch_size in (32, 8, 128):
        scheduler.step(batch_size)
        group["params"][0].grad = torch.ones(2)
        optimizer.step()
        moved += 0.5 * math.sqrt(batch_size / 32)
    assert group["params"][0].tolist() == pytest.approx([1 - moved] * 2, rel=1e-6)


def test_one_rate_for_all_and_another_power():
    optimizer = torch.optim.SGD(groups_of(0.1, 0.2))
    scheduler = BatchSizeLRScheduler(optimizer, 0.25, base_batch_size=100, power=1)
    scheduler.step(50)
    assert lrs_of(optimizer) == [0.125, 0.125]


def test_rates_of_the_groups():
    optimizer = torch.optim.SGD(groups_of(0.1, 0.2))
    BatchSizeLRScheduler(optimizer).step(256)
    assert lrs_of(optimizer) == pytest.approx([0.2, 0.4])
    again = BatchSizeLRScheduler(optimizer)  # of the rates that the groups began with, as torch's schedulers
    assert lrs_of(optimizer) == again.get_last_lr() == [0.1, 0.2]


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_tensors_are_filled(cls):
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = cls(groups_of(lr, 0.2))
    scheduler = BatchSizeLRScheduler(optimizer)
    held = optimizer.param_groups[0]["lr"]
    scheduler.step(torch.tensor(256))
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.2)
    last = scheduler.get_last_lr()
    last[0].zero_()
    assert lrs_of(optimizer) == pytest.approx([0.2, 0.4])
    scheduler.step(64)
    assert lrs_of(optimizer) == pytest.approx([0.1, 0.2])


def test_saved_and_loaded():
    old = torch.optim.SGD(groups_of(torch.tensor(0.1), 0.2))
    schedule = BatchSizeLRScheduler(old, power=torch.tensor(0.5))
    schedule.step(256)
    file = io.BytesIO()
    torch.save([old.state_dict(), schedule.state_dict()], file)
    before = copy.deepcopy(schedule.state_dict())
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    new = torch.optim.SGD(groups_of(torch.tensor(0.0), 0.0))
    resumed = BatchSizeLRScheduler(new, base_lrs=1.0, base_batch_size=1)
    new.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.get_last_lr() == schedule.get_last_lr() == lrs_of(new)
    assert resumed.state_dict() == schedule.state_dict()
    for size in (None, 16):
        resumed.step(size)
        schedule.step(size)
        assert lrs_of(new) == lrs_of(old)
    assert before["batch_size"] == 256
    unsaved = BatchSizeLRScheduler(new)  # from the optimizer's state_dict alone
    assert unsaved.base_lrs == pytest.approx([0.1, 0.2])


def test_groups_added_later():
    optimizer = funcopt.optim.SGD(groups_of(0.1))
    scheduler = BatchSizeLRScheduler(optimizer)
    scheduler.step(256)
    state = scheduler.state_dict()
    optimizer.add_param_group(groups_of(0.3)[0])
    assert lrs_of(optimizer) == pytest.approx([0.2, 0.3])
    for _ in range(2):
        scheduler.step(256)
        assert lrs_of(optimizer) == scheduler.get_last_lr() == pytest.approx([0.2, 0.6])
    scheduler.load_state_dict(state)  # of before there were two
    scheduler.step(16)
    assert lrs_of(optimizer) == pytest.approx([0.05, 0.15])
    assert BatchSizeLRScheduler(optimizer).base_lrs == [0.1, 0.3]


def test_in_a_sequence():
    optimizer = torch.optim.SGD(groups_of(0.1))
    warmup = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=9)
    by_size = BatchSizeLRScheduler(optimizer)
    sequence = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, by_size], [2])
    seen = []
    for _ in range(4):
        optimizer.step()
        seen += lrs_of(optimizer)
        sequence.step()
    by_size.step(256)
    assert seen + lrs_of(optimizer) == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.2])


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"base_lrs": [0.1]}, ValueError, "base_lrs has 1 numbers, and the optimizer 2 groups"),
        ({"base_lrs": [0.1, -1]}, ValueError, r"base_lrs\[1\] is -1; it takes numbers in \[0, inf\)"),
        ({"base_lrs": "0.1"}, TypeError, r"base_lrs\[0\] takes a number .* got str: '0.1'"),
        ({"base_lrs": math.nan}, ValueError, r"base_lrs\[0\] is nan"),
        ({"base_batch_size": 0}, ValueError, r"base_batch_size is 0; it takes numbers in \(0, inf\)"),
        ({"base_lrs": 0.3, "power": -1}, ValueError, "power is -1"),
        ({"base_lrs": 0.3, "power": None}, TypeError, "power takes a number"),
    ],
)
def test_refusals(kwargs, error, text):
    optimizer = torch.optim.SGD(groups_of(0.1, 0.2))
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(error, match=text):
        BatchSizeLRScheduler(optimizer, **kwargs)
    assert optimizer.param_groups == before


def test_no_optimizer():
    with pytest.raises(TypeError, match="optimizer is a list"):
        BatchSizeLRScheduler([torch.ones(2)])


@pytest.mark.parametrize("batch_size", [0, -3, math.nan, math.inf, "64", True, [64], torch.tensor([64, 64])])
def test_what_is_no_batch_size(batch_size):
    optimizer = torch.optim.SGD(groups_of(0.1))
    scheduler = BatchSizeLRScheduler(optimizer)
    scheduler.step(128)
    state, rates = scheduler.state_dict(), lrs_of(optimizer)
    with pytest.raises((TypeError, ValueError), match=r"^batch_size "):
        scheduler.step(batch_size)
    assert (scheduler.state_dict(), lrs_of(optimizer)) == (state, rates)
