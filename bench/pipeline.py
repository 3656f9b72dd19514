"""The optimizer's part of a training step, from the gradients of a scaled loss to gradients of zero.

It unscales the gradients, clips them by their global norm, leaves the step out where one is not finite, takes it with
AdamW, moves the average of the weights (EMA), and sets the gradients to zero.

Bytes an element in fp32 that each contender moves at least:

    funcopt         44 = 4 one reduction for the norm and what is not finite + 28 AdamW + 8 EMA + 4 zeros written
    torch-tuned     52 = 4 norm + 32 fused AdamW, which writes the gradients that it unscales + 12 EMA + 4 zeros
    torch-usual     64 = 8 unscale, with the look for what is not finite + 4 norm + 8 clip + 28 AdamW + 12 EMA + 4 zeros
    torch-foreach   at least 64, and some ten passes more in AdamW

The floor is that of ours. After its first step each contender's params and averages are compared with the equation's,
and its gradients with zero. From then on gradients are ones before each step, filled in outside of the timed part: with
zeros the first moments would shrink to denormal numbers, with which a CPU is slow.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import funcopt
from bench import options, steps, suite, timing, workloads
from bench.timing import Contender
from bench.workloads import Problem, Workload

LR, DECAY, EPS, EMA, NORM = 1e-2, 1e-2, 1e-8, 0.999, 1.0
SCALE = 8.0  # of the loss; small enough that the norm of standard normal gradients is over its bound everywhere
BYTES = 44


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    options.models(parser, ("fp32",), ("fp32", "fp64"))  # bf16 is too coarse for an average
    options.measuring(parser, tuple(CONTENDERS))


def run(args: argparse.Namespace) -> int:
    """Measure each workload."""
    return suite.run("pipeline", [table(*choice, args) for choice in options.chosen(args)], args)


def table(workload: Workload, dtype: str, args: argparse.Namespace) -> suite.Contest:
    """All contenders on one workload in one dtype."""
    size = workloads.DTYPES[dtype].itemsize * workload.elements
    return suite.Contest(
        name=f"{workload.name}, {dtype}",
        about=f"{workload.about} ({workload.elements:,} elements)",
        contenders=partial(contenders, workload, dtype, args),
        reference=("torch-usual",),
        group="unscale, clip, skip what is not finite, AdamW, EMA, zero the gradients: × the usual way with torch",
        column=f"{workload.name}, {dtype}",
        needs=10 * size,  # params, gradients, two moments, averages, and as much again to work with
        holds=5 * size,
        moves=BYTES * size // 4,
        facts={
            "workload": workload.name,
            "dtype": dtype,
            "elements": workload.elements,
            "tensors": len(workload.shapes),
        },
    )


# ---- the contenders -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What contenders share: params with gradients, two moments and the average of each."""

    model: Problem
    moments: tuple[list[Tensor], list[Tensor]]
    ema: list[Tensor]

    def state(self, optimizer: torch.optim.Optimizer, device: str | torch.device, *, ema: bool = False) -> None:
        """Make these the state of an optimizer, with step counts of its own."""
        for p, m, v, average in zip(self.model.params, *self.moments, self.ema, strict=True):
            state = {"step": torch.zeros((), device=device), "exp_avg": m, "exp_avg_sq": v}
            optimizer.state[p] = {**state, "ema": average} if ema else state


def ours(kept: Kept) -> timing.Run:
    """Five layers, one reduction, one pass."""
    opt = funcopt.ema(funcopt.adamw(), decay=EMA)
    # The outermost sees the gradients first. Clipping and the look for what is not finite share their reduction, of
    # gradients that are unscaled as they are read.
    opt = funcopt.unscale(funcopt.skip_nonfinite(funcopt.clip_by_global_norm(opt, max_norm=NORM)), grad_scale=SCALE)
    optimizer = funcopt.optim.from_pure(opt)(kept.model.params, lr=LR, weight_decay=DECAY, eps=EPS)
    # Where a step may be skipped, counts are where the params are.
    kept.state(optimizer, kept.model.params[0].device, ema=True)
    return lambda: optimizer.step(zero_grad=True)


def usual(kept: Kept, **form: Any) -> timing.Run:
    """As torch's documentation has it: GradScaler, clip_grad_norm_, a class, the averages of swa_utils."""
    params, average = kept.model.params, get_ema_multi_avg_fn(EMA)
    device = params[0].device
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=DECAY, eps=EPS, **form)
    kept.state(optimizer, device if form.get("fused") else "cpu")
    scaler = torch.amp.GradScaler(device.type, init_scale=SCALE, growth_interval=2**30)
    scaler.scale(torch.zeros((), device=device))  # a step of it begins with a scaled loss

    def step() -> None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, NORM, foreach=True)
        scaler.step(optimizer)
        scaler.update()
        average(kept.ema, params, None)
        optimizer.zero_grad(set_to_none=False)

    return step


@torch.no_grad()
def tuned(kept: Kept) -> timing.Run:
    """The fewest passes that torch's own kernels allow: the fused step unscales and clips, and skips what it must."""
    params, grads = kept.model.params, kept.model.grads
    optimizer: Any = torch.optim.AdamW(params, lr=LR, weight_decay=DECAY, eps=EPS, fused=True)
    kept.state(optimizer, params[0].device)

    @torch.no_grad()
    def step() -> None:
        norm = torch.stack(torch._foreach_norm(grads)).norm().float() / SCALE
        # What it divides gradients by: the scale, and by how far their norm is over the bound.
        optimizer.grad_scale = SCALE * torch.clamp((norm + 1e-6) / NORM, min=1.0)
        optimizer.found_inf = torch.where(norm.isfinite(), 0.0, 1.0)
        optimizer.step()
        torch._foreach_lerp_(kept.ema, params, 1 - EMA)
        torch._foreach_zero_(grads)

    return step


CONTENDERS: dict[str, Callable[[Kept], timing.Run]] = {
    "torch-foreach": partial(usual, foreach=True),
    "torch-usual": partial(usual, fused=True),
    "torch-tuned": tuned,
    "funcopt": ours,
}


def contenders(workload: Workload, dtype: str, args: argparse.Namespace) -> Sequence[Contender]:
    """The contenders, on tensors of their own."""
    model = workloads.problem(workload, workloads.DTYPES[dtype], torch.device(args.device), args.seed)
    slots = [[torch.zeros_like(g) for g in model.grads] for _ in range(3)]
    kept = Kept(model, (slots[0], slots[1]), slots[2])
    before = steps.tails(model.params)
    after, averages = expected(model, before)

    def start(name: str) -> timing.Run:
        first.append(name)
        steps.reset(model.params, before)
        model.fill()
        for moment in (*slots[0], *slots[1]):
            moment.zero_()
        for average, p in zip(kept.ema, model.params, strict=True):
            average.copy_(p.detach())
        return CONTENDERS[name](kept)

    def check() -> str | None:
        if any(g.any() for g in model.grads):
            return "wrong result: gradients are not zero"
        first.clear()
        return steps.wrong(model.params, before, after) or steps.wrong(kept.ema, before, averages, "average")

    def renew() -> None:
        if not first:
            for g in model.grads:
                g.fill_(1.0)

    first: list[str] = []  # whoever is about to make a first step
    return [Contender(name, partial(start, name), check, before=renew) for name in CONTENDERS]


def expected(model: Problem, before: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The last elements of params and averages after the first step, where both moments are zero before."""
    norm = sum(g.double().square().sum().item() for g in model.grads) ** 0.5 / SCALE
    factor = min(1.0, NORM / (norm + 1e-6)) / SCALE
    after, averages = [], []
    for p, g in zip(before, steps.tails(model.grads), strict=True):
        p, g = p.double(), factor * g.double()
        after.append(p * (1 - LR * DECAY) - LR * g / (g.abs() + EPS))
        averages.append(p + (1 - EMA) * (after[-1] - p))
    return after, averages
