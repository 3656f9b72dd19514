"""The optimizers that ours are timed beside.

torchao's keep their state in 8 or 4 bits, schedulefree's are algorithms of their own, and pytorch_optimizer's Adam,
AdamW, SGD, RMSprop and NAdam are torch.optim's own classes: none of these would compare like with like.
"""

import importlib
import importlib.util
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor

from bench import report, steps
from bench.steps import Peer

# torch.optim's implementations, by the arguments that choose them.
FORMS = {
    "torch-loop": {"foreach": False, "fused": False},
    "torch-foreach": {"foreach": True},
    "torch-fused": {"fused": True},
}


def ours(cls: Any, name: str = "funcopt", **arguments: Any) -> Peer:
    """A class of funcopt."""
    return Peer(name, lambda params: cls(params, **arguments))


def of_torch(cls: Any, forms: tuple[str, ...] = tuple(FORMS), **arguments: Any) -> list[Peer]:
    """A class of torch.optim, in those of its forms that are asked for."""
    takes = inspect.signature(cls).parameters

    def peer(form: str) -> Peer:
        choice = {name: value for name, value in FORMS[form].items() if name in takes or value}
        lacks = [name for name in choice if name not in takes]
        reason = f"torch.optim.{cls.__name__} has no {lacks[0]} form" if lacks else None
        return Peer(form, lambda params: cls(params, **arguments, **choice), left_out=reason)

    return [peer(form) for form in forms]


def missing(module: str) -> str | None:
    """Why a peer's module cannot be had, if it cannot."""
    return None if importlib.util.find_spec(module) else f"not installed: pip install {report.PACKAGES[module]}"


def of(module: str, cls: str, device: torch.device, **arguments: Any) -> Peer:
    """A class of another library, in the form that is fastest on a device."""
    best: dict[str, dict[str, Any]] = {
        # Triton is its default on a GPU. Its compensation for bf16 writes to gradients, and is another algorithm.
        "optimi": {"kahan_sum": False, **({"foreach": True} if device.type == "cpu" else {})},
        "heavyball": {"consume_grad": False},
        "pytorch_optimizer": {"foreach": True},
    }

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        if module == "heavyball":  # it compiles what it runs
            steps.load_inductor(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optimi's foreach form is deprecated in favour of its Triton one
            return getattr(importlib.import_module(module), cls)(params, **arguments, **best[module])

    return Peer(module.replace("_", "-"), make, left_out=missing(module))
