"""What an optimizer holds: its groups, its parameters and the memory of its state, as a table."""

import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.table import table

__all__ = ["describe"]

Row = dict[str, Any]
Names = dict[int, list[str]]  # from the id of a parameter to all its names in the model

HEADER = ("name", "shape", "dtype", "device", "elements", "state bytes", "")


def describe(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None) -> list[Row]:
    """Print what an optimizer updates, with which numbers, and how much memory its state takes.

    A parameter is called what its group's `param_names` call it, else what the model does, else `param 0`, `param 1`, …
    One that the model or the optimizer has under several names is listed once, under its first.

    Args:
        optimizer: one of this library or any other `torch.optim.Optimizer`; it is left as it is.
        model: whose parameters' names are looked up, and of which those that the optimizer does not update are named.

    Returns:
        One dict a parameter, in the order of the groups: group (its index), name, shape, dtype, device, elements,
        bytes, state_bytes (of all tensors in its state), requires_grad, aliases (its other names) and in_model (None
        without a model).

    Raises:
        TypeError: the optimizer is no `torch.optim.Optimizer`, or the model no `torch.nn.Module`.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer, such as funcopt.optim.AdamW(...)"
        )
    if model is not None and not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module, or leave it out")
    names = None if model is None else _names(model)
    found = _rows(optimizer, names)
    rows = list(found.values())
    lines = _report(optimizer, rows)
    if model is not None and names is not None:
        lines += _left_out([(names[id(p)][0], p) for p in model.parameters() if id(p) not in found])
    print("\n".join(lines))
    return rows


def _names(model: torch.nn.Module) -> Names:
    """All names of each of the model's parameters."""
    names: Names = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return names


def _rows(optimizer: torch.optim.Optimizer, names: Names | None) -> dict[int, Row]:
    """A row for each parameter that the optimizer updates, by its id."""
    rows: dict[int, Row] = {}
    for count, (index, name, p) in enumerate(_entries(optimizer)):
        known = names.get(id(p), []) if names else []
        called = name or (known[0] if known else f"param {count}")
        if id(p) in rows:  # listed twice, which torch allows within a group
            _add_alias(rows[id(p)], called)
            continue
        rows[id(p)] = {
            "group": index,
            "name": called,
            "shape": tuple(p.shape),
            "dtype": p.dtype,
            "device": p.device,
            "elements": p.numel(),
            "bytes": _bytes(p),
            "state_bytes": _state_bytes(optimizer, p),
            "requires_grad": p.requires_grad,
            "aliases": [],
            "in_model": None if names is None else bool(known),
        }
        for other in known if len(known) > 1 else ():
            _add_alias(rows[id(p)], other)
    return rows


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str | None, Tensor]]:
    """The index of the group, the group's name for the parameter, and the parameter, one after the other."""
    for index, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [None] * len(group["params"])
        for name, p in zip(names, group["params"], strict=True):
            yield index, name, p


def _add_alias(row: Row, name: str) -> None:
    if name != row["name"] and name not in row["aliases"]:
        row["aliases"].append(name)


def _state_bytes(optimizer: torch.optim.Optimizer, p: Tensor) -> int:
    state = optimizer.state.get(p, {})  # the state is a defaultdict: to index it would leave an entry there
    return sum(_bytes(value) for value in tree.flatten(state)[0] if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ---- text -----------------------------------------------------------------------------------------------------------


def _report(optimizer: torch.optim.Optimizer, rows: list[Row]) -> list[str]:
    """One table for all groups, so that their columns stand below each other, cut at the groups, and the totals."""
    header, *lines = table("<<<<>><", [HEADER, *map(_cells, rows)])
    by_group: list[list[str]] = [[] for _ in optimizer.param_groups]
    for row, line in zip(rows, lines, strict=True):
        by_group[row["group"]].append(line)
    kind = type(optimizer)
    report = [f"{kind.__module__}.{kind.__qualname__}"]
    for index, (group, members) in enumerate(zip(optimizer.param_groups, by_group, strict=True)):
        settings = textwrap.wrap(f"group {index}: {_settings(group)}", width=100, subsequent_indent="  ")
        report += ["", *settings, *([header, *members] if members else ["no parameters"])]
    elements, size, state = (sum(row[key] for row in rows) for key in ("elements", "bytes", "state_bytes"))
    return [
        *report,
        "",
        f"total: {_count(len(rows), 'parameter')}, {_count(elements, 'element')}, {size:,} bytes of parameters, "
        f"{state:,} bytes of state",
    ]


def _cells(row: Row) -> tuple[str, ...]:
    notes = [
        "" if row["requires_grad"] else "requires no gradient",
        f"tied: also {_some(row['aliases'])}" if row["aliases"] else "",
        "not in the model" if row["in_model"] is False else "",
    ]
    return (
        row["name"],
        str(row["shape"]),
        str(row["dtype"]).removeprefix("torch."),
        str(row["device"]),
        f"{row['elements']:,}",
        f"{row['state_bytes']:,}",
        "; ".join(filter(None, notes)),
    )


def _settings(group: dict[str, Any]) -> str:
    """The numbers and flags of a group; None stands for a choice that nobody made, and is left out."""
    chosen = {k: v for k, v in group.items() if k not in ("params", "param_names") and v is not None}
    return ", ".join(f"{name}={_setting(value)}" for name, value in chosen.items())


def _setting(value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            f"tensor({value.item():g})" if value.numel() == 1 and not value.is_meta else f"tensor{tuple(value.shape)}"
        )
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_setting, value))})"
    return str(value)


def _left_out(params: list[tuple[str, Tensor]]) -> list[str]:
    """The line about the model's parameters that the optimizer does not update; none where there are none."""
    if not params:
        return []
    elements = sum(p.numel() for _, p in params)
    return [
        f"not updated: {_count(len(params), 'parameter')} of the model, {_count(elements, 'element')}: "
        f"{_some([name for name, _ in params])}"
    ]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
