"""Laws of execution: every way to run a rule gives what its equation gives in float64, to derived tolerances."""

import math
import types
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt import backends, tree
from funcopt.testing.case import Case
from funcopt.testing.law import ROUNDINGS, Tried, law, near, rounding, same
from funcopt.testing.laws.structure import same_runs
from funcopt.testing.strategies import DTYPES
from funcopt.testing.subject import PureSubject, Run, copied

# Shapes at which an implementation in blocks goes wrong: single elements, tails, more than one block.
sizes = st.sampled_from([(), (0,), (1,), (2, 3), (17,), (3, 0), (5, 7), (1030,), (70_001,)])
HALF = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def on_device(case: Case) -> Case:
    """The case where kernels run: on the GPU, if there is one."""
    return case.mapped(lambda p: p.cuda(), lambda g: g.cuda()) if torch.cuda.is_available() else case


def error_of_rounding(subject: PureSubject, case: Case) -> tuple[Run, list[Tensor]]:
    """The eager run in the case's dtype, and for each parameter how far rounding may have taken it.

    Its own distance from the float64 run says how the equation amplifies rounding here (a step that divides by a
    cancelled moment amplifies a lot): another order of the same operations may be off as much, and a bit more.
    """
    run = subject.run(case, "eager")
    truth = subject.run(case.mapped(Tensor.double, Tensor.double), "eager")
    allowed = []
    for leaf, p in enumerate(case.params):
        path = torch.stack([(a[leaf].double() - b[leaf]).abs() for a, b in zip(run.params, truth.params, strict=True)])
        size = torch.stack([q[leaf].abs() for q in truth.params]).amax(0)
        steps = sum(((b[leaf] - a[leaf]).abs() for a, b in zip(truth.params, truth.params[1:], strict=False)), 0 * size)
        compute = backends.compute_dtype(p.dtype)
        last = torch.finfo(p.dtype).eps * (len(case.grads) + 1) * size if p.dtype in HALF else 0.0
        allowed.append(2 * path.amax(0) + rounding(compute, len(case.grads)) * (size + steps) * _condition(case) + last)
    return run, allowed


def _condition(case: Case) -> float:
    """How much the moments may amplify the rounding of a gradient: by all gradients over the one left, ±[1/2, 2]."""
    return 8.0 * len(case.grads)


UNIT = Tried(params=("unit",), grads=("unit",), steps=(1, 3), nonzero=("eps",))


@law(
    Tried(params=("unit",), grads=("unit",), steps=(1, 4), dtypes=(torch.float32, torch.bfloat16, torch.float16)),
    of="pure",
)
def follows_float64(subject: PureSubject, case: Case) -> None:
    """In float32 a step is the float64 step to rounding; bfloat16 and float16 are float32 arithmetic, rounded once."""
    one = case.but(grads=case.grads[:1])
    run, truth = subject.run(one), subject.run(one.mapped(Tensor.double, Tensor.double))
    nudged = subject.run(one.mapped(Tensor.double, _nudged))
    for leaf, p in enumerate(case.params):
        want = truth.params[-1][leaf]
        want = torch.where(want.to(p.dtype).isinf(), want.to(p.dtype).double(), want)
        size = torch.maximum(want.abs(), p.double().abs()) + (want - p.double()).abs()
        allowed = rounding(torch.float32, 1) * size * _condition(one)
        allowed = allowed + ROUNDINGS * (nudged.params[-1][leaf] - want).abs()  # what the equation makes of a rounding
        allowed = allowed + (torch.finfo(p.dtype).eps * size if p.dtype in HALF else 0.0)
        near(run.params[-1][leaf], want, allowed, f"params[{leaf}] in {p.dtype}")


def _nudged(g: Tensor) -> Tensor:
    """A gradient in float64, every other element larger by float32's resolution."""
    other = torch.arange(g.numel()).reshape(g.shape) % 2
    return g.double() * (1 + torch.finfo(torch.float32).eps * other)


def _agrees(subject: PureSubject, case: Case, backend: str) -> None:
    case = on_device(case)
    run, allowed = error_of_rounding(subject, case)
    other = subject.run(case, backend)
    for leaf, p in enumerate(run.params[-1]):
        near(other.params[-1][leaf], p, allowed[leaf], f"params[{leaf}] by backend {backend!r}")
        for name, value in run.state[-1][leaf].items():
            if value is None:
                continue
            size = value.double().abs() + 4.0  # what is averaged is at most 2², of which little may be left
            slack = (
                rounding(backends.compute_dtype(value.dtype), len(case.grads)) + torch.finfo(value.dtype).eps
            ) * size
            near(other.state[-1][leaf][name], value, slack, f"{name} of params[{leaf}] by backend {backend!r}")


@law(
    Tried(params=("unit",), grads=("unit", "zero"), steps=(1, 3), dtypes=DTYPES, more={"size": sizes}),
    of="pure",
    claim="elementwise",
    backend="triton",
    cost=8,
)
def triton_agrees(subject: PureSubject, case: Case) -> None:
    """The Triton kernel gives what torch gives, to rounding: tails, 0-d, empty, strided and misaligned tensors too."""
    _agrees(subject, resized(subject, case), "triton")


@law(
    Tried(
        params=("unit",),
        grads=("unit", "zero"),
        steps=(1, 3),
        dtypes=DTYPES,
        more={"size": sizes},
    ),
    of="pure",
    backend="compile",
    cost=8,
)
def compile_agrees(subject: PureSubject, case: Case) -> None:
    """The kernel in C++ gives what torch gives, to rounding: tails, 0-d, empty and strided tensors too."""
    _agrees(subject, resized(subject, case), "compile")


def resized(subject: PureSubject, case: Case) -> Case:
    """The case with its first parameter of the drawn size: its values, over and over."""
    shape = subject.fitted(case.more["size"])

    def first(x: Tensor) -> Tensor:
        size = math.prod(shape)
        values = x.flatten() if x.numel() else torch.ones(1, dtype=x.dtype)
        return values.repeat(-(-size // values.numel()))[:size].reshape(shape)

    return case.but(
        params=[first(case.params[0]), *case.params[1:]],
        grads=[[first(step[0]), *step[1:]] for step in case.grads],  # type: ignore[arg-type]
    )


@law(Tried(missing=True, dtypes=DTYPES), of="pure")
def donation(subject: PureSubject, case: Case) -> None:
    """donate=True gives the same bits, and writes to nothing but params and slots."""
    want = subject.run(case)
    opt = subject.optimizer(case)
    hparams = opt.hparams(**case.numbers)
    params = [copied(p) for p in case.params]
    state = opt.init(params, hparams)
    got = Run([[p.clone() for p in params]], want.state[:1])
    for grads in case.grads:
        before = [None if g is None else g.clone() for g in grads]
        counts, old = state["step"], [c.clone() for c in state["step"]]
        params, state = opt(params, list(grads), state, hparams, donate=True)
        for g, b in zip([*grads, *counts], [*before, *old], strict=True):
            same(g, b, "a gradient or a step count after a donated step")
        got.params.append([p.clone() for p in params])
        copies = tree.map(lambda t: t if t is None else t.clone(), state)
        got.state.append([{name: copies[name][leaf] for name in copies} for leaf in range(len(params))])
    same_runs(got, want, "a donated run")


@law(Tried(missing=True), of="pure")
def differentiated_values(subject: PureSubject, case: Case) -> None:
    """Asking for a derivative changes no value of the eager run, bit for bit."""
    wanted = case.mapped(lambda p: p.clone().requires_grad_(), lambda g: g.clone().requires_grad_())
    same_runs(subject.run(wanted, "eager"), subject.run(case, "eager"), "a differentiated run")


@law(
    Tried(
        params=("unit",), grads=("unit",), leaves=(1, 1), max_dims=1, min_side=1, steps=(2, 2), nonzero=("eps", "lr")
    ),
    of="pure",
    cost=32,
)
def compiled_step(subject: PureSubject, case: Case) -> None:
    """A step compiled by torch.compile, and derivatives in lr through two of them, are those of the eager one."""
    opt = subject.optimizer(case)
    numbers = opt.hparams(**case.numbers)

    def step(params: list[Tensor], grads: list[Tensor], state: Any, hparams: Any) -> Any:
        return opt(params, grads, state, hparams)

    # Dynamo counts recompilations by code object: a copy of its own for each case.
    own = types.FunctionType(step.__code__.replace(), globals(), "step", closure=step.__closure__)
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True, dynamic=False)

    def after(step: Any) -> tuple[Tensor, Tensor]:
        lr = torch.tensor(case.numbers.get("lr", 1.0), dtype=torch.float64, requires_grad=True)
        params, state = list(case.params), opt.init(list(case.params), numbers)
        for grads in case.grads:
            scaled = [g * (1 + 0.1 * p) for g, p in zip(grads, params, strict=True)]  # type: ignore[operator]
            params, state = step(params, scaled, state, {**numbers, "lr": lr} if subject.has("lr") else numbers)
        end = params[0]
        slope = torch.autograd.grad(end.sum(), lr)[0] if end.requires_grad else torch.zeros(())
        return end, slope

    (got, slope), (want, reference) = after(compiled), after(opt)
    size = 1e3 * _condition(case) * rounding(torch.float64, 2)  # 1/(1-β), for betas to 0.999
    near(got, want, size * (want.abs() + (want - case.params[0]).abs()), "params[0], compiled")
    near(slope, reference, size * (1 + reference.abs()), "the derivative in lr, compiled")
