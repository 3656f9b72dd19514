"""What a benchmark shows and keeps: aligned tables, the facts of the machine, JSON files."""

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

RESULTS = Path(__file__).parent / "results"

# What reads results reads those of this schema, and no older ones.
SCHEMA = 2

# Whose versions a result depends on, by the module that is imported and the name under which it is installed.
PACKAGES = {
    "triton": "triton",
    "optimi": "torch-optimi",
    "heavyball": "heavyball",
    "pytorch_optimizer": "pytorch_optimizer",
    "torchopt": "torchopt",
}

T = TypeVar("T")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right; a row that is short ends in free text."""
    full = [head, *(row for row in rows if len(row) == len(head))]
    widths = [max(len(row[i]) for row in full) for i in range(len(head))]
    widths[0] = max(len(row[0]) for row in [head, *rows])
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        for i, cell in enumerate(row[1:], 1):
            cells.append(cell if len(row) < len(head) and i == len(row) - 1 else cell.rjust(widths[i]))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, "-" for one that there is not."""
    return "-" if value is None else f"{value:,.{digits}f}"


def unit(seconds: Sequence[float | None]) -> tuple[str, float, int]:
    """The unit in which times are read best, how many of it a second has, and the digits after the point."""
    least = min((s for s in seconds if s), default=1.0)
    return ("s", 1.0, 2) if least >= 1 else ("ms", 1e3, 3) if least >= 1e-4 else ("µs", 1e6, 1)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, with its type."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".removesuffix(": ")


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal; without tqdm, a line at the start."""
    if importlib.util.find_spec("tqdm") is None:
        print(f"{label}: {len(items)} …", file=sys.stderr, flush=True)
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=label, leave=False, disable=None)


# ---- facts ----------------------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """A GPU's model, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, the versions and the date that a measurement holds for, as JSON takes them."""
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device_name(device),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": _gib(_meminfo("MemTotal")),
            "system": platform.platform(),
            "load_average": list(os.getloadavg()),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{package: version(package) for package in PACKAGES.values()},
        },
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        out["machine"] |= {"gpu_memory_gib": _gib(properties.total_memory), "gpu_sms": properties.multi_processor_count}
        out["versions"] |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    return out


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device now; None where the system does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _meminfo("MemAvailable")


def _gib(count: int | None) -> float | None:
    return None if count is None else round(count / 2**30, 1)


def version(package: str) -> str | None:
    """The version of a package that is installed; None where it is not."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _cpu_model() -> str:
    return _proc("cpuinfo", "model name") or platform.processor() or platform.machine()


def _meminfo(key: str) -> int | None:
    value = _proc("meminfo", key)
    return None if value is None else int(value.split()[0]) * 1024


def _proc(name: str, key: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc", name).read_text().splitlines():
            if line.split(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    return None


# ---- files ----------------------------------------------------------------------------------------------------------


def result_path(folder: Path, suite: str, found: dict[str, Any]) -> Path:
    """Where a suite's results go: the device, torch's version and the date are in the name."""
    date = found["date"][:19].replace(":", "").replace("T", "-")
    name = f"{suite}-{found['device']}-torch{found['versions']['torch']}-{date}".lower()
    return folder / (re.sub(r"[^a-z0-9.]+", "-", name) + ".json")


def write_json(path: Path, content: Any) -> None:
    """Write a file so that whoever reads it, at any time, finds the old content or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
