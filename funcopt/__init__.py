"""Optimizers for PyTorch as pure functions `(params, grads, state, hparams) -> (params, state)` over pytrees."""

from funcopt import optim
from funcopt.core import PureOptimizer
from funcopt.declaration import Choice, Slot
from funcopt.describe import describe
from funcopt.factory import rule
from funcopt.hyper import Number, fraction, nonnegative
from funcopt.rules import adam, adamw, sgd
from funcopt.transforms import clip_by_global_norm, ema, skip_nonfinite, unscale

__all__ = [
    "Choice",
    "Number",
    "PureOptimizer",
    "Slot",
    "adam",
    "adamw",
    "clip_by_global_norm",
    "describe",
    "ema",
    "fraction",
    "nonnegative",
    "optim",
    "rule",
    "sgd",
    "skip_nonfinite",
    "unscale",
]
__version__ = "0.1.0"
