"""Laws of a class's life: whatever is done to it between steps, each parameter sees its own steps alone."""

import copy
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt.adapter import Adapter
from funcopt.testing import strategies
from funcopt.testing.case import Case
from funcopt.testing.law import BrokenLawError, SaysNothingError, Tried, in_float64, law, near, rounding, same, scale_of
from funcopt.testing.strategies import DTYPES
from funcopt.testing.subject import ClassSubject, PureSubject, Subject, copied

GROUPS = ("param_groups", "add_param_group", "state_dict", "load_state_dict")
leaf = st.integers(0, 3)
actions = st.lists(
    st.one_of(
        st.just(("step",)),
        st.just(("step",)),
        st.tuples(st.just("lr"), st.sampled_from([0.5, 0.03125])),
        st.just(("add",)),
        st.tuples(st.sampled_from(["freeze", "unfreeze"]), leaf),
        st.just(("reload",)),
        st.sampled_from([("deepcopy",), ("pickle",)]),
    ),
    min_size=3,
    max_size=12,
).map(lambda drawn: [*drawn, ("step",)])


@law(Tried(leaves=(1, 3), steps=(1, 5), more={"actions": actions}), needs=("lr",), of="class", uses=GROUPS, cost=2)
@in_float64
def life_cycle(subject: ClassSubject, case: Case) -> None:
    """Steps, a new lr, new groups, frozen parameters, a state_dict loaded into a new object, copies and pickles, in any order: each parameter ends where its own gradients and rates take it alone and undisturbed, bit for bit."""  # noqa: E501
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    added, frozen, rate, taken = 1, set[int](), case.numbers["lr"], 0
    opt = subject.make(params[:1], case)
    log: list[list[tuple[Tensor, float]]] = [[] for _ in params]
    for action, *value in case.more["actions"]:
        which = value[0] % added if action in ("freeze", "unfreeze") else 0
        if action == "step":
            grads = case.grads[taken % len(case.grads)]
            taken += 1
            given = {i: g for i, g in enumerate(grads[:added]) if g is not None and i not in frozen}
            subject.step(opt, params[:added], [copied(given[i]) if i in given else None for i in range(added)])
            for i, g in given.items():
                log[i].append((g, rate))
        elif action == "lr":
            rate = value[0]
            for group in opt.param_groups:
                group["lr"] = rate
        elif action == "add" and added < len(params):
            opt.add_param_group({"params": [params[added]], "lr": rate})
            added += 1
        elif action in ("freeze", "unfreeze"):
            params[which].requires_grad_(action == "unfreeze")
            params[which].grad = None
            (frozen.add if action == "freeze" else frozen.discard)(which)
        elif action == "reload":
            opt = _reloaded(subject, opt, params[:added], case)
        elif action in ("deepcopy", "pickle"):
            by_name = action == "pickle" and _importable(subject.cls)
            opt = pickle.loads(pickle.dumps(opt)) if by_name else copy.deepcopy(opt)
            params[:added] = [p for group in opt.param_groups for p in group["params"]]
    for i, steps in enumerate(log):
        want = _alone(subject, case, i, steps)
        same(params[i].detach(), want, f"params[{i}] after {[a[0] for a in case.more['actions']]}")


def _reloaded(subject: ClassSubject, opt: Any, params: Sequence[Tensor], case: Case) -> Any:
    """A new object of as many groups, with the old one's state_dict."""
    new = subject.make(params[:1], case)
    for p in params[1:]:
        new.add_param_group({"params": [p]})
    new.load_state_dict(opt.state_dict())
    return new


def _alone(subject: ClassSubject, case: Case, i: int, steps: list[tuple[Tensor, float]]) -> Tensor:
    """Where a parameter's own steps take it: by the pure function, for an adapter; else by a fresh object for it."""
    rates = {"by_step": {"lr": [rate for _, rate in steps]}}
    alone = Case([case.params[i]], [[g] for g, _ in steps], case.numbers, case.flags, rates)
    if issubclass(subject.cls, Adapter):
        of_class = subject.make([torch.nn.Parameter(copied(case.params[i]))], case)
        group = of_class.param_groups[0]
        opt = of_class._pure(group)
        numbers = opt.hparams(**{name: group[name] for name in opt.rule.hparams})
        return PureSubject(opt.rule, opt.flags, "eager").run(alone.but(numbers=numbers, flags={})).params[-1][0]
    return subject.run(alone).params[-1][0]


def _importable(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls


@law(Tried(missing=True), of="class", uses=("a closure that step may go without",))
def closures(subject: ClassSubject, case: Case) -> None:
    """step(closure) calls it once, with gradients enabled, steps on what it leaves, and returns its loss."""
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt, want = subject.make(params, case), subject.run(case)
    for t, grads in enumerate(case.grads):
        loss, enabled = torch.tensor(float(t)), list[bool]()

        def closure(grads: Any = grads, loss: Tensor = loss, enabled: list[bool] = enabled) -> Tensor:
            enabled.append(torch.is_grad_enabled())
            for p, g in zip(params, grads, strict=True):
                p.grad = None if g is None else copied(g)
            return loss

        with torch.enable_grad():
            returned = opt.step(closure)
        if enabled != [True]:
            raise BrokenLawError(f"step(closure) calls it {len(enabled)} times, with gradients enabled: {enabled}")
        if returned is not loss:
            raise BrokenLawError(f"step(closure) returns {returned!r}; the closure returns {loss!r}")
        for leaf, p in enumerate(params):
            same(p.detach(), want.params[t + 1][leaf], f"params[{leaf}] after step {t + 1}, with a closure")


@law(Tried(missing=True, dtypes=DTYPES), of="class", uses=("state_dict", "load_state_dict"))
def saved_is_loaded(subject: ClassSubject, case: Case) -> None:
    """What is loaded is what was saved: an object with other numbers has this state_dict after load_state_dict."""
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt = subject.make(params, case)
    for grads in case.grads:
        subject.step(opt, params, [None if g is None else copied(g) for g in grads])
    saved = opt.state_dict()
    other = subject.make([torch.nn.Parameter(copied(p)) for p in case.params], Case([], [], subject.some_numbers()))
    other.load_state_dict(copy.deepcopy(saved))
    same(other.state_dict(), saved, "the state_dict")


@law(
    Tried(steps=(1, 2), dtypes=DTYPES, more={"count": strategies.step_numbers(max_value=2**24 - 8)}),
    of="class",
    uses=("state_dict", "load_state_dict", "step in its state"),
)
def late_counts(subject: ClassSubject, case: Case) -> None:
    """Steps are counted to 2²⁴ at the least: loaded with any count below, `step` is one more after one more step."""
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt, count = subject.make(params, case), case.more["count"]
    subject.step(opt, params, [None if g is None else copied(g) for g in case.grads[0]])
    saved = opt.state_dict()
    for own in saved["state"].values():
        if "step" in own:
            own["step"] = own["step"] * 0 + count
    opt.load_state_dict(saved)
    for t, grads in enumerate(case.grads, 1):
        subject.step(opt, params, [None if g is None else copied(g) for g in grads])
        for leaf, p in enumerate(params):
            got = float(opt.state[p].get("step", count + t) if p in opt.state else count + t)
            if got != count + t:
                raise BrokenLawError(f"the step count of params[{leaf}] is {got:.17g}, {t} steps on from {count}")


@law(Tried(params=("unit",), grads=("unit",), steps=(1, 5), missing=True), claim="reference")
@in_float64
def agrees_with_reference(subject: Subject, case: Case) -> None:
    """It is what it is compared with: run = run of the reference, torch.optim's class of its name if none is given."""
    reference = subject.reference
    assert reference is not None
    numbers = {name: value for name, value in case.numbers.items() if reference.has(name)}
    own = {name: value if reference.has(name) else subject.flags({})[name] for name, value in case.flags.items()}
    flags = {name: value for name, value in subject.flags(own).items() if name in reference.choices}
    try:
        want = reference.run(case.but(numbers=numbers, flags=flags))
    except Exception as error:  # a third party's, which may be any
        raise SaysNothingError(f"{reference.name} raises {type(error).__name__}: {error}") from error
    run = subject.run(case.but(flags=own))
    for i, scale in enumerate(scale_of(want)):
        # Moments of gradients of ±[1/2, 2] cancel to a part in 8 a step; 1/(1-β) is at most 1e3.
        allowed = 8e3 * len(case.grads) * rounding(torch.float64, len(case.grads)) * scale
        near(run.params[-1][i], want.params[-1][i], allowed, f"params[{i}], against {reference.name}")


@law(
    Tried(steps=(1, 3), more={"bad": st.sampled_from([torch.nan, torch.inf, -torch.inf]), "at": leaf}),
    claim="skips_nonfinite",
)
def skipped_step(subject: Subject, case: Case) -> None:
    """A step with a gradient that is not finite is skipped: p, the state and the step count stay as they are."""
    k = case.more["at"] % (len(case.grads) + 1)
    spoilt = [torch.full_like(g, case.more["bad"]) for g in case.grads[0] if g is not None]
    if not any(g.numel() for g in spoilt):
        raise SaysNothingError("there are no elements")
    run, want = subject.run(case.but(grads=[*case.grads[:k], spoilt, *case.grads[k:]])), subject.run(case)
    for i, p in enumerate(want.params[-1]):
        same(run.params[-1][i], p, f"params[{i}], with a step of {case.more['bad']} gradients at {k}")
        for name, value in want.state[-1][i].items():
            same(run.state[-1][i].get(name), value, f"{name} of params[{i}], with such a step at {k}")
