"""The AdamW step: torch.optim's implementations, funcopt's backends and other libraries side by side in one run.

Timed is `optimizer.step()` alone, with a constant lr and gradients that stay the same. After its first step each
contender's parameters are compared with the equation's. What they share is told in `bench/steps.py`.

The floor is the time for reading params, gradients and two moments and for writing params and moments, 28 bytes an
element in fp32 and 14 in bf16, at the machine's bandwidth: see `bench/floor.py`.

The first call includes compilation, with the caches on disk empty, and making the state; torch's compiler is loaded
before. What one table, or one of funcopt's contenders, has compiled, a later one may find in the process.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import funcopt
from bench import options, peers, steps, suite, workloads
from bench.steps import Peer
from bench.timing import Contender
from bench.workloads import Workload
from funcopt import backends

LR, DECAY, EPS = 1e-2, 1e-2, 1e-8
NUMBERS = {"lr": LR, "betas": (0.9, 0.999), "eps": EPS, "weight_decay": DECAY}

BACKENDS = tuple(f"funcopt-{backend}" for backend in backends.BACKENDS)
# Those that torch compiles are last: should compilation eat the time, the others have had theirs.
CONTENDERS = (*peers.FORMS, *BACKENDS, "optimi", "heavyball", "torch-compiled")
SLOW = ("torch-compiled", "heavyball")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    options.models(parser, ("fp32", "bf16"))
    options.slow(parser)
    options.measuring(parser, CONTENDERS)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table for each workload and dtype, and write the JSON, anew after every table."""
    return suite.run("adamw", [table(*choice, args) for choice in options.chosen(args)], args)


def table(workload: Workload, dtype: str, args: argparse.Namespace) -> suite.Contest:
    """All contenders on one workload in one dtype."""
    size = workloads.DTYPES[dtype].itemsize * workload.elements
    return suite.Contest(
        name=f"{workload.name}, {dtype}",
        about=f"{workload.about} ({workload.elements:,} elements)",
        contenders=partial(contenders, workload, dtype, args),
        reference=("torch-fused",),
        ours="funcopt-auto",
        group="the step of AdamW, × torch's fused one",
        column=f"{workload.name}, {dtype}",
        needs=8 * size,  # params, gradients, two moments, and as much again to work with
        holds=4 * size,
        moves=7 * size,
        facts={
            "workload": workload.name,
            "dtype": dtype,
            "elements": workload.elements,
            "tensors": len(workload.shapes),
        },
    )


def contenders(workload: Workload, dtype: str, args: argparse.Namespace) -> list[Contender]:
    """The contenders asked for, on tensors of their own."""
    device = torch.device(args.device)
    model = workloads.problem(workload, workloads.DTYPES[dtype], device, args.seed)
    before = steps.tails(model.params)
    after = [_first_step(p, g) for p, g in zip(before, steps.tails(model.grads), strict=True)]
    return steps.contenders(model, field(device, len(model.params), args.skip_slow), after)


def field(device: torch.device, tensors: int, skip_slow: bool) -> list[Peer]:
    """Who is there, and why the others are left out."""
    ours = [_ours(name, device) for name in BACKENDS]
    compiled = Peer("torch-compiled", lambda params: torch.optim.AdamW(params, **NUMBERS), compiled=True)
    heavyball = peers.of("heavyball", "AdamW", device, **NUMBERS)
    optimi = peers.of("optimi", "AdamW", device, **NUMBERS)
    everybody = [*peers.of_torch(torch.optim.AdamW, **NUMBERS), *ours, optimi, heavyball, compiled]
    return [_slow(peer, device, tensors) if skip_slow else peer for peer in everybody]


def _slow(peer: Peer, device: torch.device, tensors: int) -> Peer:
    if peer.name not in SLOW or peer.left_out or device.type != "cpu" or tensors <= 100:
        return peer
    reason = f"one graph for {tensors} tensors takes minutes to compile; --no-skip-slow runs it"
    return replace(peer, left_out=reason)


def _ours(name: str, device: torch.device) -> Peer:
    backend = name.removeprefix("funcopt-")
    reason = backends.unavailable(backend, device)
    if backend == "triton" and backends.interpreted():
        reason = "TRITON_INTERPRET is set, and the interpreter's speed means nothing"
    return replace(peers.ours(funcopt.optim.AdamW, name, backend=backend, **NUMBERS), left_out=reason)


def _first_step(p: Tensor, g: Tensor) -> Tensor:
    """The equation's first step, where both moments are zero before."""
    p, g = p.double(), g.double()
    return p * (1 - LR * DECAY) - LR * g / (g.abs() + EPS)
