"""Every rule and its flags, beside torch.optim's class of the algorithm, each with its default numbers.

The reference is torch's fastest form of what is asked for; on the CPU torch has fused ones for SGD, Adam, AdamW and
Adagrad alone. A rule that torch.optim lacks is compared with other libraries' classes of its name: Lion is written
here, as a user would. After its first step each contender's parameters are compared with the equation's, run by torch
leaf by leaf.

Matrices are what a rule is timed on that takes nothing else, Muon. SparseAdam is left out: torch's takes no dense
gradients, and what a sparse one costs is the lookup of its indices.

The floor is the time for reading params, gradients and the slots, and for writing params and slots.
"""

import argparse
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import funcopt
from bench import options, peers, steps, suite, workloads
from bench.steps import Peer
from bench.timing import Contender
from bench.workloads import Workload
from funcopt.ops import sign
from funcopt.rules import RULES

LIBRARIES = ("optimi", "pytorch_optimizer")
CONTENDERS = (*peers.FORMS, "funcopt", *(module.replace("_", "-") for module in LIBRARIES))
REFERENCES = tuple(name for name in CONTENDERS if name != "funcopt")

# A flag that costs nothing: it changes a sign.
FREE = ("maximize",)
# What a number is that switches on a slot: where it is 0, the rule does without.
ON = 0.9


# ---- Lion, as the README has it -------------------------------------------------------------------------------------


def coefficients(t, lr, betas, weight_decay):
    beta1, beta2 = betas
    return {"lr": lr, "decay": 1 - lr * weight_decay, "one_minus_beta1": 1 - beta1, "one_minus_beta2": 1 - beta2}


def update(p, g, m, c):
    """Lion (Chen et al. 2023, algorithm 2): the sign of one average moves p, another one is kept."""
    p = c.decay * p - c.lr * sign(m + c.one_minus_beta1 * (g - m))
    return p, (m + c.one_minus_beta2 * (g - m),)


lion = funcopt.rule(
    "lion",
    hparams={
        "lr": funcopt.nonnegative(1e-4, "learning rate"),
        "betas": (
            funcopt.fraction(0.9, "beta parameter at index 0"),
            funcopt.fraction(0.99, "beta parameter at index 1"),
        ),
        "weight_decay": funcopt.nonnegative(0.0, "weight_decay value"),
    },
    slots=("exp_avg",),
    coefficients=coefficients,
    update=update,
)

FACTORIES = {"lion": lion} | {name: factory for name, factory in RULES.items() if name != "sparse_adam"}


# ---- the tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A rule with some flags, and with numbers that are not its defaults."""

    factory: Any
    flags: Mapping[str, bool]
    numbers: Mapping[str, float]

    @property
    def name(self) -> str:
        return " ".join([self.factory.__name__, *self.numbers, *self.flags])

    @property
    def opt(self) -> funcopt.PureOptimizer:
        return self.factory(**self.flags)

    @property
    def refused(self) -> bool:
        """Whether the rule has no such choice of flags and numbers."""
        try:
            self.opt.hparams(**self.numbers)
        except ValueError:
            return True
        return False


def variants() -> Iterator[Variant]:
    """Every rule as it is, with the numbers that switch slots on, and with each flag that costs something."""
    for name in sorted(FACTORIES):
        factory = FACTORIES[name]
        rule = factory.rule
        on = {slot.when: ON for slot in rule.slots if slot.when in rule.hparams}
        choices = [
            ({}, {}),
            *([({}, on)] if on else []),
            *(({f: not usual}, on) for f, usual in rule.flags.items() if f not in (*FREE, *rule.choices)),
        ]
        found = [Variant(factory, flags, numbers) for flags, numbers in choices]
        yield from (variant for variant in found if not variant.refused)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    parser.add_argument("--rules", nargs="+", choices=sorted(FACTORIES), default=sorted(FACTORIES))
    options.models(parser, ("fp32",))
    options.measuring(parser, CONTENDERS)


def run(args: argparse.Namespace) -> int:
    """Measure every variant on each workload."""
    chosen = [variant for variant in variants() if variant.factory.__name__ in args.rules]
    tables = [table(variant, *choice, args) for variant in chosen for choice in fitting(variant, options.chosen(args))]
    return suite.run("all-rules", tables, args)


def fitting(variant: Variant, choices: Sequence[tuple[Workload, str]]) -> list[tuple[Workload, str]]:
    """The choices of workload and dtype, or the matrices in their place where a rule takes nothing else."""
    rule = variant.factory.rule
    if not any(rule.unfit(torch.empty(shape, device="meta")) for w, _ in choices for shape in w.shapes):
        return list(choices)
    return [(workloads.WORKLOADS["matrices"], dtype) for dtype in dict.fromkeys(dtype for _, dtype in choices)]


def table(variant: Variant, workload: Workload, dtype: str, args: argparse.Namespace) -> suite.Contest:
    """One variant on one workload in one dtype."""
    size = workloads.DTYPES[dtype].itemsize * workload.elements
    opt = variant.opt
    params = [torch.empty(shape, dtype=workloads.DTYPES[dtype], device="meta") for shape in workload.shapes]
    state = opt.init(params, opt.hparams(**variant.numbers))
    slots = sum(t.nbytes for name, column in state.items() for t in column if t is not None and name != "step")
    return suite.Contest(
        name=f"{variant.name}, {workload.name}, {dtype}",
        about=f"{workload.about} ({workload.elements:,} elements)",
        contenders=partial(contenders, variant, workload, dtype, args),
        reference=REFERENCES,
        group="every rule: funcopt's step, × the fastest form that torch.optim, else another library, has of it",
        row=variant.name,
        column=f"{workload.name}, {dtype}",
        needs=2 * (2 * size + slots),
        holds=2 * size + slots,
        moves=3 * size + 2 * slots,
        facts={
            "rule": variant.factory.__name__,
            "flags": dict(variant.flags),
            "numbers": dict(variant.numbers),
            "workload": workload.name,
            "dtype": dtype,
            "elements": workload.elements,
            "tensors": len(workload.shapes),
        },
    )


# ---- the contenders -------------------------------------------------------------------------------------------------


def contenders(variant: Variant, workload: Workload, dtype: str, args: argparse.Namespace) -> list[Contender]:
    """The contenders, on tensors of their own."""
    device = torch.device(args.device)
    model = workloads.problem(workload, workloads.DTYPES[dtype], device, args.seed)
    opt = variant.factory(backend="eager", **variant.flags)
    expected = steps.first_step(opt, opt.hparams(**variant.numbers), model)
    return steps.contenders(model, field(variant, device), expected)


def field(variant: Variant, device: torch.device) -> list[Peer]:
    """Ours, and torch's class in all its forms; where torch has none, other libraries'."""
    opt = variant.opt
    numbers = opt.hparams(**variant.numbers)
    ours = peers.ours(funcopt.optim.from_pure(opt), **numbers)
    name = variant.factory.__name__
    if cls := named(torch.optim, name):
        taken = inspect.signature(cls).parameters
        if lacks := [flag for flag in variant.flags if flag not in taken]:
            reason = f"torch.optim.{cls.__name__} has no {lacks[0]}"
            return [*(Peer(form, left_out=reason) for form in peers.FORMS), ours]
        known = {n: value for n, value in {**numbers, **variant.flags}.items() if n in taken}
        return [*peers.of_torch(cls, **known), ours]
    return [ours, *(_other(module, name, numbers, device) for module in LIBRARIES)]


def _other(module: str, rule: str, numbers: Mapping[str, Any], device: torch.device) -> Peer:
    missing = peers.missing(module)
    cls = None if missing else named(importlib.import_module(module), rule)
    if cls is None:
        return Peer(module.replace("_", "-"), left_out=missing or f"{module} has no {rule}")
    taken = inspect.signature(cls).parameters
    return peers.of(module, cls.__name__, device, **{n: value for n, value in numbers.items() if n in taken})


def named(module: Any, rule: str) -> Any:
    """The class of a module that has a rule's name, whatever its capitals and underscores; None if there is none."""
    names = {name.lower(): name for name, value in vars(module).items() if isinstance(value, type)}
    return getattr(module, names.get(rule.replace("_", ""), ""), None)
