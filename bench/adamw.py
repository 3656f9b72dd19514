"""The AdamW step: torch.optim's implementations and funcopt's backends side by side in one run.

Timed is `optimizer.step()` alone, with a constant lr and gradients that stay the same. All contenders of a table update
the same parameters from the same gradients through the same two moments, each with step counts of its own, so that a
table needs memory for one model and no contender has a better place in memory than another; the time of a step does not
depend on the values. After its first step each contender's parameters are compared with the equation's.

The floor is the time for reading params, gradients and two moments and for writing params and moments, 28 bytes an
element in fp32 and 14 in bf16, at the machine's bandwidth: see `bench/floor.py`.

'first step' includes compilation, with Inductor loaded and the caches on disk empty; but what one table, or one of
funcopt's contenders, has compiled, a later one may find in the process.
"""

import argparse
import contextlib
import functools
import gc
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcopt
from bench import floor, options, report, timing, workloads
from bench.timing import Contender, Outcome
from bench.workloads import Problem, Workload
from funcopt import backends

LR, DECAY, EPS = 1e-2, 1e-2, 1e-8

TORCH = {
    "torch-loop": {"foreach": False, "fused": False},
    "torch-foreach": {"foreach": True},
    "torch-fused": {"fused": True},
}
# Torch's compiled one is last: should its compilation eat the time, the others have had theirs.
CONTENDERS = (*TORCH, *(f"funcopt-{backend}" for backend in backends.BACKENDS), "torch-compiled")
COMPILING = {"torch-compiled", "funcopt-compile", "funcopt-auto"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the suite's options."""
    options.measuring(parser, CONTENDERS, ("fp32", "bf16"))


def run(args: argparse.Namespace) -> int:
    """Measure, print a table for each workload and dtype, and write the JSON, anew after every table."""
    device, deadline = torch.device(args.device), timing.Deadline.after(args.seconds)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use on this machine; --device cpu runs here")
        return 2
    found = report.facts(device)
    path = report.result_path(args.output, "adamw", found)
    names = args.workloads or workloads.DEFAULT[device.type]
    todo = [(workloads.WORKLOADS[name], dtype) for name in names for dtype in args.dtypes]
    cases: list[dict[str, Any]] = []
    with timing.fresh_caches():
        if COMPILING.intersection(args.contenders):
            _load_inductor(device)
        for i, (workload, dtype) in enumerate(todo):
            share = timing.Deadline.after(deadline.left() / (len(todo) - i))
            cases.append(case(workload, dtype, device, share, args))
            print(f"\n{show(cases[-1])}", flush=True)
            report.write_json(path, {"suite": "adamw", **found, "options": _plain(args), "cases": cases})
    machine = found["machine"]
    load = machine["load_average"][0]
    print(
        f"\n{machine['cpu']}, {machine['threads']} threads; {found['device']}; torch {torch.__version__}; "
        f"load average {load:.1f} of {machine['cores']} cores before"
    )
    print(f"JSON: {path}")
    return 0


def _load_inductor(device: torch.device) -> None:
    """Compile a trifle: loading Inductor takes seconds, which are not the first compiled contender's own."""
    with contextlib.suppress(Exception):  # where nothing compiles, the contenders will say so
        torch.compile(lambda x: x + 1)(torch.ones(64, device=device))


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(v) if v == float("inf") else v for name, v in vars(args).items() if not isinstance(v, Path)}


# ---- one table ------------------------------------------------------------------------------------------------------


def case(
    workload: Workload, dtype: str, device: torch.device, deadline: timing.Deadline, args: argparse.Namespace
) -> dict[str, Any]:
    """All contenders on one workload in one dtype, as JSON has it."""
    size = workloads.DTYPES[dtype].itemsize * workload.elements
    held = 4 * size  # params, gradients, two moments
    out: dict[str, Any] = {
        "workload": workload.name,
        "about": workload.about,
        "dtype": dtype,
        "tensors": len(workload.shapes),
        "elements": workload.elements,
        "bytes": 7 * size,
        "load_average": os.getloadavg()[0],  # above the number of cores, every barrier between threads waits
    }
    need, free = 2 * held, report.free_bytes(device)  # as much again to work with
    if deadline.left() == 0:
        return {**out, "skipped": "not reached: the time was up"}
    if free is not None and free < need:
        return {**out, "skipped": f"left out: needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"}
    try:
        outcomes = _contest(workload, dtype, device, deadline, args)
    except Exception as error:
        return {**out, "skipped": f"failed: {report.first_line(error)}"}
    finally:
        # The next table starts from nothing: no memory taken, and no compiled code whose guards it would have to fail.
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    probes, rows = outcomes[: len(floor.PROBES)], outcomes[len(floor.PROBES) :]
    least = floor.floor(probes, held, out["bytes"])
    fused = next((o.median for o in rows if o.name == "torch-fused"), None)
    return {
        **out,
        "floor": {**vars(least), "probes": [_row(o, None, None) for o in probes]},
        "contenders": [_row(o, fused, least.seconds) for o in rows],
    }


def _contest(
    workload: Workload, dtype: str, device: torch.device, deadline: timing.Deadline, args: argparse.Namespace
) -> list[Outcome]:
    """The outcomes of the probes, then of the contenders; all tensors live only as long as this."""
    model = workloads.problem(workload, workloads.DTYPES[dtype], device, args.seed)
    held = 4 * sum(p.nbytes for p in model.params)
    return timing.contest(
        [*floor.probes(held, device), *contenders(model, args)],
        timing.clock_for(device),
        rounds=args.rounds,
        seed=args.seed,
        budget=args.budget,
        deadline=deadline,
    )


def _row(outcome: Outcome, fused: float | None, least: float | None) -> dict[str, Any]:
    ratio = lambda to: outcome.median / to if outcome.median and to else None  # noqa: E731
    return {
        **vars(outcome),
        "median": outcome.median,
        "quartiles": outcome.quartiles,
        "ratio_to_torch_fused": ratio(fused),
        "ratio_to_floor": ratio(least),
    }


def show(case: dict[str, Any]) -> str:
    """A case as people read it."""
    title = f"{case['workload']}, {case['dtype']}: {case['about']} ({case['elements']:,} elements)"
    if "skipped" in case:
        return f"{title}\n{case['skipped']}"
    if probe := case["floor"]["probe"]:
        rate, seconds = case["floor"]["bytes_per_second"][probe], case["floor"]["seconds"]
        title += f"\nfloor: {case['bytes'] / 1e6:,.1f} MB at {rate / 1e9:,.1f} GB/s ({probe}) = {seconds * 1e3:,.3f} ms"
    head = ["contender", "median ms", "quartiles", "x fused", "x floor", "first step s", "samples"]
    return f"{title}\n{report.table(head, [_cells(row) for row in case['contenders']])}"


def _cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["name"], f"{row['status']}: {row['note']}"]
    return [
        row["name"],
        report.number(row["median"] * 1e3, 3),
        "-".join(report.number(q * 1e3, 3) for q in row["quartiles"]),
        report.number(row["ratio_to_torch_fused"]),
        report.number(row["ratio_to_floor"]),
        report.number(row["first"]),
        str(len(row["samples"])),
    ]


# ---- the contenders -------------------------------------------------------------------------------------------------


def contenders(model: Problem, args: argparse.Namespace) -> list[Contender]:
    """The contenders asked for, in the table's order."""
    before = _tails(model)
    after = [_first_step(p, g.view(-1)[-64:]) for p, g in zip(before, model.grads, strict=True)]

    def start(name: str) -> timing.Run:
        with torch.no_grad():
            for tail, was in zip(_tails(model, copy=False), before, strict=True):
                tail.copy_(was)
            for moment in (*model.moments[0], *model.moments[1]):
                moment.zero_()
        optimizer = _optimizer(name, model)
        return torch.compile(lambda: optimizer.step()) if name == "torch-compiled" else optimizer.step

    def check() -> str | None:
        # To a quarter of the step: bf16 arithmetic passes, a tensor that was left out does not.
        far = [(a.double() - b).abs().max().item() for a, b in zip(_tails(model), after, strict=True)]
        wrong = [i for i, error in enumerate(far) if not error <= LR / 4]
        return f"wrong result: parameter {wrong[0]} is off by {far[wrong[0]]:.1e}" if wrong else None

    reasons = {name: _left_out(name, model, args.skip_slow) for name in CONTENDERS if name in args.contenders}
    return [Contender(name, functools.partial(start, name), check, reason) for name, reason in reasons.items()]


def _left_out(name: str, model: Problem, skip_slow: bool) -> str | None:
    device, tensors = model.params[0].device, len(model.params)
    if name == "torch-compiled" and skip_slow and device.type == "cpu" and tensors > 100:
        return f"one graph for {tensors} tensors takes minutes to compile; --no-skip-slow runs it"
    if name == "funcopt-triton" and backends.interpreted():
        return "TRITON_INTERPRET is set, and the interpreter's speed means nothing"
    library, backend = name.split("-", 1)
    return backends.unavailable(backend, device) if library == "funcopt" else None


def _optimizer(name: str, model: Problem) -> torch.optim.Optimizer:
    """A contender's optimizer, with the problem's moments for its state."""
    library, kind = name.split("-", 1)
    optimizer: torch.optim.Optimizer
    if library == "funcopt":
        optimizer = funcopt.optim.AdamW(model.params, lr=LR, weight_decay=DECAY, eps=EPS, backend=kind)
    else:
        optimizer = torch.optim.AdamW(model.params, lr=LR, weight_decay=DECAY, eps=EPS, **TORCH.get(name, {}))
    for p, m, v in zip(model.params, *model.moments, strict=True):
        count = torch.zeros((), device=p.device if name == "torch-fused" else "cpu")
        optimizer.state[p] = {"step": count, "exp_avg": m, "exp_avg_sq": v}
    return optimizer


def _tails(model: Problem, copy: bool = True) -> list[Tensor]:
    """The last elements of each parameter."""
    tails = [p.detach().view(-1)[-64:] for p in model.params]
    return [tail.clone() for tail in tails] if copy else tails


def _first_step(p: Tensor, g: Tensor) -> Tensor:
    """The equation's first step, where both moments are zero before."""
    p, g = p.double(), g.double()
    return p * (1 - LR * DECAY) - LR * g / (g.abs() + EPS)
