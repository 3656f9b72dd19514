"""What suites share: tables of contenders or of figures, the loop over them, and what is kept of each."""

import argparse
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import floor, plots, report, summary, timing
from bench.timing import Clock, Contender, Deadline, Outcome

Result = dict[str, Any]  # as JSON has it


class Table(Protocol):
    """One table of a suite."""

    def measure(self, args: argparse.Namespace, deadline: Deadline) -> Result:
        """Its measurements; with "skipped" and the reason where there are none."""


def run(
    name: str,
    tables: Sequence[Table],
    args: argparse.Namespace,
    *,
    finish: Callable[[list[Result]], list[Result]] = lambda results: [],
    plot: Callable[[Result, Path], None] = plots.ratios,
) -> int:
    """Measure a suite's tables, print each, and write the JSON anew after every one; returns the exit status.

    Args:
        name: of the suite.
        tables: each gets its share of the time.
        args: from `options.measuring`.
        finish: further tables from the results of all.
        plot: draws a PNG of the results.
    """
    device, deadline = torch.device(args.device), Deadline.after(args.seconds)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use on this machine; --device cpu runs here")
        return 2
    found = report.facts(device)
    path = report.result_path(args.output, name, found)
    results: list[Result] = []

    def keep(result: Result) -> None:
        results.append(result)
        print(f"\n{summary.show(result)}", flush=True)
        report.write_json(path, {"suite": name, **found, "options": _plain(args), "cases": results})

    with timing.fresh_caches():
        for i, table in enumerate(tables):
            keep(table.measure(args, Deadline.after(deadline.left() / (len(tables) - i))))
            _forget(device)
        for result in finish(results):
            keep(result)
    for group in summary.groups(results, least=2):
        print(f"\n==== {group.title}\n{report.table(group.head, group.rows)}")
    print(f"\n{summary.machine(found)}; {_load(found, results)}\nJSON: {path}")
    if args.plot and (picture := plots.drawn(plot, {"suite": name, **found, "cases": results}, path)):
        print(picture)
    return 0


def _load(found: Result, results: Sequence[Result]) -> str:
    """What to say of the load: threads that wait for each other wait for whoever else has their cores."""
    before, cores = found["machine"]["load_average"][0], found["machine"]["cores"]
    most = max((result.get("load_average", 0.0) for result in results), default=0.0)
    disturbed = f", up to {most:.1f} on {cores} cores: others disturbed this" if most > cores + 1 else ""
    return f"load average {before:.1f} before{disturbed}"


def _forget(device: torch.device) -> None:
    """The next table starts from nothing: no memory taken, and no compiled code whose guards it would have to fail."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(v) if v == float("inf") else v for name, v in vars(args).items() if not isinstance(v, Path)}


# ---- contenders side by side ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Contenders on the same work.

    Args:
        name: of the table.
        about: what the work is.
        contenders: allocates what they work on, which lives as long as they do.
        reference: those to whose fastest the others are compared; whatever else compares them has no ratios.
        ours: the contender whose ratio stands for the table.
        group: the title of the suite's summary in which the table has a place; none if empty.
        row, column: its place there.
        value: what the summary shows: "ratio", "seconds", or "per leaf".
        leaves: the number of leaves, if that tells something.
        needs: bytes of memory that must be free.
        moves, holds: the bytes that a step has to move at least, and those that the tensors it moves take: for the
            floor, of which there is none without.
        rounds: samples of each contender, at most.
        clock: which one, if it is not the device's.
        warm: see `timing.contest`.
        facts: further ones for the JSON.
    """

    name: str
    about: str
    contenders: Callable[[], Sequence[Contender]]
    reference: tuple[str, ...] = ()
    ours: str = "funcopt"
    group: str = ""
    row: str = ""
    column: str = ""
    value: str = "ratio"
    leaves: int | None = None
    needs: int = 0
    moves: int = 0
    holds: int = 0
    rounds: int | None = None
    clock: Clock | None = None
    warm: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, args: argparse.Namespace, deadline: Deadline) -> Result:
        """The contest, and what its figures are compared with."""
        device = torch.device(args.device)
        shown = ("name", "about", "group", "row", "column", "value", "ours", "leaves")
        out: Result = {key: getattr(self, key) for key in shown} | dict(self.facts)
        out["references"] = list(self.reference)
        out["load_average"] = os.getloadavg()[0]  # above the number of cores, every barrier between threads waits
        free = report.free_bytes(device)
        if deadline.left() == 0:
            return {**out, "skipped": "not reached: the time was up"}
        if free is not None and free < self.needs:
            return {**out, "skipped": f"left out: needs {_gib(self.needs)} GiB, {_gib(free)} GiB are free"}
        try:
            outcomes = self._contest(args, device, deadline)
        except Exception as error:
            return {**out, "skipped": f"failed: {report.first_line(error)}"}
        probes, rows = outcomes[: len(floor.PROBES)], outcomes[len(floor.PROBES) :]
        if not self.moves:
            probes, rows = [], outcomes
        least = floor.floor(probes, self.holds, self.moves)
        medians = {o.name: o.median for o in rows if o.status == "ok" and o.median and o.name in self.reference}
        fastest = min(medians, key=medians.__getitem__, default=None)
        base = None if fastest is None else medians[fastest]
        if self.moves:
            out |= {"bytes": self.moves, "floor": {**vars(least), "probes": [_row(o, None, None) for o in probes]}}
        return {**out, "reference": fastest, "contenders": [_row(o, base, least.seconds) for o in rows]}

    def _contest(self, args: argparse.Namespace, device: torch.device, deadline: Deadline) -> list[Outcome]:
        """The outcomes of the probes, then of the contenders; all tensors live only as long as this."""
        contenders = self.contenders()
        names = getattr(args, "contenders", None)
        return timing.contest(
            [
                *(floor.probes(self.holds, device) if self.moves else ()),
                *(c for c in contenders if names is None or c.name in names),
            ],
            self.clock or timing.clock_for(device),
            rounds=min(args.rounds, self.rounds or args.rounds),
            seed=args.seed,
            budget=args.budget,
            deadline=deadline,
            warm=self.warm,
        )


def _row(outcome: Outcome, base: float | None, least: float | None) -> Result:
    ratio = lambda to: outcome.median / to if outcome.median and to else None  # noqa: E731
    return {
        **vars(outcome),
        "median": outcome.median,
        "quartiles": outcome.quartiles,
        "ratio": ratio(base),
        "ratio_to_floor": ratio(least),
    }


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


# ---- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Rows of figures, of which each is found by itself.

    Args:
        name, about, group: as a contest has them.
        head: what the figures of a row are, with their units.
        rows: by name, what finds the figures of each.
    """

    name: str
    about: str
    head: tuple[str, ...]
    rows: Mapping[str, Callable[[], Sequence[float | None]]]
    group: str = ""

    def measure(self, args: argparse.Namespace, deadline: Deadline) -> Result:
        """The figures."""
        out: Result = {"name": self.name, "about": self.about, "group": self.group, "head": list(self.head)}
        rows = [self._row(name, deadline) for name in report.progress(list(self.rows), "figures")]
        return {**out, "rows": rows}

    def _row(self, name: str, deadline: Deadline) -> Result:
        status, note, values = "ok", "", []
        try:
            with timing.time_limit(deadline.left()):
                values = list(self.rows[name]())
        except timing.OutOfTime:
            status, note = "not reached", "the time was up"
        except Exception as error:
            status, note = "failed", report.first_line(error)
        return {"name": name, "status": status, "note": note, "values": values}
