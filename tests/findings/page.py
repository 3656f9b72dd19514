"""The lines of FINDINGS.md."""

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping, Sequence

from funcopt.testing import Report, Verdict
from tests.findings.explained import FINDINGS, Finding, finding_of
from tests.findings.subjects import EXAMPLES, PACKAGES, Subject

Reports = Sequence[tuple[Subject, Report]]
Cases = Sequence[tuple[Subject, Verdict]]


def page(reports: Reports, missing: Sequence[str], minutes: float) -> Iterator[str]:
    """The whole page, of all reports, the packages that were not there, and the time that it took."""
    versions = [f"{name} {importlib.metadata.version(name)}" for p, name in PACKAGES.items() if p not in missing]
    yield "# What the laws find in other optimizers"
    yield ""
    yield "Written by `python -m tests.findings`, the words by hand (`tests/findings/programs/`), all else by the run;"
    yield f"do not edit it here. This run: Python {platform.python_version()}, {', '.join(versions)};"
    yield f"on a CPU, {EXAMPLES} cases for an ordinary law, seed 0; {minutes:.0f} minutes of one core."
    if missing:
        yield f"Not installed, and left out: {', '.join(missing)}."
    yield ""
    yield "The laws are those of [`funcopt.testing`](../funcopt/testing/laws); `python -m funcopt check --list` prints"
    yield "them. A broken law is one that an optimizer does not keep. Where it does not mean to, it is exempt, and the"
    yield "reason is at the end. Each finding is seen again without funcopt, by the program that stands with it."
    yield "`pytorch_optimizer.AdamW` is torch.optim's own class, so two others of that package are here instead."
    yield ""
    broken = [(subject, v) for subject, report in reports for v in report.verdicts if v.status == "broken"]
    found = {key: [(s, v) for s, v in broken if finding_of(s, v) == key] for key in FINDINGS}
    found = dict(sorted(found.items(), key=lambda item: -len(item[1])))
    found = {key: cases for key, cases in found.items() if cases}
    yield from summary(found)
    yield "## Findings"
    yield ""
    for key, cases in found.items():
        yield from details(FINDINGS[key], cases)
    if unexplained := [(s, v) for s, v in broken if finding_of(s, v) is None]:
        yield "## Not explained"
        yield ""
        yield from by_law(unexplained)
    yield from optimizers(reports)
    yield from exemptions(reports)


def summary(found: Mapping[str, Cases]) -> Iterator[str]:
    yield "## Summary"
    yield ""
    body = []
    for key, cases in found.items():
        finding = FINDINGS[key]
        has = who(cases) + (f"; by hand: {finding.seen}" if finding.seen else "")
        body.append((f"[{finding.title}](#{anchor(finding.title)})", has, finding.met))
    yield from rows(("finding", "who has it", "when a user meets it"), body)


def details(finding: Finding, cases: Cases) -> Iterator[str]:
    yield f"### {finding.title}"
    yield ""
    yield finding.text
    yield ""
    yield "```python"
    yield finding.source
    yield "```"
    yield ""
    if (printed := finding.output) is not None:
        yield "It prints"
        yield ""
        yield "```text"
        yield printed
        yield "```"
        yield ""
    yield from by_law(cases)


def by_law(cases: Cases) -> Iterator[str]:
    """Each law that some cases break, who breaks it, and the smallest case of the first, folded."""
    laws = {v.law.name: [(s, w) for s, w in cases if w.law is v.law] for _, v in cases}
    for name, those in laws.items():
        subject, verdict = those[0]
        found, law = verdict.counterexample, verdict.law
        message = " ".join(re.sub("\x1b\\[\\d*m", "", found.message).split())
        yield f"<details><summary><code>{name}</code> is broken by {'; '.join(s.name for s, _ in those)}</summary>"
        yield ""
        yield f"The law: {' '.join(law.equation.split())}"
        yield ""
        yield f"{subject.name}: {message if len(message) < 300 else message[:299] + '…'}"
        yield ""
        yield "```sh"
        yield subject.command(name)
        yield "```"
        yield ""
        yield "```python"
        yield found.program
        yield "```"
        yield ""
        yield "</details>"
        yield ""


def optimizers(reports: Reports) -> Iterator[str]:
    yield "## Optimizers"
    yield ""
    yield "`foreach=True` is the default on a GPU; it and `fused=True` are run on the CPU here."
    yield ""
    body = []
    for subject, report in reports:
        names: dict[str, list[str]] = {"held": [], "broken": [], "exempt": [], "unneeded": []}
        for v in report.verdicts:
            if v.status != "exempt" or v.counterexample is not None:  # the others are not about it
                names[v.status].append(v.law.name)
        broken, exempt = (", ".join(names[status]) or "none" for status in ("broken", "exempt"))
        body.append((subject.name, str(len(names["held"])), broken, exempt, str(report.claims)))
    yield from rows(("optimizer", "laws held", "broken", "exempt, reasons below", "taken to be"), body)


def exemptions(reports: Reports) -> Iterator[str]:
    yield "## Exemptions"
    yield ""
    yield "Laws that an algorithm does not mean to keep. Each was tried all the same, and is indeed not kept."
    yield ""
    known: dict[tuple[str, str], list[str]] = {}
    for subject, report in reports:
        for v in report.verdicts:
            if v.status == "exempt" and v.counterexample is not None:
                known.setdefault((v.law.name, subject.exempt[v.law.name]), []).append(subject.name)
    body = [(f"`{law}`", "; ".join(names), why) for (law, why), names in known.items()]
    yield from rows(("law", "optimizers", "reason"), body)


def who(cases: Cases) -> str:
    """The optimizers of some broken laws, each once, and not in all the ways that it runs in."""
    names = {s.name: None for s, _ in cases}
    return "; ".join(name for name in names if not any(name.startswith(f"{other}, ") for other in names))


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *body):
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"
    yield ""
