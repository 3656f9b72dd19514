"""What an optimizer has, flat; and leaves that are complex or have sparse gradients, as an equation takes them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from funcopt import hyper
from funcopt.declaration import Rule

__all__ = ["Leaves", "plain"]


@dataclass(frozen=True)
class Leaves:
    """What an optimizer has, flat: lists of one entry a leaf.

    `grads` has None for a leaf that is to be left alone. `slots` has the slots in use that are tensors, in the rule's
    order, with None for leaves that have no such slot, and `scalars` those that are scalars. `columns` has the hparams
    one component after the other, each a single value or one a leaf (`hyper.PerLeaf`).
    """

    params: list[Tensor]
    grads: list[Tensor | None]
    slots: dict[str, list[Tensor]]
    steps: list[Tensor]
    columns: list[Any]
    scalars: dict[str, list[Tensor]] = field(default_factory=dict)


# From new plain leaves, and whether the old ones were donated, to what they stand for.
Restored = Callable[[Leaves, bool], Leaves]


def plain(rule: Rule, leaves: Leaves) -> tuple[Leaves, Restored]:
    """The leaves dense and real, and what makes of the new ones such as these were.

    A complex leaf is taken as pairs of reals. Of a leaf with a sparse gradient the elements are taken that the gradient
    has, or, where the others change too, its zeros are filled in.
    """
    sparse = [i for i, g in enumerate(leaves.grads) if g is not None and g.layout == torch.sparse_coo]
    given, places = _rows(rule, leaves, sparse) if sparse else (leaves, {})
    paired = [i for i, p in enumerate(leaves.params) if p.is_complex()]
    real = _real(given, paired) if paired else given
    if real is leaves:
        return leaves, lambda new, donate: new

    def restored(new: Leaves, donate: bool) -> Leaves:
        back = new
        if paired:
            back = _each(back, paired, lambda i, t, before, view: _complex(t, before, view, donate), given, real)
        if places:
            back = _each(
                back, list(places), lambda i, t, before, _: _scattered(before, places[i], t, donate), leaves, leaves
            )
        return back

    return real, restored


def _each(new: Leaves, which: list[int], change: Callable[..., Tensor], before: Leaves, view: Leaves) -> Leaves:
    """New leaves with those at some places changed, by what they were before."""

    def changed(column: list[Tensor], old: list[Tensor], seen: list[Tensor]) -> list[Tensor]:
        out = list(column)
        for i in which:
            out[i] = change(i, column[i], old[i], seen[i])
        return out

    slots = {name: changed(column, before.slots[name], view.slots[name]) for name, column in new.slots.items()}
    return replace(new, params=changed(new.params, before.params, view.params), slots=slots)


# ---- complex leaves -------------------------------------------------------------------------------------------------


def _real(leaves: Leaves, which: list[int]) -> Leaves:
    def pairs(column: list[Any]) -> list[Any]:
        out = list(column)
        for i in which:
            if out[i] is not None:
                out[i] = torch.view_as_real(out[i].resolve_conj())
        return out

    def number(column: Any) -> Any:
        if not isinstance(column, hyper.PerLeaf):
            return column
        out = hyper.PerLeaf(column)
        for i in which:
            if isinstance(out[i], Tensor) and out[i].dim() > 0:
                out[i] = out[i].unsqueeze(-1)
        return out

    return replace(
        leaves,
        params=pairs(leaves.params),
        grads=pairs(leaves.grads),
        slots={name: pairs(column) for name, column in leaves.slots.items()},
        columns=list(map(number, leaves.columns)),
    )


def _complex(new: Tensor, before: Tensor, view: Tensor, donate: bool) -> Tensor:
    if new is not view:
        return torch.view_as_complex(new if new.stride(-1) == 1 else new.contiguous())
    return before.copy_(torch.view_as_complex(view)) if donate and before.is_conj() else before


# ---- sparse gradients -----------------------------------------------------------------------------------------------

Places = tuple[Tensor, ...]


def _rows(rule: Rule, leaves: Leaves, which: list[int]) -> tuple[Leaves, dict[int, Places]]:
    """The leaves with the rows of these in their place, and where the rows belong."""
    params, grads, columns = list(leaves.params), list(leaves.grads), list(leaves.columns)
    slots = {name: list(column) for name, column in leaves.slots.items()}
    places: dict[int, Places] = {}
    for i in which:
        own = [column[i] if isinstance(column, hyper.PerLeaf) else column for column in leaves.columns]
        g: Any = grads[i]
        if g.sparse_dim() == 0 or rule.rows is None or not rule.rows(hyper.nest(rule.hparams, own)):
            grads[i] = g.to_dense()
            continue
        g = g.coalesce()
        places[i] = at = g.indices().unbind()
        shape = params[i].shape
        params[i], grads[i] = params[i][at], g.values()
        for column in slots.values():
            column[i] = column[i][at]
        for k, column in enumerate(columns):
            if isinstance(column, hyper.PerLeaf) and isinstance(column[i], Tensor) and column[i].dim() > 0:
                columns[k] = hyper.PerLeaf(column)
                columns[k][i] = column[i].expand(shape)[at]
    return replace(leaves, params=params, grads=grads, slots=slots, columns=columns), places


def _scattered(before: Tensor, at: Places, rows: Tensor, donate: bool) -> Tensor:
    return before.index_put_(at, rows) if donate else before.index_put(at, rows)
