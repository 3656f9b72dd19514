"""Laws of symmetry: what a change of p, g or lr does to the whole trajectory. Gradients are given, not computed."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt.testing import strategies
from funcopt.testing.case import Case
from funcopt.testing.law import NO_DECAY, BrokenLawError, Tried, law, moved, near, rounding, same, scale_of
from funcopt.testing.subject import Subject, copied

powers_of_two = st.sampled_from([2.0**k for k in (1, -1, 10, -10)])
NO_MEMORY = {**NO_DECAY, "eps": 0.0, "initial_accumulator_value": 0.0}
NORMALISED = ("adam", "nadam", "adamax", "adagrad", "rmsprop", "rprop", "lion")


def negated(t: Tensor) -> Tensor:
    """-t with t's strides, which sums are taken along."""
    return copied(t).neg_()


@law()
def oddness(subject: Subject, case: Case) -> None:
    """Nothing knows up from down: run(-p, -g) = -run(p, g), bit for bit, with weight decay too."""
    run, other = subject.run(case), subject.run(case.mapped(negated, negated))
    for t, ps in enumerate(run.params):
        for leaf, p in enumerate(ps):
            same(other.params[t][leaf], -p, f"params[{leaf}] with p and g negated, after step {t}")


@law(Tried(flags={"maximize": False}), needs=("maximize",))
def maximize(subject: Subject, case: Case) -> None:
    """To maximize is to minimize with -g, weight decay as before: run(p, g, maximize) = run(p, -g), bit for bit."""
    other = subject.run(case.but(flags={**case.flags, "maximize": True}))
    for leaf, p in enumerate(subject.run(case.mapped(grads=negated)).params[-1]):
        same(other.params[-1][leaf], p, f"params[{leaf}] with maximize=True")


@law(Tried(steps=(1, 1), numbers=NO_DECAY, nonzero=("eps", "lr"), params=("zero",)))
def descent(subject: Subject, case: Case) -> None:
    """The first step goes downhill: ⟨p' - p, g⟩ < 0 unless g = 0 (> 0 to maximize), without weight decay."""
    run = subject.run(case)
    sign = -1.0 if subject.flags(case.flags).get("maximize") else 1.0
    for leaf, g in enumerate(case.grads[0]):
        if g is None:
            continue
        g = g.to_dense() if g.is_sparse else g
        slope = sign * float((moved(run, leaf) * g).sum())
        if slope > 0 or (slope == 0 and bool((g != 0).any())):
            raise BrokenLawError(
                f"params[{leaf}] moves by {moved(run, leaf).tolist()}; along -g, {(-sign * g).tolist()}, is down"
            )


@law(Tried(numbers=NO_DECAY, more={"shift": st.sampled_from([1.0, -0.5, 100.0])}))
def translation(subject: Subject, case: Case) -> None:
    """Without weight decay it does not matter where p is: run(p + a, g) = run(p, g) + a, to rounding."""
    shift = case.more["shift"]
    run, other = subject.run(case), subject.run(case.mapped(params=lambda p: p + shift))
    for leaf, scale in enumerate(scale_of(run, other)):
        allowed = rounding(torch.float64, len(case.grads)) * (scale + abs(shift))
        want = run.params[-1][leaf] + shift
        near(other.params[-1][leaf], want, allowed, f"params[{leaf}] shifted by {shift}")


@law(
    Tried(numbers=NO_MEMORY, nonzero=(), grads=("moderate",), more={"factor": powers_of_two}),
    families=NORMALISED,
)
def gradient_scale(subject: Subject, case: Case) -> None:
    """Without eps and decay the gradient's scale does not matter: run(p, c·g) = run(p, g), bit for bit for c = 2^k."""
    factor = case.more["factor"]
    run, other = subject.run(case), subject.run(case.mapped(grads=lambda g: g * factor))
    for leaf, p in enumerate(run.params[-1]):
        same(other.params[-1][leaf], p, f"params[{leaf}] with gradients times {factor}")


@law(Tried(numbers=NO_DECAY, params=("zero",), more={"factor": powers_of_two}), families=("sgd",))
def gradient_linearity(subject: Subject, case: Case) -> None:
    """SGD is linear in its gradients: from p = 0, run(0, c·g) = c·run(0, g), bit for bit for c = 2^k."""
    factor = case.more["factor"]
    run, other = subject.run(case), subject.run(case.mapped(grads=lambda g: g * factor))
    for leaf, p in enumerate(run.params[-1]):
        same(other.params[-1][leaf], p * factor, f"params[{leaf}] with gradients times {factor}")


@law(
    Tried(min_dims=1, max_dims=1, min_side=2, more={"angle": st.integers(0, 628).map(lambda k: k / 100)}),
    families=("sgd", "lbfgs"),
)
def rotation(subject: Subject, case: Case) -> None:
    """SGD has no axes: run(Qp, Qg) = Q run(p, g) for orthogonal Q, to rounding, with weight decay too."""

    def turned(x: Tensor) -> Tensor:
        c, s = math.cos(case.more["angle"]), math.sin(case.more["angle"])
        out = x.clone()
        out[0], out[1] = c * x[0] - s * x[1], s * x[0] + c * x[1]
        return out

    run, other = subject.run(case), subject.run(case.mapped(turned, turned))
    for leaf, scale in enumerate(scale_of(run, other)):
        allowed = rounding(torch.float64, len(case.grads)) * (scale.sum() + _travel(case, leaf))
        near(other.params[-1][leaf], turned(run.params[-1][leaf]), allowed, f"params[{leaf}] turned")


def _travel(case: Case, leaf: int) -> float:
    """A bound on what cancels within the steps: every gradient and the parameter at full weight."""
    size = 1 + abs(float(case.numbers.get("momentum", 0.0)))
    grads = sum((float(step[leaf].abs().sum()) for step in case.grads), 0.0)  # type: ignore[union-attr]
    total = grads + float(case.params[leaf].abs().sum())
    return (
        float(case.numbers.get("lr", 1.0))
        * total
        * (1 + abs(float(case.numbers.get("dampening", 0.0))))
        * size ** len(case.grads)
    )


@law(Tried(numbers=NO_DECAY, more={"schedule": strategies.schedules()}), needs=("lr",), uses=("param_groups",))
def learning_rate_linearity(subject: Subject, case: Case) -> None:
    """On given gradients, without decay, lr scales each step and nothing else: p_t - p_{t-1} = lr_t · u_t."""
    rates = [case.more["schedule"](t) for t in range(len(case.grads))]
    unit = subject.run(case.having(lr=1.0).mapped(params=torch.zeros_like))
    run = subject.run(case.having(lr=rates[0]).but(more={"by_step": {"lr": rates}}))
    for leaf, p in enumerate(case.params):
        steps = [b[leaf] - a[leaf] for a, b in zip(unit.params, unit.params[1:], strict=False)]
        want = p + sum((rate * u for rate, u in zip(rates, steps, strict=True)), torch.zeros_like(p))
        size = scale_of(run)[leaf] + sum(rate * scale_of(unit)[leaf] for rate in rates)
        near(run.params[-1][leaf], want, rounding(p.dtype, len(rates)) * size, f"params[{leaf}] at rates {rates}")


@law(Tried(numbers=NO_DECAY, more={"factor": powers_of_two}), needs=("lr",))
def state_ignores_learning_rate(subject: Subject, case: Case) -> None:
    """On given gradients, without decay, the state does not depend on lr, bit for bit."""
    run, other = subject.run(case), subject.run(case.having(lr=case.numbers["lr"] * case.more["factor"]))
    for leaf, own in enumerate(run.state[-1]):
        for name, value in own.items():
            if isinstance(value, Tensor):
                same(other.state[-1][leaf][name], value, f"{name} of params[{leaf}] at another lr")
