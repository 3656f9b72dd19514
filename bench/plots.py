"""Results drawn: each contender's ratio to the reference, table by table; times against sizes."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report

Result = dict[str, Any]

OURS = "#c8102e"
PEERS = ("#1f5fa8", "#3f8f5f", "#8a5fb0", "#d08a1d", "#4fa3b5", "#7a7a7a", "#a65a3a", "#b4608f")


def drawn(draw: Callable[[Result, Path], None], results: Result, beside: Path) -> str | None:
    """Draw results into a PNG beside their JSON; what to say of it: where it is, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no PNG: matplotlib is not installed"
    path = beside.with_suffix(".png")
    try:
        draw(results, path)
    except Exception as error:
        return f"no PNG: {report.first_line(error)}"
    return f"PNG: {path}" if path.exists() else None


def ratios(results: Result, path: Path) -> None:
    """A line for each table, and on it a dot for each contender: its ratio to the reference, on a log axis."""
    from matplotlib.figure import Figure

    tables = [case for case in results["cases"] if any(row.get("ratio") for row in case.get("contenders", ()))]
    if not tables:
        return
    colours = _colours([row["name"] for case in tables for row in case["contenders"]])
    figure = Figure(figsize=(9, 1.6 + 0.28 * len(tables)), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in colours.items():
        dots = [
            (row["ratio"], y)
            for y, case in enumerate(tables)
            for row in case["contenders"]
            if row["name"] == name and row["status"] == "ok" and row["ratio"]
        ]
        if dots:
            big = name.startswith("funcopt")
            axes.plot(
                *zip(*dots, strict=True), "o", color=colour, ms=7 if big else 5, label=name, zorder=3 if big else 2
            )
    axes.axvline(1, color="0.5", lw=1, zorder=1)
    axes.set(xscale="log", ylim=(len(tables) - 0.5, -0.5), xlabel=f"time, × {_reference(tables)} (less is better)")
    axes.set_yticks(range(len(tables)), [case["name"] for case in tables], fontsize=8)
    _plain_ticks(axes.xaxis)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="y", color="0.92")
    axes.grid(axis="x", which="both", color="0.92")
    axes.set_title(_title(results), fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def lines(results: Result, path: Path) -> None:
    """Times against sizes, a panel for each group of tables that have a "size"."""
    from matplotlib.figure import Figure

    tables = [case for case in results["cases"] if "size" in case and "contenders" in case]
    panels = list(dict.fromkeys(case["against"] for case in tables))
    if not panels:
        return
    colours = _colours([row["name"] for case in tables for row in case["contenders"]])
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, colour in colours.items():
            points = [
                (case["size"], row["median"])
                for case in tables
                if case["against"] == panel
                for row in case["contenders"]
                if row["name"] == name and row["status"] == "ok"
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, label=name)
        axes.set(xscale="log", yscale="log", xlabel=panel, ylabel="seconds a step")
        axes.grid(which="both", color="0.92")
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(_title(results), fontsize=9)
    figure.savefig(path, dpi=130)


def _colours(names: Sequence[str]) -> dict[str, str]:
    peers = list(dict.fromkeys(name for name in names if not name.startswith("funcopt")))
    ours = list(dict.fromkeys(name for name in names if name.startswith("funcopt")))
    shades = [OURS, "#e88a96", "#7d0a1d", "#f0b8bf"]
    out = {name: shades[i % len(shades)] for i, name in enumerate(ours)}
    return out | {name: PEERS[i % len(PEERS)] for i, name in enumerate(peers)}


def _reference(tables: Sequence[Result]) -> str:
    names = {case["reference"] for case in tables}
    return names.pop() if len(names) == 1 else "the reference, which is at 1"


def _plain_ticks(axis: Any) -> None:
    """0.5, 1, 2, 5 and not powers of ten, most of which a ratio never comes near."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _title(results: Result) -> str:
    versions, day = results["versions"], results["date"][:10]
    return f"{results['suite']}: {results['machine']['cpu']}, {results['device']}, torch {versions['torch']}, {day}"
