"""Laws of derivatives: of a step and of many, in parameters, gradients, state and numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.func import grad, jacfwd, jacrev, jvp, vjp
from torch.utils.checkpoint import checkpoint

from funcopt import tree
from funcopt.testing import strategies
from funcopt.testing.case import Case
from funcopt.testing.law import (
    NO_DECAY,
    BrokenLawError,
    SaysNothingError,
    Tried,
    in_float64,
    law,
    near,
    rounding,
    scale_of,
)
from funcopt.testing.subject import PureSubject, Subject

# Away from the kinks at 0 and at the ends of ranges, where a finite difference means nothing: |λ·p| stays below |g|,
# Adafactor's RMS(u), which is 1 at first, below d, and no step of ASGD is t₀ + 1.
SMOOTH = Tried(
    steps=(1, 2),
    leaves=(1, 2),
    max_side=2,
    min_side=1,
    params=("unit",),
    grads=("unit",),
    numbers={"weight_decay": 0.1, "d": 2.0, "t0": 0.3},
    nonzero=("eps", "lr", "betas", "momentum"),
    more={"seed": st.integers(0, 1000)},
)

# Rprop's lr is a step size, which has no effect where it is brought into bounds.
NO_BOUNDS = {"step_sizes": (0.0, 1e9)}


def blunt(subject: PureSubject, case: Case) -> dict[str, Any]:
    """The numbers, with an eps that finite differences see as smooth."""
    numbers = subject.optimizer(case).hparams(**case.numbers)
    if subject.has("eps"):
        numbers["eps"] = tree.map(lambda eps: eps if eps is None else max(eps, 1e-3), numbers["eps"])
    return numbers


def one_step(subject: PureSubject, case: Case) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The last step of a case as a function of tensors, params, grads, slots and numbers, to params and slots."""
    opt, hparams = subject.optimizer(case), blunt(subject, case)
    params, state = list(case.params), opt.init(list(case.params), hparams)
    for grads in case.grads[:-1]:
        params, state = opt(params, list(grads), state, hparams)
    count = state["step"]
    numbers = tree.map(lambda x: x if x is None else torch.tensor(x, dtype=torch.float64), hparams)
    slots = {name: slot for name, slot in state.items() if name != "step"}
    flat, spec = tree.flatten((params, list(case.grads[-1]), slots, numbers))
    there = [t is not None for t in flat]  # a slot that not every parameter has, or a number that is left out

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        params, grads, slots, hparams = tree.unflatten([next(rest) if is_there else None for is_there in there], spec)
        new, after = opt(params, grads, {"step": count, **slots}, hparams)
        return tuple(t for t in tree.flatten((new, {name: after[name] for name in slots}))[0] if t is not None)

    return function, tuple(t.detach().clone() for t in flat if t is not None)


def _directions(tensors: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    chance = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(t.shape, generator=chance, dtype=t.dtype) for t in tensors)


@law(SMOOTH, of="pure", cost=8)
@in_float64
def first_derivatives(subject: PureSubject, case: Case) -> None:
    """Derivatives in p, g, state and every number, forward and reverse, are those of finite differences (gradcheck)."""
    function, inputs = one_step(subject, case)
    inputs = tuple(t.requires_grad_() for t in inputs)
    _no_error(lambda: torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True, rtol=1e-3))


@law(SMOOTH, of="pure", cost=8)
@in_float64
def second_derivatives(subject: PureSubject, case: Case) -> None:
    """Second derivatives in p, g, state and every number are those of finite differences (gradgradcheck)."""
    function, inputs = one_step(subject, case)
    inputs = tuple(t.requires_grad_() for t in inputs)
    outputs = function(*inputs)
    if any(t.requires_grad for t in outputs):
        _no_error(lambda: torch.autograd.gradgradcheck(function, inputs, fast_mode=True, rtol=1e-3))


def _no_error(check: Callable[[], Any]) -> None:
    try:
        check()
    except GradcheckError as error:
        raise BrokenLawError(" ".join(str(error).split())[:300]) from None


@law(SMOOTH, of="pure", cost=4)
@in_float64
def adjoint(subject: PureSubject, case: Case) -> None:
    """Forward and reverse mode are transposes: ⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩, to rounding."""
    function, inputs = one_step(subject, case)
    v = _directions(inputs, case.more["seed"])
    out, forward = jvp(function, inputs, v)  # type: ignore[misc]
    u = _directions(out, case.more["seed"] + 1)
    back = vjp(function, *inputs)[1](u)
    left = sum((a * b).sum() for a, b in zip(u, forward, strict=True))
    right = sum((a * b).sum() for a, b in zip(back, v, strict=True))
    size = sum((a * b).abs().sum() for a, b in [*zip(u, forward, strict=True), *zip(back, v, strict=True)])
    near(torch.as_tensor(left), torch.as_tensor(right), 1e-10 * (1 + size), "⟨u, J·v⟩")  # cancellation within J


@law(SMOOTH, of="pure", cost=4)
@in_float64
def jacobians_agree(subject: PureSubject, case: Case) -> None:
    """The Jacobian column by column is the Jacobian row by row: jacfwd = jacrev, to rounding."""
    function, inputs = one_step(subject, case)
    everything = tuple(range(len(inputs)))
    by_column, by_row = jacfwd(function, everything)(*inputs), jacrev(function, everything)(*inputs)
    for out, (columns, rows) in enumerate(zip(by_column, by_row, strict=True)):
        for k, (a, b) in enumerate(zip(columns, rows, strict=True)):
            near(a, b, 1e-10 * (1 + b.abs()), f"the derivative of output {out} in input {k}")


@law(Tried(steps=(1, 3), nonzero=("eps", "lr"), min_side=1, max_side=2), claim="differentiable", cost=2)
def finite_derivatives(subject: Subject, case: Case) -> None:
    """Derivatives are finite, first and second, also where g, m or v is 0, as behind a dead ReLU."""
    params = [p.clone().requires_grad_() for p in case.params]
    grads = [[g.clone().requires_grad_() for g in step] for step in case.grads]  # type: ignore[union-attr]
    loop = [[g * (1 + p) for g, p in zip(step, params, strict=True)] for step in grads]
    end = subject.final(params, loop, case.numbers, case.flags)
    inputs = [*params, *(g for step in grads for g in step)]
    first = torch.autograd.grad(sum(p.square().sum() for p in end), inputs, create_graph=True, allow_unused=True)  # type: ignore[arg-type]
    _finite(first, len(params), "first")
    slope = sum((d * d.detach()).sum() for d in first if d is not None)
    if isinstance(slope, Tensor) and slope.requires_grad:
        _finite(torch.autograd.grad(slope, inputs, allow_unused=True), len(params), "second")


def _finite(derivatives: tuple[Tensor | None, ...], params: int, order: str) -> None:
    for k, d in enumerate(derivatives):
        if d is not None and not bool(d.isfinite().all()):
            step, leaf = divmod(k - params, params)
            name = f"params[{k}]" if k < params else f"grads[{step}][{leaf}]"
            raise BrokenLawError(f"the {order} derivative of Σ p'² in {name} is {d.detach().tolist()}")


@law(
    Tried(steps=(1, 5), numbers={**NO_DECAY, **NO_BOUNDS}, nonzero=("eps", "lr")),
    needs=("lr",),
    claim="differentiable",
    of="pure",
    cost=2,
)
@in_float64
def learning_rate_derivative(subject: PureSubject, case: Case) -> None:
    """On given gradients, without decay, dp_T/dlr = (p_T - p_0)/lr."""

    def end(lr: Tensor) -> list[Tensor]:
        return subject.final(list(case.params), case.grads, {**case.numbers, "lr": lr}, case.flags)

    lr = torch.tensor(case.numbers["lr"], dtype=torch.float64)
    final, slope = jvp(end, (lr,), (lr,))  # type: ignore[misc]  # lr·dp/dlr
    scales = scale_of(subject.run(case))
    for leaf, p in enumerate(case.params):
        condition = 1e3 if "betas" in case.numbers else 1.0  # 1/(1-β), for betas to 0.999
        allowed = condition * rounding(p.dtype, len(case.grads)) * scales[leaf]
        near(slope[leaf], final[leaf] - p, allowed, f"lr·dp/dlr of params[{leaf}]")


@law(
    Tried(
        steps=(1, 1),
        leaves=(1, 1),
        max_dims=0,
        numbers=NO_BOUNDS,
        nonzero=("eps", "lr", "betas"),
        more={"problem": strategies.problems(("linear", "logistic"), max_steps=5)},
    ),
    of="pure",
    cost=16,
)
@in_float64
def hypergradient(subject: PureSubject, case: Case) -> None:
    """Through K steps of training: torch.func.grad = autograd = checkpointed = central differences, for lr and p_0."""
    problem = case.more["problem"]
    opt, numbers = subject.optimizer(case), blunt(subject, case)
    start = {name: p.reshape(subject.fitted(tuple(p.shape))) for name, p in problem.params.items()}

    def loss(params: Mapping[str, Tensor], batch: Any) -> Tensor:
        return problem.loss({name: params[name].reshape(p.shape) for name, p in problem.params.items()}, batch)  # type: ignore[no-any-return]

    def after(lr: Tensor, params: dict[str, Tensor], recompute: bool = False) -> Tensor:
        hparams = {**numbers, "lr": lr}

        def inner(p: Any, s: Any, batch: Any) -> Any:
            return opt(p, _inner_gradient(loss, p, batch, recompute), s, hparams)

        p, state = params, opt.init(params, hparams)
        for batch in problem.batches:
            p, state = checkpoint(inner, p, state, batch, use_reentrant=False) if recompute else inner(p, state, batch)
        return loss(p, problem.batches[0])

    lr = torch.tensor(case.numbers["lr"], dtype=torch.float64)
    by_func = grad(after, argnums=(0, 1))(lr, start)
    for name, recompute in (("autograd", False), ("checkpointed", True)):
        leaf = lr.clone().requires_grad_()
        params = {k: p.clone().requires_grad_() for k, p in start.items()}
        value = after(leaf, params, recompute)
        if not value.requires_grad:
            raise BrokenLawError(f"the loss after {len(problem.batches)} steps has no derivative")
        got = torch.autograd.grad(value, [leaf, *params.values()], allow_unused=True)
        for a, b in zip(got, [by_func[0], *by_func[1].values()], strict=True):
            near(torch.zeros_like(b) if a is None else a, b, 1e-9 * (1 + b.abs()), f"the hypergradient by {name}")
    with torch.no_grad():
        f = {k: after(lr * (1 + k * 5e-4), start) for k in (-4, -2, -1, 1, 2, 4)}
    size = 1 + by_func[0].abs() + max(v.abs() for v in f.values()) / lr
    # Of fourth order: an error of h⁴, and of 1e-16/h.
    far, numeric = ((8 * (f[k] - f[-k]) - (f[2 * k] - f[-2 * k])) / (12 * k * 5e-4 * lr) for k in (2, 1))
    if bool((far - numeric).abs() > 1e-6 * size):
        raise SaysNothingError("there is a kink nearby")
    near(by_func[0], numeric, 1e-6 * size, "the derivative in lr, by central differences")


def _inner_gradient(loss: Callable[..., Tensor], params: dict[str, Tensor], batch: Any, by_autograd: bool) -> Any:
    if not by_autograd:
        return grad(lambda p: loss(p, batch))(params)
    names, leaves = list(params), list(params.values())
    found = torch.autograd.grad(loss(params, batch), leaves, create_graph=True)  # checkpoint refuses torch.func's
    return dict(zip(names, found, strict=True))
