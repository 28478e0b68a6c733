"""Fixtures: a disk, and the target process that serves it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from target_process import TargetProcess, file_backend, namespace

SIZE = 8 << 20  # bytes of a test disk


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def target(tmp_path: Path, disk: Path) -> Iterator[TargetProcess]:
    running = TargetProcess(tmp_path, [namespace(1, file_backend(disk))]).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "internal error" not in running.log.read_text(), running.log.read_text()
    assert "Traceback" not in running.log.read_text(), running.log.read_text()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetProcess]:
    """A target for tests that leave its configuration alone: one for a whole module."""
    home = tmp_path_factory.mktemp("standing")
    path = home / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    running = TargetProcess(home, [namespace(1, file_backend(path))]).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    log = running.log.read_text()
    assert "internal error" not in log and "Traceback" not in log, log


@pytest.fixture
def standing_disk(standing: TargetProcess) -> Path:
    return Path(standing.namespaces[0]["backend"]["path"])
