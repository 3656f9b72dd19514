"""Whatever was done to an optimizer since its last step is noticed: random things, against torch.optim's."""

import copy

import pytest
import torch

from tests.optim.actions import ACTIONS, other_gradients
from tests.optim.sides import FLOAT32, Draw, Side, check, pair

pytestmark = pytest.mark.usefixtures("looked")


def loaded(sides: tuple[Side, Side], draw: Draw) -> None:
    """Each loads its own state_dict, or the other's."""
    saved = [copy.deepcopy(side.optimizer.state_dict()) for side in sides]
    if draw.one([False, True]):
        saved.reverse()
    for side, state_dict in zip(sides, saved, strict=True):
        backend = {"foreach": False} if type(side.optimizer).__module__.startswith("torch") else {}
        side.optimizer.load_state_dict(state_dict)
        for group in side.groups:
            group.update(backend)


RUNS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "amsgrad": ("Adam", {"lr": 0.1, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.1}),
}
SHAPES = [(4, 3), (4, 3), (), (1,), (0, 2), (3, 3), (2, 3, 2, 2), (70,)]


@pytest.fixture
def one_thread_after():
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "seed"),
    [*((torch.float64, 1e-12, seed) for seed in range(4)), (torch.float32, FLOAT32, 4)],
    ids=str,
)
@pytest.mark.parametrize(("name", "kwargs"), RUNS.values(), ids=RUNS.keys())
def test_whatever_happens_between_steps(name, kwargs, dtype, tolerance, seed, taken, one_thread_after):
    sides = pair(name, SHAPES, dtype, **kwargs)
    for side in sides:
        group = side.optimizer.param_groups[0]
        params = group["params"]
        side.optimizer.add_param_group({"params": [params.pop(5)], "weight_decay": 0.1})
    script = Draw(seed, dtype)
    names = [*ACTIONS, "loaded"]
    script.random.shuffle(names)
    groups = 0
    for t, what in enumerate(names):
        print(t, what)  # what pytest shows of a failure
        if script.one([True, True, False]):
            for side in sides:
                other_gradients(side, Draw(1000 * seed + t, dtype))
        if what == "loaded":
            loaded(sides, Draw(t, dtype))
        else:
            for side in sides:
                ACTIONS[what](side, Draw(1000 * seed + t, dtype))
        for _ in range(2):
            for side in sides:
                side.optimizer.step()
            groups += len(sides[0].groups)
            check(*sides, tolerance=tolerance)
    assert len(taken) > groups / 4
