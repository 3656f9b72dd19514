"""`python -m bench SUITE [options]`, from the repository root."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from bench.suites import COMMANDS, SUITES


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
