"""Measurements that need a process of their own: `python -m bench.process NAME '{"argument": …}'` prints JSON.

`call` runs one from another process. Everything is imported where it is needed, for that is part of what is measured.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LR = 1e-3


def call(measurement: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """Run a measurement in a fresh process; raises RuntimeError with the last line of what it says where it fails."""
    command = [sys.executable, "-m", "bench.process", measurement, json.dumps(arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


# ---- time -----------------------------------------------------------------------------------------------------------


def imports(module: str) -> float:
    """Seconds that importing torch takes, or importing another module after torch."""
    start = time.perf_counter()
    import torch  # noqa: F401

    if module != "torch":
        start = time.perf_counter()
        __import__(module)
    return time.perf_counter() - start


def first_steps(kind: str, tensors: int, elements: int) -> float:
    """Seconds for making an AdamW and its first two steps, with modules imported."""
    import torch._dynamo  # takes a second, and making any torch.optim.Optimizer does it  # noqa: F401

    params = _params(tensors, elements)
    make = _maker(kind)
    start = time.perf_counter()
    step = make(params)
    step()
    step()  # not as the first one, for now there is state: here, too, something may be compiled
    return time.perf_counter() - start


def _params(tensors: int, elements: int) -> list[Any]:
    import torch

    params = [torch.zeros(elements, requires_grad=True) for _ in range(tensors)]
    for p in params:
        p.grad = torch.ones(elements)
    return params


def _maker(kind: str) -> Callable[[list[Any]], Callable[[], Any]]:
    """What makes the step of an AdamW."""
    import torch

    if kind == "funcopt":
        import funcopt

        return lambda params: funcopt.optim.AdamW(params, lr=LR).step
    if kind == "torch-compiled":

        def compiled(params: list[Any]) -> Callable[[], Any]:
            optimizer = torch.optim.AdamW(params, lr=LR)
            return torch.compile(lambda: optimizer.step())

        return compiled
    return lambda params: torch.optim.AdamW(params, lr=LR, **{kind.removeprefix("torch-"): True}).step


# ---- compilations ---------------------------------------------------------------------------------------------------


def compilations(kind: str, tensors: int = 3, elements: int = 64) -> list[int]:
    """How many pieces of code have been compiled anew for each of `EVENTS`."""
    import torch

    params = _params(tensors, elements)
    if kind == "funcopt":
        import funcopt

        optimizer: Any = funcopt.optim.AdamW(params, lr=LR)
        step = optimizer.step
    else:
        torch._dynamo.config.recompile_limit = 256  # after 8 graphs it would give up, and run without
        optimizer = torch.optim.AdamW(params, lr=LR)
        step = torch.compile(lambda: optimizer.step(), backend="eager")  # as many graphs as with Inductor, made sooner
    counts = [_compiled(kind)]
    for event in EVENTS.values():
        event(optimizer, step)
        counts.append(_compiled(kind))
    return [after - before for before, after in itertools.pairwise(counts)]


def _compiled(kind: str) -> int:
    if kind == "funcopt":
        return len(list(Path(os.environ["FUNCOPT_CACHE_DIR"]).glob("*.so")))
    import torch

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _first(optimizer: Any, step: Callable[[], Any]) -> None:
    step()
    step()


def _rates(optimizer: Any, step: Callable[[], Any]) -> None:
    for k in range(8):
        optimizer.param_groups[0]["lr"] = LR / (k + 2)
        step()


def _absent(optimizer: Any, step: Callable[[], Any]) -> None:
    params = optimizer.param_groups[0]["params"]
    grads = [p.grad for p in params]
    for missing in ([0], [1], [0, 1], []):
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            p.grad = None if i in missing else g
        step()


def _added(optimizer: Any, step: Callable[[], Any]) -> None:
    optimizer.add_param_group({"params": _params(1, optimizer.param_groups[0]["params"][0].numel())})
    step()


def _tensor_rates(optimizer: Any, step: Callable[[], Any]) -> None:
    import torch

    for k in range(8):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(LR / (k + 2))
        step()


EVENTS: dict[str, Callable[[Any, Callable[[], Any]], None]] = {
    "first two steps": _first,
    "lr changes 8 times": _rates,
    "other gradients are None 4 times": _absent,
    "a parameter is added": _added,
    "lr is a tensor, and changes 8 times": _tensor_rates,
}


# ---- memory ---------------------------------------------------------------------------------------------------------


def allocated(kind: str, tensors: int, elements: int) -> float:
    """What a pure call allocates at once at most, in the size of its params."""
    import tempfile

    from torch.profiler import ProfilerActivity, profile

    from bench import pure

    leaves = pure.leaves(tensors, elements)
    step = pure.STEPS[kind](leaves)
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    with tempfile.TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    now = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most / sum(p.nbytes for p in leaves.params)


MEASUREMENTS = {f.__name__: f for f in (imports, first_steps, compilations, allocated)}

if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](**json.loads(sys.argv[2]))))
