"""The options that suites share."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import report, workloads


def output(parser: argparse.ArgumentParser) -> None:
    """Where the results go."""
    add = parser.add_argument
    add("--output", type=Path, default=report.RESULTS, metavar="DIR", help="for JSON and PNG (bench/results)")
    add("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw the results beside the JSON")


def measuring(
    parser: argparse.ArgumentParser, contenders: Sequence[str] = (), *, gpu: bool = True, budget: float = 300.0
) -> None:
    """Who is measured, on which device, how often and for how long."""
    add = parser.add_argument
    if gpu:
        add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    else:
        parser.set_defaults(device="cpu")
    if contenders:
        add("--contenders", nargs="+", choices=tuple(contenders), default=tuple(contenders))
    add("--rounds", type=int, default=11, help="samples of each contender (11)")
    add("--seed", type=int, default=0, help="of the tensors and of the order in a round (0)")
    add("--budget", type=float, default=budget, metavar="S", help=f"seconds for a contender in a table ({budget:.0f})")
    add("--seconds", type=float, default=math.inf, metavar="S", help="seconds for everything; the rest is not reached")
    output(parser)


def slow(parser: argparse.ArgumentParser) -> None:
    """Whether to leave out what takes minutes."""
    add = parser.add_argument
    add("--skip-slow", action=argparse.BooleanOptionalAction, default=True, help="leave out what takes minutes")


def models(
    parser: argparse.ArgumentParser, dtypes: Sequence[str], choices: Sequence[str] = tuple(workloads.DTYPES)
) -> None:
    """The parameters that optimizers step."""
    add = parser.add_argument
    add("--workloads", nargs="+", choices=tuple(workloads.WORKLOADS), help="the device's usual ones if left out")
    add("--dtypes", nargs="+", choices=tuple(choices), default=tuple(dtypes))


def chosen(args: argparse.Namespace) -> list[tuple[workloads.Workload, str]]:
    """The workloads and dtypes asked for."""
    names = args.workloads or workloads.DEFAULT[args.device]
    return [(workloads.WORKLOADS[name], dtype) for name in names for dtype in args.dtypes]
