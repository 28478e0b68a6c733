from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor_shim.memory import MemoryDriver

from .serving import RawClient, Served, serving


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="shim-") as name:
        yield Path(name)


@pytest.fixture
def served(directory: Path) -> Iterator[Served]:
    with serving(MemoryDriver(), directory) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[RawClient]:
    """An opened connection."""
    with RawClient(served.path) as client:
        yield client.open()
