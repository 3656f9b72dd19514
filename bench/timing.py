"""Clocks, time limits, and contests: contenders timed in alternation, so that a noisy minute hits all of them alike."""

import contextlib
import functools
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from bench import report

Run = Callable[[], object]
Clock = Callable[[Run, int], float]  # (run, repeats) -> seconds that one call takes

# A sample lasts about this long or has this many calls, so that neither the clock's resolution nor the start of an
# idle GPU shows in it.
SAMPLE_SECONDS, SAMPLE_CALLS = 0.05, 200


# ---- clocks ---------------------------------------------------------------------------------------------------------


def wall_clock(now: Callable[[], float] = time.perf_counter) -> Clock:
    """Time on the host, for work that is done when the call returns."""

    def seconds(run: Run, repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            run()
        return (now() - start) / repeats

    return seconds


def cuda_clock(run: Run, repeats: int) -> float:
    """Time on the GPU, from an idle GPU to the end of the last call's work; waiting for the host's launches counts."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def clock_for(device: torch.device) -> Clock:
    """The clock that sees when a device's work is done."""
    return cuda_clock if device.type == "cuda" else wall_clock()


# ---- limits ---------------------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """A time limit ran out. No Exception, so that no `except Exception` on the way, such as Inductor's, takes it."""


@dataclass(frozen=True)
class Deadline:
    """A moment, in `time.monotonic()`, at which work ends; what is left over then is reported as not reached."""

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        return max(0.0, self.at - time.monotonic())


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block when the time is up; only in the main thread, where Python handles signals."""
    if seconds == math.inf or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # It rings again: the first exception may fall into a callback, where Python can only print it.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FUNCOPT_CACHE_DIR")


@contextlib.contextmanager
def fresh_caches() -> Iterator[None]:
    """Let nobody find compiled code on disk: a first step then costs what it costs on a new machine."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update({name: os.path.join(folder, name.split("_")[0].lower()) for name in CACHES})
        _forget_kernels()
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            _forget_kernels()


def _forget_kernels() -> None:
    """Make funcopt look for its folder of kernels, and into it, again: it does so once in a process."""
    module = sys.modules.get("funcopt.kernels.cpu")
    for value in vars(module).values() if module else ():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


# ---- contests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """One row of a table: `start` sets it up and returns what is timed.

    `check` is called after the first call and says what is wrong with its result, if anything is. A contender with
    `left_out` is not run: its row gives this reason. `before` is run before every call, and not timed.
    """

    name: str
    start: Callable[[], Run]
    check: Callable[[], str | None] = lambda: None
    left_out: str | None = None
    before: Run | None = None


@dataclass(frozen=True)
class Outcome:
    """What a contender showed. Its status is "ok", "failed", "left out" or "not reached"; the note says why.

    Times are seconds a call. `first` is the first call, compilation included, and `warm_up` the next three together.
    """

    name: str
    status: str
    note: str = ""
    first: float | None = None
    warm_up: float | None = None
    repeats: int = 1
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        if not self.samples:
            return None
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Who runs when: everybody once a round, in an order of the round's own, so that nobody always follows the same."""
    shuffle = random.Random(seed)
    return [shuffle.sample(names, len(names)) for _ in range(rounds)]


def contest(
    contenders: Sequence[Contender],
    clock: Clock,
    *,
    rounds: int,
    seed: int = 0,
    budget: float = math.inf,
    deadline: Deadline = Deadline(),
    warm: bool = True,
) -> list[Outcome]:
    """Time contenders in alternation, after each has made its first steps; an outcome for every one, in their order.

    Args:
        rounds: samples of each contender; fewer where the time runs out.
        seed: of the order.
        budget: seconds for one contender: its first steps, and again its samples.
        deadline: for the whole contest.
        warm: whether a contender is warmed up before its samples, and these are of several calls if they are short.
    """
    runs: dict[str, Timed] = {}
    outcomes = {}
    for contender in report.progress(contenders, "first steps"):
        outcomes[contender.name] = _first_steps(contender, clock, budget, deadline, runs, warm)
    spent = dict.fromkeys(runs, 0.0)
    for order in report.progress(orders(list(runs), rounds, seed), "rounds"):
        for name in order:
            left = min(budget - spent[name], deadline.left())
            if left <= 0 or outcomes[name].status != "ok":
                continue
            start = time.monotonic()
            try:
                with time_limit(left):
                    outcomes[name].samples.append(runs[name](outcomes[name].repeats))
            except OutOfTime:
                pass
            except Exception as error:
                outcomes[name] = replace(outcomes[name], status="failed", note=report.first_line(error))
            spent[name] += time.monotonic() - start
    for name, outcome in outcomes.items():
        if outcome.status == "ok" and not outcome.samples:
            outcomes[name] = replace(outcome, status="not reached", note="no time for a sample")
    return list(outcomes.values())


Timed = Callable[[int], float]  # repeats -> seconds that one call takes


def _timed(clock: Clock, run: Run, before: Run | None) -> Timed:
    if before is None:
        return functools.partial(clock, run)

    def seconds(repeats: int) -> float:
        total = 0.0
        for _ in range(repeats):
            before()
            total += clock(run, 1)
        return total / repeats

    return seconds


def _first_steps(
    contender: Contender, clock: Clock, budget: float, deadline: Deadline, runs: dict[str, Timed], warm: bool
) -> Outcome:
    """Set a contender up, and warm it up as far as to know how many calls make a sample; `runs` gets what times it."""
    name, left = contender.name, deadline.left()
    if contender.left_out is not None:
        return Outcome(name, "left out", contender.left_out)
    if left == 0:
        return Outcome(name, "not reached", "the time was up")
    limit = min(budget, left / 2)  # whatever one contender does, there is time left for the samples of the others
    try:
        with time_limit(limit):
            timed = _timed(clock, contender.start(), contender.before)
            first = timed(1)
            if problem := contender.check():
                return Outcome(name, "failed", problem, first)
            if not warm:
                runs[name] = timed
                return Outcome(name, "ok", "", first)
            second, begun = timed(1), time.monotonic()
            later = timed(2)
            taken = later if contender.before is None else (time.monotonic() - begun) / 2
    except OutOfTime:
        note = f"first steps took over {limit:.0f} s; compilers that it left behind may have disturbed the others"
        return Outcome(name, "not reached", note)
    except Exception as error:
        return Outcome(name, "failed", report.first_line(error))
    runs[name] = timed
    repeats = max(1, min(SAMPLE_CALLS, math.ceil(SAMPLE_SECONDS / max(taken, 1e-9))))
    return Outcome(name, "ok", "", first, second + 2 * later, repeats)
