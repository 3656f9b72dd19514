"""Optimizers for PyTorch as pure functions `(params, grads, state, hparams) -> (params, state)` over pytrees."""

from funcopt import nn, optim, schedules
from funcopt.core import PureOptimizer
from funcopt.declaration import Choice, Slot
from funcopt.describe import describe
from funcopt.factory import rule
from funcopt.hyper import Number, fraction, nonnegative
from funcopt.rules import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
    sparse_adam,
)
from funcopt.train_state import TrainState
from funcopt.transforms import clip_by_global_norm, ema, skip_nonfinite, unscale

__all__ = [
    "Choice",
    "Number",
    "PureOptimizer",
    "Slot",
    "TrainState",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "clip_by_global_norm",
    "describe",
    "ema",
    "fraction",
    "muon",
    "nadam",
    "nn",
    "nonnegative",
    "optim",
    "radam",
    "rmsprop",
    "rprop",
    "rule",
    "schedules",
    "sgd",
    "skip_nonfinite",
    "sparse_adam",
    "unscale",
]
__version__ = "0.1.0"
