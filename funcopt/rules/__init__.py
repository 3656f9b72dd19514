"""The algorithms, one file each. `RULES` has every factory by name, for tables of tests and benchmarks."""

from funcopt.rules.adadelta import adadelta
from funcopt.rules.adafactor import adafactor
from funcopt.rules.adagrad import adagrad
from funcopt.rules.adam import adam
from funcopt.rules.adamax import adamax
from funcopt.rules.adamw import adamw
from funcopt.rules.asgd import asgd
from funcopt.rules.muon import muon
from funcopt.rules.nadam import nadam
from funcopt.rules.radam import radam
from funcopt.rules.rmsprop import rmsprop
from funcopt.rules.rprop import rprop
from funcopt.rules.sgd import sgd
from funcopt.rules.sparse_adam import sparse_adam

__all__ = [
    "RULES",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]

RULES = {
    factory.__name__: factory
    for factory in (
        sgd,
        adam,
        adamw,
        adadelta,
        adafactor,
        adagrad,
        adamax,
        asgd,
        muon,
        nadam,
        radam,
        rmsprop,
        rprop,
        sparse_adam,
    )
}
