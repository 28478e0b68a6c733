"""How the tests run other projects' programs: found, started with a home of their own, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.clients import UNPACKED

_PLACES = ("usr/bin", "usr/sbin", "bin")


def program(name: str) -> str:
    """Where an unpacked or installed program is; the test is skipped where it is neither."""
    for place in _PLACES:
        if (path := UNPACKED / place / name).exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here; `make test` fetches it, or run: python3 -m images.clients")
    return found


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Untranslated words, no desktop of the user's, and nothing written to his home."""
    libraries = UNPACKED / "usr/lib/x86_64-linux-gnu"
    ours = {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "LD_LIBRARY_PATH": str(libraries),
        "GSETTINGS_BACKEND": "memory",
        "NO_AT_BRIDGE": "1",
    }
    return ours | dict(more or {})


def run(argv: Sequence[str | Path], home: Path, *, seconds: float = 60) -> str:
    """What a program says; an assertion with its words where it fails."""
    done = subprocess.run(
        [str(word) for word in argv],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    shown = f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, shown
    return done.stdout


@contextmanager
def running(
    argv: Sequence[str | Path], home: Path, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, its words in a file of its name below `home`."""
    with (home / f"{Path(argv[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in argv],
            env=environment(home, more),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # what it starts, such as a bus of its own, ends with it
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def eventually(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until `condition` holds; `what` completes "… did not happen"."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)
