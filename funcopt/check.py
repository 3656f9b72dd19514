"""Try optimizers on the laws of update equations: `python -m funcopt check package.module:name`."""

import argparse
import ast
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from funcopt import hyper, optim
from funcopt.adapter import Adapter
from funcopt.rules import RULES
from funcopt.table import table

if TYPE_CHECKING:
    from funcopt.testing import Report

__all__ = ["main"]

HELD, BROKEN, CANNOT = 0, 1, 2


class _CannotRunError(Exception):
    """Why there is nothing to try: one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m funcopt check`.

    Returns:
        0 where all laws hold, 1 where one is broken or an exemption unneeded, 2 where it could not run.
    """
    options = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernel runs in the interpreter; read when it is imported
    # Hypothesis keeps notes on the modules that it meets: not in the folder where somebody runs this.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "funcopt-check"))
    try:
        return _list_laws() if options.list else _check(options)
    except _CannotRunError as reason:
        print(f"python -m funcopt check: {reason}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("python -m funcopt check: interrupted", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return CANNOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m funcopt check",
        description=__doc__,
        epilog="exit status: 0 all laws hold, 1 a law is broken or an exemption unneeded, 2 it could not run",
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="package.module:name", help="a rule's factory, a pure optimizer, or a class")
    add("--all", action="store_true", help="every rule of funcopt, and its class; so does naming none")
    add("--list", action="store_true", help="print the laws and what they say")
    add("--brief", action="store_true", help="leave out the laws that hold or are exempt")
    add("--laws", metavar="NAME,…", help="try these laws alone")
    add("--examples", type=int, default=100, metavar="N", help="cases for an ordinary law (100)")
    add("--seed", type=int, default=0, metavar="N", help="of the drawing (0)")
    add("--backend", help="auto, eager, compile or triton; the optimizer's own if left out")
    add("--exempt", action="append", default=[], metavar="LAW=REASON", help="a law that it need not keep, and why")
    add("--family", help="the algorithm whose exact values it must have, such as adam; none for none")
    add("--elementwise", choices=["yes", "no"], help="whether elements are independent; found out if left out")
    add("--decoupled", choices=["yes", "no"], help="whether weight decay is decoupled; found out if left out")
    add("--reference", metavar="package.module:name", help="a class that it must agree with; none for none")
    add("--fixed", action="append", default=[], metavar="NAME=VALUE", help="an argument a class always gets")
    add("--sparse", action="store_true", help="give a class sparse gradients")
    add("--dims", metavar="MIN:MAX", help="how many dimensions the parameters have")
    add("--dtypes", metavar="NAME,…", help="the parameters' dtypes, such as float32,float64; all if left out")
    add("--layouts", metavar="NAME,…", help="how tensors lie in memory, such as contiguous,misaligned; all if left out")
    return parser


def _check(options: argparse.Namespace) -> int:
    testing = _testing()
    from tqdm import tqdm

    names = options.targets or _ours()
    if options.targets and options.all:
        raise _CannotRunError("give names or --all, not both")
    targets = [_load(name) for name in names]
    settings = _settings(options, testing)
    try:
        named = None if options.laws is None else [name.strip() for name in options.laws.split(",")]
        laws = testing.checking.chosen_laws(named)
    except ValueError as error:
        raise _CannotRunError(str(error)) from None
    reports: list[Report] = []
    with tqdm(total=len(laws) * len(targets), unit="law", disable=None, leave=False) as bar:

        def advance(verdict: Any) -> None:
            bar.update()

        for name, target in zip(names, targets, strict=True):
            bar.set_description(name)
            try:
                reports.append(testing.check_laws(target, laws=laws, progress=advance, **settings))
            except (TypeError, ValueError, RuntimeError) as error:
                raise _CannotRunError(f"{name}: {error}") from None
            bar.write(f"{reports[-1].text(brief=options.brief)}\n", file=sys.stdout)
    if named and all(v.status == "exempt" and not v.examples for report in reports for v in report.verdicts):
        raise _CannotRunError(f"none of these laws could be tried: {reports[0].verdicts[0].detail}")
    return HELD if all(report.ok for report in reports) else BROKEN


def _ours() -> list[str]:
    """Every rule, and the classes of rules."""
    found = {name: getattr(optim, name) for name in optim.__all__}
    classes = [name for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, Adapter)]
    return [f"funcopt:{name}" for name in RULES] + [f"funcopt.optim:{name}" for name in classes]


def _testing() -> Any:
    try:
        importlib.import_module("tqdm")
        return importlib.import_module("funcopt.testing")
    except ImportError as error:
        advice = "" if "pip install" in str(error) else "; pip install 'funcopt[check]'"
        raise _CannotRunError(f"{error}{advice}") from None


def _list_laws() -> int:
    rows = []
    for law in _testing().laws.LAWS.values():
        about = ["pure form"] if law.of == "pure" else ["class"] if law.of == "class" else []
        about += [*law.families, *law.needs] + ([law.claim] if law.claim else [])
        rows.append((law.name, ", ".join(about) or "all", " ".join(law.equation.split())))
    print("\n".join(table("<<<", [("law", "of what has", "what it says"), *rows])))
    return 0


def _settings(options: argparse.Namespace, testing: Any) -> dict[str, Any]:
    """The options as `check_laws` takes them."""
    claim = {"yes": True, "no": False, None: None}
    settings: dict[str, Any] = {
        "max_examples": options.examples,
        "seed": options.seed,
        "backend": options.backend,
        "family": options.family,
        "elementwise": claim[options.elementwise],
        "decoupled": claim[options.decoupled],
        "sparse": options.sparse,
        "layouts": options.layouts.split(",") if options.layouts else None,
        "dtypes": [getattr(torch, name, name) for name in options.dtypes.split(",")] if options.dtypes else None,
        "exempt": dict(_pair("--exempt", text) for text in options.exempt),
        "fixed": {name: _value(text) for name, text in (_pair("--fixed", text) for text in options.fixed)},
    }
    if options.reference:
        settings["reference"] = "none" if options.reference == "none" else _load(options.reference)
    if options.dims:
        low, _, high = options.dims.partition(":")
        try:
            settings["shapes"] = testing.strategies.shapes(min_dims=int(low), max_dims=int(high or low), min_side=1)
        except ValueError as error:
            raise _CannotRunError(f"--dims takes MIN:MAX, such as 2:2; got {options.dims!r} ({error})") from None
    return settings


def _pair(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise _CannotRunError(f"{option} takes NAME=…; got {text!r}")
    return name, value


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _load(target: str) -> Any:
    """What a name `package.module:name` stands for."""
    module, sign, path = target.partition(":")
    if not sign or not module or not path:
        raise _CannotRunError(f"{target!r} is not of the form package.module:name, such as torch.optim:Adam")
    if "/" in module or module.startswith(".") or module.endswith(".py"):
        raise _CannotRunError(
            f"{module!r} is no module's name: that of opts.py in this folder is opts, as in opts:{path}"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise _CannotRunError(f"there is no module {module!r} here (looked from {os.getcwd()})") from None
        raise _CannotRunError(f"{module} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise _CannotRunError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            close = hyper.suggest(part, names).partition("allowed:")[0].strip()
            raise _CannotRunError(f"{module} has no {path!r}" + (f"; {close}" if close else ""))
        found = getattr(found, part)
    return found
