"""What became of an optimizer's laws, and how it is printed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from funcopt import hyper
from funcopt.table import table
from funcopt.testing.claims import Claims
from funcopt.testing.law import BrokenLawError, Law
from funcopt.testing.search import Counterexample

__all__ = ["Report", "Verdict", "first_line"]

STATUSES = ("broken", "unneeded", "held", "exempt")
HALVES = {torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Verdict:
    """What became of a law: `held`, `broken`, `exempt`, or `unneeded`, which is an exemption from a law that holds.

    Args:
        law: which.
        status: see above.
        detail: what was seen where it is broken, and why it is exempt.
        examples: how many cases it was tried on.
        seconds: how long that took.
        counterexample: the smallest case found that breaks it.
    """

    law: Law
    status: str
    detail: str = ""
    examples: int = 0
    seconds: float = 0.0
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class Report:
    """The verdict on each law, and what the optimizer was taken to be; printed, a table and the counterexamples."""

    name: str
    claims: Claims
    verdicts: Sequence[Verdict]

    @property
    def broken(self) -> list[Verdict]:
        """The verdicts that are not as they should be: broken laws, and exemptions that are not needed."""
        return [verdict for verdict in self.verdicts if verdict.status in ("broken", "unneeded")]

    @property
    def ok(self) -> bool:
        """Whether no law is broken, and no exemption unneeded."""
        return not self.broken

    def __getitem__(self, law: str | Law) -> Verdict:
        """The verdict on a law."""
        name = law if isinstance(law, str) else law.name
        for verdict in self.verdicts:
            if verdict.law.name == name:
                return verdict
        raise KeyError(f"{name} was not tried; {hyper.suggest(name, [v.law.name for v in self.verdicts])}")

    def require(self) -> "Report":
        """Return itself where all is well.

        Raises:
            BrokenLawError: the report, where a law is broken or an exemption unneeded.
        """
        __tracebackhide__ = True
        if self.broken:
            names = ", ".join(v.law.name for v in self.broken)
            raise BrokenLawError(f"{self.name}: {names}\n\n{self}")
        return self

    def text(self, *, brief: bool = False) -> str:
        """The report as it is printed; if brief, without the rows of the laws that hold or are exempt."""
        rows = [("law", "", "examples", "what it says, what was seen, or why it is exempt")]
        for v in sorted(self.broken if brief else self.verdicts, key=lambda v: STATUSES.index(v.status)):
            detail = first_line(v.law.equation if v.status == "held" else v.detail)
            rows.append((v.law.name, v.status, str(v.examples) if v.status == "held" else "", detail))
        counts = [f"{n} {status}" for status in STATUSES if (n := sum(v.status == status for v in self.verdicts))]
        lines = [f"{self.name}: {self.claims}".rstrip(": "), ""]
        lines += [*table("<<><", rows), ""] if rows[1:] else []
        return "\n".join([*lines, ", ".join(counts) or "no laws", *self._counterexamples(), *self._hints()])

    __str__ = text
    __repr__ = text

    def _counterexamples(self) -> Iterator[str]:
        """One for each law that is broken, and for each exception that is raised."""
        alike: dict[str, list[Verdict]] = {}
        for v in self.verdicts:
            if v.status == "broken":
                alike.setdefault(v.detail if v.detail.startswith("it raises ") else v.law.name, []).append(v)
        for first, *others in alike.values():
            found = first.counterexample
            assert found is not None
            yield f"\n{first.law.name}: {first.law.equation}\n{found.message}\n\n{found.program}"
            if others:
                yield f"\nSo it does in {', '.join(v.law.name for v in others)}."

    def _hints(self) -> Iterator[str]:
        """What to do where a law is broken because the optimizer was taken for what it is not meant to be."""
        broken, claims = [v for v in self.verdicts if v.status == "broken"], self.claims
        exact = ", ".join(v.law.name for v in broken if claims.family in v.law.families)
        if exact and claims.source.get("family") != "given":
            yield f'\nIf it is not meant to be {claims.family} ({exact}): family="none", or --family none.'
        decay = [v for v in broken if v.law.name in ("coupled_weight_decay", "decoupled_weight_decay")]
        if decay and claims.source.get("decoupled") != "given":
            yield "\nWhat its weight decay is meant to be is said by decoupled=True or False, or --decoupled yes or no."
        found = [v for v in broken if v.counterexample and {p.dtype for p in v.counterexample.case.params} & HALVES]
        if found:
            names = ", ".join(v.law.name for v in found)
            yield f"\nIf it is not meant for half precision ({names}): dtypes=, or --dtypes float32,float64."


def first_line(text: str, most: int = 100) -> str:
    """A text as one line that is not long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
