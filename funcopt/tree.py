"""Pytrees: the one place that knows `torch.utils._pytree`, the pytrees that torch.func and Dynamo understand.

A tree that belongs to params (gradients, a state slot) is matched to them by key, so the order of a dict's entries
means nothing; a mismatch is an error that names the leaf by its path, such as `grads['layers'][3].weight`.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

from torch.utils import _pytree as pytree

__all__ = ["broadcast", "flatten", "flatten_like", "map", "paths", "register", "unflatten"]

Tree = Any
Spec = pytree.TreeSpec
Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Make nodes of a dataclass, whose children are its fields; returns the class, as a decorator does."""
    names = [field.name for field in fields(cls)]

    def children(node: Any) -> tuple[list[Any], None]:
        return [getattr(node, name) for name in names], None

    def children_by_key(node: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], None]:
        return [(pytree.GetAttrKey(name), getattr(node, name)) for name in names], None

    pytree.register_pytree_node(cls, children, lambda values, _: cls(*values), flatten_with_keys_fn=children_by_key)
    return cls


def flatten(tree: Tree) -> tuple[list[Any], Spec]:
    """The leaves of a tree and its structure. None is a leaf."""
    return pytree.tree_flatten(tree)


def unflatten(leaves: Iterable[Any], spec: Spec) -> Tree:
    """The tree of this structure with these leaves."""
    return pytree.tree_unflatten(leaves, spec)


def map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply a function to every leaf; further trees have the same structure."""
    return pytree.tree_map(function, tree, *rest)


def paths(tree: Tree, root: str) -> list[str]:
    """The name of every leaf, in the order of `flatten`: root['layers'][3].weight."""
    return [root + pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(tree)]


def flatten_like(tree: Tree, params: Tree, spec: Spec, root: str, owner: str = "params") -> list[Any]:
    """The leaves of a tree in the order of the leaves of params, whose structure `spec` is.

    None stands for a whole subtree of None. Raises ValueError where a key is missing or one too many; `owner` is what
    it calls params.
    """
    leaves, own = pytree.tree_flatten(tree)
    if own == spec:
        return leaves
    return _match(tree, params, root, owner, prefix=False)


def broadcast(tree: Tree, params: Tree, root: str) -> list[Any]:
    """One value per leaf of params from a tree that is a prefix of params: a leaf of it stands for the whole subtree.

    Raises ValueError where a key is missing or one too many.
    """
    return _match(tree, params, root, "params", prefix=True)


def _match(tree: Tree, params: Tree, path: str, owner: str, *, prefix: bool) -> list[Any]:
    wanted = _children(params)
    given = _children(tree)
    if given is None and (wanted is None or prefix or tree is None):
        return [tree] * (1 if wanted is None else pytree.tree_structure(params).num_leaves)
    if wanted is None:
        raise ValueError(f"{path} is a {type(tree).__name__}, but {owner} has a single leaf there")
    if given is None:
        raise ValueError(
            f"{path} is a {type(tree).__name__}, but {owner} has a {type(params).__name__} there with the entries "
            f"{_some(wanted)}"
        )
    for key in given:
        if key not in wanted:
            raise ValueError(f"{path}{key} has no counterpart in {owner}, whose entries there are {_some(wanted)}")
    for key in wanted:
        if key not in given:
            raise ValueError(f"{path}{key} is missing: {owner} has it; the entries given there are {_some(given)}")
    return [
        leaf for key, child in wanted.items() for leaf in _match(given[key], child, path + key, owner, prefix=prefix)
    ]


def _children(tree: Tree) -> dict[str, Tree] | None:
    """The entries of a node by printed key; None for a leaf."""
    if pytree.tree_is_leaf(tree):
        return None
    entries, _ = pytree.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return {pytree.keystr(path): child for path, child in entries}


def _some(keys: Iterable[str], most: int = 8) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f", … ({len(keys)} in all)" if len(keys) > most else "") if keys else "none"
