"""Laws of methods that look at whole vectors and matrices: L-BFGS and Newton-Schulz orthogonalization."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt.testing.case import Case
from funcopt.testing.law import BrokenLawError, SaysNothingError, Tried, law, near, rounding
from funcopt.testing.laws.values import averages, leaf_grads
from funcopt.testing.subject import ClassSubject, PureSubject, Subject, copied

ONE_VECTOR = Tried(
    leaves=(1, 1), min_dims=1, max_dims=1, min_side=1, max_side=4, steps=(1, 1), params=("unit",), grads=("unit",),
    layouts=("contiguous",), numbers={"lr": 1.0}, more={"seed": st.integers(0, 1000)},
)  # fmt: skip


def quadratic(case: Case) -> tuple[Tensor, Tensor]:
    """A positive definite matrix with eigenvalues in [1, 5], and the minimizer of ½(p - p*)ᵀA(p - p*)."""
    n = case.params[0].numel()
    chance = torch.Generator().manual_seed(case.more["seed"])
    q = torch.linalg.qr(torch.randn(n, n, generator=chance, dtype=torch.float64)).Q
    return q @ torch.diag(torch.linspace(1, 5, n, dtype=torch.float64)) @ q.T, case.grads[0][0]  # type: ignore[return-value]


def minimized(subject: ClassSubject, case: Case, **settings: Any) -> tuple[Tensor, Any]:
    """The parameter after minimizing the quadratic, and the optimizer."""
    matrix, at = quadratic(case)
    p = torch.nn.Parameter(copied(case.params[0]))
    opt = subject.make([p], case, **settings)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (p - at) @ matrix @ (p - at) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    opt.step(closure)
    return p.detach(), opt


@law(ONE_VECTOR, families=("lbfgs",), of="class")
def quadratic_solved(subject: ClassSubject, case: Case) -> None:
    """L-BFGS with a strong Wolfe search minimizes a well-conditioned quadratic, to 1e-6, in 50 iterations."""
    p, _ = minimized(
        subject, case, line_search_fn="strong_wolfe", max_iter=50, tolerance_grad=1e-10, tolerance_change=0.0
    )
    near(p, quadratic(case)[1], 1e-6, "the solution")


@law(ONE_VECTOR, families=("lbfgs",), of="class")
def two_loop_is_dense(subject: ClassSubject, case: Case) -> None:
    """The two-loop recursion's direction is -H·g for the dense BFGS H, which maps the last y to s (secant equation)."""
    p, opt = minimized(subject, case, max_iter=4, line_search_fn="strong_wolfe", tolerance_grad=1e-10)
    state = opt.state[opt.param_groups[0]["params"][0]]
    if not state.get("old_dirs"):
        raise SaysNothingError("it kept no step")
    eye = torch.eye(p.numel(), dtype=p.dtype)
    dense = eye * state["H_diag"]
    for y, s in zip(state["old_dirs"], state["old_stps"], strict=True):
        rho = 1 / (y @ s)
        dense = (eye - rho * torch.outer(s, y)) @ dense @ (eye - rho * torch.outer(y, s)) + rho * torch.outer(s, s)
    near(dense @ state["old_dirs"][-1], state["old_stps"][-1], 1e-10 * state["old_stps"][-1].norm(), "H·y")
    g = state["prev_flat_grad"]
    near(state["d"], -dense @ g, 1e-10 * (dense @ g).norm() + 1e-14, "the direction")


# The polynomial that Muon iterates, and the choices under which a step is its lr times what comes of it.
QUINTIC = (3.4445, -4.775, 2.0315)
MUON = {"ns_steps": 5, "adjust_lr_fn": None}


@law(
    Tried(
        leaves=(1, 1),
        steps=(1, 1),
        numbers={"weight_decay": 0.0, "lr": 1.0, "eps": 1e-7, "ns_coefficients": QUINTIC},
        flags=MUON,
        more={"seed": st.integers(0, 1000)},
    ),
    families=("muon",),
)
def orthogonal_steps(subject: Subject, case: Case) -> None:
    """Muon's step on a Gaussian 4 x 16 gradient has singular values in 0.68 to 1.20 (times lr), whatever its scale."""
    g = torch.randn(4, 16, generator=torch.Generator().manual_seed(case.more["seed"]), dtype=torch.float64)
    steps = []
    for scale in (1.0, 1024.0):
        run = subject.run(case.but(params=[torch.zeros_like(g)], grads=[[g * scale]]))
        steps.append(run.params[-1][0])
        values = torch.linalg.svdvals(steps[-1])
        if not (bool((values >= 0.68 - 0.02).all()) and bool((values <= 1.20 + 0.02).all())):  # 0.02: bfloat16 inside
            raise BrokenLawError(f"the singular values of the step are {values.tolist()}")
    near(steps[1], steps[0], 0.03, "the step on a gradient 1024 times as large")  # bfloat16 inside


@law(
    Tried(steps=(1, 4), leaves=(1, 1), flags={"ns_dtype": torch.float64}),
    of="pure",
    families=("muon",),
    needs=("ns_coefficients", "momentum", "lr", "weight_decay"),
)
def singular_values(subject: PureSubject, case: Case) -> None:
    """Muon's iteration is a·σ + b·σ³ + c·σ⁵ of each singular value of the momentum divided by its norm, which leaves the singular vectors as they are: p' = (1 - lr·λ)·p - lr·s·U·f(Σ)·Vᵀ."""  # noqa: E501
    numbers, flags, run = case.numbers, subject.flags(case.flags), subject.run(case)
    a, b, c = numbers["ns_coefficients"]
    grads, want = leaf_grads(case, 0), case.params[0]
    rows, columns = want.shape
    scale = {None: math.sqrt(max(1, rows / max(1, columns))), "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns))}
    for t, (g, m) in enumerate(zip(grads, averages(grads, numbers["momentum"]), strict=True), 1):
        x = numbers["momentum"] * m + (1 - numbers["momentum"]) * g if flags["nesterov"] else m
        u, values, v = torch.linalg.svd(x / x.norm().clamp(min=numbers["eps"]), full_matrices=False)
        for _ in range(flags["ns_steps"]):
            values = a * values + b * values**3 + c * values**5
        step = numbers["lr"] * scale.get(flags["adjust_lr_fn"], scale[None]) * (u * values @ v)
        want = (1 - numbers["lr"] * numbers["weight_decay"]) * want - step
        # A step of the iteration multiplies what is small, errors too, by up to |a|.
        allowed = rounding(want.dtype, t) * abs(a) ** flags["ns_steps"] * (want.abs().sum() + numbers["lr"])
        near(run.params[t][0], want, allowed, f"params[0] after step {t}")
