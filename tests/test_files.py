"""What the agent writes is its own, and whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nicagent.files import make_private_directory, replace_private


@pytest.fixture(autouse=True)
def _generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("durably", [False, True])
def test_a_file_is_the_agents_alone_whatever_was_there(tmp_path: Path, durably: bool) -> None:
    path, partial = tmp_path / "choice.json", tmp_path / "choice.json.new"
    for old in (path, partial):
        old.write_text("old")
        old.chmod(0o666)
    replace_private(path, b"new", durably=durably)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert not partial.exists()


def test_a_directory_is_the_agents_alone_and_what_was_there_above_it_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    made = tmp_path / "hosts/metal-1"
    make_private_directory(made)
    assert (mode(made), mode(made.parent), mode(tmp_path)) == (0o700, 0o700, 0o711)
    made.chmod(0o755)
    make_private_directory(made)
    assert mode(made) == 0o700
