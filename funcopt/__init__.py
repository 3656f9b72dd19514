"""Optimizers for PyTorch as pure functions `(params, grads, state, hparams) -> (params, state)` over pytrees."""

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
