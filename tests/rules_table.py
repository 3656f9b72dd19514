"""Every rule with every combination of its flags, and numbers that make all of its parts matter."""

import itertools

from funcopt.rules import RULES

# Where a rule's default switches a part of it off, or a flag asks for more.
NUMBERS = {
    "adadelta": {"rho": 0.8, "weight_decay": 0.1},
    "adagrad": {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.1, "initial_accumulator_value": 0.1},
    "adamax": {"lr": 0.1, "weight_decay": 0.1},
    "asgd": {"lr": 0.1, "lambd": 0.1, "t0": 1.0, "weight_decay": 0.1},
    "nadam": {"lr": 0.1, "weight_decay": 0.1},
    "radam": {"lr": 0.1, "betas": (0.9, 0.6), "weight_decay": 0.1},
    "rmsprop": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "rprop": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "adam": {"lr": 0.1, "weight_decay": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.1},
}


def combinations():
    """(factory, flags) for every rule and every combination of its flags."""
    for factory in RULES.values():
        for choice in itertools.product([False, True], repeat=len(factory.rule.flags)):
            yield factory, dict(zip(factory.rule.flags, choice, strict=True))


COMBINATIONS = list(combinations())
IDS = [
    "-".join([factory.__name__, *(name for name, chosen in flags.items() if chosen)]) for factory, flags in COMBINATIONS
]
