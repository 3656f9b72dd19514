"""Optimizers for PyTorch as pure functions `(params, grads, state, hparams) -> (params, state)` over pytrees."""

from funcopt import nn, optim, schedules
from funcopt.core import PureOptimizer
from funcopt.declaration import Choice, Slot
from funcopt.describe import describe
from funcopt.factory import rule
from funcopt.hyper import Number, fraction, nonnegative
from funcopt.objective import value_and_grad
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
from funcopt.rules.lbfgs import lbfgs
from funcopt.train_state import TrainState
from funcopt.transforms import (
    accumulate,
    adaptive_clip,
    cautious,
    centralize,
    chain,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    decoupled_weight_decay,
    ema,
    freeze,
    lookahead,
    masked,
    no_decay,
    partition,
    sam,
    skip_nonfinite,
    unscale,
)

__all__ = [
    "Choice",
    "Number",
    "PureOptimizer",
    "Slot",
    "TrainState",
    "accumulate",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adaptive_clip",
    "asgd",
    "cautious",
    "centralize",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "decoupled_weight_decay",
    "describe",
    "ema",
    "fraction",
    "freeze",
    "lbfgs",
    "lookahead",
    "masked",
    "muon",
    "nadam",
    "nn",
    "no_decay",
    "nonnegative",
    "optim",
    "partition",
    "radam",
    "rmsprop",
    "rprop",
    "rule",
    "sam",
    "schedules",
    "sgd",
    "skip_nonfinite",
    "sparse_adam",
    "unscale",
    "value_and_grad",
]
__version__ = "0.1.0"
