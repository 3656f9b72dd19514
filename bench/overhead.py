"""What stands around the arithmetic, on the CPU: the pure call on many small leaves, what it allocates, and the class.

The pure call of AdamW, out of place and donated, is timed beside an AdamW written by hand, the same operations with one
`tree_map` a quantity, and beside TorchOpt's functional AdamW. Each goes on from its own last step. After the first one
its params are compared with the equation's.

Memory is what a call allocates at once at most, counted by torch's profiler in a fresh process, in the size of the
params: out of place, new params and two new moments are 3.

Making an optimizer of the class, its state_dict, loading one, and describing it are timed for growing numbers of
parameters, per parameter.
"""

import argparse
import contextlib
import functools
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import funcopt
from bench import options, peers, process, pure, suite, timing
from bench.pure import DECAY, EPS, LR, NUMBERS
from bench.timing import Contender

CALLS = ((20, 8), (20, 64), (1000, 8), (1000, 64), (100_000, 8))  # leaves, elements of each
PARAMETERS = (1000, 10_000, 100_000)
LARGE = 10_000  # leaves from which on calls take seconds, and fewer samples must do


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    add = parser.add_argument
    add("--leaves", type=int, default=100_000, metavar="N", help="the most of them (100000)")
    add("--elements", type=int, default=2**25, metavar="N", help="in all, where memory is measured (2^25)")
    options.measuring(parser, gpu=False, budget=60)


def run(args: argparse.Namespace) -> int:
    """Measure calls, memory, and what a class does beside stepping."""
    tables: list[suite.Table] = [calls(n, elements) for n, elements in CALLS if n <= args.leaves]
    tables += [memory(args.elements), *(class_calls(n) for n in PARAMETERS if n <= args.leaves)]
    return suite.run("overhead", tables, args)


# ---- pure calls -----------------------------------------------------------------------------------------------------


def calls(count: int, elements: int) -> suite.Contest:
    """A pure call on so many leaves."""
    return suite.Contest(
        name=f"call, {count:,} × {elements}",
        about=f"one pure call of AdamW on {count:,} leaves of {elements} elements",
        contenders=partial(call_contenders, count, elements),
        reference=("tree-map",),
        group="one pure call of AdamW, × one written by hand with tree_map, by leaves × elements",
        column=f"{count:,} × {elements}",
        needs=count * 30_000,
        rounds=3 if count >= LARGE else None,
        warm=count < LARGE,
        leaves=count,
        facts={"elements": elements},
    )


def call_contenders(count: int, elements: int) -> list[Contender]:
    """The contenders, on leaves of their own, but for the gradients."""
    shared = pure.leaves(count, elements)
    p, g = torch.stack(shared.params).double(), torch.stack(shared.grads).double()
    expected = p * (1 - LR * DECAY) - LR * g / (g.abs() + EPS)

    def contender(name: str) -> Contender:
        last: list[list[Tensor]] = [[]]

        def start() -> timing.Run:
            step = pure.STEPS[name](pure.Leaves([p.clone() for p in shared.params], shared.grads))

            def run() -> None:
                last[0] = step()

            return run

        def check() -> str | None:
            off = (torch.stack(last[0]).double() - expected).abs().max().item()
            return None if off <= LR / 4 else f"wrong result: params are off by {off:.1e}"

        reason = peers.missing("torchopt") if name.startswith("torchopt") else None
        return Contender(name, start, check, reason)

    return [contender(name) for name in pure.STEPS]


def memory(elements: int) -> suite.Figures:
    """What a pure call allocates."""
    splits = {count: elements // count for count in (1, 8)}

    def measured(name: str) -> list[float]:
        return [process.call("allocated", kind=name, tensors=n, elements=size) for n, size in splits.items()]

    return suite.Figures(
        name="memory",
        about="what one pure call of AdamW allocates at once at most, × its params",
        group="what one pure call of AdamW allocates at once at most, × its params, by leaves × elements",
        head=tuple(f"{n} × {size:,}" for n, size in splits.items()),
        rows={name: partial(measured, name) for name in pure.STEPS},
    )


# ---- the class ------------------------------------------------------------------------------------------------------

CLASSES = {"funcopt": funcopt.optim.AdamW, "torch": torch.optim.AdamW}


def class_calls(count: int) -> suite.Contest:
    """What a class does beside stepping, with so many parameters."""
    return suite.Contest(
        name=f"class, {count:,}",
        about=f"AdamW of {count:,} parameters of 8 elements",
        contenders=partial(class_contenders, count),
        group="beside stepping, time a parameter, by the number of parameters",
        column=f"{count:,}",
        value="per leaf",
        leaves=count,
        needs=count * 20_000,
        rounds=3 if count >= LARGE else None,
        warm=count < LARGE,
    )


def class_contenders(count: int) -> list[Contender]:
    """Each call of each class; all but making one on an optimizer that has made a step."""
    made = pure.leaves(count, 8)

    @functools.cache
    def params() -> list[Tensor]:
        for p, g in zip(made.params, made.grads, strict=True):
            p.requires_grad_().grad = g
        return made.params

    @functools.cache
    def stepped(library: str) -> Any:
        optimizer = CLASSES[library](params(), **NUMBERS)
        optimizer.step()
        return optimizer

    @functools.cache
    def saved(library: str) -> Any:
        return stepped(library).state_dict()

    def describe() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            funcopt.describe(stepped("funcopt"))

    def of(library: str) -> dict[str, Callable[[], timing.Run]]:
        return {
            f"{library}, init": lambda: lambda: CLASSES[library](params(), **NUMBERS),
            f"{library}, state_dict": lambda: stepped(library).state_dict,
            f"{library}, load_state_dict": lambda: partial(stepped(library).load_state_dict, saved(library)),
        }

    starts = {**of("torch"), **of("funcopt"), "funcopt, describe": lambda: describe}
    return [Contender(name, start) for name, start in starts.items()]
