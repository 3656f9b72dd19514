"""Laws of exact values, algorithm by algorithm: Adam's kin, those that scale by past gradients, and the rest."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt.testing.case import Case
from funcopt.testing.law import (
    NO_DECAY,
    SaysNothingError,
    Tried,
    in_float64,
    law,
    near,
    rounding,
    scale_of,
)
from funcopt.testing.laws.values import averages, correction, leaf_grads, least_complement, never_decreases, sign_of
from funcopt.testing.subject import Subject


def numbers_of(subject: Subject, case: Case) -> dict[str, Any]:
    """A case's numbers, with the defaults of those that a class has and laws do not draw."""
    return {**getattr(subject, "defaults", {}), **case.numbers}


def travelled(subject: Subject, case: Case, sizes: list[float], least: float) -> None:
    """Raise unless on a constant gradient the step t is -lr·sizes[t]·g/(|g| + eps), to rounding times 1/least."""
    numbers, run = numbers_of(subject, case), subject.run(case)
    for leaf, g in enumerate(case.grads[0]):
        assert g is not None
        step = -sign_of(subject, case) * numbers["lr"] * g / (g.abs() + numbers["eps"])
        for t, ps in enumerate(run.params):
            allowed = rounding(torch.float64, t) * scale_of(run)[leaf] / least
            near(ps[leaf], case.params[leaf] + sum(sizes[:t]) * step, allowed, f"params[{leaf}] after step {t}")


# ---- Adam's kin -----------------------------------------------------------------------------------------------------

CONSTANT = Tried(steps=(1, 6), constant=True, numbers=NO_DECAY)


@law(CONSTANT, families=("nadam",), needs=("betas", "eps", "lr"))
@in_float64
def nadam_constant(subject: Subject, case: Case) -> None:
    """On a constant gradient NAdam's steps are -lr·((1-μ_t)/(1-Π_t) + μ_{t+1}·(1-β₁ᵗ)/(1-Π_{t+1}))·g/(|g| + eps), where μ_t = β₁·(1 - ½·0.96^{tψ}) and Π_t = μ_1·…·μ_t."""  # noqa: E501
    numbers, steps = numbers_of(subject, case), len(case.grads)
    beta1, decay = numbers["betas"][0], numbers["momentum_decay"]
    momenta = [beta1 * (1 - 0.96 ** (t * decay) / 2) for t in range(1, steps + 2)]
    products = [math.prod(momenta[:t]) for t in range(1, steps + 2)]
    sizes = [
        (1 - momenta[t]) / (1 - products[t]) + momenta[t + 1] * correction(beta1, t + 1) / (1 - products[t + 1])
        for t in range(steps)
    ]
    travelled(subject, case, sizes, least_complement(case))


@law(
    Tried(steps=(1, 8), constant=True, numbers={**NO_DECAY, "eps": 0.0}, grads=("moderate",), nonzero=()),
    families=("radam",),
    needs=("betas", "eps", "lr"),
)
def radam_constant(subject: Subject, case: Case) -> None:
    """On a constant gradient, at eps = 0, RAdam's steps are -lr·r_t·sign(g) where ρ_t > 5, before that -lr·g."""
    lr, (_, beta2) = case.numbers["lr"], case.numbers["betas"]
    run, longest = subject.run(case), 2 / (1 - beta2) - 1
    for leaf, g in enumerate(case.grads[0]):
        want = case.params[leaf]
        for t in range(1, len(run.params)):
            length = longest - 2 * t * beta2**t / correction(beta2, t)
            if length > 5:
                parts = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
                step = math.sqrt(parts[0] / parts[1]) * g.sign()  # type: ignore[union-attr]
            else:
                step = g  # type: ignore[assignment]
            want = want - sign_of(subject, case) * lr * step
            allowed = rounding(want.dtype, t) * scale_of(run)[leaf] / (1 - beta2) ** 2  # ρ is a difference of 1/(1-β₂)
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")


@law(
    Tried(
        steps=(1, 8),
        numbers={**NO_DECAY, "eps": 0.0, "betas": (0.9, 0.999)},
        grads=("moderate",),
        nonzero=(),
        params=("zero",),
        more={"factor": st.sampled_from([2.0, 0.25])},
    ),
    families=("radam",),
    needs=("betas", "eps"),
)
def rectification(subject: Subject, case: Case) -> None:
    """RAdam is linear in the gradient for 5 steps and does not know its scale from the 6th on, at β₂ = 0.999."""
    factor = case.more["factor"]
    run, other = subject.run(case), subject.run(case.mapped(grads=lambda g: g * factor))
    for leaf in range(len(case.params)):
        for t in range(1, len(run.params)):
            step, scaled = (r.params[t][leaf] - r.params[t - 1][leaf] for r in (run, other))
            want = step * factor if t <= 5 else step
            allowed = 1e-12 * (scale_of(run)[leaf] + scale_of(other)[leaf])  # a difference of params, and 1/(1-β₂)
            near(scaled, want, allowed, f"the step {t} of params[{leaf}], gradients times {factor}")


@law(Tried(steps=(1, 5), numbers=NO_DECAY), families=("adamax",), needs=("exp_inf", "betas", "eps"))
def discounted_maximum(subject: Subject, case: Case) -> None:
    """Adamax divides by the largest gradient so far, discounted: u_t = max_k β₂^{t-k}·(|g_k| + eps)."""
    eps, (_, beta2), run = case.numbers["eps"], case.numbers["betas"], subject.run(case)
    for leaf in range(len(case.params)):
        sizes = [g.abs() + eps for g in leaf_grads(case, leaf)]
        for t in range(1, len(sizes) + 1):
            want = torch.stack([beta2 ** (t - k) * sizes[k - 1] for k in range(1, t + 1)]).amax(0)
            got = run.state[t][leaf]["exp_inf"]
            near(got, want, rounding(want.dtype, t) * want, f"exp_inf of params[{leaf}] after step {t}")


@law(Tried(steps=(1, 6), constant=True), families=("sparseadam",), needs=("betas", "eps", "lr"))
def sparse_adam_constant(subject: Subject, case: Case) -> None:
    """On a constant gradient a step of Adam for sparse gradients is -lr·g/(|g| + eps/√(1-β₂ᵗ))."""
    numbers, run = case.numbers, subject.run(case)
    for leaf, g in enumerate(case.grads[0]):
        assert g is not None
        want, g = case.params[leaf], g.to_dense() if g.is_sparse else g
        for t in range(1, len(run.params)):
            eps = numbers["eps"] / math.sqrt(correction(numbers["betas"][1], t))
            want = want - sign_of(subject, case) * numbers["lr"] * g / (g.abs() + eps)
            allowed = rounding(want.dtype, t) * scale_of(run)[leaf] / least_complement(case)
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")


# ---- steps scaled by past gradients ---------------------------------------------------------------------------------


@law(
    Tried(steps=(1, 6), constant=True, numbers=NO_DECAY, grads=("moderate",)),
    families=("adagrad",),
    needs=("lr",),
)
def adagrad_constant(subject: Subject, case: Case) -> None:
    """On a constant gradient Adagrad's steps are -lr/(1 + (t-1)·lr_decay)·g/(√(s_0 + t·g²) + eps)."""
    numbers, run = numbers_of(subject, case), subject.run(case)
    eps, decay, first = (numbers.get(name, 0.0) for name in ("eps", "lr_decay", "initial_accumulator_value"))
    for leaf, g in enumerate(case.grads[0]):
        assert g is not None
        want = case.params[leaf]
        for t in range(1, len(run.params)):
            rate = sign_of(subject, case) * numbers["lr"] / (1 + (t - 1) * decay)
            want = want - rate * g / ((first + t * g * g).sqrt() + eps)
            near(run.params[t][leaf], want, rounding(want.dtype, t) * scale_of(run)[leaf], f"params[{leaf}] after {t}")


@law(Tried(steps=(2, 5)), families=("adagrad",), needs=("sum",))
def monotone_sums(subject: Subject, case: Case) -> None:
    """Adagrad's `sum` never decreases."""
    never_decreases(subject.run(case), "sum")


@law(
    Tried(steps=(1, 6), constant=True, numbers=NO_DECAY, grads=("moderate",)),
    families=("rmsprop",),
    needs=("alpha", "lr"),
)
def rmsprop_constant(subject: Subject, case: Case) -> None:
    """On a constant gradient RMSprop goes by b = μ·b + g/(|g|·s + eps), s being √(1-αᵗ), and centered √(αᵗ·(1-αᵗ))."""
    numbers, run = numbers_of(subject, case), subject.run(case)
    alpha, momentum, eps = numbers["alpha"], numbers.get("momentum", 0.0), numbers.get("eps", 0.0)
    centered = subject.flags(case.flags).get("centered", False)
    if centered and alpha < 0.5:
        raise SaysNothingError("of the variance nothing but rounding errors is left")
    for leaf, g in enumerate(case.grads[0]):
        assert g is not None
        want, b = case.params[leaf], torch.zeros_like(g)
        for t in range(1, len(run.params)):
            size = correction(alpha, t) * (alpha**t if centered else 1.0)
            b = momentum * b + g / (g.abs() * math.sqrt(size) + eps)
            want = want - sign_of(subject, case) * numbers["lr"] * b
            allowed = 1e3 * rounding(want.dtype, t) * scale_of(run)[leaf]  # 1e3: α to 0.999
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")


@law(Tried(steps=(1, 5), numbers=NO_DECAY), families=("adadelta",), needs=("rho", "eps", "lr"))
def adadelta_steps(subject: Subject, case: Case) -> None:
    """Adadelta goes by lr·Δ_t, Δ_t = √(u_{t-1} + eps)/√(v_t + eps)·g_t, with averages v of g² and u of Δ² by ρ."""
    lr, rho, eps = (case.numbers[name] for name in ("lr", "rho", "eps"))
    run = subject.run(case)
    for leaf, p in enumerate(case.params):
        grads = leaf_grads(case, leaf)
        square, deltas = averages([g * g for g in grads], rho), list[Tensor]()
        for t, g in enumerate(grads):
            before = averages([d * d for d in deltas], rho)[-1] if deltas else torch.zeros_like(g)
            deltas.append((before + eps).sqrt() / (square[t] + eps).sqrt() * g)
            want = p - sign_of(subject, case) * lr * sum(deltas, torch.zeros_like(p))
            size = scale_of(run)[leaf] + lr * sum((d.abs() for d in deltas), torch.zeros_like(p))
            near(run.params[t + 1][leaf], want, rounding(p.dtype, t) * size, f"params[{leaf}] after step {t + 1}")


# ---- steps by signs -------------------------------------------------------------------------------------------------


@law(Tried(steps=(1, 5), numbers=NO_DECAY), families=("lion",), needs=("lr", "betas"))
def sign_steps(subject: Subject, case: Case) -> None:
    """Lion without decay moves each element by 0 or lr; with β₁ = β₂ by lr times the sign of the gradients' average."""
    beta = case.numbers["betas"][0]
    equal = case.having(betas=(beta, beta))
    lr, sign, run, even = case.numbers["lr"], sign_of(subject, case), subject.run(case), subject.run(equal)
    for leaf, p in enumerate(case.params):
        for t, (a, b) in enumerate(zip(run.params, run.params[1:], strict=False), 1):
            size = (b[leaf] - a[leaf]).abs()
            near(torch.minimum(size, (size - lr).abs()), torch.zeros_like(p), 4e-16 * scale_of(run)[leaf], f"step {t}")
        means = averages(leaf_grads(case, leaf), beta)
        clear = torch.stack([m.abs() for m in means]).amin(0) > 1e-12
        want = p - sign * lr * sum((m.sign() for m in means), torch.zeros_like(p))
        allowed = rounding(p.dtype, len(means)) * scale_of(even)[leaf]
        near(torch.where(clear, even.params[-1][leaf], want), want, allowed, f"params[{leaf}]")


@law(Tried(steps=(1, 5), numbers=NO_DECAY), families=("lion",), needs=("lr", "betas"))
def sign_of_blend(subject: Subject, case: Case) -> None:
    """Lion goes against the sign of β₁·m + (1-β₁)·g, where m is the average by β₂ of the gradients before."""
    lr, (beta1, beta2), sign, run = case.numbers["lr"], case.numbers["betas"], sign_of(subject, case), subject.run(case)
    for leaf in range(len(case.params)):
        grads = leaf_grads(case, leaf)
        means = [torch.zeros_like(grads[0]), *averages(grads, beta2)]
        for t, g in enumerate(grads):
            blend = beta1 * means[t] + (1 - beta1) * g
            before, after = run.params[t][leaf], run.params[t + 1][leaf]
            want = torch.where(blend.abs() > 1e-12, before - sign * lr * blend.sign(), after)
            near(after, want, rounding(want.dtype, 1) * (before.abs() + lr), f"params[{leaf}] after step {t + 1}")


@law(Tried(steps=(1, 7), grads=("moderate",), constant=True), families=("rprop",), needs=("lr",))
def geometric_steps(subject: Subject, case: Case) -> None:
    """While the gradient keeps its sign, Rprop's step grows by η⁺ each time, from lr on, within the sizes allowed."""
    numbers, run = numbers_of(subject, case), subject.run(case)
    (_, up), (low, high) = numbers["etas"], numbers["step_sizes"]
    for leaf, g in enumerate(case.grads[0]):
        want, size = case.params[leaf], numbers["lr"]
        for t in range(1, len(run.params)):
            size = min(max(size * (up if t > 1 else 1.0), low), high)
            want = want - sign_of(subject, case) * size * g.sign()  # type: ignore[union-attr]
            near(run.params[t][leaf], want, rounding(want.dtype, t) * scale_of(run)[leaf], f"params[{leaf}] after {t}")


@law(Tried(steps=(2, 7)), families=("rprop",), needs=("lr",))
def turning_steps(subject: Subject, case: Case) -> None:
    """Where the gradient turns, Rprop's step shrinks by η⁻ and is left out, and the next one is as long, whatever its sign; each element has its own."""  # noqa: E501
    numbers, run = numbers_of(subject, case), subject.run(case)
    (down, up), (low, high) = numbers["etas"], numbers["step_sizes"]

    def end(p: float, *grads: float) -> float:
        size, last = numbers["lr"], 0.0
        for g in grads:
            factor = up if g * last > 0 else down if g * last < 0 else 1.0
            size, last = min(max(size * factor, low), high), 0.0 if g * last < 0 else g
            p -= math.copysign(size, last) if last else 0.0
        return p

    for leaf, p in enumerate(case.params):
        grads = torch.stack([p, *(sign_of(subject, case) * g for g in leaf_grads(case, leaf))], -1)
        ends = [end(*element) for element in grads.reshape(-1, grads.shape[-1]).tolist()]
        want = torch.tensor(ends, dtype=torch.float64).view(p.shape)
        near(run.params[-1][leaf], want, rounding(p.dtype, len(case.grads)) * scale_of(run)[leaf], f"params[{leaf}]")


# ---- averaged, factored ---------------------------------------------------------------------------------------------


@law(Tried(steps=(1, 6), numbers={"weight_decay": 0.0}), families=("asgd",), needs=("lambd", "alpha", "lr"))
@in_float64
def averaged_weights(subject: Subject, case: Case) -> None:
    """ASGD goes p_t = (1 - λη_t)·p_{t-1} - η_t·g_t by η_1 = lr, η_t = lr/(1 + λ·lr·(t-1))^α, and `ax` is the mean of the weights since step t₀ + 1, the weights themselves before."""  # noqa: E501
    numbers, run = numbers_of(subject, case), subject.run(case)
    lr, decay, alpha, t0 = (numbers[name] for name in ("lr", "lambd", "alpha", "t0"))
    for leaf, p in enumerate(case.params):
        want, mean = p.double(), p.double()
        for t, g in enumerate(leaf_grads(case, leaf), 1):
            rate = lr / (1 + decay * lr * (t - 1)) ** alpha
            want = (1 - decay * rate) * want - rate * sign_of(subject, case) * g
            mean = mean + (want - mean) / max(1.0, t - 1 - t0)
            allowed = rounding(want.dtype, t) * scale_of(run)[leaf]
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")
            near(run.state[t][leaf]["ax"], mean, allowed, f"ax of params[{leaf}] after step {t}")


@law(Tried(steps=(1, 5), min_side=1), families=("adafactor",), needs=("lr", "weight_decay"))
def factored_moments(subject: Subject, case: Case) -> None:
    """Adafactor of a matrix divides by the root of v_ij = r_i·s_j / mean of r, r and s being averages of the means of g² along rows and columns, by weights t^τ; steps are relative to the size of p."""  # noqa: E501
    numbers, run = numbers_of(subject, case), subject.run(case)
    eps1, eps2 = numbers["eps"]
    eps1 = torch.finfo(torch.float64).eps if eps1 is None else eps1
    for leaf, p in enumerate(case.params):
        want, kept = p.double(), [torch.zeros((), dtype=torch.float64)] * 2
        for t, g in enumerate(leaf_grads(case, leaf), 1):
            g = sign_of(subject, case) * g
            weight, matrix = t ** numbers["beta2_decay"], p.dim() == 2
            means = [(g**2).mean(1), (g**2).mean(0)] if matrix else [g**2]
            kept = [(1 - weight) * old + weight * new for old, new in zip(kept, means, strict=False)]
            v = torch.outer(*kept) / kept[0].mean().clamp(min=eps1) if matrix else kept[0]
            u = g / v.clamp(min=eps1**2).sqrt()
            u = u / max(1.0, float(u.square().mean().sqrt()) / numbers["d"])
            rate = min(numbers["lr"], t**-0.5) * max(eps2, float(want.square().mean().sqrt()))
            want = (1 - numbers["lr"] * numbers["weight_decay"]) * want - rate * u
            allowed = 8 * rounding(want.dtype, t) * scale_of(run)[leaf].amax()  # 8: sums over the elements
            near(run.params[t][leaf], want, allowed, f"params[{leaf}] after step {t}")
