r"""Rprop: steps by the gradient's sign, longer while it stays (Riedmiller & Braun 1993; Igel & Hüsken 2000, iRprop⁻).

For each parameter p with gradient g:

    s  = sign(g·g₋)                                (g ← -g before, to maximize)
    Δ  ← clamp(Δ·(η₊ where s > 0, η₋ where s < 0, else 1), Δmin, Δmax)        step_size; it begins with lr
    g  ← 0 where s < 0
    p  ← p - sign(g)·Δ
    g₋ ← g                                         prev

Numbers (`opt.hparams`): lr, the first step size, in [0, inf), 1e-2; etas = (η₋, η₊), 0 < η₋ < 1 < η₊, (0.5, 1.2);
step_sizes = (Δmin, Δmax), (1e-6, 50). Flag: maximize.

lr has no effect after a parameter's first step. Reference: Igel & Hüsken, "Improving the Rprop learning algorithm", NC
2000, algorithm iRprop⁻
"""

import math

from funcopt.declaration import Slot
from funcopt.factory import rule
from funcopt.hyper import Number, nonnegative
from funcopt.ops import maximum, minimum, sign, where


def coefficients(t, lr, etas, step_sizes):
    return {"shrink": etas[0], "grow": etas[1], "least": step_sizes[0], "most": step_sizes[1]}


def update(p, g, prev, size, c, maximize):
    if maximize:
        g = -g
    turned = g * prev
    size = size * where(turned > 0, c.grow, where(turned < 0, c.shrink, 1.0))
    size = minimum(maximum(size, c.least), c.most)
    g = where(turned < 0, 0.0, g)
    return p - sign(g) * size, (g, size)


def check(hparams, flags):
    shrink, grow = hparams["etas"]
    if isinstance(shrink, float) and isinstance(grow, float) and not 0 < shrink < 1 < grow:
        return f"Invalid eta values: {shrink}, {grow} (etas takes numbers with 0 < etas[0] < 1 < etas[1])"
    return None


JUMPS = "a step depends on the sign of prev, which is 0 at first"

rprop = rule(
    "rprop",
    hparams={
        "lr": nonnegative(1e-2, "learning rate"),
        "etas": (
            Number(0.5, "Invalid eta values: {}, {}", 0.0, 1.0, below_high=True, above_low=True),
            Number(1.2, "Invalid eta values: {}, {}", 1.0, math.inf, above_low=True),
        ),
        "step_sizes": (
            Number(1e-6, "step size at index 0", tried=(1e-6, 1e-2)),
            Number(50.0, "step size at index 1", tried=(1.0, 50.0)),
        ),
    },
    slots=("prev", Slot("step_size", init="lr")),
    flags={"maximize": False},
    coefficients=coefficients,
    update=update,
    check=check,
    doc=__doc__,
    exempt={
        "first_derivatives": JUMPS,
        "second_derivatives": JUMPS,
        "learning_rate_linearity": "lr is the first step size alone",
        "state_ignores_learning_rate": "the slot step_size begins with lr",
        "zero_rate": "a step size of 0 is below the least of step_sizes",
    },
)
