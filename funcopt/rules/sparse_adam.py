r"""Adam for sparse gradients: moments are updated, and decay, only where a gradient is (torch.optim.SparseAdam).

For each element p that the gradient has, with value g, at step t = 1, 2, …:

    m  ← β₁·m + (1 - β₁)·g                         exp_avg          (g ← -g before, to maximize)
    v  ← β₂·v + (1 - β₂)·g²                        exp_avg_sq
    p  ← p - lr · √(1 - β₂ᵗ)/(1 - β₁ᵗ) · m/(√v + eps)

Numbers (`opt.hparams`): lr, the learning rate, in (0, inf), 1e-3; betas = (β₁, β₂), each in [0, 1), (0.9, 0.999); eps
in (0, inf), 1e-8. Flag: maximize.

Gradients are sparse COO tensors, coalesced or not; a dense one has all elements. As eps stands beside √v before the
bias correction, dense gradients do not give what Adam gives. Equation: Kingma & Ba 2015, the end of section 2,
https://arxiv.org/abs/1412.6980
"""

import math

from funcopt.factory import rule
from funcopt.hyper import Number
from funcopt.ops import one_minus_power, sqrt
from funcopt.rules.adam import adam_hparams


def coefficients(t, lr, betas, eps):
    beta1, beta2 = betas
    return {
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step_size": lr * sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t),
        "eps": eps,
    }


def update(p, g, m, v, c, maximize):
    if maximize:
        g = -g
    m = m + c.one_minus_beta1 * (g - m)
    v = c.beta2 * v + c.one_minus_beta2 * g * g
    return p - c.step_size * (m / (sqrt(v) + c.eps)), (m, v)


sparse_adam = rule(
    "sparse_adam",
    hparams={
        "lr": Number(1e-3, "learning rate", 0.0, math.inf, above_low=True),
        "betas": adam_hparams["betas"],
        "eps": Number(1e-8, "epsilon value", 0.0, math.inf, above_low=True),
    },
    slots=("exp_avg", "exp_avg_sq"),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    complex=False,
    rows=lambda numbers: True,
    lazy=True,
    doc=__doc__,
    exempt={"rows_are_enough": "moments decay where a gradient is, and nowhere else"},
)
