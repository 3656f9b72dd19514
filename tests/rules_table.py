"""Every rule with every combination of its flags, numbers that make all its parts matter, and shapes that it takes."""

import itertools
import math

import torch

from funcopt import tree
from funcopt.rules import RULES

# Where a rule's default switches a part of it off, or a flag asks for more.
NUMBERS = {
    "adadelta": {"rho": 0.8, "eps": 0.01, "weight_decay": 0.1},
    "adafactor": {"lr": 0.1, "eps": (1e-8, 1e-3), "weight_decay": 0.1},
    "adagrad": {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.1, "initial_accumulator_value": 0.1},
    "adam": {"lr": 0.1, "weight_decay": 0.1},
    "adamax": {"lr": 0.1, "weight_decay": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.1},
    "asgd": {"lr": 0.1, "lambd": 0.1, "t0": 0.5, "weight_decay": 0.1},
    "muon": {"lr": 0.1, "weight_decay": 0.1},
    "nadam": {"lr": 0.1, "weight_decay": 0.1},
    "radam": {"lr": 0.1, "betas": (0.9, 0.9), "weight_decay": 0.1},
    "rmsprop": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "rprop": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "sparse_adam": {"lr": 0.1},
}


def tried(factory):
    """Of the choices that are no flags the first that laws are tried with: derivatives in bfloat16 are worth little."""
    return {name: choice.tried[0] for name, choice in factory.rule.choices.items() if choice.tried is not None}


def combinations():
    """(factory, flags) for every rule and every combination of its flags but `maximize`.

    That to maximize is to minimize with the negative gradient is a law of its own, tried with all others.
    """
    for factory in RULES.values():
        rule = factory.rule
        flags = [flag for flag in rule.flags if flag != "maximize" and flag not in rule.choices]
        for choice in itertools.product([False, True], repeat=len(flags)):
            yield factory, {**dict(zip(flags, choice, strict=True)), **tried(factory)}


COMBINATIONS = list(combinations())
IDS = [
    "-".join([factory.__name__, *(name for name, chosen in flags.items() if chosen is True)])
    for factory, flags in COMBINATIONS
]
# Those whose equation is one of each element.
ELEMENTWISE = {
    name: (factory, flags) for name, (factory, flags) in zip(IDS, COMBINATIONS, strict=True) if factory.rule.elementwise
}
# Of each rule the combination with the most parts: all flags on.
FULLEST = {factory.__name__: (factory, flags) for factory, flags in COMBINATIONS}
MAXIMIZING = {name: factory for name, factory in RULES.items() if "maximize" in factory.rule.flags}


def later(state, steps):
    """A state in which so many steps more have been counted. RAdam has a rate from the 6th on."""
    return {**state, "step": tree.map(lambda count: count + steps, state["step"])}


def fitted(factory, shape):
    """A shape, made one of two dimensions where a rule takes only those."""
    if factory.rule.unfit(torch.empty(shape, device="meta")) is None:
        return shape
    return math.prod(shape[:1]), math.prod(shape[1:])
