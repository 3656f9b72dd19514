r"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

For each parameter p with gradient g at step t = 1, 2, …, weights decay before and beside Adam's step:

    p  ← (1 - lr·λ)·p
    m  ← β₁·m + (1 - β₁)·g                         exp_avg          (g ← -g before, to maximize)
    v  ← β₂·v + (1 - β₂)·g²                        exp_avg_sq
    v̂  ← max(v̂, v) for AMSGrad, else v             max_exp_avg_sq
    p  ← p - lr · m/(1 - β₁ᵗ) / (√(v̂/(1 - β₂ᵗ)) + eps)

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in [0, inf), 1e-8; weight_decay = λ in [0, inf), 0.01. Flags: amsgrad, maximize.

As torch.optim.AdamW, the decay is multiplied by lr, the paper's schedule multiplier η. Reference:
https://arxiv.org/abs/1711.05101
"""

from funcopt.factory import rule
from funcopt.hyper import nonnegative
from funcopt.rules.adam import adam_coefficients, adam_hparams, adam_slots, adam_step


def coefficients(t, lr, betas, eps, weight_decay):
    return {"decay": 1 - lr * weight_decay, **adam_coefficients(t, lr, betas, eps)}


def update(p, g, m, v, v_max, c, amsgrad, maximize):
    if maximize:
        g = -g
    return adam_step(c.decay * p, g, m, v, v_max, c, amsgrad)


adamw = rule(
    "adamw",
    hparams={**adam_hparams, "weight_decay": nonnegative(0.01, "weight_decay value")},
    slots=adam_slots,
    flags={"amsgrad": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={"coupled_weight_decay": "weights decay beside the step: the paper's point"},
)
