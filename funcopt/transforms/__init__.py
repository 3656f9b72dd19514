"""Optimizer → optimizer: what people do around a step, as part of the one equation, and of the one pass over memory.

A transform takes a pure optimizer and returns one. Its numbers stand in the same flat dict of hparams, its slots in the
same state, and the outermost sees the gradients first:

    opt = skip_nonfinite(clip_by_global_norm(ema(funcopt.adamw(), decay=0.999), max_norm=1.0))

What they need of all gradients together (their norm, whether they are finite) is one reduction over them before the
pass. Those that need sums over each parameter's own tensor (`clip_by_norm`, `adaptive_clip`, `centralize`, `cautious`)
take a pass for each on the CPU, and have the equation run by torch elsewhere.
"""

from funcopt.transforms.accumulation import accumulate
from funcopt.transforms.averaging import ema, lookahead
from funcopt.transforms.chain import chain
from funcopt.transforms.clip import adaptive_clip, clip_by_global_norm, clip_by_norm, clip_by_value
from funcopt.transforms.finite import skip_nonfinite
from funcopt.transforms.partition import Partition, freeze, masked, no_decay, partition
from funcopt.transforms.scaling import unscale
from funcopt.transforms.shaping import cautious, centralize, decoupled_weight_decay
from funcopt.transforms.sharpness import sam

__all__ = [
    "Partition",
    "accumulate",
    "adaptive_clip",
    "cautious",
    "centralize",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "decoupled_weight_decay",
    "ema",
    "freeze",
    "lookahead",
    "masked",
    "no_decay",
    "partition",
    "sam",
    "skip_nonfinite",
    "unscale",
]
