"""The options that suites with contenders share."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import report, workloads


def output(parser: argparse.ArgumentParser) -> None:
    """Where the JSON goes."""
    parser.add_argument("--output", type=Path, default=report.RESULTS, metavar="DIR", help="for JSON (bench/results)")


def measuring(parser: argparse.ArgumentParser, contenders: Sequence[str], dtypes: Sequence[str]) -> None:
    """What to measure, on which device, how often and for how long."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workloads", nargs="+", choices=tuple(workloads.WORKLOADS), help="the device's usual ones if left out")
    add("--dtypes", nargs="+", choices=tuple(workloads.DTYPES), default=tuple(dtypes))
    add("--contenders", nargs="+", choices=tuple(contenders), default=tuple(contenders))
    add("--skip-slow", action=argparse.BooleanOptionalAction, default=True, help="not what takes minutes")
    add("--rounds", type=int, default=11, help="samples of each contender (11)")
    add("--seed", type=int, default=0, help="of the tensors and of the order in a round (0)")
    add("--budget", type=float, default=300.0, metavar="S", help="seconds for a contender on a workload (300)")
    add("--seconds", type=float, default=math.inf, metavar="S", help="seconds for everything; the rest is not reached")
    output(parser)
