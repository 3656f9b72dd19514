"""Laws of exact values: what known algorithms do on gradients for which that can be said in closed form."""

import math

import torch
from torch import Tensor

from funcopt.testing import strategies
from funcopt.testing.case import Case
from funcopt.testing.law import NO_DECAY, BrokenLawError, Tried, law, near, rounding, same, scale_of
from funcopt.testing.subject import ClassSubject, Run, Subject

ADAM = ("adam", "adamax")


def sign_of(subject: Subject, case: Case) -> float:
    """-1 to maximize, else 1."""
    return -1.0 if subject.flags(case.flags).get("maximize") else 1.0


def correction(beta: float, t: int) -> float:
    """1 - β^t, Adam's bias correction."""
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0


def averages(grads: list[Tensor], beta: float) -> list[Tensor]:
    """The exponential averages (1-β) Σ_k β^{t-k} x_k of x = g for each t, summed directly."""
    return [
        (1 - beta) * sum((beta ** (t - k) * grads[k] for k in range(t + 1)), torch.zeros_like(grads[0]))
        for t in range(len(grads))
    ]


def leaf_grads(case: Case, leaf: int) -> list[Tensor]:
    """One parameter's gradients."""
    grads = [step[leaf].double() for step in case.grads]  # type: ignore[union-attr]
    return [g.to_dense() if g.is_sparse else g for g in grads]


# ---- all ------------------------------------------------------------------------------------------------------------


@law(Tried(numbers={"lr": 0.0}), needs=("lr",))
def zero_rate(subject: Subject, case: Case) -> None:
    """A learning rate of 0 moves nothing: p' = p to the bit, with weight decay too."""
    for t, ps in enumerate(subject.run(case).params):
        for leaf, p in enumerate(case.params):
            same(ps[leaf], p, f"params[{leaf}] after step {t} at lr = 0")


@law(Tried(dtypes=strategies.DTYPES, grads=("zero",), numbers=NO_DECAY))
def fixed_point(subject: Subject, case: Case) -> None:
    """A zero gradient moves nothing: from a fresh state, without decay and with eps > 0, p' = p to the bit."""
    for t, ps in enumerate(subject.run(case).params):
        for leaf, p in enumerate(case.params):
            same(ps[leaf], p, f"params[{leaf}] after step {t} on zero gradients")


@law(
    Tried(nonzero=("eps", "weight_decay"), params=("moderate",), flags={"decoupled_weight_decay": True}),
    needs=("weight_decay", "lr"),
    claim="decoupled",
)
def decoupled_weight_decay(subject: Subject, case: Case) -> None:
    """Decoupled decay shrinks p beside the step: p' = (1 - lr·λ)·p + Δ, and neither Δ nor the state knows of λ."""
    run, plain = subject.run(case), subject.run(case.having(weight_decay=0.0))
    shrink = 1 - case.numbers["lr"] * case.numbers["weight_decay"]
    for leaf, p in enumerate(case.params):
        want = p.double()
        for a, b in zip(plain.params, plain.params[1:], strict=False):
            want = shrink * want + (b[leaf] - a[leaf])
        allowed = rounding(p.dtype, len(case.grads)) * sum(scale_of(run, plain)[leaf : leaf + 1])
        near(run.params[-1][leaf], want, allowed, f"params[{leaf}]")
        for name, value in run.state[-1][leaf].items():
            if isinstance(value, Tensor):
                same(value, plain.state[-1][leaf][name], f"{name} of params[{leaf}], with decay and without")


@law(
    Tried(steps=(1, 3), nonzero=("eps", "weight_decay"), params=("moderate",), flags={"decoupled_weight_decay": False}),
    needs=("weight_decay",),
    claim="coupled",
)
def coupled_weight_decay(subject: Subject, case: Case) -> None:
    """L2 decay is part of the gradient: run(p, g, λ) = run(p, g + λ·p, 0), to maximize with g - λ·p."""
    sign, decay = sign_of(subject, case), case.numbers["weight_decay"]
    run = subject.run(case)
    grads = [
        [g + sign * decay * p for g, p in zip(step, run.params[t], strict=True)] for t, step in enumerate(case.grads)
    ]
    other = subject.run(case.having(weight_decay=0.0).but(grads=grads))
    for leaf, scale in enumerate(scale_of(run, other)):
        # The two sums g + λ·p may be rounded apart where they cancel; eps is then what a normalised step divides by.
        size = max(float(g[leaf].abs().max()) if g[leaf].numel() else 0.0 for g in grads)  # type: ignore[union-attr]
        slack = scale + float(case.numbers.get("lr", 1.0)) * (size + _size(case, leaf)) / _least(subject, case)
        near(
            run.params[-1][leaf], other.params[-1][leaf], rounding(torch.float64, len(grads)) * slack, f"params[{leaf}]"
        )


def _size(case: Case, leaf: int) -> float:
    values = [*leaf_grads(case, leaf), case.params[leaf]]
    return max((float(v.abs().max()) for v in values if v.numel()), default=0.0)


def _least(subject: Subject, case: Case) -> float:
    eps = case.numbers.get("eps", 1.0) if subject.has("eps") else 1.0
    return min([1.0, *(float(e) for e in (eps if isinstance(eps, tuple) else [eps]) if e is not None)])


# ---- Adam -----------------------------------------------------------------------------------------------------------


@law(Tried(steps=(1, 6), constant=True, numbers=NO_DECAY), families=ADAM, needs=("betas", "eps", "lr"))
def constant_gradient(subject: Subject, case: Case) -> None:
    """On a constant gradient each Adam step is -lr·g/(|g| + eps), from the first one on: that is bias correction."""
    lr, eps, sign = case.numbers["lr"], case.numbers["eps"], sign_of(subject, case)
    run = subject.run(case)
    for leaf, g in enumerate(case.grads[0]):
        step = -sign * lr * g.double() / (g.double().abs() + eps)  # type: ignore[union-attr]
        for t, ps in enumerate(run.params):
            allowed = rounding(torch.float64, t) * (scale_of(run)[leaf] + t * lr) / least_complement(case)
            near(ps[leaf], case.params[leaf] + t * step, allowed, f"params[{leaf}] after step {t}")


def least_complement(case: Case) -> float:
    """The least 1 - β, by which rounding errors of β are divided."""
    return min(1.0 - float(beta) for beta in case.numbers["betas"])


@law(
    Tried(steps=(1, 5), numbers={**NO_DECAY, "eps": 0.0}, nonzero=(), grads=("moderate",)),
    families=("adam",),
    needs=("betas", "lr"),
)
def step_bound(subject: Subject, case: Case) -> None:
    """|Δ_t| ≤ lr·(1-β₁)/√(1-β₂)·√((1-γᵗ)/(1-γ))·√(1-β₂ᵗ)/(1-β₁ᵗ), γ = β₁²/β₂: Adam's steps are bounded, at eps = 0."""
    lr, (beta1, beta2) = case.numbers["lr"], case.numbers["betas"]
    run = subject.run(case)
    gamma = beta1 * beta1 / beta2 if beta2 else (math.inf if beta1 else 0.0)
    for t, (before, after) in enumerate(zip(run.params, run.params[1:], strict=False), 1):
        bound = lr * (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(sum(gamma**k for k in range(t)))
        bound *= math.sqrt(correction(beta2, t)) / correction(beta1, t)
        for leaf, (p, q) in enumerate(zip(before, after, strict=True)):
            allowed = bound * (1 + rounding(p.dtype, t) / least_complement(case)) + 2e-16 * (p.abs() + q.abs())
            if bool(((q - p).abs() > allowed).any()):
                raise BrokenLawError(
                    f"params[{leaf}] moves by {(q - p).tolist()} at step {t}; the bound is {bound:.17g}"
                )


@law(
    Tried(steps=(1, 5), numbers=NO_DECAY),
    families=("adam", "nadam", "radam", "sparseadam"),
    needs=("exp_avg", "exp_avg_sq", "betas"),
)
def exponential_averages(subject: Subject, case: Case) -> None:
    """The moments are averages of g and g²: m_t = (1-β₁) Σ_k β₁^{t-k} g_k, v_t = (1-β₂) Σ_k β₂^{t-k} g_k², of sparse gradients where all have an element."""  # noqa: E501
    run, sign = subject.run(case), sign_of(subject, case)
    for leaf in range(len(case.params)):
        grads = [sign * g for g in leaf_grads(case, leaf)]
        size = torch.stack(grads).abs().amax(0)
        if isinstance(subject, ClassSubject) and subject.sparse:
            size = torch.where(torch.stack(grads).ne(0).all(0), size, torch.inf)
        for name, beta, terms, scale in (
            ("exp_avg", case.numbers["betas"][0], grads, size),
            ("exp_avg_sq", case.numbers["betas"][1], [g * g for g in grads], size**2),
        ):
            for t, want in enumerate(averages(terms, beta), 1):
                got = run.state[t][leaf][name]
                near(got, want, rounding(torch.float64, t) * scale, f"{name} of params[{leaf}] after step {t}")


@law(
    Tried(steps=(1, 5), numbers=NO_DECAY, flags={"amsgrad": True}),
    families=("adam",),
    needs=("amsgrad", "betas", "eps", "lr"),
)
def amsgrad_maximum(subject: Subject, case: Case) -> None:
    """AMSGrad divides by the largest v so far: Δ_t = -lr·m̂_t/(√(max_{s≤t} v_s/(1-β₂ᵗ)) + eps)."""
    lr, eps, (beta1, beta2) = case.numbers["lr"], case.numbers["eps"], case.numbers["betas"]
    run, sign = subject.run(case), sign_of(subject, case)
    for leaf, p in enumerate(case.params):
        grads = [sign * g for g in leaf_grads(case, leaf)]
        m, v = averages(grads, beta1), averages([g * g for g in grads], beta2)
        want, largest, slack = p.double(), torch.zeros_like(v[0]), torch.zeros_like(v[0])
        for t in range(1, len(grads) + 1):
            largest = torch.maximum(largest, v[t - 1])
            below = (largest / correction(beta2, t)).sqrt() + eps
            want = want - lr * m[t - 1] / correction(beta1, t) / below
            slack = slack + lr * torch.stack(grads).abs().amax(0) / correction(beta1, t) / below
            allowed = rounding(p.dtype, t) / least_complement(case) * (p.abs() + slack)
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")


@law(Tried(steps=(1, 5), numbers=NO_DECAY, flags={"amsgrad": True}), families=("adam",), needs=("amsgrad",))
def amsgrad_is_adam(subject: Subject, case: Case) -> None:
    """While |g| does not decrease, AMSGrad is Adam, to rounding."""
    grads: list[list[Tensor | None]] = []
    for step in case.grads:
        last = grads[-1] if grads else step
        grads.append([torch.where(g.abs() < h.abs(), h, g) for g, h in zip(step, last, strict=True)])  # type: ignore[union-attr,arg-type]
    rising = case.but(grads=grads)
    run, adam = subject.run(rising), subject.run(rising.but(flags={**case.flags, "amsgrad": False}))
    for leaf, scale in enumerate(scale_of(run, adam)):
        allowed = rounding(torch.float64, len(grads)) / least_complement(case) * scale
        near(run.params[-1][leaf], adam.params[-1][leaf], allowed, f"params[{leaf}]")


@law(
    Tried(
        numbers={**NO_DECAY, "eps": 0.0, "betas": (0.0, 0.0)}, flags={"amsgrad": False}, nonzero=(), grads=("moderate",)
    ),
    families=ADAM,
    needs=("betas", "eps", "lr"),
)
def sign_descent(subject: Subject, case: Case) -> None:
    """Without memory and eps Adam is the sign method: at β₁ = β₂ = eps = 0, p' = p - lr·sign(g), AMSGrad apart."""
    lr, sign, run = case.numbers["lr"], sign_of(subject, case), subject.run(case)
    for leaf, p in enumerate(case.params):
        want = p - sign * lr * sum((g.sign() for g in leaf_grads(case, leaf)), torch.zeros_like(p))
        near(run.params[-1][leaf], want, rounding(p.dtype, len(case.grads)) * scale_of(run)[leaf], f"params[{leaf}]")


@law(
    Tried(steps=(1, 5), flags={"amsgrad": True}),
    families=("adam",),
    needs=("amsgrad", "max_exp_avg_sq", "exp_avg_sq"),
)
def monotone_maximum(subject: Subject, case: Case) -> None:
    """AMSGrad's `max_exp_avg_sq` never decreases, and is never below `exp_avg_sq`."""
    run = subject.run(case)
    never_decreases(run, "max_exp_avg_sq")
    for t, states in enumerate(run.state[1:], 1):
        for leaf, own in enumerate(states):
            if bool((own["max_exp_avg_sq"] < own["exp_avg_sq"]).any()):
                raise BrokenLawError(f"max_exp_avg_sq of params[{leaf}] is below exp_avg_sq after step {t}")


def never_decreases(run: Run, name: str) -> None:
    for t in range(2, len(run.state)):
        for leaf, own in enumerate(run.state[t]):
            if bool((own[name] < run.state[t - 1][leaf][name]).any()):
                raise BrokenLawError(f"{name} of params[{leaf}] decreases at step {t}, to {own[name].tolist()}")


# ---- SGD ------------------------------------------------------------------------------------------------------------


@law(
    Tried(steps=(1, 6), numbers={**NO_DECAY, "dampening": 0.0}, nonzero=("momentum",)),
    families=("sgd",),
    needs=("momentum", "lr"),
)
def momentum_impulse(subject: Subject, case: Case) -> None:
    """A gradient and then none: SGD goes -lr·g·Σ_{k<T} μ^k, and Nesterov's method one term further."""
    first = case.grads[0]
    zeros = [torch.zeros_like(g) for g in first if g is not None]
    run = subject.run(case.but(grads=[first, *([zeros] * (len(case.grads) - 1))]))
    terms = len(case.grads) + (1 if subject.flags(case.flags).get("nesterov") else 0)
    total = sum(case.numbers["momentum"] ** k for k in range(terms))
    for leaf, g in enumerate(first):
        want = case.params[leaf] - sign_of(subject, case) * case.numbers["lr"] * g * total
        near(run.params[-1][leaf], want, rounding(want.dtype, terms) * scale_of(run)[leaf], f"params[{leaf}]")


@law(
    Tried(steps=(1, 4), numbers=NO_DECAY, nonzero=("momentum",)),
    families=("sgd",),
    needs=("momentum", "dampening", "lr"),
)
def momentum_average(subject: Subject, case: Case) -> None:
    """SGD's momentum: b_1 = g_1, undampened, b_t = μ·b_{t-1} + (1-τ)·g_t; p' = p - lr·b, Nesterov p - lr·(g + μ·b)."""
    numbers, nesterov = case.numbers, subject.flags(case.flags).get("nesterov")
    momentum, kept = numbers["momentum"], 1 - numbers["dampening"]
    run, sign = subject.run(case), sign_of(subject, case)
    for leaf, p in enumerate(case.params):
        grads = leaf_grads(case, leaf)
        weights = [1.0] + [kept] * (len(grads) - 1)
        want, slack = p.double(), p.double().abs()
        for t, g in enumerate(grads):
            terms = [momentum ** (t - k) * weights[k] * grads[k] for k in range(t + 1)]
            step = sum(terms, torch.zeros_like(g))
            step = g + momentum * step if nesterov else step
            want = want - sign * numbers["lr"] * step
            slack = slack + numbers["lr"] * sum((x.abs() for x in (*terms, g)), torch.zeros_like(g))
            near(run.params[t + 1][leaf], want, rounding(p.dtype, t) * slack, f"params[{leaf}] after step {t + 1}")
