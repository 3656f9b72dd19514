r"""Adafactor (Shazeer & Stern 2018, algorithms 4 and 5), with a learning rate, and weight decay beside the step.

For each parameter p with gradient g at step t = 1, 2, …, RMS(x) being √(mean of x²):

    α  = max(eps₂, RMS(p)) · min(lr, 1/√t)         (g ← -g before, to maximize)
    p  ← (1 - lr·λ)·p
    r  ← r + t^τ·(mean of g² over columns - r)     row_var, for parameters of two dimensions and more
    s  ← s + t^τ·(mean of g² over rows - s)        col_var
    v  = r·s / max(mean of r, eps₁)
    v  ← v + t^τ·(g² - v)                          variance, for the others
    u  = g / √max(v, eps₁²)
    p  ← p - α · u / max(1, RMS(u)/d)

Numbers (`opt.hparams`): lr, the largest relative step, in [0, inf), 1e-2; beta2_decay = τ in (-inf, 0], -0.8; eps =
(eps₁, eps₂), each in [0, inf), (None, 1e-3), where None is the resolution of a parameter's dtype; d, the clipping
threshold, in [1, inf), 1; weight_decay = λ in [0, inf), 0. Flag: maximize.

Rows and columns are the last two dimensions. As torch.optim.Adafactor, lr stands where the paper has 10⁻², and eps₁
keeps the second moment, not its average, from 0. Complex parameters are refused. Reference: https://arxiv.org/abs/1804.04235
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Number
from funcopt.ops import maximum, mean, minimum, power, sqrt


def coefficients(t, lr, beta2_decay, eps, d, weight_decay):
    return {
        "rate": minimum(lr, 1 / sqrt(t)),
        "share": power(t, beta2_decay),
        "decay": 1 - lr * weight_decay,
        "eps1": eps[0],
        "eps2": eps[1],
        "d": d,
    }


def update(p, g, row, column, v, c, maximize):
    if maximize:
        g = -g
    step_size = maximum(rms(p), c.eps2) * c.rate
    if v is None:
        row = row + c.share * (mean(g * g, "rows") - row)
        column = column + c.share * (mean(g * g, "columns") - column)
        slots = (row, column)
        square = row * column / maximum(mean(row, "columns"), c.eps1)
    else:
        square = v + c.share * (g * g - v)
        slots = (square,)
    u = g / sqrt(maximum(square, c.eps1 * c.eps1))
    return c.decay * p - step_size / maximum(rms(u) / c.d, 1.0) * u, slots


def rms(x):
    return sqrt(mean(x * x))


RELATIVE = "a rate is min(lr, 1/√t), and relative to p"

adafactor = rule(
    "adafactor",
    hparams={
        "lr": Number(1e-2, "Learning rate should be >= 0 but is: {}", low=0.0, tried=(0.0, 0.9)),
        "beta2_decay": Number(-0.8, "beta2_decay should be <= 0 but is: {}", high=0.0),
        "eps": (
            Number(None, "epsilon1 should be >= 0 but is: {}", low=0.0),
            Number(1e-3, "epsilon2 should be >= 0 but is: {}", low=0.0, tried=(0.0, 0.1)),
        ),
        "d": Number(1.0, "Clipping threshold d should be >= 1 but is: {}", low=1.0),
        "weight_decay": Number(0.0, "weight_decay should be >= 0 but is: {}", low=0.0),
    },
    slots=(
        Slot("row_var", shape="rows"),
        Slot("col_var", shape="columns"),
        Slot("variance", shape="vectors"),
    ),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    elementwise=False,
    complex=False,
    doc=__doc__,
    exempt={
        "coupled_weight_decay": "weights decay beside the step",
        "decoupled_weight_decay": "steps are relative to p, which decay changes",
        "learning_rate_derivative": RELATIVE,
        "learning_rate_linearity": RELATIVE,
        "translation": "steps are relative to p",
    },
)
