"""Schedules of a number, and small models with data, as values that print as the Python that makes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from funcopt import hyper

__all__ = ["DECAYS", "MODELS", "Problem", "Schedule"]

DECAYS = ("constant", "linear", "cosine", "exponential", "step")
MODELS = ("linear", "logistic", "relu")


@dataclass(frozen=True)
class Schedule:
    """A number as a function of the step: linear warmup from 0 to `peak`, then one of `DECAYS`, over `steps` in all."""

    peak: float
    warmup: int
    steps: int
    decay: str = "constant"

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay is {self.decay!r}; {hyper.suggest(str(self.decay), DECAYS)}")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        factors = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "exponential": 0.5 ** (step - self.warmup),
            "step": 0.1 if done >= 0.5 else 1.0,
        }
        return self.peak * factors[self.decay]


@dataclass(frozen=True)
class Problem:
    """A small model with data, a function of its arguments alone: the model's first params, its loss, its batches.

    `kind` is `linear` (least squares), `logistic` or `relu` (a network of two layers); `params` a dict of tensors;
    `loss(params, batch)` a 0-d tensor; `batches` a list of (inputs, targets), one a step.
    """

    kind: str
    features: int
    examples: int
    steps: int
    seed: int
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.kind not in MODELS:
            raise ValueError(f"kind is {self.kind!r}; {hyper.suggest(str(self.kind), MODELS)}")

    def _draw(self, stream: int, *shape: int) -> Tensor:
        chance = torch.Generator().manual_seed(1000 * self.seed + stream)
        return torch.randn(shape, generator=chance, dtype=torch.float64).to(self.dtype)

    @property
    def params(self) -> dict[str, Tensor]:
        if self.kind != "relu":
            return {"w": self._draw(0, self.features) / 2, "b": self._draw(1)}
        return {
            "w1": self._draw(0, self.features, 4),
            "b1": self._draw(1, 4),
            "w2": self._draw(2, 4) / 2,
            "b2": self._draw(3),
        }

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        out = []
        for step in range(self.steps):
            x, noise = self._draw(10 + 2 * step, self.examples, self.features), self._draw(11 + 2 * step, self.examples)
            y = x.sum(1) + 0.1 * noise
            out.append((x, (y > 0).to(self.dtype) if self.kind == "logistic" else y))
        return out

    def loss(self, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        if self.kind == "relu":
            out = torch.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
        else:
            out = x @ params["w"] + params["b"]
        if self.kind == "logistic":
            return torch.nn.functional.binary_cross_entropy_with_logits(out, y)
        return ((out - y) ** 2).mean()
