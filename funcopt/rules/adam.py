r"""Adam (Kingma & Ba 2015, algorithm 1) and AMSGrad (Reddi, Kale & Kumar 2018, algorithm 2), with L2 decay.

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p                                   (g ← -g before, to maximize)
    m  ← β₁·m + (1 - β₁)·g                         exp_avg
    v  ← β₂·v + (1 - β₂)·g²                        exp_avg_sq
    v̂  ← max(v̂, v) for AMSGrad, else v             max_exp_avg_sq
    p  ← p - lr · m/(1 - β₁ᵗ) / (√(v̂/(1 - β₂ᵗ)) + eps)

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in [0, inf), 1e-8; weight_decay = λ in [0, inf), 0. Flags: amsgrad, maximize.

As torch.optim.Adam, AMSGrad takes the maximum of the uncorrected v. References: https://arxiv.org/abs/1412.6980,
https://openreview.net/forum?id=ryQu7f-RZ
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Spec, fraction, nonnegative
from funcopt.ops import maximum, one_minus_power, sqrt


def coefficients(t, lr, betas, eps, weight_decay):
    return {"weight_decay": weight_decay, **adam_coefficients(t, lr, betas, eps)}


def update(p, g, m, v, v_max, c, amsgrad, maximize):
    if maximize:
        g = -g
    return adam_step(p, g + c.weight_decay * p, m, v, v_max, c, amsgrad)


# Algorithm 1 proper, without the decay: AdamW takes it too.


def adam_coefficients(t, lr, betas, eps):
    beta1, beta2 = betas
    return {
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step_size": lr / one_minus_power(beta1, t),
        "rsqrt_bias2": 1 / sqrt(one_minus_power(beta2, t)),
        "eps": eps,
    }


def adam_step(p, g, m, v, v_max, c, amsgrad):
    m = m + c.one_minus_beta1 * (g - m)
    v = c.beta2 * v + c.one_minus_beta2 * g * g
    if amsgrad:
        v_max = maximum(v_max, v)
        slots, v_hat = (m, v, v_max), v_max
    else:
        slots, v_hat = (m, v), v
    return p - c.step_size * (m / (sqrt(v_hat) * c.rsqrt_bias2 + c.eps)), slots


adam_hparams: Spec = {
    "lr": nonnegative(1e-3, "learning rate"),
    "betas": (fraction(0.9, "beta parameter at index 0"), fraction(0.999, "beta parameter at index 1")),
    "eps": nonnegative(1e-8, "epsilon value"),
    "weight_decay": nonnegative(0.0, "weight_decay value"),
}
adam_slots = ("exp_avg", "exp_avg_sq", Slot("max_exp_avg_sq", when="amsgrad"))

adam = rule(
    "adam",
    hparams=adam_hparams,
    slots=adam_slots,
    flags={"amsgrad": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient, as in torch.optim.Adam"},
)
