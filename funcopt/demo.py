"""Train a small network on handwritten digits in three ways, and draw the losses: `python -m funcopt demo`.

1. `torch.optim.AdamW`.
2. `funcopt.optim.AdamW` in its place: the same training, up to rounding.
3. `funcopt.adamw()` inside `torch.func`, from a learning rate far too small, which is learned on the way: every ten
   steps it follows the gradient of a validation loss, taken through those ten steps.

All three start from the same weights and see the same minibatches.
"""

import argparse
import contextlib
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, cross_entropy

import funcopt
from funcopt.core import State
from funcopt.files import check_writable, replacing
from funcopt.table import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["main"]

Batch = tuple[Tensor, Tensor]  # images of 64 pixels, and the digit that each shows
Params = dict[str, Tensor]

BATCH = 64
LR = 1e-3  # the default of torch.optim.AdamW
START_LR = 1e-5
INNER_STEPS = 10  # between two steps of the learning rate, and what its gradient is taken through
META_LR = 0.2  # a step of the learning rate changes it by about this part


@dataclass(frozen=True)
class Digits:
    """The images in three parts: to train the weights, to learn the learning rate, and to test."""

    train: Batch
    validation: Batch
    test: Batch


@dataclass(frozen=True)
class Run:
    """One way to train: the weights it ended with, and for each step its loss, seconds and learning rate."""

    name: str
    params: Params
    losses: list[float]
    seconds: list[float]
    rates: list[float]


# ---- data and network -----------------------------------------------------------------------------------------------


def load_digits(generator: torch.Generator) -> Digits:
    """scikit-learn's 1,797 digits with pixels in [0, 1], split at random."""
    from sklearn import datasets

    pixels, digits = datasets.load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels / 16).float(), torch.from_numpy(digits)
    order = torch.randperm(len(labels), generator=generator)
    return Digits(*((images[part], labels[part]) for part in torch.split(order, [1077, 360, 360])))


def minibatches(data: Batch, count: int, generator: torch.Generator) -> list[Batch]:
    """Minibatches drawn with replacement."""
    images, labels = data
    drawn = torch.randint(len(labels), (count, BATCH), generator=generator)
    return [(images[rows], labels[rows]) for rows in drawn]


def network(seed: int) -> nn.Module:
    """The network, with the same weights whenever the seed is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def loss_of(params: Params, model: nn.Module, batch: Batch) -> Tensor:
    """The loss of the network with these weights on a batch."""
    images, labels = batch
    return cross_entropy(torch.func.functional_call(model, params, (images,)), labels)


# ---- three ways to train --------------------------------------------------------------------------------------------


def train(name: str, make: Callable[..., torch.optim.Optimizer], model: nn.Module, batches: list[Batch]) -> Run:
    """The usual loop, with an optimizer class of either library."""
    optimizer = make(model.parameters(), lr=LR)
    losses, seconds = [], []
    with progress(name, len(batches)) as bar:
        for images, labels in batches:
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
            bar.update()
    params = {key: p.detach() for key, p in model.named_parameters()}
    return Run(name, params, losses, seconds, rates=[LR] * len(batches))


def unroll(
    log_lr: Tensor, params: Params, state: State, model: nn.Module, inner: list[Batch], check: Batch
) -> tuple[Tensor, tuple[Params, State, list[Tensor]]]:
    """Some steps of training, then the validation loss; beside it what to go on with, and the training losses."""
    optimizer = funcopt.adamw()
    hparams = optimizer.hparams(lr=log_lr.exp())
    losses = []
    for batch in inner:
        grads, loss = torch.func.grad_and_value(loss_of)(params, model, batch)
        params, state = optimizer(params, grads, state, hparams)
        losses.append(loss)
    return loss_of(params, model, check), (params, state, losses)


def train_and_learn_lr(name: str, model: nn.Module, batches: list[Batch], checks: list[Batch]) -> Run:
    """The pure step, its learning rate improved by another pure step after each unrolled stretch of training."""
    params = {key: p.detach() for key, p in model.named_parameters()}
    state = funcopt.adamw().init(params)
    log_lr = torch.tensor(math.log(START_LR))  # in logarithms a learning rate stays positive, and a step is a factor
    meta_optimizer = funcopt.adam()
    meta_hparams = meta_optimizer.hparams(lr=META_LR)
    meta_state = meta_optimizer.init(log_lr, meta_hparams)
    losses: list[float] = []
    seconds: list[float] = []
    rates: list[float] = []
    with progress(name, len(batches)) as bar:
        for first, check in zip(range(0, len(batches), INNER_STEPS), checks, strict=True):
            inner = batches[first : first + INNER_STEPS]
            start = time.perf_counter()
            rates += [log_lr.exp().item()] * len(inner)
            slope, (params, state, new) = torch.func.grad(unroll, has_aux=True)(
                log_lr, params, state, model, inner, check
            )
            log_lr, meta_state = meta_optimizer(log_lr, slope, meta_state, meta_hparams)
            losses += [loss.item() for loss in new]
            seconds += [(time.perf_counter() - start) / len(inner)] * len(inner)
            bar.update(len(inner))
    return Run(name, params, losses, seconds, rates)


def progress(name: str, steps: int) -> Any:
    """A progress bar on a terminal, and nothing where the output goes to a file."""
    from tqdm import tqdm

    return tqdm(desc=name, total=steps, unit="step", disable=None)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """More threads win nothing on tensors this small, and would make the last bits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run_all(steps: int, seed: int) -> tuple[list[Run], Digits]:
    """The three ways to train, from the same weights and on the same minibatches."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits(generator)
    batches = minibatches(digits.train, steps, generator)
    checks = minibatches(digits.validation, math.ceil(steps / INNER_STEPS), generator)
    runs = [
        train("torch.optim.AdamW", torch.optim.AdamW, network(seed), batches),
        train("funcopt.optim.AdamW", funcopt.optim.AdamW, network(seed), batches),
        train_and_learn_lr("funcopt.adamw(), lr learned", network(seed), batches, checks),
    ]
    return runs, digits


# ---- results --------------------------------------------------------------------------------------------------------


def summary(runs: list[Run], digits: Digits) -> str:
    """A table of what came out, and how far the first two ended from each other."""
    header = ("", "train loss", "test accuracy", "ms per step", "learning rate")
    first, second, _ = runs
    return "\n".join(
        [
            *table("<>>><", [header, *(_cells(run, digits) for run in runs)]),
            f"greatest difference between parameters of the first two: {greatest_difference(first, second):.1e}",
        ]
    )


def _cells(run: Run, digits: Digits) -> tuple[str, ...]:
    model = network(0)  # for its layers: the weights are the run's
    start, end = run.rates[0], run.rates[-1]
    return (
        run.name,
        f"{float(loss_of(run.params, model, digits.train)):.4f}",
        f"{accuracy(run.params, model, digits.test):.1%}",
        f"{statistics.median(run.seconds) * 1e3:.2f}",
        f"{start:.2g}" if start == end else f"{start:.2g} -> {end:.2g}",
    )


def accuracy(params: Params, model: nn.Module, batch: Batch) -> float:
    """The part of the images whose digit the network with these weights gets right."""
    images, labels = batch
    answers = torch.func.functional_call(model, params, (images,)).argmax(dim=1)
    return float((answers == labels).float().mean())


def greatest_difference(a: Run, b: Run) -> float:
    """The greatest absolute difference between a parameter of one run and the other's."""
    return max(float((p - b.params[name]).abs().max()) for name, p in a.params.items())


def draw(runs: list[Run]) -> "Figure":
    """The losses, smooth over what they were step by step, and below them the learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    # The first two lie on each other: a wide line, and a dashed one that leaves it visible.
    looks: list[dict[str, Any]] = [
        {"color": "#f2a65a", "linewidth": 5, "alpha": 0.7},
        {"color": "#7a2e1d", "linewidth": 1.5, "linestyle": (0, (5, 3))},
        {"color": "#1f6f8b", "linewidth": 2},
    ]
    for run, look in zip(runs, looks, strict=True):
        steps = range(1, len(run.losses) + 1)
        top.plot(steps, run.losses, color=look["color"], linewidth=0.6, alpha=0.25)
        top.plot(steps, smooth(run.losses), label=run.name, **look)
        bottom.plot(steps, run.rates, drawstyle="steps-mid", **look)
    top.set(yscale="log", ylabel="training loss")
    top.set_title("Handwritten digits: the same weights and minibatches, trained in three ways")
    top.legend(framealpha=1, edgecolor="none")
    bottom.set(yscale="log", ylabel="learning rate", xlabel="step")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def smooth(values: list[float], window: int = 25) -> list[float]:
    """Means over the values around each, of those that there are at the ends."""
    means = avg_pool1d(torch.tensor([values]), window, stride=1, padding=window // 2, count_include_pad=False)
    return [float(mean) for mean in means[0]]


# ---- command --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m funcopt demo`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m funcopt demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default="demo.png", metavar="PNG", help="the picture (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps takes a whole number from 1; got {options.steps}")
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed takes a whole number from 0 to 2**63 - 1; got {options.seed}")
    missing = [name for name in ("matplotlib", "sklearn", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'funcopt[demo]'", file=sys.stderr)
        return 2
    try:
        check_writable(options.output)
    except OSError as error:
        parser.error(f"cannot write {options.output}: {error.strerror}")
    runs, digits = run_all(options.steps, options.seed)
    print(summary(runs, digits))
    with replacing(options.output) as path:
        draw(runs).savefig(path, format="png", dpi=150)
    print(f"losses drawn in {options.output}")
    return 0
