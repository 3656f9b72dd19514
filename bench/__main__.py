"""`python -m bench SUITE [options]`, from the repository root."""

import argparse
import importlib
import sys
from collections.abc import Sequence

# A suite `some-name` is the module `bench/some_name.py`, with `arguments(parser)` and `run(args) -> exit status`.
SUITES = {
    "adamw": "the AdamW step: torch.optim's implementations, funcopt's backends and the memory's limit side by side",
    "gpu": "all that a GPU can tell within 8 minutes: the kernels' tests, then every suite that has something to time",
}


def main(argv: Sequence[str]) -> int:
    """Run the suite that the first argument names; without arguments list the suites."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench SUITE [options]\n")
        print("\n".join(f"  {name:8} {about}" for name, about in SUITES.items()))
        print("\npython -m bench SUITE --help tells a suite's options")
        return 0
    name, *rest = argv
    if name not in SUITES:
        print(f"there is no suite {name!r}; the suites are {', '.join(SUITES)}", file=sys.stderr)
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
