"""The memory floor: the least time in which a machine can move the bytes that an optimizer's step has to move.

The bandwidth is that of the fastest of three plain torch ops, timed in the same rounds as the contenders, on buffers as
large in all as the tensors of a step, so that a cache helps both alike. Of an op's samples the lower quartile counts: a
speed that the machine reaches repeatedly, whatever else it does in between. A copy alone would not do: on a CPU
the cache lines that it writes are read first, for which an optimizer, writing where it has read, does not pay. It is a
measurement, no law: on a CPU the place of a buffer in physical memory makes a tenth, and a step may come out below 1.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.timing import Contender, Outcome

# Ops on two buffers, and how many buffers' lengths each reads and writes together.
PROBES: dict[str, tuple[int, Callable[[Tensor, Tensor], Any]]] = {
    "copy": (2, lambda a, b: a.copy_(b)),
    "scale": (4, lambda a, b: (a.mul_(-1.0), b.mul_(-1.0))),
    "add": (3, lambda a, b: a.add_(b)),
}

LARGEST = 2**30  # bytes of both buffers: more than any cache


@dataclass(frozen=True)
class Floor:
    """The fastest probe, the time for the bytes asked for, and the bytes that each probe moved in a second."""

    probe: str | None = None
    seconds: float | None = None
    bytes_per_second: dict[str, float] = field(default_factory=dict)


def probes(held: int, device: torch.device) -> list[Contender]:
    """Contenders beside those of a step whose tensors take `held` bytes."""
    a, b = torch.ones(2, _length(held), device=device)
    return [Contender(name, lambda op=op: functools.partial(op, a, b)) for name, (_, op) in PROBES.items()]


def floor(outcomes: Sequence[Outcome], held: int, moved: int) -> Floor:
    """The floor of a step that has to move so many bytes, from the outcomes of the probes."""
    rates = {o.name: PROBES[o.name][0] * 4 * _length(held) / o.quartiles[0] for o in outcomes if o.quartiles}
    if not rates:
        return Floor()
    best = max(rates, key=rates.__getitem__)
    return Floor(best, moved / rates[best], rates)


def _length(held: int) -> int:
    return max(1, min(held, LARGEST) // 8)  # two buffers of 4-byte floats
