r"""Averaged stochastic gradient descent (Polyak & Juditsky 1992; rates and average as Bottou's and Xu's).

For each parameter p with gradient g at step t = 1, 2, …:

    g  ← g + wd·p                                  (g ← -g before, to maximize)
    p  ← (1 - λ·η)·p - η·g
    a  ← a + μ·(p - a)                             ax, the average of the weights
    η  ← lr / (1 + λ·lr·t)^α                       eta; it begins with lr
    μ  ← 1 / max(1, t - t₀)                        mu; it begins with 1

Numbers (`opt.hparams`): lr, the learning rate, in [0, inf), 1e-2; lambd = λ in [0, inf), 1e-4; alpha = α, any,
0.75; t0 = t₀, any, 1e6; weight_decay = wd in [0, inf), 0. Flag: maximize.

As in torch.optim.ASGD, weights decay at every step with a gradient, be it 0, and the average is the weights themselves
until step t₀ + 2. References: SIAM J. Control Optim. 30(4), https://doi.org/10.1137/0330046; for the rates Xu 2011,
section 5, https://arxiv.org/abs/1107.2490
"""

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Number, nonnegative
from funcopt.ops import maximum, power


def coefficients(t, lr, lambd, alpha, t0, weight_decay, eta, mu):
    return {
        "weight_decay": weight_decay,
        "decay": 1 - lambd * eta,
        "rate": eta,
        "share": mu,
        "eta": lr * power(1 + lambd * lr * t, -alpha),
        "mu": 1 / maximum(t - t0, 1.0),
    }


def update(p, g, a, c, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    p = c.decay * p - c.rate * g
    return p, (a + c.share * (p - a),)


asgd = rule(
    "asgd",
    hparams={
        "lr": nonnegative(1e-2, "learning rate"),
        "lambd": nonnegative(1e-4, "lambd value"),
        "alpha": Number(0.75, "alpha value"),
        "t0": Number(1e6, "t0 value", tried=(-1.0, 10.0)),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
    },
    slots=("ax", Slot("eta", init="lr", scalar=True), Slot("mu", init=1.0, scalar=True)),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    doc=__doc__,
    exempt={
        "decoupled_weight_decay": "weight decay is L2, part of the gradient; λ, beside the step, is another",
        "learning_rate_linearity": "a rate is worked out at the step before the one that it is for",
        "state_ignores_learning_rate": "the slot eta is the rate of the next step",
    },
)
