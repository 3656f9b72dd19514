"""AdamW as a pure call: funcopt's, one by hand and TorchOpt's, on many leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import funcopt

LR, BETA1, BETA2, EPS, DECAY = 1e-2, 0.9, 0.999, 1e-8, 1e-2
NUMBERS = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY}


@dataclass(frozen=True)
class Leaves:
    """Params and gradients, as a list of leaves each."""

    params: list[Tensor]
    grads: list[Tensor]


def leaves(count: int, elements: int) -> Leaves:
    """Leaves of one size."""
    rows = torch.randn(2, count, elements, generator=torch.Generator().manual_seed(0))
    return Leaves(*([row.clone() for row in part] for part in rows))


Step = Callable[[], list[Tensor]]  # takes a step after the last one, and gives the new params


def ours(leaves: Leaves, *, backend: str = "auto", donate: bool = False) -> Step:
    """The pure call of funcopt."""
    opt = funcopt.adamw(backend=backend)
    hparams = opt.hparams(**NUMBERS)
    params, state = leaves.params, opt.init(leaves.params, hparams)

    def step() -> list[Tensor]:
        nonlocal params, state
        params, state = opt(params, leaves.grads, state, hparams, donate=donate)
        return params

    return step


def by_hand(leaves: Leaves) -> Step:
    """AdamW with tree_map."""
    params, t = leaves.params, 0
    first, second = (tree_map(torch.zeros_like, params) for _ in range(2))

    def step() -> list[Tensor]:
        nonlocal params, first, second, t
        t += 1
        size, root = LR / (1 - BETA1**t), (1 - BETA2**t) ** 0.5
        first = tree_map(lambda m, g: m + (1 - BETA1) * (g - m), first, leaves.grads)
        second = tree_map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, leaves.grads)
        params = tree_map(
            lambda p, m, v: (1 - LR * DECAY) * p - size * (m / (v.sqrt() / root + EPS)), params, first, second
        )
        return params

    return step


def torchopt_adamw(leaves: Leaves, *, inplace: bool) -> Step:
    """TorchOpt's functional AdamW."""
    import torchopt

    opt = torchopt.adamw(lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
    params, state = leaves.params, opt.init(leaves.params)

    def step() -> list[Tensor]:
        nonlocal params, state
        # In place it would write its updates to the gradients: it gets copies.
        grads = [g.clone() for g in leaves.grads] if inplace else leaves.grads
        updates, state = opt.update(grads, state, params=params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=inplace)
        return params

    return step


STEPS: Mapping[str, Callable[[Leaves], Step]] = {
    "tree-map": by_hand,
    "torchopt": partial(torchopt_adamw, inplace=False),
    "torchopt-inplace": partial(torchopt_adamw, inplace=True),
    "funcopt": ours,
    "funcopt-donated": partial(ours, donate=True),
    "funcopt-eager": partial(ours, backend="eager"),
}
