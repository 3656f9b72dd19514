"""Models of many small tensors, where a step's time is the optimizer's own: AdamW and SGD with momentum.

Each is stepped with gradients that are the same tensors at every step, as after `zero_grad(set_to_none=False)`, and
with ones that are new at every step, as after `zero_grad()`; the new ones are made outside of the timed part.
funcopt-flat has called `flatten()`, after which gradients are the same tensors always.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch

import funcopt
from bench import options, peers, steps, suite, workloads
from bench.steps import Peer
from bench.timing import Contender

CONTENDERS = ("torch-foreach", "torch-fused", "funcopt", "funcopt-flat", "optimi")
COUNTS, ELEMENTS = (3, 20, 100, 300, 1000, 3000), (64, 4096)
GRADIENTS = ("kept gradients", "new gradients")

# By algorithm: the rule, the classes' name in funcopt.optim, torch.optim and optimi, and the numbers.
ALGORITHMS = {
    "adamw": (funcopt.adamw, "AdamW", {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    "sgd": (funcopt.sgd, "SGD", {"lr": 1e-2, "momentum": 0.9}),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    add = parser.add_argument
    add("--algorithms", nargs="+", choices=tuple(ALGORITHMS), default=tuple(ALGORITHMS))
    add("--tensors", nargs="+", type=int, default=COUNTS, metavar="N", help=f"how many ({_list(COUNTS)})")
    add("--elements", nargs="+", type=int, default=ELEMENTS, metavar="N", help=f"of each ({_list(ELEMENTS)})")
    options.measuring(parser, CONTENDERS)


def _list(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def run(args: argparse.Namespace) -> int:
    """Measure each combination, and show our ratios to torch's fused step together."""
    tables = [
        table(algorithm, elements, count, gradients, args)
        for gradients in GRADIENTS
        for algorithm in args.algorithms
        for elements in args.elements
        for count in args.tensors
    ]
    return suite.run("small-tensors", tables, args)


def table(algorithm: str, elements: int, count: int, gradients: str, args: argparse.Namespace) -> suite.Contest:
    """One algorithm on so many tensors of one size."""
    workload = workloads.many(count, elements)
    return suite.Contest(
        name=f"{algorithm}, {count:,} × {elements:,}, {gradients}",
        about=workload.about,
        contenders=partial(contenders, algorithm, workload, gradients, args),
        reference=("torch-fused",),
        group="many small tensors: funcopt's step, × torch's fused one, by the number of tensors",
        row=f"{algorithm}, {elements:,} elements each, {gradients}",
        column=f"{count:,}",
        needs=12 * 4 * workload.elements,
        facts={"algorithm": algorithm, "tensors": count, "elements": workload.elements, "gradients": gradients},
    )


def contenders(
    algorithm: str, workload: workloads.Workload, gradients: str, args: argparse.Namespace
) -> list[Contender]:
    """The contenders, on tensors of their own."""
    device = torch.device(args.device)
    model = workloads.problem(workload, torch.float32, device, args.seed)
    factory, _, numbers = ALGORITHMS[algorithm]
    opt = factory(backend="eager")
    expected = steps.first_step(opt, opt.hparams(**numbers), model)
    new = gradients == "new gradients"
    return steps.contenders(model, field(algorithm, device, new), expected, new_gradients=new)


def field(algorithm: str, device: torch.device, new_gradients: bool) -> list[Peer]:
    """Who is there."""
    _, name, numbers = ALGORITHMS[algorithm]
    cls = getattr(funcopt.optim, name)
    flat = Peer("funcopt-flat", lambda params: cls(params, **numbers).flatten(), moves=True)
    return [
        *peers.of_torch(getattr(torch.optim, name), ("torch-foreach", "torch-fused"), **numbers),
        peers.ours(cls, **numbers),
        replace(flat, left_out="with flatten() gradients are kept" if new_gradients else None),
        peers.of("optimi", name, device, **numbers),
    ]
