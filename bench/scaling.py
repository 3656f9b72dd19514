"""The cost of an AdamW step against the number of tensors, all of 64 elements, and against the elements of one tensor.

The slope is that of log time over log size in the larger half of the sizes: 1 is linear, 0 a cost that does not depend
on the size.
"""

import argparse
import math
import statistics
from functools import partial

from bench import options, plots, small_tensors, suite, workloads
from bench.timing import Contender
from bench.workloads import Workload

CONTENDERS = ("torch-foreach", "torch-fused", "funcopt", "funcopt-flat")
TENSORS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
ELEMENTS = tuple(2**k for k in range(6, 27, 2))
SMALL = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    add = parser.add_argument
    add("--tensors", nargs="+", type=int, default=TENSORS, metavar="N", help="numbers of tensors of 64 elements")
    add("--elements", nargs="+", type=int, default=ELEMENTS, metavar="N", help="sizes of one tensor")
    options.measuring(parser, CONTENDERS)


def run(args: argparse.Namespace) -> int:
    """Measure all sizes; print the slopes, and draw the lines."""
    tables = [table("tensors of 64 elements", n, workloads.many(n, SMALL), args) for n in args.tensors]
    tables += [table("elements of one tensor", n, workloads.many(1, n), args) for n in args.elements]
    return suite.run("scaling", tables, args, finish=slopes, plot=plots.lines)


def table(against: str, size: int, workload: Workload, args: argparse.Namespace) -> suite.Contest:
    """One size."""
    return suite.Contest(
        name=f"{size:,} {against}",
        about=workload.about,
        contenders=partial(contenders, workload, args),
        reference=("torch-fused",),
        needs=12 * 4 * workload.elements,
        facts={"against": against, "size": size},
    )


def contenders(workload: Workload, args: argparse.Namespace) -> list[Contender]:
    """AdamW as `small-tensors` has it, without optimi."""
    made = small_tensors.contenders("adamw", workload, "kept gradients", args)
    return [contender for contender in made if contender.name in CONTENDERS]


def slopes(results: list[suite.Result]) -> list[suite.Result]:
    """The slopes of all contenders as one table of figures."""
    measured = [result for result in results if "contenders" in result]
    sweeps = list(dict.fromkeys(result["against"] for result in measured))
    names = dict.fromkeys(row["name"] for result in measured for row in result["contenders"])
    rows = []
    for name in names:
        found = [slope(points(measured, against, name)) for against in sweeps]
        status = "ok" if any(value is not None for value in found) else "failed"
        note = "" if status == "ok" else "too few sizes were measured"
        rows.append({"name": name, "status": status, "note": note, "values": found})
    return [
        {
            "name": "slopes",
            "about": "of log time over log size, in the larger half of the sizes",
            "group": "the slope of log time over log size of an AdamW step, in the larger half of the sizes",
            "head": [f"{against} (up to {max(_sizes(measured, against)):,})" for against in sweeps],
            "rows": rows,
        }
    ]


def _sizes(results: list[suite.Result], against: str) -> list[int]:
    return [result["size"] for result in results if result["against"] == against]


def points(results: list[suite.Result], against: str, name: str) -> list[tuple[int, float]]:
    """A contender's (size, median)."""
    return [
        (result["size"], row["median"])
        for result in results
        if result["against"] == against
        for row in result["contenders"]
        if row["name"] == name and row["status"] == "ok"
    ]


def slope(line: list[tuple[int, float]]) -> float | None:
    """The slope of the logarithms, fitted to the larger half of the points; None for fewer than two of them."""
    half = sorted(line)[len(line) // 2 :]
    if len(half) < 2:
        return None
    return statistics.linear_regression(*zip(*[(math.log(x), math.log(y)) for x, y in half], strict=True)).slope
