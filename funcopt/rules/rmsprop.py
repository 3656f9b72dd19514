r"""RMSprop (Hinton 2012, lecture 6, slide 29), also centered (Graves 2013, equations 38 to 45) and with momentum.

For each parameter p with gradient g:

    g  ← g + λ·p                                   (g ← -g before, to maximize)
    v  ← α·v + (1 - α)·g²                          square_avg
    d  = √v + eps; centered: h ← α·h + (1 - α)·g,  d = √(v - h²) + eps        grad_avg
    b  ← μ·b + g/d                                 momentum_buffer, where μ ≠ 0; else b = g/d
    p  ← p - lr·b

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-2; alpha = α in [0, inf), 0.99; eps in [0, inf), 1e-8;
weight_decay = λ in [0, inf), 0; momentum = μ in [0, inf), 0. Flags: centered, maximize.

The state has `momentum_buffer` unless momentum is the Python number 0. Where rounding makes v - h² negative it is taken
as 0. References: https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf,
https://arxiv.org/abs/1308.0850
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Number, nonnegative
from funcopt.ops import maximum, sqrt


def coefficients(t, lr, alpha, eps, weight_decay, momentum):
    return {
        "lr": lr,
        "alpha": alpha,
        "one_minus_alpha": 1 - alpha,
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": momentum,
    }


def update(p, g, v, b, h, c, centered, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    v = c.alpha * v + c.one_minus_alpha * g * g
    slots = (v,)
    square = v
    if centered:
        h = h + c.one_minus_alpha * (g - h)
        square = maximum(v - h * h, 0.0)
    step = g / (sqrt(square) + c.eps)
    if b is not None:
        step = c.momentum * b + step
        slots = (*slots, step)
    if centered:
        slots = (*slots, h)
    return p - c.lr * step, slots


rmsprop = rule(
    "rmsprop",
    hparams={
        "lr": nonnegative(1e-2, "learning rate"),
        "alpha": Number(0.99, "alpha value", low=0.0, tried=(0.1, 0.999)),  # beyond 1 there is no average
        "eps": nonnegative(1e-8, "epsilon value"),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
        "momentum": nonnegative(0.0, "momentum value"),
    },
    slots=("square_avg", Slot("momentum_buffer", when="momentum"), Slot("grad_avg", when="centered")),
    flags={"centered": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient"},
)
