"""Trying an optimizer on its laws: `check_laws`, its report, and `law_tests` for pytest."""

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from funcopt import hyper
from funcopt.table import table
from funcopt.testing.case import Case, code
from funcopt.testing.claims import Claims, claims_of
from funcopt.testing.class_form import plain_shape
from funcopt.testing.law import BrokenLawError, Law
from funcopt.testing.laws import LAWS
from funcopt.testing.subject import KINDS, AnySubject, ClassSubject, FunctionSubject, Subject, subject_of

__all__ = ["Counterexample", "Report", "Verdict", "check_laws", "law_tests"]

MAX_EXAMPLES = 100

# How many cases an exemption has at least to show that it is needed.
EXEMPTED = 200

# How long a counterexample is made smaller for, in seconds.
SHRINKING = 20.0


@dataclass(frozen=True)
class Counterexample:
    """A case that breaks a law: what was seen, and a program that shows it again."""

    case: Case
    message: str
    program: str


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
        if not self.ok:
            raise BrokenLawError("\n" + str(self))
        return self

    def __str__(self) -> str:
        rows = [("law", "", "examples", "what it says, what was seen, or why it is exempt")]
        for v in sorted(self.verdicts, key=lambda v: STATUSES.index(v.status)):
            detail = _first_line(v.law.equation if v.status == "held" else v.detail)
            rows.append((v.law.name, v.status, str(v.examples) if v.status == "held" else "", detail))
        counts = [f"{n} {status}" for status in STATUSES if (n := sum(v.status == status for v in self.verdicts))]
        title = f"{self.name}: {self.claims}".rstrip(": ")
        broken = [_shown(v) for v in self.verdicts if v.status == "broken"]
        return "\n".join([title, "", *table("<<><", rows), "", ", ".join(counts) or "no laws", *broken])

    __repr__ = __str__


STATUSES = ("broken", "unneeded", "held", "exempt")


def _first_line(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _shown(verdict: Verdict) -> str:
    assert verdict.counterexample is not None
    found = verdict.counterexample
    return f"\n{verdict.law.name}: {verdict.law.equation}\n{found.message}\n\n{found.program}"


def check_laws(
    opt: Any,
    *,
    laws: Iterable[Law | str] | None = None,
    exempt: Mapping[str, str] | None = None,
    backend: str | None = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int = 0,
    kind: str = "optimizer",
    family: str | None = None,
    elementwise: bool | None = None,
    decoupled: bool | None = None,
    skips_nonfinite: bool = False,
    fixed: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Any] | None = None,
    shapes: SearchStrategy[tuple[int, ...]] | None = None,
    sparse: bool = False,
    reference: Any = None,
    progress: Callable[[Verdict], None] | None = None,
) -> Report:
    """Try an optimizer on the laws that update equations keep.

    A rule gets every law that speaks of what it has. Of a class with torch.optim's interface what it is (`family`,
    `elementwise`, `decoupled`) is taken from the arguments, else found out, and printed with the report.

    Args:
        opt: a rule's factory (`funcopt.adamw`), whose flags are drawn; a pure optimizer; or a class with torch.optim's
            interface, funcopt's own included.
        laws: some of `funcopt.testing.laws`, or their names; all if left out.
        exempt: the names of laws that it need not keep, each with the reason; added to what a rule exempts itself from.
            An exemption from a law that holds is reported as `unneeded`.
        backend: which one runs it; its own, if left out.
        max_examples: how many cases an ordinary law is tried on; costly ones take fewer.
        seed: of the drawing; the same seed draws the same cases from the same code.
        kind: "optimizer"; or "clip", for a function `(grads, max_norm) -> grads` over lists; or "schedule", for a
            function `step -> number`, of which `fixed` may give the `peak`, the last step of `warmup`, the `joins`, and
            the `lr` that its reference, a function from optimizer to `LRScheduler`, starts from.
        family: the algorithm whose exact values it must have, such as "adam"; "none" for none that is known.
        elementwise: whether an element's step depends on that element alone.
        decoupled: whether weight decay acts beside the step.
        skips_nonfinite: whether a step with a gradient that is not finite is skipped.
        fixed: arguments that the class is always constructed with.
        ranges: ranges of a class's numbers that do not go by a name of torch.optim's: `funcopt.Number` by name.
        shapes: a strategy for the parameters' shapes, for a class that does not take all.
        sparse: give a class sparse gradients.
        reference: an optimizer that it must agree with; if left out, torch.optim's class of the same name.
        progress: called with each verdict as it falls.

    Returns:
        The report: one verdict for each law.

    Raises:
        TypeError: `opt` is no optimizer.
        ValueError: there is no such law or backend, or a number of examples below 1.
        RuntimeError: the optimizer cannot take one plain step.
    """
    _check_examples(max_examples)
    chosen = chosen_laws(laws, kind)
    taken = _taken(
        opt,
        exempt=exempt,
        family=family,
        elementwise=elementwise,
        decoupled=decoupled,
        skips_nonfinite=skips_nonfinite,
        kind=kind,
        backend=backend,
        fixed=fixed,
        ranges=ranges,
        shapes=shapes,
        sparse=sparse,
        reference=reference,
    )
    verdicts = []
    for law in chosen:
        verdicts.append(_verdict(taken, law, max_examples, seed))
        if progress is not None:
            progress(verdicts[-1])
    return Report(taken.subject.name, taken.claims, verdicts)


@dataclass(frozen=True)
class _Taken:
    """An optimizer, what it was taken to be, and the laws that it is exempt from."""

    subject: AnySubject
    claims: Claims
    exempt: Mapping[str, str]


def _check_examples(given: int) -> None:
    if not isinstance(given, int) or given < 1:
        raise ValueError(f"max_examples is {given!r}; an int of at least 1 is needed")


def _taken(
    opt: Any,
    *,
    exempt: Mapping[str, str] | None = None,
    family: str | None = None,
    elementwise: bool | None = None,
    decoupled: bool | None = None,
    skips_nonfinite: bool = False,
    **run: Any,
) -> _Taken:
    """Look an optimizer over; raises what `check_laws` says."""
    subject = subject_of(opt, **run)
    exempt = {**subject.exempt, **(exempt or {})}
    for name, reason in exempt.items():
        if name not in LAWS:
            raise ValueError(f"there is no law {name!r} to be exempt from; {hyper.suggest(name, LAWS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"the exemption from {name} has no reason; give one as text")
    if not isinstance(subject, FunctionSubject):
        _plain_step(subject)

    def holds(name: str) -> bool:
        return _search(subject, LAWS[name], 25, 0, shrink=False)[1] is None

    claims = claims_of(
        subject,
        exempt,
        holds,
        family=family,
        elementwise=elementwise,
        decoupled=decoupled,
        skips_nonfinite=skips_nonfinite,
    )
    return _Taken(subject, claims, exempt)


def chosen_laws(laws: Iterable[Law | str] | None, kind: str = "optimizer") -> list[Law]:
    """The laws of these names, all of a kind if None; raises ValueError for one that there is not."""
    if laws is None:
        return [law for law in LAWS.values() if (law.of if law.of in KINDS else "optimizer") == kind]
    out = []
    for law in [laws] if isinstance(laws, str | Law) else laws:
        if not isinstance(law, Law) and law not in LAWS:
            raise ValueError(f"there is no law {law!r}; {hyper.suggest(str(law), LAWS)}")
        out.append(law if isinstance(law, Law) else LAWS[law])
    return out


def law_tests(
    opt: Any,
    *,
    laws: Iterable[Law | str] | None = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int = 0,
    **options: Any,
) -> Callable[[Law], None]:
    """One pytest test for each law: `test_laws = law_tests(my_rule)` in a test file is all it takes.

    Args:
        opt: as `check_laws` takes it.
        laws: some of `funcopt.testing.laws`, or their names; all if left out.
        max_examples: as `check_laws` takes it.
        seed: as `check_laws` takes it.
        **options: the others of `check_laws`.

    Returns:
        A test function, parametrized over the laws; one that does not apply is skipped, with the reason.
    """
    import pytest

    _check_examples(max_examples)
    chosen = chosen_laws(laws, options.get("kind", "optimizer"))
    if laws is None:
        chosen = [law for law in chosen if law.of != ("pure" if isinstance(opt, type) else "class")]
    taken = functools.cache(lambda: _taken(opt, **options))

    @pytest.mark.parametrize("law", [pytest.param(law, id=law.name) for law in chosen])
    def test(law: Law) -> None:
        verdict = _verdict(taken(), law, max_examples, seed)
        if verdict.status == "exempt":
            pytest.skip(verdict.detail)
        Report(taken().subject.name, taken().claims, [verdict]).require()

    return test


# ---- one law --------------------------------------------------------------------------------------------------------


def _plain_step(subject: Subject) -> None:
    shapes = subject.shapes
    size = (2, 3) if shapes is None else plain_shape(shapes)
    p = torch.ones(size, dtype=torch.float64)
    try:
        subject.run(Case([p], [[subject.gradient(p)]], subject.some_numbers()))
    except Exception as error:
        raise RuntimeError(
            f"{subject.name} cannot take one step on a float64 parameter of shape {tuple(size)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _verdict(taken: _Taken, law: Law, max_examples: int, seed: int) -> Verdict:
    subject, claims, reason = taken.subject, taken.claims, taken.exempt.get(law.name)
    if excuse := replace(law, claim=None).excuse(subject, claims):
        return Verdict(law, "exempt", excuse)
    if reason is None and (excuse := law.excuse(subject, claims)):
        return Verdict(law, "exempt", excuse)
    start = time.perf_counter()
    cases = max(max_examples // law.cost, 1) if reason is None else max(max_examples, EXEMPTED)
    examples, found = _search(subject, law, cases, seed, shrink=reason is None)
    seconds = time.perf_counter() - start
    if reason is not None and found is None:
        return Verdict(law, "unneeded", f"it holds, though exempt: {reason}", examples, seconds)
    if reason is not None:
        return Verdict(law, "exempt", reason, examples, seconds, found)
    if found is not None:
        return Verdict(law, "broken", found.message, examples, seconds, found)
    return Verdict(law, "held", "", examples, seconds)


class _FoundError(Exception):
    """One kind of failure, so that hypothesis makes a smaller example of whatever broke first."""


def _search(
    subject: AnySubject, law: Law, examples: int, seed: int, *, shrink: bool
) -> tuple[int, Counterexample | None]:
    """How many cases were tried, and the smallest that breaks the law."""
    tried, first, last = 0, 0.0, None

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        derandomize=False,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(law.cases(subject))
    def attempt(case: Case) -> None:
        nonlocal tried, first, last
        if last is None:
            tried += 1
        elif time.perf_counter() - first > SHRINKING:
            return
        failure = _failure(subject, law, case)
        if failure is not None:
            first = first or time.perf_counter()
            last = case, failure
            raise _FoundError

    try:
        attempt()
    except (_FoundError, hypothesis.errors.Flaky, BaseExceptionGroup):
        if last is None:
            raise
    if last is None:
        return tried, None
    case, message = last
    return tried, Counterexample(case, message, program(subject, law, case))


def _failure(subject: AnySubject, law: Law, case: Case) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="triton")  # its interpreter has NumPy warn of every NaN
            law.holds(subject, case)
    except BrokenLawError as broken:
        return str(broken)
    except Exception as error:
        return f"it raises {type(error).__name__}: {error}"
    return None


def program(subject: AnySubject, law: Law, case: Case) -> str:
    """Python that tries a law on one case, to be pasted into a file and run."""
    line, expression = subject.expression
    if isinstance(subject, ClassSubject):
        case = case.but(numbers={**subject.fixed, **case.numbers})
    text = repr(case)
    names = [name for name in ("bfloat16", "float16", "float32", "float64", "inf", "nan", "tensor") if name in text]
    drawn = [name for name in ("Problem", "Schedule") if f"{name}(" in code(case.more)]
    imports = ["import torch", f"from torch import {', '.join(names)}", "", line]
    imports += [f"from funcopt.testing import {', '.join(['Case', *drawn, 'laws'])}"]
    says = f", fixed={code(dict(subject.says))}" if isinstance(subject, FunctionSubject) and subject.says else ""
    return "\n".join([*imports, "", f"laws.{law.name}.check({expression}, {text}{says})"])
