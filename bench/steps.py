"""Optimizers that step the same parameters from the same gradients, one after the other, as contenders.

All that one of them keeps in the shape of a parameter under a name that an earlier one used, it shares with that one
from its second step on: a table then needs memory for one model, and nobody has a better place in it than another. The
time of a step does not depend on the values.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import timing
from bench.timing import Contender
from bench.workloads import Problem
from funcopt import PureOptimizer

TAIL = 64  # the last elements of each parameter, which stand for all


@dataclass(frozen=True)
class Peer:
    """An optimizer to be timed.

    `make` makes it of parameters; `compiled` says that its step is compiled by torch, `moves` that it puts parameters
    elsewhere, and needs some of its own; `left_out` why it is left out, if it is.
    """

    name: str
    make: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None
    compiled: bool = False
    moves: bool = False
    left_out: str | None = None


def contenders(
    model: Problem, peers: Sequence[Peer], expected: Sequence[Tensor], *, new_gradients: bool = False
) -> list[Contender]:
    """The peers on a problem.

    Args:
        model: what they step.
        peers: who steps.
        expected: the last elements of each parameter after the first step.
        new_gradients: every step finds gradients in tensors that are new; they are made outside of the timed part.
    """
    before, gradients = tails(model.params), tails(model.grads)
    pool: dict[tuple[int, str], Tensor] = {}

    def contender(peer: Peer) -> Contender:
        made: list[torch.optim.Optimizer] = []
        params = model.params

        def start() -> timing.Run:
            nonlocal params
            reset(model.params, before)
            reset(model.grads, gradients)  # optimi's foreach form uses them as a buffer
            params = _copies(model) if peer.moves else model.params
            made[:] = [peer.make(params)]
            if not peer.compiled:
                return made[0].step
            load_inductor(model.params[0].device)
            return torch.compile(lambda: made[0].step())

        def check() -> str | None:
            if not peer.compiled and not peer.moves:  # code may be for these very tensors
                _share(made[0], params, pool)
            return wrong(params, before, expected)

        return Contender(peer.name, start, check, peer.left_out, renew if new_gradients else None)

    def renew() -> None:
        for p in model.params:
            p.grad = None
        for p, g in zip(model.params, model.grads, strict=True):
            p.grad = g.clone()

    return [contender(peer) for peer in peers]


def _copies(model: Problem) -> list[Tensor]:
    copies = [p.detach().clone().requires_grad_() for p in model.params]
    for p, g in zip(copies, model.grads, strict=True):
        p.grad = g.clone()
    return copies


def _share(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], pool: dict[tuple[int, str], Tensor]) -> None:
    for index, p in enumerate(params):
        state = optimizer.state.get(p)
        for name, value in list(state.items()) if isinstance(state, Mapping) else ():
            if name == "step" or not isinstance(value, Tensor) or value.shape != p.shape or value.dtype != p.dtype:
                continue
            state[name] = pool.setdefault((index, name), value)


@functools.cache
def load_inductor(device: torch.device) -> None:
    """Compile a trifle: loading Inductor takes seconds, which are not the first compiled contender's own."""
    with contextlib.suppress(Exception):  # where nothing compiles, the contenders will say so
        torch.compile(lambda x: x + 1)(torch.ones(64, device=device))


# ---- what a first step comes to -------------------------------------------------------------------------------------


def tails(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The last elements of each, as they are now."""
    return [t.detach().view(-1)[-TAIL:].clone() for t in tensors]


def reset(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give the last elements of each tensor the values that they had."""
    for t, value in zip(tensors, values, strict=True):
        t.detach().view(-1)[-TAIL:].copy_(value)


def wrong(
    tensors: Sequence[Tensor], before: Sequence[Tensor], expected: Sequence[Tensor], what: str = "parameter"
) -> str | None:
    """What is wrong with the last elements of the tensors, if anything is.

    They may be off by a quarter of their tensor's largest change: bf16 arithmetic passes, a tensor left out does not.
    """
    for i, (t, was, wanted) in enumerate(zip(tails(tensors), before, expected, strict=True)):
        off = (t.double() - wanted).abs().max().item()
        if not off <= (wanted - was).abs().max().item() / 4:
            return f"wrong result: {what} {i} is off by {off:.1e}"
    return None


def first_step(opt: PureOptimizer, hparams: Mapping[str, Any], model: Problem) -> list[Tensor]:
    """The last elements of each parameter after the equation's first step, run by torch."""
    out = []
    with torch.no_grad():
        for p, g in zip(model.params, model.grads, strict=True):
            start = p.detach()
            new, _ = opt(start, g, opt.init(start, hparams), hparams)
            out += [t.double() for t in tails([new])]
    return out
