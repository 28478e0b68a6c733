"""Files of the agent's own: private, and replaced in one step."""

from __future__ import annotations

import os
from pathlib import Path

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700


def make_private_directory(path: Path) -> None:
    """A directory for the agent alone, whatever its mode was before; so is each parent made for it."""
    if not path.parent.exists():
        make_private_directory(path.parent)
    path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    path.chmod(PRIVATE_DIRECTORY)


def replace_private(path: Path, content: bytes, *, durably: bool = False) -> None:
    """Write a file that the agent alone may read, so that a death leaves the old content or the new.

    With `durably` that is true of the machine's death as well, and what is written stays written.
    """
    partial = path.with_name(path.name + ".new")
    # One that a death left may have another mode; what is written here must never be readable under that.
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if durably:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durably:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
