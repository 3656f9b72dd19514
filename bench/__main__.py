"""`python -m bench SUITE [options]`, from the repository root."""

import argparse
import importlib
import sys
from collections.abc import Sequence

# A suite `some-name` is the module `bench/some_name.py`, with `arguments(parser)` and `run(args) -> exit status`.
SUITES = {
    "adamw": "the AdamW step: torch.optim's implementations, funcopt's backends, other libraries, the memory's limit",
    "all-rules": "every rule and its flags, beside torch.optim's class of the algorithm in its fastest form",
    "small-tensors": "AdamW and SGD on 3 to 3,000 small tensors, with kept and with new gradients",
    "pipeline": "unscaling, clipping, leaving out what is not finite, AdamW, EMA and zeroing in one training step",
    "overhead": "the pure call, what it allocates, and how making, saving and describing a class grow",
    "compile-time": "import, first step and recompilation, in fresh processes",
    "scaling": "the step against the number of tensors and against their size, and the slopes",
    "gpu": "all that a GPU can tell within 8 minutes: the kernels' tests, then every suite that has something to time",
}
COMMANDS = {
    "table": "put the newest results into the README, or see whether they are there",
}


def main(argv: Sequence[str]) -> int:
    """Run the suite that the first argument names; without arguments list the suites."""
    known = SUITES | COMMANDS
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench SUITE [options]\n")
        print("\n".join(f"  {name:{max(map(len, known))}}  {about}" for name, about in known.items()))
        print("\npython -m bench SUITE --help tells a suite's options")
        return 0
    name, *rest = argv
    if name not in known:
        print(f"there is no suite {name!r}; the suites are {', '.join(known)}", file=sys.stderr)
        return 2
    suite = importlib.import_module(f"bench.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=suite.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suite.arguments(parser)
    return suite.run(parser.parse_args(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
