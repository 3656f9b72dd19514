"""Aligned columns of text, for what is printed to people."""

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """The rows as lines with their columns below each other.

    Args:
        align: one character a column, `<` for left and `>` for right.
        rows: at least one, of as many cells as `align` has characters; a header is a row like any other.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return [layout.format(*row).rstrip() for row in rows]
