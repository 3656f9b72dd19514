"""All that a GPU can tell within 8 minutes: the kernels' tests, then every suite that has something to time, a summary.

Every part is a process of its own, so that a fault on the GPU costs one part only, and is stopped when its time is up.
A part's time is its share of what is left; what does not fit is reported as not reached. Suites write their JSON after
every table, so a part that was stopped has kept the tables before.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import adamw, options, plots, report
from bench.timing import Deadline

ROOT = Path(__file__).parents[1]

# Kept back from each suite's share: a process loads torch before its time starts and stops work for a while after.
SLACK = 18.0


@dataclass(frozen=True)
class Job:
    """A part: its arguments to Python, its share of the time in seconds of 8 minutes, whether it is a suite."""

    name: str
    command: tuple[str, ...]
    share: float
    suite: bool = True


# addopts is emptied so that the tests run in this one process: more would compete for the GPU.
TESTS = ("-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider", "-o", "addopts=")


def suite(name: str, share: float, *options: str, title: str = "") -> Job:
    """A suite on the GPU."""
    return Job(title or name, ("-m", "bench", name, "--device", "cuda", "--no-plot", *options), share)


# One graph for many tensors may take long to compile, so the contest with it comes last, with the time that is left.
FEW = ("--contenders", *(name for name in adamw.CONTENDERS if name != "torch-compiled"))
COMPILED = ("--dtypes", "fp32", "--contenders", "torch-fused", "funcopt-auto", "torch-compiled")

# A further suite's parts are further rows. Time that a part leaves over is the later ones'.
JOBS = (
    Job("kernel tests", TESTS, 130, suite=False),
    suite("adamw", 95, "--workloads", "gpt2", "many-1000", *FEW),
    suite("adamw", 60, "--workloads", "one-1b", "one-32m", *FEW, title="adamw, one tensor"),
    suite("pipeline", 50, "--workloads", "gpt2", "many-1000", "one-32m"),
    suite("small-tensors", 55, "--tensors", "20", "300", "3000", "--elements", "4096", "--rounds", "5"),
    suite("all-rules", 60, "--workloads", "gpt2", "--rounds", "5"),
    suite("scaling", 45, "--rounds", "5"),
    suite("adamw", 75, "--workloads", "gpt2", *COMPILED, title="adamw gpt2, torch-compiled"),
)


@dataclass(frozen=True)
class Part:
    """What became of a job: its exit status (None: it was stopped or not reached), last lines and tables."""

    name: str
    verdict: str
    status: int | None
    seconds: float
    tail: list[str]
    results: list[dict[str, Any]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    parser.add_argument("--seconds", type=float, default=470.0, metavar="S", help="for everything (470)")
    options.output(parser)


def run(args: argparse.Namespace) -> int:
    """Run every job that the time allows; the exit status is 0 only if all passed, 2 without a GPU."""
    deadline = Deadline.after(args.seconds)
    if not torch.cuda.is_available():
        print("no GPU that torch can use on this machine", file=sys.stderr)
        return 2
    found = report.facts(torch.device("cuda"))
    path = report.result_path(args.output, "gpu", found)
    parts: list[Part] = []
    for i, job in enumerate(JOBS):
        seconds = deadline.left() * job.share / sum(j.share for j in JOBS[i:])
        print(f"\n==== {job.name}, {seconds:.0f} s at most", flush=True)
        parts.append(perform(job, seconds))
        print(f"==== {job.name}: {parts[-1].verdict}, {parts[-1].seconds:.0f} s", flush=True)
        report.write_json(path, {"suite": "gpu", **found, "parts": [asdict(part) for part in parts]})
    print(f"\n{found['device']}, torch {torch.__version__}, {args.seconds - deadline.left():.0f} s\n{summary(parts)}")
    print(f"JSON: {path}")
    cases = [case for part in parts for result in part.results for case in result["cases"]]
    if args.plot and (picture := plots.drawn(plots.ratios, {"suite": "gpu", **found, "cases": cases}, path)):
        print(picture)
    return 0 if all(part.status == 0 for part in parts) else 1


def perform(job: Job, seconds: float, least: float = 2 * SLACK) -> Part:
    """Run a job for so many seconds at most; with less than `least` it is not begun."""
    if seconds < least:
        return Part(job.name, "not reached", None, 0.0, [], [])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", *job.command]
        if job.suite:
            command += ["--seconds", f"{seconds - SLACK:.0f}", "--output", folder]
        start = time.monotonic()
        status, lines = supervise(command, seconds)
        taken = time.monotonic() - start
        results = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    verdict = {None: "stopped, its time was up", 0: "passed"}.get(status, f"failed, exit status {status}")
    return Part(job.name, verdict, status, taken, lines[-15:], results)


def supervise(command: Sequence[str], seconds: float) -> tuple[int | None, list[str]]:
    """Run a command in the repository, print what it says, stop it and all that it began when the time is up.

    Returns the exit status, None if it was stopped, and the lines of its output.
    """
    over = threading.Event()
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # to stop the command is then to stop the compilers that it started, too
    ) as process:

        def stop() -> None:
            if process.poll() is None:
                over.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                if not line.startswith("JSON: "):  # its file is temporary: ours has its content
                    print(line, end="", flush=True)
                lines.append(line.rstrip())
            status = process.wait()
        finally:
            timer.cancel()
            stop()
    return None if over.is_set() else status, lines


def summary(parts: Sequence[Part]) -> str:
    """The tests' verdict, then a line a table: funcopt's default against its peers and the floor; what went wrong."""
    lines = []
    for part in parts:
        cases = [case for result in part.results for case in result.get("cases", ()) if "head" not in case]
        if part.status != 0 or not cases:
            lines.append(": ".join([part.name, part.verdict, *part.tail[-1:]]))
        lines += [f"{part.name}, {case['name']}: {_line(case)}" for case in cases]
    return "\n".join(lines)


def _line(case: dict[str, Any]) -> str:
    if "skipped" in case:
        return str(case["skipped"])
    rows = {row["name"]: row for row in case["contenders"]}
    name = case["ours"]
    ours = rows.pop(name, {"status": "was", "note": "not in this contest"})
    if ours["status"] != "ok":
        return f"{name} {ours['status']}: {ours['note']}"
    peers = [
        f"{report.number(ours['median'] / row['median'])} x {peer}"
        if row["status"] == "ok"
        else f"{peer} {row['status']}"
        for peer, row in rows.items()
        if not peer.startswith("funcopt")
    ]
    floor = [f"{report.number(ours['ratio_to_floor'])} x floor"] if ours["ratio_to_floor"] else []
    return f"{name} is {', '.join([*peers, *floor])}"
