"""What there is here: versions, devices, and which backend works on which device: `python -m funcopt info`."""

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import funcopt
from funcopt import backends
from funcopt.table import table

__all__ = ["Support", "info", "main"]


@dataclass(frozen=True)
class Support:
    """Whether a backend updates parameters on a type of device here: `reason` is None, or says why it does not."""

    backend: str
    device: str
    reason: str | None


def info() -> list[Support]:
    """Print the versions, the devices and what each backend can do with them.

    Returns:
        One row for each backend and type of device.
    """
    rows = support()
    sections = {
        "versions": table("<<", versions().items()),
        "devices": table("<<", devices().items()),
        "backends": table("<<<", [(row.backend, row.device, row.reason or "works") for row in rows]),
    }
    print("\n".join(line for title, lines in sections.items() for line in (title, *(f"  {line}" for line in lines))))
    return rows


def versions() -> dict[str, str]:
    """The versions that an error report should name."""
    return {
        "python": platform.python_version(),
        "funcopt": funcopt.__version__,
        "torch": str(torch.__version__),
        "triton": _triton_version() or "not installed",
    }


def _triton_version() -> str | None:
    """Triton's version, without an import of Triton; its ROCm and XPU builds are distributions of other names."""
    names = importlib.metadata.packages_distributions().get("triton", [])
    return importlib.metadata.version(names[0]) if names else None


def devices() -> dict[str, str]:
    """The devices and what they are."""
    threads = torch.get_num_threads()
    gpus = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {"cpu": f"{threads} thread{'' if threads == 1 else 's'}", **gpus}


def support() -> list[Support]:
    """Every backend on every type of device there is."""
    types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        Support(name, kind, backends.unavailable(name, torch.device(kind)))
        for name in backends.BACKENDS
        for kind in types
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m funcopt info`; returns the exit status."""
    argparse.ArgumentParser(prog="python -m funcopt info", description=__doc__).parse_args(argv)
    info()
    return 0
