"""Trying an optimizer on its laws: `check_laws`, and `law_tests` for pytest."""

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy

from funcopt import hyper
from funcopt.testing.case import Case, code
from funcopt.testing.claims import Claims, claims_of
from funcopt.testing.law import BrokenLawError, Law
from funcopt.testing.laws import LAWS
from funcopt.testing.report import Report, Verdict, first_line
from funcopt.testing.search import place, search
from funcopt.testing.subject import KINDS, AnySubject, FunctionSubject, Subject, subject_of

__all__ = ["check_laws", "law_tests"]

MAX_EXAMPLES = 100

# How many cases an exemption has at least to show that it is needed.
EXEMPTED = 200


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
    dtypes: Sequence[torch.dtype] | None = None,
    layouts: Sequence[str] | None = None,
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
        shapes: a strategy for the parameters' shapes, for an optimizer that does not take all.
        dtypes: the parameters' dtypes, likewise; float64 is one of them, in which most laws are tried.
        layouts: how tensors lie in memory, likewise: some of `strategies.LAYOUTS`, contiguous among them.
        sparse: give a class sparse gradients.
        reference: an optimizer that it must agree with, or "none"; if left out, torch.optim's class of the same name,
            unless that has numbers that this one has not.
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
        dtypes=dtypes,
        layouts=layouts,
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
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
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
    for name, claim in {"elementwise": elementwise, "decoupled": decoupled, "skips_nonfinite": skips_nonfinite}.items():
        if not isinstance(claim, bool | None):
            raise ValueError(f"{name} is {claim!r}; True, False, or None to find out, is needed")
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
        return search(subject, LAWS[name], 25, 0, shrink=False).counterexample is None

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
        A test function, parametrized over the laws; one that does not apply is skipped, with the reason. In a class of
        tests it is a `staticmethod`.

    Raises:
        TypeError: there is no such option.
        ValueError: there is no such law, or a number of examples below 1.
    """
    import pytest

    _check_examples(max_examples)
    known = [name for name in inspect.signature(check_laws).parameters if name not in ("opt", "progress")]
    for name in options.keys() - set(known):
        raise TypeError(f"check_laws has no argument {name!r}; {hyper.suggest(name, known)}")
    chosen = chosen_laws(laws, options.get("kind", "optimizer"))
    if laws is None:
        chosen = [law for law in chosen if law.of != ("pure" if isinstance(opt, type) else "class")]
    taken = functools.cache(lambda: _taken(opt, **options))

    @pytest.mark.parametrize("law", [pytest.param(law, id=law.name) for law in chosen])
    def test(law: Law) -> None:
        __tracebackhide__ = True
        verdict = _verdict(taken(), law, max_examples, seed)
        if verdict.status == "exempt":
            pytest.skip(verdict.detail)
        report = Report(taken().subject.name, taken().claims, [verdict])
        if not report.ok:
            raise BrokenLawError(f"{law.name}: {first_line(verdict.detail)}\n\n{report}")

    return test


# ---- one law --------------------------------------------------------------------------------------------------------


def _plain_step(subject: Subject) -> None:
    p, numbers = subject.takes.usual(), subject.some_numbers()
    try:
        subject.run(Case([p], [[subject.gradient(p)]], numbers))
    except Exception as error:
        raise RuntimeError(
            f"{subject.name} cannot take one step on a {code(p.dtype)} parameter of shape {tuple(p.shape)}: "
            f"{type(error).__name__}: {error}{place(error)}; it was given {numbers}: fixed= (--fixed NAME=VALUE) gives "
            "it other arguments, shapes= (--dims MIN:MAX) and dtypes= (--dtypes) other parameters"
        ) from error


def _verdict(taken: _Taken, law: Law, max_examples: int, seed: int) -> Verdict:
    subject, claims, reason = taken.subject, taken.claims, taken.exempt.get(law.name)
    if excuse := replace(law, claim=None).excuse(subject, claims):
        return Verdict(law, "exempt", excuse)
    if reason is None and (excuse := law.excuse(subject, claims)):
        return Verdict(law, "exempt", excuse)
    start = time.perf_counter()
    cases = max_examples if reason is None else max(max_examples, EXEMPTED)
    searched = search(subject, law, max(cases // law.cost, 1), seed, shrink=reason is None)
    examples, found, seconds = searched.examples, searched.counterexample, time.perf_counter() - start
    if not examples:
        return Verdict(law, "exempt", f"says nothing of all that was drawn: {searched.nothing}", 0, seconds)
    if reason is not None and found is None:
        return Verdict(law, "unneeded", f"it holds, though exempt: {reason}", examples, seconds)
    if found is not None and reason is not None:
        raised = f" ({found.message})" if found.message.startswith("it raises ") else ""
        return Verdict(law, "exempt", reason + raised, examples, seconds, found)
    if found is not None:
        return Verdict(law, "broken", found.message, examples, seconds, found)
    return Verdict(law, "held", "", examples, seconds)
