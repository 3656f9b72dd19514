"""The algorithms, one file each. `RULES` has every factory by name, for tables of tests and benchmarks."""

from funcopt.rules.adam import adam
from funcopt.rules.adamw import adamw
from funcopt.rules.sgd import sgd

__all__ = ["RULES", "adam", "adamw", "sgd"]

RULES = {factory.__name__: factory for factory in (sgd, adam, adamw)}
