"""Ours and torch.optim's, side by side: equal parameters, equal gradients, equal numbers."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.optim.runs import OURS, TORCH, snapshot

CLASSES = ("SGD", "Adam", "AdamW")
STATEFUL: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "AdamW": {}}

# Sums in another order, relative to the largest number: some dozens of roundings of 6e-8, which Adam's division by
# small second moments enlarges.
FLOAT32 = 1e-4


@dataclass
class Side:
    """One of the two optimizers, and the parameters that it has or had."""

    params: list[Tensor]
    optimizer: Optimizer

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


class Draw:
    """Random choices and tensors, the same for both sides."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.random, self.dtype = random.Random(seed), dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator).to(self.dtype)

    def one(self, values: Any) -> Any:
        return self.random.choice(list(values))

    def some(self, values: Any) -> list[Any]:
        return [value for value in values if self.random.random() < 0.4]


def pair(name: str, shapes: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> tuple[Side, Side]:
    """Ours and torch's, on equal parameters."""
    values = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    sides = []
    for classes, own in ((OURS, {}), (TORCH, {"foreach": False})):
        params = [value.clone().requires_grad_() for value in values]
        sides.append(Side(params, classes[name](params, **kwargs, **own)))
    return sides[0], sides[1]


def give(*sides: Side, seed: int = 0) -> None:
    """New gradients, equal ones to both."""
    for side in sides:
        draw = Draw(seed, side.params[0].dtype)
        for p in side.params:
            p.grad = draw.normal(*p.shape)


def step(*sides: Side, steps: int = 1, first: int = 0) -> None:
    """Some steps with new gradients."""
    for t in range(first, first + steps):
        give(*sides, seed=t)
        for side in sides:
            side.optimizer.step()


def check(ours: Side, theirs: Side, tolerance: float = 1e-12) -> None:
    """That parameters and states agree; numbers of this size, also where terms of it cancel."""
    got, want = (snapshot(side.optimizer, side.params) for side in (ours, theirs))
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(
            got[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, k=key: f"{k}: {text}"
        )


each_class = pytest.mark.parametrize(("name", "kwargs"), STATEFUL.items(), ids=STATEFUL.keys())
