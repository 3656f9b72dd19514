r"""Adadelta (Zeiler 2012, algorithm 1), with a learning rate.

For each parameter p with gradient g:

    g  ← g + λ·p                                   (g ← -g before, to maximize)
    v  ← ρ·v + (1 - ρ)·g²                          square_avg
    Δ  ← √(u + eps) / √(v + eps) · g
    u  ← ρ·u + (1 - ρ)·Δ²                          acc_delta
    p  ← p - lr·Δ

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1, which is the paper's; rho = ρ in [0, 1], 0.9; eps in
[0, inf), 1e-6; weight_decay = λ in [0, inf), 0. Flag: maximize.

Reference: https://arxiv.org/abs/1212.5701
"""

from funcopt.factory import rule
from funcopt.hyper import Number, nonnegative
from funcopt.ops import sqrt


def coefficients(t, lr, rho, eps, weight_decay):
    return {"lr": lr, "rho": rho, "one_minus_rho": 1 - rho, "eps": eps, "weight_decay": weight_decay}


def update(p, g, v, u, c, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    v = c.rho * v + c.one_minus_rho * g * g
    delta = sqrt(u + c.eps) / sqrt(v + c.eps) * g
    u = c.rho * u + c.one_minus_rho * delta * delta
    return p - c.lr * delta, (v, u)


adadelta = rule(
    "adadelta",
    hparams={
        "lr": nonnegative(1.0, "learning rate"),
        "rho": Number(0.9, "rho value", low=0.0, high=1.0),
        "eps": nonnegative(1e-6, "epsilon value"),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
    },
    slots=("square_avg", "acc_delta"),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient"},
)
