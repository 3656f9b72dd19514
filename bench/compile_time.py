"""What a process pays before its steps are fast, each time in a process of its own.

That is imports, the first two steps of AdamW, with nothing on disk and with what earlier processes left there, and code
that is compiled anew when something changes. Making a torch.optim.Optimizer, ours too, loads Dynamo first, which takes
a second and is not counted among the first steps.

Compilations are counted, not timed: for funcopt the libraries in its folder, for torch.compile Dynamo's graphs.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial

from bench import options, peers, process, suite, timing
from bench.timing import Contender

TENSORS, ELEMENTS = (1, 300, 1000), 4096
MODULES = ("funcopt", "optimi", "heavyball", "pytorch_optimizer", "torchopt")
KINDS = {
    "torch-foreach": "torch-foreach",
    "torch-fused": "torch-fused",
    "funcopt, nothing on disk": "funcopt",
    "funcopt, kept on disk": "funcopt",
    "torch-compiled, nothing on disk": "torch-compiled",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    parser.add_argument(
        "--tensors", nargs="+", type=int, default=TENSORS, metavar="N", help="of 4,096 elements (1 300 1000)"
    )
    options.slow(parser)
    options.measuring(parser, gpu=False)


def run(args: argparse.Namespace) -> int:
    """Measure imports and first steps, and count compilations."""
    tables: list[suite.Table] = [imports(), *(first_steps(n, args.skip_slow) for n in args.tensors), compilations()]
    return suite.run("compile-time", tables, args)


def reported(run: Callable[[], float], repeats: int) -> float:
    """The clock for runs that tell their time themselves."""
    return run()


def imports() -> suite.Contest:
    """Importing torch, and everything else after torch."""

    def contender(module: str) -> Contender:
        reason = None if module in ("torch", "funcopt") else peers.missing(module)
        return Contender(module, lambda: partial(process.call, "imports", module=module), left_out=reason)

    return suite.Contest(
        name="imports",
        about="torch, and the others after torch, in fresh processes",
        contenders=lambda: [contender(module) for module in ("torch", *MODULES)],
        reference=("torch",),
        group="imports, in fresh processes: torch, and the others after torch",
        value="seconds",
        column="import",
        clock=reported,
        warm=False,
    )


def first_steps(tensors: int, skip_slow: bool) -> suite.Contest:
    """Making an AdamW and its first two steps."""

    def contender(name: str) -> Contender:
        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                fresh = {variable: os.path.join(folder, variable) for variable in timing.CACHES}
                return process.call(
                    "first_steps",
                    {} if name.endswith("kept on disk") else fresh,
                    kind=KINDS[name],
                    tensors=tensors,
                    elements=ELEMENTS,
                )

        def start() -> Callable[[], float]:
            if name.endswith("kept on disk"):
                run()  # it leaves its code in the folder that this suite began with
            return run

        slow = KINDS[name] == "torch-compiled" and skip_slow and tensors > 100
        return Contender(name, start, left_out="takes minutes; --no-skip-slow runs it" if slow else None)

    return suite.Contest(
        name=f"first steps, {tensors:,}",
        about=f"making an AdamW of {tensors:,} × {ELEMENTS:,} elements and its first two steps, in fresh processes",
        contenders=lambda: [contender(name) for name in KINDS],
        reference=("torch-fused",),
        ours="funcopt, nothing on disk",
        group="making an AdamW and its first two steps, in fresh processes, by the number of tensors",
        value="seconds",
        column=f"{tensors:,}",
        clock=reported,
        warm=False,
    )


def compilations() -> suite.Figures:
    """What is compiled anew when something changes."""

    def counted(kind: str) -> list[int]:
        with tempfile.TemporaryDirectory() as folder:
            return process.call("compilations", {"FUNCOPT_CACHE_DIR": folder}, kind=kind)

    return suite.Figures(
        name="compilations",
        about="pieces of code compiled anew for steps of AdamW in one process, while one thing after the other changes",
        group="pieces of code compiled anew, in one process, while one thing after the other changes",
        head=tuple(process.EVENTS),
        rows={kind: partial(counted, kind) for kind in ("torch-compiled", "funcopt")},
    )
