r"""Averages of the weights: their exponential moving average, and lookahead.

    ema         ema ← ema + (1 - decay)·(p - ema)       after each step
    lookahead   p ← slow + α·(p - slow), slow ← p       after every k-th step

Both begin with the weights before the first step.

References: Polyak & Juditsky 1992; as in Tarvainen & Valpola 2017, equation 1, https://arxiv.org/abs/1703.01780, and
torch.optim.swa_utils.get_ema_multi_avg_fn; Zhang et al. 2019, algorithm 1, https://arxiv.org/abs/1907.08610
"""

from typing import Any

from funcopt.declaration import Slot
from funcopt.hyper import Number
from funcopt.ops import where
from funcopt.transforms.layer import Layer, layered

__all__ = ["ema", "lookahead"]


def averaged(old, g, p, slots, c, flags):
    (average,) = slots
    return p, (average + c.weight * (p - average),)


average = Layer(
    "ema",
    hparams={"ema_decay": Number(0.999, "ema_decay", low=0.0, high=1.0)},
    slots=(Slot("ema", init="params"),),
    coefficients=lambda ema_decay: {"weight": 1 - ema_decay},
    after=averaged,
)


def ema(opt: Any = None, decay: float = 0.999, *, prefix: str = "") -> Any:
    """The optimizer with an exponential moving average of the weights in its state, `state["ema"]`.

    The average begins with the weights before the first step, and that of a parameter without a gradient stays as it
    is, like the rest of its state. In bfloat16 it hardly moves, as torch.optim.swa_utils': `opt.init` takes
    slot_dtype=torch.float32. `torch.func.functional_call(model, state["ema"], inputs)` evaluates with it, where
    params are a dict by name; a class's is in `optimizer.to_pure()[2]["ema"]`.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        decay: the part of the average that a step keeps, in [0, 1]; `opt.hparams(ema_decay=…)` overrules it.
        prefix: put before the names of the number and of the slot, where the optimizer has such already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a decay out of its range.
    """
    return layered(opt, average, prefix, ema_decay=decay)


def synchronized(old, g, p, slots, c, flags):
    (slow,) = slots
    now, both = c.now != 0, p + c.one_minus_alpha * (slow - p)
    return where(now, both, p), (where(now, both, slow),)


slow = Layer(
    "lookahead",
    hparams={
        "lookahead_k": Number(5.0, "lookahead_k", low=1.0, whole=True),
        "lookahead_alpha": Number(0.5, "lookahead_alpha", low=0.0, high=1.0),
    },
    slots=(Slot("slow", init="params"),),
    coefficients=lambda t, lookahead_k, lookahead_alpha: {
        "now": where(t % lookahead_k == 0, 1.0, 0.0),
        "one_minus_alpha": 1 - lookahead_alpha,
    },
    after=synchronized,
    takes=("t",),
)


def lookahead(opt: Any = None, k: int = 5, alpha: float = 0.5, *, prefix: str = "") -> Any:
    """The optimizer, whose weights are pulled back, every k steps, towards weights that follow slowly.

    Steps are counted in float32, as in torch.optim, which has whole numbers up to 2²⁴ = 16,777,216.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        k: how many steps there are between two pulls, ≥ 1; `opt.hparams(lookahead_k=…)` overrules it.
        alpha: how far the slow weights, `state["slow"]`, come along, in [0, 1]; `opt.hparams(lookahead_alpha=…)`
            overrules it.
        prefix: put before the names of the numbers and of the slot, where the optimizer has such already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a number out of its range.
    """
    return layered(opt, slow, prefix, lookahead_k=k, lookahead_alpha=alpha)
