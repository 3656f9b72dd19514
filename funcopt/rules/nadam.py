r"""NAdam: Adam with Nesterov's momentum (Dozat 2016, algorithm 2), its momentum on a schedule.

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p, or p ← (1 - lr·λ)·p where the decay is decoupled        (g ← -g before, to maximize)
    μ  = β₁·(1 - ½·0.96^(t·ψ)), and μ' the same at t + 1
    Π  ← Π·μ                                       mu_product; it begins with 1
    m  ← β₁·m + (1 - β₁)·g                         exp_avg
    v  ← β₂·v + (1 - β₂)·g²                        exp_avg_sq
    p  ← p - lr · ((1 - μ)/(1 - Π) · g + μ'/(1 - Π·μ') · m) / (√(v/(1 - β₂ᵗ)) + eps)

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 2e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in [0, inf), 1e-8; weight_decay = λ in [0, inf), 0; momentum_decay = ψ in [0, inf), 4e-3. Flags: decoupled_weight_decay,
maximize.

Reference: https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import nonnegative
from funcopt.ops import one_minus_power, sqrt
from funcopt.rules.adam import adam_hparams


def coefficients(t, lr, betas, eps, weight_decay, momentum_decay, mu_product):
    beta1, beta2 = betas
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product = mu_product * mu
    return {
        "weight_decay": weight_decay,
        "decay": 1 - lr * weight_decay,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "gradient": lr * (1 - mu) / (1 - mu_product),
        "momentum": lr * mu_next / (1 - mu_product * mu_next),
        "rsqrt_bias2": 1 / sqrt(one_minus_power(beta2, t)),
        "eps": eps,
        "mu_product": mu_product,
    }


def update(p, g, m, v, c, decoupled_weight_decay, maximize):
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = c.decay * p
    else:
        g = g + c.weight_decay * p
    m = m + c.one_minus_beta1 * (g - m)
    v = c.beta2 * v + c.one_minus_beta2 * g * g
    return p - (c.gradient * g + c.momentum * m) / (sqrt(v) * c.rsqrt_bias2 + c.eps), (m, v)


nadam = rule(
    "nadam",
    hparams={
        **adam_hparams,
        "lr": nonnegative(2e-3, "learning rate"),
        "momentum_decay": nonnegative(4e-3, "momentum_decay value"),
    },
    slots=("exp_avg", "exp_avg_sq", Slot("mu_product", init=1.0, scalar=True)),
    flags={"decoupled_weight_decay": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
)
