"""Processes that a bench orders about, and what the kernel tells of any process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.harness import answers

READY_SECONDS = 30.0
LOOK_SECONDS = 0.002  # between two looks whether an agent answers: the time until it does is a figure


class Process:
    """A client, many of them, or a server, in a process of its own: an order a line, an answer a line."""

    def __init__(self, *argv: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def order(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def agent(directory: Path, config: str) -> Iterator[int]:
    """A real agent with `directory`/run as its run_dir; its process, once its libvirt socket answers."""
    file, log = directory / "nicagent.toml", directory / "log"
    file.write_text(config)
    argv = [sys.executable, "-m", "nicagent.cli", "serve", "-c", str(file)]
    deadline = time.monotonic() + READY_SECONDS
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        while not answers(directory / "run/libvirt-sock"):
            assert process.poll() is None, f"the agent did not come up: {log.read_text()[-500:]}"
            assert time.monotonic() < deadline, f"the agent does not answer: {log.read_text()[-500:]}"
            time.sleep(LOOK_SECONDS)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def resident(pid: int) -> int:
    """KiB of memory that a process has in use."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have run for, those that live; to the nanosecond, unlike times(2)."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            spent += int((thread / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # ended meanwhile
    return spent / 1e9
