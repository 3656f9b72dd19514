"""The search for a case that breaks a law: drawn by hypothesis, made smaller, and written down as a program."""

import contextlib
import functools
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

import funcopt
from funcopt.testing.case import Case, code
from funcopt.testing.law import BrokenLawError, Law, SaysNothingError, Tried
from funcopt.testing.laws import LAWS
from funcopt.testing.pure_form import importing
from funcopt.testing.subject import AnySubject, ClassSubject, FunctionSubject, PureSubject

__all__ = ["Counterexample", "place", "search"]

# How long a counterexample is made smaller for, in seconds, by hypothesis and then by what follows.
SHRINKING = 20.0


@dataclass(frozen=True)
class Counterexample:
    """A case that breaks a law: what was seen, and a program that shows it again."""

    case: Case
    message: str
    program: str


class _FoundError(Exception):
    """One kind of failure, so that hypothesis makes a smaller example of whatever broke first."""


@dataclass(frozen=True)
class Searched:
    """What came of a search.

    Args:
        examples: how many cases the law says something of.
        counterexample: the smallest that breaks it; None where there is none.
        nothing: why it says nothing of others.
    """

    examples: int
    counterexample: Counterexample | None = None
    nothing: str = ""


def search(subject: AnySubject, law: Law, examples: int, seed: int, *, shrink: bool = True) -> Searched:
    """Look for a case that breaks a law.

    Args:
        subject: what the law is about.
        law: which.
        examples: how many cases to try at most.
        seed: of the drawing.
        shrink: whether to look for a smaller case than the first.
    """
    tried, first, last, nothing = 0, 0.0, None, ""

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
        nonlocal tried, first, last, nothing
        if last is not None and time.perf_counter() - first > SHRINKING:
            return
        try:
            failure = _failure(subject, law, case)
        except SaysNothingError as reason:
            nothing = str(reason)
            return
        tried += last is None
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
        return Searched(tried, None, nothing)
    case, failure = _smallest(subject, law, *last) if shrink else last
    return Searched(tried, Counterexample(case, failure, program(subject, law, case)), nothing)


def _failure(subject: AnySubject, law: Law, case: Case) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="triton")  # its interpreter has NumPy warn of every NaN
            law.holds(subject, case)
    except SaysNothingError:
        raise
    except BrokenLawError as broken:
        return str(broken)
    except Exception as error:
        return f"it raises {type(error).__name__}: {error}{place(error)}"
    return None


# Whose lines are not a user's.
OURS = tuple(f"{Path(module.__file__ or '').parent}{os.sep}" for module in (funcopt, torch))


def place(error: Exception) -> str:
    """The user's line that an error comes through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(OURS):
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""


# ---- a smaller case -------------------------------------------------------------------------------------------------


def _smallest(subject: AnySubject, law: Law, case: Case, failure: str) -> tuple[Case, str]:
    """A case that fails in the same way, and of which nothing can be left out; hypothesis makes values simple."""
    end = time.perf_counter() + SHRINKING

    def kind(failure: str) -> str:
        return failure.partition(":")[0] if failure.startswith("it raises ") else ""

    found = True
    while found:
        found = False
        for smaller in _smaller(case, law.tried, subject.dims if subject.takes.shapes is None else ()):
            if time.perf_counter() > end:
                return case, failure
            with contextlib.suppress(SaysNothingError):
                other = _failure(subject, law, smaller)
                if other is not None and kind(other) == kind(failure):
                    case, failure, found = smaller, other, True
                    break
    return case, failure


def _smaller(case: Case, tried: Tried, dims: Sequence[int]) -> Iterator[Case]:
    """Cases with one thing less each, which the law may be tried on too; `dims` are the dimensions that shapes have."""
    leaves, steps = range(len(case.params)), range(len(case.grads))
    if len(leaves) > tried.leaves[0]:
        for i in leaves:
            yield case.but(params=_without(case.params, i), grads=[_without(step, i) for step in case.grads])
    if len(steps) > tried.steps[0]:
        for t in steps:
            yield case.but(grads=_without(case.grads, t))
    if "contiguous" not in tried.layouts:
        return
    for i, p in enumerate(case.params):
        if any(g is not None and g.is_sparse for g in [p, *(step[i] for step in case.grads)]):
            continue
        if dims:
            for d in range(p.dim()):
                size = p.shape[d]
                if p.dim() > tried.min_dims and p.dim() - 1 in dims and size:
                    for end in (0, size - 1):
                        yield _leaf(case, i, functools.partial(torch.select, dim=d, index=end))
                if size > max(tried.min_side, 1):
                    for start in (0, 1):
                        yield _leaf(case, i, functools.partial(torch.narrow, dim=d, start=start, length=size - 1))
        if any(
            t.storage_offset() or not t.is_contiguous() for t in [p, *(step[i] for step in case.grads)] if t is not None
        ):
            yield _leaf(case, i, torch.clone)


def _without(items: Sequence[Any], i: int) -> list[Any]:
    return [item for k, item in enumerate(items) if k != i]


def _leaf(case: Case, i: int, change: Callable[[Tensor], Tensor]) -> Case:
    """The case with a parameter and its gradients changed; what comes out is contiguous."""

    def changed(t: Tensor | None) -> Tensor | None:
        return None if t is None else change(t).clone(memory_format=torch.contiguous_format)

    params = [changed(p) if k == i else p for k, p in enumerate(case.params)]
    grads = [[changed(g) if k == i else g for k, g in enumerate(step)] for step in case.grads]
    return case.but(params=params, grads=grads)


# ---- a program ------------------------------------------------------------------------------------------------------


def program(subject: AnySubject, law: Law, case: Case) -> str:
    """Python that tries a law on one case, to be pasted into a file and run."""
    ours = LAWS.get(law.name) is law
    if isinstance(subject, ClassSubject):
        case = case.but(numbers={**subject.fixed, **case.numbers})
    text = repr(case)
    names = [name for name in ("bfloat16", "float16", "float32", "float64", "inf", "nan", "tensor") if name in text]
    drawn = [name for name in ("Problem", "Schedule") if f"{name}(" in code(case.more)]
    line, opt = subject.expression
    imports, arguments, name = [line], [opt, text], f"laws.{law.name}"
    if isinstance(subject, FunctionSubject) and subject.says:
        arguments.append(f"fixed={code(dict(subject.says))}")
    if law.claim == "reference" or (isinstance(subject, FunctionSubject) and subject.reference is not None):
        line, reference = _reference(subject.reference)
        imports.append(line)
        arguments.append(f"reference={reference}")
    if not ours:
        line, name = importing(law.holds.__module__, law.name, lambda found: found is law)
        imports.append(line)
    imports.append(f"from funcopt.testing import {', '.join(['Case', *drawn, *(['laws'] if ours else [])])}")
    head = ["import torch", f"from torch import {', '.join(names)}", "", *dict.fromkeys(imports)]
    held = subject.fixed.values() if isinstance(subject, ClassSubject) else [getattr(subject, "backend", None)]
    if "triton" in (law.backend, *held) and not torch.cuda.is_available():
        interpreted = 'os.environ["TRITON_INTERPRET"] = "1"  # its kernels on a CPU; read where Triton is imported'
        head[:0] = ["import os", "", interpreted, ""]
    return "\n".join([*head, "", f"{name}.check({', '.join(arguments)})"])


def _reference(reference: Any) -> tuple[str, str]:
    """The import and the expression of what an optimizer is compared with."""
    if isinstance(reference, ClassSubject | PureSubject):
        return reference.expression
    return importing(reference.__module__, reference.__qualname__, lambda found: found is reference)
