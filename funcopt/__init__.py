"""Optimizers for PyTorch as pure functions `(params, grads, state, hparams) -> (params, state)` over pytrees."""

from pathlib import Path

from funcopt import optim
from funcopt.core import PureOptimizer, rule
from funcopt.declaration import Slot
from funcopt.describe import describe
from funcopt.hyper import Number, fraction, nonnegative
from funcopt.rules import adam, adamw, sgd

__all__ = [
    "Number",
    "PureOptimizer",
    "Slot",
    "adam",
    "adamw",
    "describe",
    "fraction",
    "nonnegative",
    "optim",
    "rule",
    "sgd",
]
__version__ = "0.1.0"

# A source checkout has `kernels` beside this package, an installation in it. Where a checkout is used without being
# installed, this is how its `funcopt.kernels` is found.
if not Path(__file__).with_name("kernels").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
