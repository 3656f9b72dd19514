r"""Stochastic gradient descent, with momentum as torch.optim has it (Sutskever et al. 2013, rewritten).

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + λ·p, or p ← (1 - lr·λ)·p where the decay is decoupled        (g ← -g before, to maximize)
    b  ← g at t = 1, μ·b + (1 - τ)·g after                                momentum_buffer, where μ ≠ 0
    g  ← g + μ·b for Nesterov's method, else b
    p  ← p - lr·g

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-3; momentum = μ in [0, inf), 0; dampening = τ, any, 0;
weight_decay = λ in [0, inf), 0. Flags: nesterov (needs μ > 0 and τ = 0), decoupled_weight_decay, maximize.

The state has `momentum_buffer` unless momentum is the Python number 0. A gradient may be sparse. References: "On the
importance of initialization and momentum in deep learning", ICML 2013; decoupled decay:
https://arxiv.org/abs/1711.05101, algorithm 1
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Number, nonnegative
from funcopt.ops import where


def coefficients(t, lr, momentum, dampening, weight_decay):
    return {
        "lr": lr,
        "momentum": momentum,
        "one_minus_dampening": where(t == 1, 1.0, where(momentum == 0, 1.0, 1 - dampening)),
        "weight_decay": weight_decay,
        "decay": 1 - lr * weight_decay,
    }


def update(p, g, b, c, nesterov, decoupled_weight_decay, maximize):
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = c.decay * p
    else:
        g = g + c.weight_decay * p
    if b is None:
        slots = ()
    else:
        b = c.momentum * b + c.one_minus_dampening * g
        slots = (b,)
        if nesterov:
            g = g + c.momentum * b
        else:
            g = b
    return p - c.lr * g, slots


def check(hparams, flags):
    momentum, dampening = hparams["momentum"], hparams["dampening"]
    if flags["nesterov"] and (_is(momentum, lambda m: m <= 0) or _is(dampening, lambda d: d != 0)):
        return (
            "Nesterov momentum requires a momentum and zero dampening; "
            f"got momentum={momentum} and dampening={dampening}"
        )
    return None


def _is(number, test):
    return isinstance(number, float | int) and test(number)


sgd = rule(
    "sgd",
    hparams={
        "lr": nonnegative(1e-3, "learning rate"),
        "momentum": nonnegative(0.0, "momentum value"),
        "dampening": Number(0.0, "dampening value"),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
    },
    slots=(Slot("momentum_buffer", when="momentum"),),
    flags={"nesterov": False, "decoupled_weight_decay": False, "maximize": False},
    coefficients=coefficients,
    update=update,
    check=check,
    rows=lambda numbers: all(_is(numbers[name], lambda n: n == 0) for name in ("momentum", "weight_decay")),
    doc=__doc__,
)
