r"""The exponential moving average of the weights (Polyak & Juditsky 1992; as in Tarvainen & Valpola 2017, equation 1).

    ema ← ema + (1 - decay)·(p - ema)          after each step; it begins with the weights before the first

As torch.optim.swa_utils.get_ema_multi_avg_fn. Reference: https://arxiv.org/abs/1703.01780
"""

from funcopt.core import PureOptimizer
from funcopt.declaration import Slot
from funcopt.hyper import Number
from funcopt.transforms.layer import Layer, layered

__all__ = ["ema"]


def coefficients(ema_decay):
    return {"weight": 1 - ema_decay}


def after(old, g, p, slots, c):
    (average,) = slots
    return p, (average + c.weight * (p - average),)


layer = Layer(
    "ema",
    hparams={"ema_decay": Number(0.999, "ema_decay", low=0.0, high=1.0)},
    slots=(Slot("ema", init="params"),),
    coefficients=coefficients,
    after=after,
)


def ema(opt: PureOptimizer, decay: float = 0.999, *, prefix: str = "") -> PureOptimizer:
    """The optimizer with an exponential moving average of the weights in its state, `state["ema"]`.

    The average begins with the weights before the first step, and that of a parameter without a gradient stays as it
    is, like the rest of its state. `torch.func.functional_call(model, state["ema"], inputs)` evaluates with it, where
    params are a dict by name; a class's is in `optimizer.to_pure()[2]["ema"]`.

    Args:
        opt: a pure optimizer.
        decay: the part of the average that a step keeps, in [0, 1]; `opt.hparams(ema_decay=…)` overrules it.
        prefix: put before the names of the number and of the slot, where the optimizer has such already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, a decay out of its range.
    """
    return layered(opt, layer, prefix, ema_decay=decay)
