"""Files written whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["check_writable", "replacing"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place at the end of the block; after an error it is removed."""
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise OSError where `replacing` could not write, before any work is spent on what it should write."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = _beside(path)
    temporary.touch()
    temporary.unlink()


def _beside(path: Path) -> Path:
    """A name of this process's own in the same folder: from elsewhere, a file may not be movable in one go."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
