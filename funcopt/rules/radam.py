r"""RAdam: Adam with its adaptive rate rectified, and left out while it is unknown (Liu et al. 2020, algorithm 2).

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p, or p ← (1 - lr·λ)·p where the decay is decoupled        (g ← -g before, to maximize)
    m  ← β₁·m + (1 - β₁)·g                         exp_avg
    v  ← β₂·v + (1 - β₂)·g²                        exp_avg_sq
    ρ∞ = 2/(1 - β₂) - 1,   ρ = ρ∞ - 2t·β₂ᵗ/(1 - β₂ᵗ)
    r  = √( (ρ - 4)(ρ - 2)·ρ∞ / ((ρ∞ - 4)(ρ∞ - 2)·ρ) )
    p  ← p - lr · m/(1 - β₁ᵗ) · r·√(1 - β₂ᵗ)/(√v + eps) where ρ > 5, else p - lr · m/(1 - β₁ᵗ)

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in [0, inf), 1e-8; weight_decay = λ in [0, inf), 0. Flags: decoupled_weight_decay, maximize.

As torch.optim.RAdam, ρ is compared with 5, where the paper has 4, and eps stands beside √v. Reference:
https://arxiv.org/abs/1908.03265
"""

from funcopt.factory import rule
from funcopt.ops import one_minus_power, sqrt, where
from funcopt.rules.adam import adam_hparams


def coefficients(t, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    bias2 = one_minus_power(beta2, t)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * (1 - bias2) / bias2
    known = length > 5
    length, longest = where(known, length, 6.0), where(known, longest, 6.0)  # finite, with finite derivatives
    rectified = sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return {
        "weight_decay": weight_decay,
        "decay": 1 - lr * weight_decay,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step_size": lr / one_minus_power(beta1, t),
        "known": where(known, 1.0, 0.0),
        "rectified": rectified * sqrt(bias2),
        "eps": eps,
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
    known = c.known != 0
    denominator = sqrt(v) + c.eps
    adapted = m / where(denominator == 0, 1.0, denominator)
    return p - c.step_size * where(known, c.rectified * adapted, m), (m, v)


radam = rule(
    "radam",
    hparams=adam_hparams,
    slots=("exp_avg", "exp_avg_sq"),
    flags={"decoupled_weight_decay": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
)
