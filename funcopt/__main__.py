"""The command line: `python -m funcopt <command>`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import funcopt

# Each is a module of this package with a `main(argv)` that returns the exit status and parses its own options.
COMMANDS = {
    "check": "try an optimizer on the laws of update equations",
    "demo": "train a small network in three ways and draw the losses",
    "info": "versions, devices, and which backends work here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, or print the help; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m funcopt", description=funcopt.__doc__)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="<command>")
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about, add_help=False)
    options, rest = parser.parse_known_args(argv)
    if options.command is not None:
        status: int = importlib.import_module(f"funcopt.{options.command}").main(rest)
        return status
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
