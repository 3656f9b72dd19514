"""The sets of parameters that optimizers are timed on, and the tensors for them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A set of parameters."""

    name: str
    about: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))


def _gpt2(width: int = 768, depth: int = 12, vocabulary: int = 50257, context: int = 1024) -> tuple[Shape, ...]:
    def linear(n: int, m: int) -> list[Shape]:
        return [(n, m), (m,)]

    norm = [(width,), (width,)]
    block = [
        *norm,
        *linear(width, 3 * width),
        *linear(width, width),
        *norm,
        *linear(width, 4 * width),
        *linear(4 * width, width),
    ]
    return ((vocabulary, width), (context, width), *(block * depth), *norm)


WORKLOADS = {
    w.name: w
    for w in [
        Workload("one-32m", "one tensor of 2^25 elements: the memory's limit", ((2**25,),)),
        Workload("one-1b", "one tensor of 2^30 elements: the memory's limit", ((2**30,),)),
        Workload("many-300", "300 tensors of 4,096 elements: the optimizer's own overhead", ((4096,),) * 300),
        Workload("many-1000", "1,000 tensors of 4,096 elements: the optimizer's own overhead", ((4096,),) * 1000),
        Workload("gpt2", "GPT-2 small: 148 tensors", _gpt2()),
        Workload("tiny", "three small tensors, to try a suite out", ((64, 3), (5,), (1,))),
    ]
}

# What a suite runs when it is told nothing, by type of device.
DEFAULT = {
    "cpu": ("one-32m", "many-300", "gpt2"),
    "cuda": ("gpt2", "many-1000", "one-1b", "one-32m"),
}


@dataclass(frozen=True)
class Problem:
    """Tensors for a workload: params with fixed gradients, and two moments of each.

    The params are normal with deviation 0.02, as a language model's are at the start, the gradients standard normal
    and the same at every step, the moments zero.
    """

    workload: Workload
    params: list[Tensor]
    grads: list[Tensor]
    moments: tuple[list[Tensor], list[Tensor]]


def problem(workload: Workload, dtype: torch.dtype, device: torch.device, seed: int) -> Problem:
    """Allocate and fill the tensors; the seed fixes them."""
    generator = torch.Generator(device).manual_seed(seed)
    empty = lambda shape: torch.empty(shape, dtype=dtype, device=device)  # noqa: E731
    params = [empty(shape).normal_(0, 0.02, generator=generator).requires_grad_() for shape in workload.shapes]
    grads = [empty(shape).normal_(generator=generator) for shape in workload.shapes]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    first, second = ([torch.zeros_like(g) for g in grads] for _ in range(2))
    return Problem(workload, params, grads, (first, second))
