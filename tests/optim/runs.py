"""funcopt's and torch.optim's classes side by side: the same parameters, groups and gradients, and the comparison."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from funcopt import optim

# The same terms summed in another order, over a few dozen steps of float64 (2.2e-16 each), relative to the largest.
FLOAT64 = 1e-12

OURS: dict[str, Any] = {"SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW}
TORCH: dict[str, Any] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
NAMES = tuple(OURS)

# One row a parameter: its group, the shape of its memory, how it lies there, and whether it has a gradient at step t.
always: Callable[[int], bool] = lambda t: True
LAYOUT: tuple[tuple[int, tuple[int, ...], Callable[[Tensor], Tensor], Callable[[int], bool]], ...] = (
    (0, (4, 3), lambda x: x, always),
    (0, (), lambda x: x, always),
    (0, (0, 2), lambda x: x, always),
    (1, (3, 5), lambda x: x.t(), always),
    (1, (2, 3, 2, 2), lambda x: x.to(memory_format=torch.channels_last), lambda t: t % 4 != 2),
    (1, (70,), lambda x: x, lambda t: t > 5),
    (2, (6, 4), lambda x: x[:, ::2], lambda t: t % 3 != 0),
    (2, (1, 1), lambda x: x, always),
    (2, (3,), lambda x: x, lambda t: False),
)

# What the groups change in the constructor's numbers.
GROUPS: dict[str, tuple[dict[str, Any], ...]] = {
    "SGD": ({}, {"lr": 0.03, "momentum": 0.5}, {"weight_decay": 0.3}),
    "Adam": ({}, {"lr": 0.03, "betas": (0.5, 0.9)}, {"weight_decay": 0.3}),
    "AdamW": ({}, {"lr": 0.03, "betas": (0.5, 0.9)}, {"weight_decay": 0.3}),
}

# Numbers with which a class has state; SGD's defaults have none.
STATEFUL: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "Adam": {}, "AdamW": {}}

Grads = list[list[Tensor | None]]
Snapshot = dict[tuple[int, str], Tensor]


# ---- runs -----------------------------------------------------------------------------------------------------------


def leaves(dtype: torch.dtype, drawn_in: torch.dtype | None = None) -> list[Tensor]:
    """The parameters of LAYOUT, with numbers that `drawn_in` (dtype, if left out) can represent."""
    random = torch.Generator().manual_seed(0)
    return [_draw(row, drawn_in or dtype, random, as_row=True).to(dtype).requires_grad_() for row in LAYOUT]


def gradients(steps: int, dtype: torch.dtype, drawn_in: torch.dtype | None = None, first: int = 0) -> Grads:
    """Gradients for LAYOUT from step `first` on; every other step they do not lie in memory as their parameters do."""
    random = torch.Generator().manual_seed(1 + first)
    rows = []
    for t in range(first, first + steps):
        drawn = [_draw(row, drawn_in or dtype, random, as_row=t % 2 == 0).to(dtype) for row in LAYOUT]
        rows.append([g if has_one(t) else None for g, (*_, has_one) in zip(drawn, LAYOUT, strict=True)])
    return rows


def _draw(row: tuple[Any, ...], dtype: torch.dtype, random: torch.Generator, as_row: bool) -> Tensor:
    _, shape, lie, _ = row
    drawn = lie(torch.randn(shape, dtype=torch.float64, generator=random).to(dtype))
    return drawn if as_row else drawn.contiguous()


def grouped(name: str, params: Sequence[Any]) -> list[dict[str, Any]]:
    """The parameters of LAYOUT, or their pairs with a name, in their groups."""
    return [
        {"params": [p for p, row in zip(params, LAYOUT, strict=True) if row[0] == index], **changes}
        for index, changes in enumerate(GROUPS[name])
    ]


def give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Let each parameter have its gradient."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


def follow(optimizer: Optimizer, params: Sequence[Tensor], grads: Grads) -> None:
    """One step for each row of gradients."""
    for row in grads:
        give(params, row)
        optimizer.step()


def trajectory(optimizer: Optimizer, params: Sequence[Tensor], grads: Grads) -> Snapshot:
    """Every parameter and state tensor after each step that it was there, one behind the other."""
    seen = defaultdict(list)
    for row in grads:
        follow(optimizer, params, [row])
        for key, value in snapshot(optimizer, params).items():
            seen[key].append(value)
    return {key: torch.stack(values) for key, values in seen.items()}


def snapshot(optimizer: Optimizer, params: Sequence[Tensor]) -> Snapshot:
    """Copies of the parameters and of their state."""
    named = {(i, "param"): p for i, p in enumerate(params)}
    for i, p in enumerate(params):
        named |= {(i, name): value for name, value in optimizer.state.get(p, {}).items()}
    return {key: value.detach().clone() for key, value in named.items()}


# ---- comparisons ----------------------------------------------------------------------------------------------------


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest magnitude in `want`; NaN is infinitely far off."""
    if want.numel() == 0:
        return 0.0
    got, want = got.double(), want.double()
    scale = want.abs().max().item() or 1.0
    return (got - want).abs().nan_to_num(nan=torch.inf).max().item() / scale


def check_same(got: Mapping[Any, Tensor], want: Mapping[Any, Tensor], tolerance: float = FLOAT64) -> None:
    """That two snapshots or trajectories have the same tensors: names, dtypes, shapes, and values up to a tolerance."""
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key
        assert error(got[key], value) <= tolerance, key


def plain(value: Any) -> Any:
    """A value in which each tensor is replaced by what `==` can compare: dtype, shape and numbers."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return value


def packed_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups as the state_dict has them, for comparison by `==`."""
    return plain(optimizer.state_dict()["param_groups"])
