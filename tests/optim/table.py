"""The classes that `funcopt.optim` shares with torch.optim, and what torch's own table of optimizers says of them.

They are found, not listed: a class that `funcopt.optim` comes to have is in every test that goes over `NAMES`.
"""

import contextlib
import functools
import unittest.mock
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

import funcopt.optim

# The import loads settings of hypothesis that are torch's, and locks torch.backends' flags. Neither is to reach ours.
_profile = hypothesis.settings.get_current_profile_name()
with unittest.mock.patch.object(torch.backends, "disable_global_flags"):
    from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db
hypothesis.settings.load_profile(_profile)

INFOS: dict[str, OptimizerInfo] = {info.name: info for info in optim_db if hasattr(funcopt.optim, info.name)}
NAMES = tuple(INFOS)
OURS: dict[str, Any] = {name: getattr(funcopt.optim, name) for name in NAMES}
TORCH: dict[str, Any] = {name: info.optim_cls for name, info in INFOS.items()}
SIDES = (OURS, TORCH)

each_name = pytest.mark.parametrize("name", NAMES)

# Inputs with which a few steps reach what they do not with those of torch's table.
MORE: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "Adafactor": (("a clipping that never clips", {"d": 1e3, "eps": (1e-30, 1e-3), "lr": 0.5}),),
    "Adagrad": (("lr_decay, maximize", {"lr_decay": 0.5, "maximize": True, "eps": 0.1}),),
    "Adam": (("decoupled", {"decoupled_weight_decay": True, "weight_decay": 0.3, "betas": (0.5, 0.6), "eps": 0.1}),),
    "ASGD": (("averages from step 3 on", {"t0": 2, "lambd": 0.1, "alpha": 0.5, "lr": 0.1}),),
    "LBFGS": (("a history that is full", {"history_size": 2}),),
    "Muon": (
        ("no Nesterov momentum", {"nesterov": False, "lr": 0.02}),
        ("as large as AdamW's steps", {"adjust_lr_fn": "match_rms_adamw", "eps": 0.1}),
    ),
    "NAdam": (("betas", {"betas": (0.5, 0.6), "eps": 0.1, "momentum_decay": 0.3}),),
    "RAdam": (("rectified soon", {"betas": (0.5, 0.9), "eps": 0.1}),),
    "RMSprop": (("not centered, momentum", {"alpha": 0.5, "momentum": 0.9, "eps": 0.1}),),
    "Rprop": (("both limits", {"step_sizes": (0.008, 0.013)}),),
    "SparseAdam": (("betas", {"betas": (0.5, 0.6), "eps": 0.1}),),
}


def inputs(name: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, dict[str, Any]]]:
    """The inputs of torch's table for the CPU, and MORE, made anew: what each is called, and its keyword arguments.

    A class that iterates within a step does so a few times, to be compared on its way: at the minimum rounding decides.
    """
    few = {"max_iter": 3} if INFOS[name].step_requires_closure else {}
    of_torch = [(row.desc, row.kwargs) for row in INFOS[name].optim_inputs_func(device="cpu", dtype=dtype)]
    return [(what, kwargs | few) for what, kwargs in (*of_torch, *MORE.get(name, ()))]


each_input = pytest.mark.parametrize(
    ("name", "row"),
    [pytest.param(name, row, id=f"{name}, {what}") for name in NAMES for row, (what, _) in enumerate(inputs(name))],
)


def much(name: str) -> dict[str, Any]:
    """The input of torch's table that says most: the flags and numbers with which a class has all of its state."""
    return max((kwargs for _, kwargs in inputs(name)), key=len)


def plain_torch(name: str, **kwargs: Any) -> dict[str, Any]:
    """The arguments with which torch's class runs its for-loop, where it has several implementations."""
    return ({"foreach": False} if "foreach" in INFOS[name].supported_impls else {}) | kwargs


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    """Torch keeps the scalars of a state (counts, NAdam's product, ASGD's rates) in the default dtype or in float32."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# ---- parameters -----------------------------------------------------------------------------------------------------

# The shape of the memory, and how the parameter lies in it.
ROWS: tuple[tuple[tuple[int, ...], Callable[[Tensor], Tensor]], ...] = (
    ((4, 3), lambda x: x),
    ((), lambda x: x),
    ((5,), lambda x: x),
    ((2, 3, 2), lambda x: x),
    ((0, 2), lambda x: x),
    ((3, 5), lambda x: x.t()),
    ((6, 4), lambda x: x[:, ::2]),
    ((1, 1), lambda x: x),
)


@functools.cache
def rows(name: str, dtype: torch.dtype) -> tuple[int, ...]:
    """The ROWS that torch's class takes."""
    return tuple(row for row in range(len(ROWS)) if not refusal(TORCH[name], name, row, dtype))


def refusal(cls: Any, name: str, row: int, dtype: torch.dtype) -> Exception | None:
    """What a class raises where a parameter is a row of ROWS; torch's Adafactor divides by the size of an empty one."""
    params = draw([row], dtype, seed=0)
    try:
        step(name, cls(params), params, t=0)
    except (RuntimeError, ValueError, ZeroDivisionError) as refused:
        return refused
    return None


def draw(which: Sequence[int], dtype: torch.dtype, seed: int, drawn_in: torch.dtype | None = None) -> list[Tensor]:
    """Parameters of some ROWS, with numbers that `drawn_in` can represent: so small that a step changes every bit."""
    made = []
    for row in which:
        shape, lie = ROWS[row]
        random = torch.Generator().manual_seed(100 * seed + row)
        value = 0.1 * torch.randn(shape, dtype=_wide(dtype), generator=random)
        made.append(lie(value.to(drawn_in or dtype).to(dtype)).requires_grad_())
    return made


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


# ---- steps ----------------------------------------------------------------------------------------------------------


def step(
    name: str, optimizer: Optimizer, params: Sequence[Tensor], t: int, drawn_in: torch.dtype | None = None, **kw: Any
) -> Any:
    """Step t = 0, 1, …, with the closure or the sparse gradients that a class needs."""
    if INFOS[name].step_requires_closure:
        return optimizer.step(functools.partial(valley, optimizer, params))
    give(name, params, t, drawn_in, **kw)
    return optimizer.step()


def valley(optimizer: Optimizer, params: Sequence[Tensor]) -> Tensor:
    """A loss with a narrow valley, and its gradients."""
    optimizer.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for p in params:
        x = torch.view_as_real(p) if p.is_complex() else p
        width = torch.logspace(-3, 1, x.numel(), dtype=x.dtype).view(x.shape)
        loss = loss + (width * (x - 0.3).square() + (x - 0.3) ** 4).sum()
    loss.backward()
    return loss


def give(
    name: str,
    params: Sequence[Tensor],
    t: int,
    drawn_in: torch.dtype | None = None,
    *,
    sparse: bool | None = None,
    size: float = 1.0,
) -> None:
    """Gradients for step t; none for the last of several parameters at step 2."""
    sparse = INFOS[name].only_supports_sparse_grads if sparse is None else sparse
    for i, p in enumerate(params):
        random = torch.Generator().manual_seed(1000 * t + i)
        # Away from 0, where a square, or a product of two, would vanish in float16.
        g = torch.randn(p.shape, dtype=_wide(p.dtype), generator=random)
        g = (size * (g + 0.3 * torch.sgn(g))).to(drawn_in or p.dtype).to(p.dtype)
        if t == 2 and i == len(params) - 1 > 0:
            p.grad = None
        else:
            p.grad = in_pieces(g) if sparse else g


def in_pieces(dense: Tensor) -> Tensor:
    """The tensor as a sparse one that is not coalesced: an entry in two halves, and some rows not there."""
    if dense.dim() == 0 or dense.numel() == 0:
        return dense.to_sparse()
    some = dense.to_sparse(1)
    index, values = some.indices()[:, ::2], some.values()[::2]
    twice = torch.sparse_coo_tensor(
        torch.cat([index, index[:, :1]], 1),
        torch.cat([values[:1] / 2, values[1:], values[:1] / 2]),
        dense.shape,
        check_invariants=True,
    )
    assert not twice.is_coalesced()
    return twice


# ---- what is seen ---------------------------------------------------------------------------------------------------

Seen = dict[str, Tensor]

# The same terms in another order, over some dozen steps, relative to the largest number: some dozens of roundings.
FLOAT64 = 1e-14

# Where torch's own class is further from what its equation gives.
ROUGHER = {
    # 1e-16 in β₂ᵗ is 2e-14 of 1 - β₂ᵗ = 0.006 at step 6, 4e-11 of 2tβ₂ᵗ/(1 - β₂ᵗ), and half of that of the step.
    "RAdam": 2e-11,
}


def tolerance(name: str) -> float:
    """How far two runs of a class in float64 may be apart."""
    return ROUGHER.get(name, FLOAT64)


def seen(optimizer: Optimizer, params: Sequence[Tensor]) -> Seen:
    """Copies of the parameters and of everything in the state, as tensors, by where they are.

    A number, which LBFGS has now and then in place of a scalar tensor, is as one of float64.
    """
    out = {f"params[{i}]": p.detach().clone() for i, p in enumerate(params)}
    for path, leaf in pytree.tree_flatten_with_path(optimizer.state_dict()["state"])[0]:
        where = "state" + pytree.keystr(path)
        if isinstance(leaf, Tensor):
            out[where] = leaf.detach().to_dense().clone()
        elif isinstance(leaf, int | float):
            out[where] = torch.tensor(leaf, dtype=torch.float64)
        else:
            out[f"{where}: {leaf}"] = torch.zeros(())
    return out


def run(
    name: str,
    cls: Any,
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    steps: int,
    *,
    which: Sequence[int] | None = None,
    drawn_in: torch.dtype | None = None,
    leaves: bool = True,
    **gradients: Any,
) -> list[Seen]:
    """What is seen after each step of a new optimizer.

    Args:
        name: the class's name.
        cls: the class.
        kwargs: its arguments.
        dtype: of the parameters.
        steps: how many.
        which: of the ROWS; all that torch's class takes if left out.
        drawn_in: a dtype that can represent the numbers that are drawn; `dtype` if left out.
        leaves: whether the parameters are leaves of the graph, as `differentiable=True` does not allow.
        gradients: what `give` takes.
    """
    params = draw(rows(name, drawn_in or dtype) if which is None else which, dtype, 1, drawn_in)
    if not leaves:
        params = [p.clone() for p in params]
        for p in params:
            p.retain_grad()  # else torch warns of p.grad where it is None
    optimizer = cls(params, **kwargs)
    return list(follow(name, optimizer, params, range(steps), drawn_in=drawn_in, **gradients))


def follow(name: str, optimizer: Optimizer, params: Sequence[Tensor], times: Any, **how: Any) -> Iterator[Seen]:
    """Take steps, and see."""
    for t in times:
        step(name, optimizer, params, t, **how)
        yield seen(optimizer, params)


def offs(got: list[Seen], want: list[Seen]) -> dict[str, float]:
    """By name the largest difference at any step, relative to the largest number on the way; names and shapes agree."""
    columns: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        for key, value in theirs.items():
            assert ours[key].shape == value.shape, key
            columns[key].append((_numbers(ours[key]), _numbers(value)))
    out = {}
    for key, pairs in columns.items():
        a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
        off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
        out[key] = (off.max() / (b.nan_to_num().abs().max() or 1.0)).item() if len(b) else 0.0
    return out


def _numbers(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double().flatten()


def check_near(got: list[Seen], want: list[Seen], tolerance: float) -> None:
    """That two runs saw the same: names, dtypes, shapes, and values up to a tolerance."""
    for ours, theirs in zip(got, want, strict=True):
        kinds = [{(key, value.dtype) for key, value in side.items()} for side in (ours, theirs)]
        assert kinds[0] == kinds[1], f"only ours: {kinds[0] - kinds[1]}, only theirs: {kinds[1] - kinds[0]}"
    for key, off in offs(got, want).items():
        assert off <= tolerance, f"{key}: off by {off:.2g}"
