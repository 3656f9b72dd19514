"""What is under test, in the one way in which all laws run it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy

from funcopt import backends, hyper
from funcopt.core import PureOptimizer
from funcopt.declaration import Rule
from funcopt.hyper import Number
from funcopt.testing import strategies
from funcopt.testing.case import Takes
from funcopt.testing.class_form import ClassSubject, copied
from funcopt.testing.function_form import FunctionSubject
from funcopt.testing.pure_form import PureSubject, Run

__all__ = [
    "KINDS",
    "AnySubject",
    "ClassSubject",
    "FunctionSubject",
    "PureSubject",
    "Run",
    "Subject",
    "copied",
    "subject_of",
]

Subject = PureSubject | ClassSubject
AnySubject = Subject | FunctionSubject
KINDS = ("optimizer", "clip", "schedule")


def subject_of(
    opt: Any,
    *,
    kind: str = "optimizer",
    backend: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Any] | None = None,
    shapes: SearchStrategy[tuple[int, ...]] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    layouts: Sequence[str] | None = None,
    sparse: bool = False,
    reference: Any = None,
) -> AnySubject:
    """What `check_laws` is given, in the form that laws run; the arguments are its.

    Raises:
        TypeError: it is not of that kind.
        ValueError: it does not take one of the arguments.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; {hyper.suggest(kind, KINDS)}")
    if backend is not None:
        backends.check_name(backend)
    if kind != "optimizer":
        if not callable(opt):
            raise TypeError(f"a {kind} is a function; got {opt!r}")
        given = {"ranges": ranges, "shapes": shapes, "dtypes": dtypes, "layouts": layouts, "sparse": sparse}
        for name, value in given.items():
            if value:
                raise ValueError(f"{name}={value!r} is for optimizers; a {kind} has none")
        return FunctionSubject(opt, kind, dict(fixed or {}), reference)
    takes = Takes(shapes, _some("dtypes", dtypes, strategies.DTYPES), _some("layouts", layouts, strategies.LAYOUTS))
    rule = opt if isinstance(opt, Rule) else getattr(opt, "rule", None)
    for name, value in {"fixed": fixed, "ranges": ranges, "sparse": sparse}.items():
        if value and isinstance(rule, Rule):
            raise ValueError(f"{name}={value!r} is for classes; the declaration of {rule.name} says all of that")
    if isinstance(opt, PureOptimizer):
        model = _reference(reference, opt.rule.name, opt.rule.hparams)
        chosen = [flag for flag, value in opt.flags.items() if value != opt.rule.flags[flag]]
        if model is not None and not all(map(model.has, chosen)):
            model = None  # a choice that the reference does not have
        return PureSubject(opt.rule, opt.flags, backend or opt.backend, takes, model)
    if isinstance(rule, Rule):
        return PureSubject(rule, None, backend or "auto", takes, _reference(reference, rule.name, rule.hparams))
    if isinstance(opt, type) and callable(getattr(opt, "step", None)):
        held = {**(fixed or {}), **({"backend": backend} if backend else {})}
        sparse = sparse or not getattr(opt, "_dense", True)  # of funcopt's classes one takes no other gradients
        subject = ClassSubject(opt, held, _ranges(opt, ranges or {}), sparse, takes)
        model = _reference(reference, opt.__name__, {**held, **subject.spec}, opt)
        return replace(subject, reference=model)
    what = f"an instance of {type(opt).__name__}" if not isinstance(opt, type) else f"the class {opt.__name__}"
    hint = "; give its class" if callable(getattr(opt, "step", None)) else ""
    raise TypeError(
        f"{what} is no optimizer{hint}: a rule's factory (funcopt.adamw), a pure optimizer (funcopt.adamw()), or a "
        "class with torch.optim's interface, which is made of parameters and has step(), is needed"
    )


def _ranges(cls: type, given: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in given.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not parts or not all(isinstance(part, Number) for part in parts):
            raise TypeError(f"ranges[{name!r}] is {value!r}; a funcopt.Number, or a tuple of them, is needed")
        if name not in ClassSubject(cls, {}, {}).defaults:
            raise ValueError(f"{cls.__name__} takes no {name!r}, of which ranges has a range")
    return given


def _some(what: str, given: Sequence[Any] | None, known: Sequence[Any]) -> Sequence[Any] | None:
    """Some of what is known, the first among them: it is the one that most laws, and the claims, are tried on."""
    if given is not None and (not set(given) <= set(known) or known[0] not in given):
        raise ValueError(f"{what} are {given!r}; {known[0]}, and any of {', '.join(map(str, known[1:]))}, are needed")
    return given


def _reference(given: Any, name: str, numbers: Mapping[str, Any], itself: type | None = None) -> Any:
    """The reference that is given, else torch.optim's class of this name, if all its numbers are there."""
    if given is not None:
        return None if given == "none" else subject_of(given)
    found = next((c for n, c in vars(torch.optim).items() if n.lower() == name.lower()), None)
    if not isinstance(found, type) or found is itself:
        return None
    model = ClassSubject(found, {}, {})
    ranges = {n: part for n, part in numbers.items() if n in model.defaults and isinstance(part, Number | tuple)}
    return ClassSubject(found, {}, ranges) if model.spec.keys() <= numbers.keys() else None
