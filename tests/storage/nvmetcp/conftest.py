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
