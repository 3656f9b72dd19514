r"""Adamax (Kingma & Ba 2015, algorithm 2): Adam by the infinity norm.

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p                                   (g ← -g before, to maximize)
    m  ← β₁·m + (1 - β₁)·g                         exp_avg
    u  ← max(β₂·u, |g| + eps)                      exp_inf
    p  ← p - lr/(1 - β₁ᵗ) · m/u

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 2e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in [0, inf), 1e-8; weight_decay = λ in [0, inf), 0. Flag: maximize.

eps, which the paper has not, is torch.optim.Adamax's. Where u is 0, so is the step. Reference:
https://arxiv.org/abs/1412.6980
"""

from funcopt.factory import rule
from funcopt.hyper import nonnegative
from funcopt.ops import abs, maximum, one_minus_power, where
from funcopt.rules.adam import adam_hparams


def coefficients(t, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    return {
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "step_size": lr / one_minus_power(beta1, t),
        "eps": eps,
        "weight_decay": weight_decay,
    }


def update(p, g, m, u, c, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    m = m + c.one_minus_beta1 * (g - m)
    u = maximum(c.beta2 * u, abs(g) + c.eps)
    return p - c.step_size * (m / where(u == 0, 1.0, u)), (m, u)


adamax = rule(
    "adamax",
    hparams={**adam_hparams, "lr": nonnegative(2e-3, "learning rate")},
    slots=("exp_avg", "exp_inf"),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient"},
)
