"""Figures to read: the newest results of each suite on each device, put between two marks of two pages.

The README has the suites that matter most, the page in the folder of the results has all. With --check both are left
as they are, and the exit status is 1 where one says something else than the results.
"""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bench import report, summary
from bench.suites import SUITES

ROOT = Path(__file__).parents[1]
FIRST = ("adamw", "pipeline")  # of the README
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"

Result = dict[str, Any]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="with the marks (README.md)")
    add("--results", type=Path, default=report.RESULTS, metavar="DIR", help="with a README.md too (bench/results)")
    add("--check", action="store_true", help="change nothing, and show where the pages differ")


def run(args: argparse.Namespace) -> int:
    """Bring the pages up to date, or see whether they are."""
    texts = {page: page.read_text() for page in pages(args.readme, args.results)}
    for page, text in texts.items():
        if BEGIN not in text or END not in text:
            print(f"{page} has no {BEGIN} … {END}", file=sys.stderr)
            return 2
    differ = False
    for page, suites in pages(args.readme, args.results).items():
        text, wanted = texts[page], replaced(texts[page], render(args.results, page.parent, suites))
        if wanted == text:
            print(f"{page} has the newest results")
        elif args.check:
            lines = (part.splitlines(keepends=True) for part in (text, wanted))
            sys.stdout.writelines(difflib.unified_diff(*lines, str(page), "what the results say"))
            differ = True
        else:
            page.write_text(wanted)
            print(f"{page} is up to date")
    return int(differ)


def pages(readme: Path = ROOT / "README.md", results: Path = report.RESULTS) -> dict[Path, Collection[str]]:
    """The pages, and the suites that each has."""
    return {readme: FIRST, results / "README.md": SUITES}


def replaced(text: str, rendered: str) -> str:
    """A text with something else between the marks."""
    head, rest = text.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    return f"{head}{BEGIN}\n{rendered}\n{END}{tail}"


def render(results: Path, beside: Path = ROOT, suites: Collection[str] = tuple(SUITES)) -> str:
    """The newest results of some suites in a folder as Markdown; links are relative to another."""
    found = [(name, result) for name, result in newest(results) if result["suite"] in suites]
    parts = [_suite(result, name, beside, results) for name, result in sorted(found, key=_order)]
    return "\n".join(["", *parts]) if parts else "\nNo results yet.\n"


def newest(folder: Path) -> list[tuple[str, Result]]:
    """The newest results of each suite on each device, with the names of their files."""
    found: dict[tuple[str, str], tuple[str, Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("schema") != report.SCHEMA:
            continue
        for part in _parts(result):
            key = part["suite"], part["device"]
            if key not in found or found[key][1]["date"] < part["date"]:
                found[key] = path.name, part
    return list(found.values())


def _parts(result: Result) -> list[Result]:
    """The suites within a result: itself, or those that `gpu` ran, what it ran of one suite put together."""
    if "parts" not in result:
        return [result]
    suites: dict[str, Result] = {}
    for part in (part for job in result["parts"] for part in job["results"]):
        whole = suites.setdefault(part["suite"], {**part, "date": result["date"], "cases": [], "within": "gpu"})
        for case in part["cases"]:
            _add(whole["cases"], case)
    return list(suites.values())


def _add(cases: list[Result], case: Result) -> None:
    """Add a case, or to one that is there the contenders that it lacks: their ratios are of a contest of their own."""
    same = next((other for other in cases if other["name"] == case["name"]), None)
    if same is None or "contenders" not in same or "contenders" not in case:
        cases.append(case)
        return
    there = {row["name"] for row in same["contenders"]}
    rows = [*same["contenders"], *(row for row in case["contenders"] if row["name"] not in there)]
    cases[cases.index(same)] = {**same, "contenders": rows}


def _order(entry: tuple[str, Result]) -> tuple[bool, str, int]:
    _, result = entry
    return result["device"] != "cpu", result["device"], list(SUITES).index(result["suite"])


# ---- Markdown -------------------------------------------------------------------------------------------------------


def _suite(result: Result, name: str, beside: Path, results: Path) -> str:
    file = Path(os.path.relpath(results.resolve(), beside.resolve()), name)
    links = [f"[JSON]({file.as_posix()})"]
    if (results / name).with_suffix(".png").exists():
        links.append(f"[drawn]({file.with_suffix('.png').as_posix()})")
    command = result.get("within", result["suite"])
    about = f"**{result['suite']}** (`python -m bench {command}`): {SUITES[result['suite']]}.\n"
    tables = [
        f"{group.title[0].upper()}{group.title[1:]}:\n\n{_markdown(group)}\n"
        for group in summary.groups(result["cases"])
    ]
    where = f"({summary.machine(result)}, {result['date'][:10]}; {', '.join(links)}.)\n"
    return "\n".join([about, *tables, where])


def _markdown(group: summary.Group) -> str:
    rows = [row + [""] * (len(group.head) - len(row)) for row in group.rows]
    rule = ["---"] * len(group.head)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [group.head, rule, *rows]
    )
