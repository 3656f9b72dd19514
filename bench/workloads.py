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
        Workload("matrices", "48 matrices of 256 × 512", ((256, 512),) * 48),
        Workload("tiny", "three small tensors, to try a suite out", ((64, 3), (5,), (1,))),
    ]
}

# What a suite runs when it is told nothing, by type of device.
DEFAULT = {
    "cpu": ("one-32m", "many-300", "gpt2"),
    "cuda": ("gpt2", "many-1000", "one-1b", "one-32m"),
}


def many(count: int, elements: int) -> Workload:
    """So many tensors, all of one size."""
    about = f"{count:,} tensor{'s' * (count != 1)} of {elements:,} element{'s' * (elements != 1)}"
    return Workload(f"{count}x{elements}", about, ((elements,),) * count)


@dataclass(frozen=True)
class Problem:
    """Params with gradients for a workload.

    The params are normal with deviation 0.02, as a language model's are at the start, the gradients standard normal
    and the same at every step, but where a suite says otherwise.
    """

    workload: Workload
    params: list[Tensor]
    grads: list[Tensor]
    seed: int

    def fill(self) -> None:
        """Give the gradients the values that they had first."""
        if self.grads:
            generator = torch.Generator(self.grads[0].device).manual_seed(self.seed + 1)
            for g in self.grads:
                g.normal_(generator=generator)


def problem(workload: Workload, dtype: torch.dtype, device: torch.device, seed: int) -> Problem:
    """Allocate and fill the tensors; the seed fixes them."""
    generator = torch.Generator(device).manual_seed(seed)
    empty = lambda shape: torch.empty(shape, dtype=dtype, device=device)  # noqa: E731
    params = [empty(shape).normal_(0, 0.02, generator=generator).requires_grad_() for shape in workload.shapes]
    made = Problem(workload, params, [empty(shape) for shape in workload.shapes], seed)
    made.fill()
    for p, g in zip(params, made.grads, strict=True):
        p.grad = g
    return made
