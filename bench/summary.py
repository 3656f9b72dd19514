"""Results as people read them: each table by itself, and a suite's tables beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import report

Result = dict[str, Any]


# ---- one table ------------------------------------------------------------------------------------------------------


def show(result: Result) -> str:
    """A table with all that was measured for it."""
    title = f"{result['name']}: {result['about']}"
    if "skipped" in result:
        return f"{title}\n{result['skipped']}"
    if "head" in result:
        return f"{title}\n{report.table(['', *result['head']], [_figures(row) for row in result['rows']])}"
    if probe := result.get("floor", {}).get("probe"):
        rate, seconds = result["floor"]["bytes_per_second"][probe], result["floor"]["seconds"]
        title += f"\nfloor: {result['bytes'] / 1e6:,.1f} MB at {rate / 1e9:,.1f} GB/s ({probe}) = {_time(seconds)}"
    rows = result["contenders"]
    name, scale, digits = report.unit([row["median"] for row in rows])
    head = ["contender", f"median {name}", "quartiles", "first call s", "samples"]
    leaves = result["leaves"] if result["value"] == "per leaf" else None
    extra = {"µs per leaf": lambda row: report.number(row["median"] * 1e6 / leaves)} if leaves else {}
    if result["reference"]:
        extra[f"x {result['reference']}"] = lambda row: report.number(row["ratio"])
    if probe:
        extra["x floor"] = lambda row: report.number(row["ratio_to_floor"])

    def cells(row: Result) -> list[str]:
        if row["status"] != "ok":
            return [row["name"], f"{row['status']}: {row['note']}"]
        return [
            row["name"],
            report.number(row["median"] * scale, digits),
            "-".join(report.number(q * scale, digits) for q in row["quartiles"]),
            *(cell(row) for cell in extra.values()),
            report.number(row["first"]),
            str(len(row["samples"])),
        ]

    return f"{title}\n{report.table([*head[:3], *extra, *head[3:]], [cells(row) for row in rows])}"


def _figures(row: Result) -> list[str]:
    if row["status"] != "ok":
        return [row["name"], f"{row['status']}: {row['note']}"]
    return [row["name"], *(report.number(v, 0 if isinstance(v, int) else 2) for v in row["values"])]


def _time(seconds: float) -> str:
    name, scale, _ = report.unit([seconds])
    return f"{seconds * scale:.3g} {name}"


def machine(found: Result) -> str:
    """Where results were measured."""
    where = f"{found['machine']['cpu']}, {found['machine']['threads']} threads"
    device = "" if found["device"] == "cpu" else f"; {found['device']}"
    return f"{where}{device}; torch {found['versions']['torch']}"


# ---- tables beside each other ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Tables of one group in one: a title, the head, the rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def groups(results: Sequence[Result], least: int = 1) -> list[Group]:
    """A table for each group of so many results: of all contenders where they stand in one row, else of ours alone."""
    out = []
    for title in dict.fromkeys(result["group"] for result in results if result["group"]):
        members = [result for result in results if result["group"] == title]
        if len(members) < least:
            continue
        figures = [result for result in members if "head" in result]
        if figures:
            rows = [row for result in figures for row in map(_figures, result["rows"])]
            out.append(Group(title, ["", *figures[0]["head"]], rows))
        elif len({result["row"] for result in members}) == 1:
            out.append(_by_contender(title, members))
        else:
            out.append(_by_row(title, members))
    return out


def _by_contender(title: str, results: Sequence[Result]) -> Group:
    names = dict.fromkeys(row["name"] for result in results for row in result.get("contenders", ()))
    rows = [[name, *(_cell(result, name) for result in results)] for name in names]
    rows = [row for row in rows if set(row[1:]) != {"–"}]  # not there, or left out everywhere
    floored = [result.get("floor", {}).get("seconds") for result in results]
    if any(floored) and rows:
        ours = results[0]["ours"]
        rows.append([f"{ours}, × the memory's limit", *(_cell(result, ours, "ratio_to_floor") for result in results)])
    return Group(title, ["", *(result["column"] for result in results)], rows)


def _by_row(title: str, results: Sequence[Result]) -> Group:
    """A row for each kind of table, and one for each variant of ours beside it."""
    columns = list(dict.fromkeys(result["column"] for result in results))
    rows = []
    for label in dict.fromkeys(result["row"] for result in results):
        members = {result["column"]: result for result in results if result["row"] == label}
        ours = next(iter(members.values()))["ours"]
        names = [row["name"] for result in members.values() for row in result.get("contenders", ())]
        for name in dict.fromkeys([ours, *(name for name in names if name.startswith(f"{ours}-"))]):
            cells = [_compared(members[column], name) if column in members else "" for column in columns]
            if name == ours or set(cells) != {"–"}:
                rows.append([label if name == ours else f"{label}, {name}", *cells])
    return Group(title, ["", *columns], rows)


def _compared(result: Result, name: str) -> str:
    """A cell, with the name of what it is compared to where each table has a reference of its own."""
    own = len(result["references"]) > 1 and "contenders" in result
    value = "ratio" if result.get("reference") else "ratio_to_floor"
    cell = _cell(result, name, value if own else None)
    return f"{cell} × {result['reference'] or 'floor'}" if own and cell[0].isdigit() else cell


def _cell(result: Result, name: str, value: str | None = None) -> str:
    row = next((row for row in result.get("contenders", ()) if row["name"] == name), None)
    if row is None or row["status"] != "ok":
        return "–" if row is None or row["status"] == "left out" else row["status"]
    value = value or result["value"]
    if value == "seconds":
        return _time(row["median"])
    return _time(row["median"] / result["leaves"]) if value == "per leaf" else report.number(row[value])
