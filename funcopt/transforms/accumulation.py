"""Steps by the mean of several gradients: `accumulate`."""

from typing import Any

from funcopt.declaration import Slot
from funcopt.hyper import Number
from funcopt.ops import floor, maximum, where
from funcopt.transforms.layer import Layer, layered

__all__ = ["accumulate"]


def coefficients(t, accumulate_every):
    return {"share": 1 / accumulate_every, "hold": where(t % accumulate_every == 0, 0.0, 1.0)}


def before(p, g, slots, c):
    (accumulated,) = slots
    return accumulated + c.share * g


def after(old, g, p, slots, c, flags):
    return p, (where(c.hold != 0, g, 0.0),)


layer = Layer(
    "accumulate",
    hparams={"accumulate_every": Number(1.0, "accumulate_every", low=1.0, whole=True)},
    slots=(Slot("accumulated"),),
    coefficients=coefficients,
    before=before,
    after=after,
    time=lambda t, accumulate_every: maximum(floor(t / accumulate_every), 1.0),
    takes=("t",),
)


def accumulate(opt: Any = None, every: int = 1, *, prefix: str = "") -> Any:
    """The optimizer, which takes a step at every so manieth call, by the mean of the gradients since the last one.

    `state["step"]` counts calls, and so does a schedule; the optimizer inside sees the number of its own steps. What is
    around the transform sees each gradient, what is inside it their mean: clip inside, skip what is not finite outside.

    The sum is in the slot's dtype, a parameter's own or `opt.init`'s slot_dtype: bfloat16 is too short for one of many.
    Calls are counted in float32, as steps in torch.optim, which has whole numbers up to 2²⁴ = 16,777,216.

    Args:
        opt: a pure optimizer; left out, the function that puts the transform around one is returned.
        every: how many gradients there are to a step, ≥ 1; `opt.hparams(accumulate_every=…)` overrules it.
        prefix: put before the names of the number and of the slot `accumulated`, where the optimizer has such already.

    Raises:
        TypeError, ValueError: not an optimizer, a name that is taken, no whole number of steps.
    """
    return layered(opt, layer, prefix, accumulate_every=every)
