"""Every transform of one optimizer, with numbers at which it does something."""

import funcopt

TRANSFORMS = {
    "clip_by_global_norm": lambda opt: funcopt.clip_by_global_norm(opt, 0.7),
    "clip_by_norm": lambda opt: funcopt.clip_by_norm(opt, 0.7),
    "clip_by_value": lambda opt: funcopt.clip_by_value(opt, 0.4),
    "adaptive_clip": lambda opt: funcopt.adaptive_clip(opt, 0.3),
    "centralize": funcopt.centralize,
    "unscale": lambda opt: funcopt.unscale(opt, 4.0),
    "skip_nonfinite": funcopt.skip_nonfinite,
    "decoupled_weight_decay": lambda opt: funcopt.decoupled_weight_decay(opt, 0.2, prefix="outer_"),
    "cautious": funcopt.cautious,
    "ema": lambda opt: funcopt.ema(opt, 0.7),
    "lookahead": lambda opt: funcopt.lookahead(opt, 2, 0.3),
    "accumulate": lambda opt: funcopt.accumulate(opt, 2),
    "sam": lambda opt: funcopt.sam(opt, 0.3),
}
