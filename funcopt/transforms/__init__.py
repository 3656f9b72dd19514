"""Optimizer → optimizer: what people do around a step, as part of the one equation, and of the one pass over memory.

A transform takes a pure optimizer and returns one. Its numbers stand in the same flat dict of hparams, its slots in the
same state, and the outermost sees the gradients first:

    opt = skip_nonfinite(clip_by_global_norm(ema(funcopt.adamw(), decay=0.999), max_norm=1.0))

What they need of all gradients together (their norm, whether they are finite) is one reduction over them before the
pass.
"""

from funcopt.transforms.clip import clip_by_global_norm
from funcopt.transforms.ema import ema
from funcopt.transforms.finite import skip_nonfinite
from funcopt.transforms.scaling import unscale

__all__ = ["clip_by_global_norm", "ema", "skip_nonfinite", "unscale"]
