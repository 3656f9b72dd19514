"""The numbers of an update equation: what a rule declares of them, and what a caller may give."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from funcopt import tree
from funcopt.observed import wrapped

__all__ = [
    "Number",
    "PerLeaf",
    "Spec",
    "broadcast",
    "columns",
    "fraction",
    "labels",
    "nest",
    "nonnegative",
    "suggest",
    "validate",
]


@dataclass(frozen=True)
class Number:
    """One hyperparameter: its default, the range it may have, and what an error calls it.

    A name with {} in it is the whole of what an error says, with the value there, or each of those of its tuple. With
    the default None it may be None too: the resolution of a parameter's dtype, `torch.finfo(dtype).eps`. `tried` are
    the ends of what `funcopt.testing` draws, where the range has numbers that mean nothing; the range's if left out.
    """

    default: float | None
    name: str
    low: float = -math.inf
    high: float = math.inf
    below_high: bool = False
    above_low: bool = False
    tried: tuple[float, float] | None = None
    whole: bool = False

    @property
    def range(self) -> str:
        """The range as text: [0, inf), (0, 1)."""
        open_start, open_end = self.above_low or self.low == -math.inf, self.below_high or self.high == math.inf
        return f"{'(' if open_start else '['}{self.low:g}, {self.high:g}{')' if open_end else ']'}"

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.above_low else self.low <= value
        below = value < self.high if self.below_high else value <= self.high
        return above and below and (not self.whole or value == math.inf or value == int(value))

    def complaint(self, value: Any, among: Sequence[Any] = ()) -> str:
        """What an error says of a value out of the range; `among` are all of its tuple."""
        if "{}" in self.name:
            return self.name.format(*(among if self.name.count("{}") > 1 else [value]))
        return f"Invalid {self.name}: {value}"


Several = tuple[Number, ...]  # `betas`
Spec = Mapping[str, Number | Several]


def nonnegative(default: float, name: str) -> Number:
    """A number in [0, inf)."""
    return Number(default, name, low=0.0)


def fraction(default: float, name: str) -> Number:
    """A number in [0, 1)."""
    return Number(default, name, low=0.0, high=1.0, below_high=True)


def suggest(unknown: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest spelling, and all that are allowed."""
    known = list(known)
    close = difflib.get_close_matches(unknown, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed: {', '.join(known) or 'none'}"


def validate(rule: str, spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the numbers given and fill in the defaults.

    Each value may be a float, a tensor, a schedule, or a pytree of those that is a prefix of params; for a
    hyperparameter with several components (`betas`) a tuple of such. Python numbers become floats. The values of
    tensors are looked at only where that waits for nobody: on the CPU, outside of torch.func and torch.compile.

    Raises:
        TypeError: an unknown name, or a value that is not a number.
        ValueError: a number out of its range, or a tuple of the wrong length.
    """
    for name in given:
        if name not in spec:
            raise TypeError(f"{rule} has no hyperparameter {name!r}; {suggest(name, spec)}")
    return {name: _checked(name, part, given[name]) if name in given else _default(part) for name, part in spec.items()}


def columns(spec: Spec, hparams: Mapping[str, Any]) -> list[Any]:
    """The hparams one component after the other: lr, betas[0], betas[1], …; raises where names or lengths are off."""
    if hparams.keys() != spec.keys():
        for name in hparams:
            if name not in spec:
                raise ValueError(f"hparams[{name!r}] is unknown; {suggest(name, spec)}")
        missing = next(name for name in spec if name not in hparams)
        raise ValueError(f"hparams[{missing!r}] is missing; opt.hparams(...) makes a complete set")
    flat = []
    for name, part in spec.items():
        if isinstance(part, Number):
            flat.append(hparams[name])
        else:
            flat.extend(_components(name, part, hparams[name]))
    return flat


def labels(spec: Spec) -> list[str]:
    """What each of `columns` is called in an error: hparams['lr'], hparams['betas'][0], …"""
    return [
        f"hparams[{name!r}]{index}"
        for name, part in spec.items()
        for index in ([""] if isinstance(part, Number) else [f"[{i}]" for i in range(len(part))])
    ]


def nest(spec: Spec, flat: Sequence[Any]) -> dict[str, Any]:
    """The inverse of `columns`."""
    rest = iter(flat)
    return {
        name: next(rest) if isinstance(part, Number) else tuple(next(rest) for _ in part) for name, part in spec.items()
    }


class PerLeaf(list[Any]):
    """One value of a hyperparameter for each leaf of params, in their order."""


def broadcast(column: Any, params: tree.Tree, leaves: Sequence[Tensor], label: str) -> Any:
    """A column as it is where it serves every leaf, else `PerLeaf` by prefix.

    Raises ValueError where a tree is no prefix of params, or a tensor does not broadcast to its leaf's shape.
    """
    if _single(column) or (isinstance(column, Tensor) and column.dim() == 0):
        return column
    values = PerLeaf(tree.broadcast(column, params, label))
    for index, (value, leaf) in enumerate(zip(values, leaves, strict=True)):
        if isinstance(value, Tensor):
            if not _broadcasts(value.shape, leaf.shape):
                raise ValueError(
                    f"{label} has shape {tuple(value.shape)}, which does not broadcast to the shape "
                    f"{tuple(leaf.shape)} of {tree.paths(params, 'params')[index]}"
                )
        elif not _single(value):
            path = tree.paths(params, "params")[index]
            raise TypeError(f"{label} for {path} is a {type(value).__name__}; give a float or a tensor")
    return values


def _single(value: Any) -> bool:
    """Whether it is a number for all elements of a leaf, or a schedule of such."""
    return value is None or isinstance(value, float | int) or (callable(value) and not isinstance(value, Tensor))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def _default(part: Number | Several) -> Any:
    return part.default if isinstance(part, Number) else tuple(number.default for number in part)


def _components(name: str, part: Several, value: Any) -> Sequence[Any]:
    if not isinstance(value, tuple | list) or len(value) != len(part):
        raise ValueError(
            f"{name} takes a tuple of {len(part)} values, each a number or a tree of numbers; got {value!r}"
        )
    return value


def _checked(name: str, part: Number | Several, value: Any, among: Sequence[Any] = ()) -> Any:
    if isinstance(part, Number):
        return tree.map(lambda leaf: _checked_leaf(name, part, leaf, among), value)
    values = _components(name, part, value)
    return tuple(_checked(f"{name}[{i}]", p, v, values) for i, (p, v) in enumerate(zip(part, values, strict=True)))


def _checked_leaf(name: str, number: Number, value: Any, among: Sequence[Any]) -> Any:
    if (value is None and number.default is None) or (callable(value) and not isinstance(value, Tensor)):
        return value
    if isinstance(value, Tensor):
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} is a tensor of {value.dtype}; give a floating-point tensor or a float")
        if value.device.type != "cpu" or wrapped(value):
            return value
        out = [v for v in value.detach().flatten().tolist() if v not in number]
        if not out:
            return value
        shown: Any = out[0]
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        if float(value) in number:
            return float(value)
        shown = value
    else:
        raise TypeError(
            f"{name} takes a float, a floating-point tensor or a schedule; got {type(value).__name__}: {value!r}"
        )
    raise ValueError(
        f"{number.complaint(shown, among)} ({name} takes {'whole ' * number.whole}numbers in {number.range})"
    )
