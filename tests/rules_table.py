"""Every rule with every combination of its flags, and numbers that make all of its parts matter."""

import itertools

import torch

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
    "adafactor": {"lr": 0.1, "eps": (1e-8, 1e-3), "weight_decay": 0.1},
    "muon": {"lr": 0.1, "weight_decay": 0.1},
    "sparse_adam": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "adam": {"lr": 0.1, "weight_decay": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.1},
}


# Choices that are no flags, where another than the default is wanted: derivatives in bfloat16 are worth little.
CHOICES = {"muon": {"ns_dtype": torch.float64}}


def combinations():
    """(factory, flags) for every rule and every combination of its flags, with `maximize` in one of them.

    That to maximize is to minimize with the negative gradient is a law of its own, tried with all others.
    """
    for factory in RULES.values():
        rule, more = factory.rule, CHOICES.get(factory.__name__, {})
        flags = [flag for flag in rule.flags if flag != "maximize" and flag not in rule.choices]
        for choice in itertools.product([False, True], repeat=len(flags)):
            yield factory, {**dict(zip(flags, choice, strict=True)), **more}
        if "maximize" in rule.flags:
            yield factory, {**dict.fromkeys([*flags, "maximize"], True), **more}


COMBINATIONS = list(combinations())
IDS = [
    "-".join([factory.__name__, *(name for name, chosen in flags.items() if chosen is True)])
    for factory, flags in COMBINATIONS
]
