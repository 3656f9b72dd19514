r"""Muon: momentum, orthogonalized by Newton and Schulz's iteration (Jordan et al. 2024).

For each matrix p of shape (A, B) with gradient g:

    b  ← b + (1 - μ)·(g - b)                       momentum_buffer
    x  = g + μ·(b - g) for Nesterov's method, else b
    x  ← x / max(‖x‖, eps), then ns_steps times x ← a·x + b·(xxᵀ)x + c·(xxᵀ)²x
    p  ← (1 - lr·λ)·p - lr·s·x,   s = √max(1, A/B), or 0.2·√max(A, B) for "match_rms_adamw"

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-3; weight_decay = λ in [0, inf), 0.1; momentum = μ in
[0, inf), 0.95; ns_coefficients = (a, b, c), any, (3.4445, -4.775, 2.0315); eps, 1e-7. Flags: nesterov; ns_steps, an int
from 0 to 99, 5; adjust_lr_fn, None or "original", or "match_rms_adamw"; ns_dtype, in which the iteration is worked out,
torch.bfloat16, or torch.float32 or torch.float64, for derivatives worth having.

For parameters of two dimensions, the others need another optimizer: see `funcopt.partition`. References:
https://kellerjordan.github.io/posts/muon; for "match_rms_adamw" Liu et al. 2025, equation 4,
https://arxiv.org/abs/2502.16982
"""

import math

import torch

from funcopt.declaration import Choice
from funcopt.factory import rule
from funcopt.hyper import Number
from funcopt.ops import maximum, sqrt


def coefficients(t, lr, weight_decay, momentum, ns_coefficients, eps):
    a, b, c = ns_coefficients
    return {"lr": lr, "decay": 1 - lr * weight_decay, "momentum": momentum, "a": a, "b": b, "c": c, "eps": eps}


def update(p, g, m, c, nesterov, ns_steps, adjust_lr_fn, ns_dtype):
    m = torch.lerp(m, g, 1 - c.momentum)
    x = torch.lerp(g, m, c.momentum) if nesterov else m
    x = orthogonalized(x.to(ns_dtype), c, ns_steps)
    rows, columns = p.shape
    if adjust_lr_fn == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    else:
        scale = math.sqrt(max(1.0, rows / max(1, columns)))
    return less(c.decay * p, c.lr * scale, x), (m,)


def orthogonalized(x, c, steps):
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / maximum(norm(x), c.eps)
    for _ in range(steps):
        square = x @ x.T
        x = plus(c.a, x, 1.0, plus(c.b, square, c.c, square, square), x)
    return x.T if tall else x


def norm(x):
    """Frobenius' norm, summed in float32 at least, with first and second derivatives that are 0 at 0."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return sqrt((wide * wide).sum()).to(x.dtype)


def less(p, rate, x):
    """p - rate·x, x in its own dtype, in one call where the number is Python's."""
    return torch.sub(p, x, alpha=rate) if isinstance(rate, float) else p - rate * x.to(p.dtype)


def plus(beta, x, alpha, y, z):
    """beta·x + alpha·y·z, rounded once: in one call where the numbers are Python's."""
    if isinstance(beta, float) and isinstance(alpha, float):
        return torch.addmm(x, y, z, beta=beta, alpha=alpha)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (beta * x.to(wide) + alpha * (y.to(wide) @ z.to(wide))).to(x.dtype)


def check_param(p):
    if p.dim() != 2:
        return f"Muon only supports 2D parameters whereas we found a parameter with size: {tuple(p.shape)}"
    return None


muon = rule(
    "muon",
    hparams={
        "lr": Number(1e-3, "Learning rate should be >= 0 but is: {}", low=0.0),
        "weight_decay": Number(0.1, "weight decay should be >= 0 but is: {}", low=0.0),
        "momentum": Number(0.95, "momentum should be >= 0 but is: {}", low=0.0, tried=(0.0, 0.999)),
        "ns_coefficients": (
            Number(3.4445, "Newton-Schulz coefficient at index 0", tried=(3.4, 3.45)),
            Number(-4.775, "Newton-Schulz coefficient at index 1", tried=(-4.8, -4.75)),
            Number(2.0315, "Newton-Schulz coefficient at index 2", tried=(2.0, 2.05)),
        ),
        "eps": Number(1e-7, "epsilon value", tried=(0.0, 1.0)),
    },
    slots=("momentum_buffer",),
    flags={
        "nesterov": True,
        "ns_steps": Choice(
            5, range(100), "Number of steps must be less than 100 for computational efficiency; got {}", tried=(5, 0, 2)
        ),
        "adjust_lr_fn": Choice(
            None, (None, "original", "match_rms_adamw"), "Adjust learning rate function {} is not supported"
        ),
        "ns_dtype": Choice(
            torch.bfloat16,
            (torch.bfloat16, torch.float32, torch.float64),
            "ns_dtype {} is not supported",
            tried=(torch.float64,),  # in which laws hold to rounding
        ),
    },
    coefficients=coefficients,
    update=update,
    elementwise=False,
    complex=False,
    check_param=check_param,
    doc=__doc__,
    exempt={"coupled_weight_decay": "weights decay beside the step"},
)
