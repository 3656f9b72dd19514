"""What is under test, in the one way in which all laws run it."""

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy

from funcopt import backends, hyper
from funcopt.core import PureOptimizer
from funcopt.declaration import Rule
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
    sparse: bool = False,
    reference: Any = None,
) -> AnySubject:
    """What `check_laws` is given, in the form that laws run; the arguments are its.

    Raises:
        TypeError: it is not of that kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; {hyper.suggest(kind, KINDS)}")
    if backend is not None:
        backends.check_name(backend)
    if kind != "optimizer":
        if not callable(opt):
            raise TypeError(f"a {kind} is a function; got {opt!r}")
        return FunctionSubject(opt, kind, dict(fixed or {}), reference)
    if isinstance(opt, PureOptimizer):
        model = _reference(reference, opt.rule.name)
        if model is not None and any(on and not model.has(flag) for flag, on in opt.flags.items()):
            model = None  # a choice that the reference does not have
        return PureSubject(opt.rule, opt.flags, backend or opt.backend, shapes, model)
    rule = opt if isinstance(opt, Rule) else getattr(opt, "rule", None)
    if isinstance(rule, Rule):
        return PureSubject(rule, None, backend or "auto", shapes, _reference(reference, rule.name))
    if isinstance(opt, type) and callable(getattr(opt, "step", None)):
        held = {**(fixed or {}), **({"backend": backend} if backend else {})}
        model = _reference(reference, opt.__name__, opt)
        return ClassSubject(opt, held, ranges or {}, sparse, shapes, model)
    given = f"an instance of {type(opt).__name__}" if not isinstance(opt, type) else f"the class {opt.__name__}"
    hint = "; give its class" if callable(getattr(opt, "step", None)) else ""
    raise TypeError(
        f"{given} is no optimizer{hint}: a rule's factory (funcopt.adamw), a pure optimizer (funcopt.adamw()), or a "
        "class with torch.optim's interface, which is made of parameters and has step(), is needed"
    )


def _reference(given: Any, name: str, itself: type | None = None) -> Any:
    """The reference that is given, else torch.optim's class of this name, unless it is the one under test."""
    if given is not None:
        return subject_of(given)
    found = next((c for n, c in vars(torch.optim).items() if n.lower() == name.lower()), None)
    return ClassSubject(found, {}, {}) if isinstance(found, type) and found is not itself else None
