r"""Adagrad (Duchi, Hazan & Singer 2011, figure 1, with diagonal matrices), with a learning rate that decays.

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p                                   (g ← -g before, to maximize)
    s  ← s + g²                                    sum; it begins with initial_accumulator_value
    p  ← p - lr/(1 + (t - 1)·lr_decay) · g / (√s + eps)

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-2; lr_decay in [0, inf), 0; weight_decay = λ in
[0, inf), 0; initial_accumulator_value in [0, inf), 0; eps in [0, inf), 1e-10. Flag: maximize.

A gradient may be sparse. Reference: https://jmlr.org/papers/v12/duchi11a.html
"""

from torch import Tensor

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import nonnegative
from funcopt.ops import sqrt


def coefficients(t, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    return {"lr": lr / (1 + (t - 1) * lr_decay), "weight_decay": weight_decay, "eps": eps}


def update(p, g, s, c, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    s = s + g * g
    return p - c.lr * (g / (sqrt(s) + c.eps)), (s,)


def rows(numbers):
    weight_decay = numbers["weight_decay"]
    return not isinstance(weight_decay, Tensor) and weight_decay == 0


adagrad = rule(
    "adagrad",
    hparams={
        "lr": nonnegative(1e-2, "learning rate"),
        "lr_decay": nonnegative(0.0, "lr_decay value"),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
        "initial_accumulator_value": nonnegative(0.0, "initial_accumulator_value value"),
        "eps": nonnegative(1e-10, "epsilon value"),
    },
    slots=(Slot("sum", init="initial_accumulator_value"),),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    rows=rows,
    doc=__doc__,
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient"},
)
