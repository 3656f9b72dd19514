"""What people write by hand around a step, in float64 and around torch.optim: what transforms are compared with.

Each parameter has a torch.optim optimizer of its own, so that a parameter without a gradient is left out as a whole.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

Tensors = dict[str, Tensor]
Grads = Mapping[str, Tensor | None]


class SkippedError(Exception):
    """The whole step is to be as if never taken."""


class Inner:
    """A torch.optim optimizer for each parameter."""

    def __init__(self, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        self.make = make

    def begin(self, params: Tensors) -> None:
        self.params = params
        self.optimizers = {name: self.make([p]) for name, p in params.items()}

    def step(self, grads: Grads) -> None:
        for name, g in grads.items():
            if g is not None:
                self.params[name].grad = g.clone()
                self.optimizers[name].step()

    def state(self) -> dict[str, Tensors]:
        """What the transforms keep, by slot and parameter."""
        return {}

    def lr(self, name: str) -> float:
        return float(self.optimizers[name].param_groups[0]["lr"])


class Around:
    """A transform: what is done before the step inside and after it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def begin(self, params: Tensors) -> None:
        self.params, self.calls = params, dict.fromkeys(params, 0)
        self.inner.begin(params)

    def state(self) -> dict[str, Tensors]:
        return self.inner.state()

    def lr(self, name: str) -> float:
        return float(self.inner.lr(name))

    def step(self, grads: Grads) -> None:
        there = {name: g.clone() for name, g in grads.items() if g is not None}
        for name in there:
            self.calls[name] += 1
        old = {name: self.params[name].clone() for name in there}
        self.inner.step(self.before(there))
        self.after(old, there)

    def before(self, grads: Tensors) -> Tensors:
        return grads

    def after(self, old: Tensors, grads: Tensors) -> None:
        pass


def through(change: Callable[[Iterable[Tensor]], Any], grads: Tensors) -> Tensors:
    """Gradients as a function changes them that takes parameters."""
    holders = {name: torch.zeros_like(g, requires_grad=True) for name, g in grads.items()}
    for name, holder in holders.items():
        holder.grad = grads[name].clone()
    change(holders.values())
    return {name: holder.grad for name, holder in holders.items()}  # type: ignore[misc]


class ClipByGlobalNorm(Around):
    def before(self, grads: Tensors) -> Tensors:
        return through(lambda ps: clip_grad_norm_(ps, 1.5), grads)


class ClipByNorm(Around):
    def before(self, grads: Tensors) -> Tensors:
        return {name: through(lambda ps: clip_grad_norm_(ps, 1.5), {name: g})[name] for name, g in grads.items()}


class ClipByValue(Around):
    def before(self, grads: Tensors) -> Tensors:
        return through(lambda ps: clip_grad_value_(ps, 0.5), grads) if grads else grads


class AdaptiveClip(Around):
    def before(self, grads: Tensors) -> Tensors:
        def norms(x: Tensor) -> Tensor:
            if x.dim() < 2:
                return torch.linalg.vector_norm(x)
            return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, *[1] * (x.dim() - 1))

        out = {}
        for name, g in grads.items():
            most, size = 0.3 * norms(self.params[name]).clamp(min=0.1), norms(g)
            out[name] = torch.where(size > most, g * (most / size), g)
        return out


class Centralize(Around):
    def before(self, grads: Tensors) -> Tensors:
        return {
            name: g if g.dim() < 2 else g - g.flatten(1).mean(1).reshape(-1, *[1] * (g.dim() - 1))
            for name, g in grads.items()
        }


class Unscale(Around):
    def before(self, grads: Tensors) -> Tensors:
        return {name: g / 4.0 for name, g in grads.items()}


class SkipNonfinite(Around):
    def before(self, grads: Tensors) -> Tensors:
        if not all(g.isfinite().all() for g in grads.values()):
            raise SkippedError
        return grads


class Decay(Around):
    def before(self, grads: Tensors) -> Tensors:
        with torch.no_grad():
            for name in grads:
                self.params[name] *= 1 - self.lr(name) * 0.2
        return grads


class Cautious(Around):
    def after(self, old: Tensors, grads: Tensors) -> None:
        with torch.no_grad():
            for name, before in old.items():
                step = self.params[name] - before
                agrees = (step * grads[name] < 0).double()
                scale = agrees.numel() / (agrees.sum() + 1)
                self.params[name].copy_(before + scale * agrees * step)


class Ema(Around):
    def begin(self, params: Tensors) -> None:
        super().begin(params)
        self.average = {name: p.detach().clone() for name, p in params.items()}

    def state(self) -> dict[str, Tensors]:
        return {**super().state(), "ema": self.average}

    def after(self, old: Tensors, grads: Tensors) -> None:
        update = torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
        if grads:
            update([self.average[name] for name in grads], [self.params[name] for name in grads], 0)


class Lookahead(Around):
    def begin(self, params: Tensors) -> None:
        super().begin(params)
        self.slow = {name: p.detach().clone() for name, p in params.items()}

    def state(self) -> dict[str, Tensors]:
        return {**super().state(), "slow": self.slow}

    def after(self, old: Tensors, grads: Tensors) -> None:
        with torch.no_grad():
            for name in grads:
                if self.calls[name] % 3 == 0:
                    self.slow[name] += 0.25 * (self.params[name] - self.slow[name])
                    self.params[name].copy_(self.slow[name])


class Accumulate(Around):
    def begin(self, params: Tensors) -> None:
        super().begin(params)
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in params}

    def state(self) -> dict[str, Tensors]:
        sums = {name: sum(gs, torch.zeros_like(self.params[name])).detach() / 2 for name, gs in self.gradients.items()}
        return {**super().state(), "accumulated": sums}

    def before(self, grads: Tensors) -> Tensors:
        for name, g in grads.items():
            self.gradients[name].append(g)
        ready = {name: gs for name, gs in self.gradients.items() if len(gs) == 2}
        for name in ready:
            self.gradients[name] = []
        return {name: torch.stack(gs).mean(0) for name, gs in ready.items()}


def steps(reference: Any, params: Tensors, gradients: Iterable[Grads]) -> Any:
    """The reference after steps from these parameters."""
    reference.begin({name: p.detach().double().clone() for name, p in params.items()})
    for grads in gradients:
        before = copy.deepcopy(reference)
        try:
            reference.step({name: None if g is None else g.double() for name, g in grads.items()})
        except SkippedError:
            reference = before
    return reference
