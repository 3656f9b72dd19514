"""One example for a law, and how it is written down as Python that builds it again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import hypothesis
import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

__all__ = ["Case", "Takes", "code"]


@dataclass(frozen=True)
class Takes:
    """The tensors that an optimizer takes, where it does not take all.

    Args:
        shapes: a strategy for the shapes of its parameters.
        dtypes: theirs, float64 among them.
        layouts: of parameters and gradients, see `strategies.LAYOUTS`; contiguous among them.
    """

    shapes: SearchStrategy[tuple[int, ...]] | None = None
    dtypes: Sequence[torch.dtype] | None = None
    layouts: Sequence[str] | None = None

    def usual(self) -> Tensor:
        """A parameter of ones, as plain as it takes them."""
        shape = (2, 3) if self.shapes is None else _plain(self.shapes)
        return torch.ones(shape, dtype=torch.float64)


def _plain(shapes: SearchStrategy[tuple[int, ...]]) -> tuple[int, ...]:
    """The simplest of some shapes that is not empty."""
    phases = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
    simple = hypothesis.settings(database=None, phases=phases, max_examples=1000, deadline=None)  # whatever the profile
    return hypothesis.find(shapes, all, settings=simple)


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """What an optimizer is run on: parameters, one list of gradients for each step, numbers, flags.

    Args:
        params: the tensors, a list.
        grads: for each step a list of one gradient for each parameter, or None for a parameter that has none.
        numbers: hyperparameters by name; the rest have their defaults.
        flags: structural choices by name; the rest have their defaults.
        more: what else a law has drawn.
    """

    params: Sequence[Tensor]
    grads: Sequence[Sequence[Tensor | None]]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> "Case":
        """This case with some fields replaced."""
        return replace(self, **changes)

    def having(self, **numbers: Any) -> "Case":
        """This case with some numbers replaced."""
        return replace(self, numbers={**self.numbers, **numbers})

    def mapped(self, params: Any = None, grads: Any = None) -> "Case":
        """This case with a function applied to each parameter, and one to each gradient."""
        return replace(
            self,
            params=[params(p) for p in self.params] if params else self.params,
            grads=[[None if g is None else grads(g) for g in step] for step in self.grads] if grads else self.grads,
        )

    def only(self, leaf: int) -> "Case":
        """This case with one of its parameters alone, and of the steps those in which it has a gradient."""
        kept = [[step[leaf]] for step in self.grads if step[leaf] is not None]
        return replace(self, params=[self.params[leaf]], grads=kept)

    def __repr__(self) -> str:
        shown = [f.name for f in fields(self) if f.default_factory is MISSING or getattr(self, f.name)]
        lines = [f"    {name}={code(getattr(self, name), 4)}," for name in shown]
        return "\n".join(["Case(", *lines, ")"])


def code(value: Any, indent: int = 0) -> str:
    """Python that builds a value: tensors with their dtype, strides and offset, and containers of them.

    It stands on `torch` and on names of torch alone: `tensor`, dtypes, `inf` and `nan`.
    """
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{code(k)}: {code(v, indent)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        inner = [code(v, indent + 4) for v in value]
        comma = "," if len(inner) == 1 and opening == "(" else ""
        line = opening + ", ".join(inner) + comma + closing
        if len(line) + indent <= 100 and "\n" not in line:
            return line
        pad = " " * (indent + 4)
        return opening + "".join(f"\n{pad}{part}," for part in inner) + "\n" + " " * indent + closing
    return repr(value)


def _tensor(t: Tensor) -> str:
    if t.is_sparse:
        return f"{_tensor(t.to_dense())}.to_sparse()"
    dtype, shape, strides, offset = code(t.dtype), tuple(t.shape), t.stride(), t.storage_offset()
    empty = t.numel() == 0
    values = f"torch.zeros({shape}, dtype={dtype})" if empty else f"tensor({code(t.detach().tolist())}, dtype={dtype})"
    if offset:
        extent = 0 if empty else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        memory = f"torch.zeros({offset + extent}, dtype={dtype}).as_strided({shape}, {strides}, {offset})"
    elif strides != torch.empty(shape, device="meta").stride():
        memory = f"torch.empty_strided({shape}, {strides}, dtype={dtype})"
    else:
        return values
    return f"{memory}.copy_({values})"
