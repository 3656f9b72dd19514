"""The suites and commands by name, and what each is about."""

# A suite `some-name` is the module `bench/some_name.py`, with `arguments(parser)` and `run(args) -> exit status`.
SUITES = {
    "adamw": "the AdamW step: torch.optim's implementations, funcopt's backends, other libraries, the memory's limit",
    "all-rules": "every rule and its flags, beside torch.optim's class of the algorithm in its fastest form",
    "small-tensors": "AdamW and SGD on 3 to 3,000 small tensors, with kept and with new gradients",
    "pipeline": "unscaling, clipping, leaving out what is not finite, AdamW, EMA and zeroing in one training step",
    "overhead": "the pure call, what it allocates, and how making, saving and describing a class grow",
    "compile-time": "imports, first steps and recompilations, in fresh processes",
    "scaling": "the step against the number of tensors and against their size, and the slopes",
    "gpu": "all that a GPU can tell within 8 minutes: the kernels' tests, then every suite that has something to time",
}
COMMANDS = {
    "table": "put the newest results into the README and bench/results/README.md, or see whether they are there",
}
