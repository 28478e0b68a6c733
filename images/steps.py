"""Steps of the set-up as a person sees them: what is being done, for how long, and what to do when it fails.

Runs before the `.venv` exists: standard library only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"

HEARTBEAT_TTY = 1.0  # seconds between signs of life on a terminal
HEARTBEAT_LOG = 20.0  # seconds between signs of life in a log

# What apt, mmdebstrap, and pip say when there is no way out.
NO_NETWORK = (
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Could not resolve",
    "Name or service not known",
    "Network is unreachable",
    "Unable to connect",
    "Could not connect",
    "Connection failed",
    "Failed to establish a new connection",
)


class Failure(Exception):
    """A step failed: one sentence that says what happened and what to do next."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, and how long it took."""
    began = time.monotonic()
    print(f"==> {title}", flush=True)
    yield
    print(f"    done in {time.monotonic() - began:.1f} s", flush=True)


def run(argv: Sequence[str | Path], *, log: str, doing: str, needs: str = "", cwd: Path = ROOT) -> None:
    """Run a long command, its output in `.cache/log/<log>.log`, with a sign of life now and then.

    `doing` ("install the packages") and `needs` ("Debian's archive") complete the sentence if it fails.
    """
    path = CACHE / "log" / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with path.open("wb") as sink:
            child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=plain_environment(),
            )
            _wait(child, path, began)
    except FileNotFoundError:
        raise Failure(f"cannot {doing}: {argv[0]} is missing; run `make setup` first") from None
    if child.returncode == 0:
        return
    output = path.read_text(errors="replace")
    shown = path.relative_to(ROOT)
    if any(sign in output for sign in NO_NETWORK):
        wanted = f" ({needs})" if needs else ""
        raise Failure(f"cannot {doing}: no network{wanted}; connect it and run this again. Log: {shown}")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    raise Failure(f"cannot {doing}: {last.strip()}. The whole output is in {shown}")


def _wait(child: subprocess.Popen[bytes], log: Path, began: float) -> None:
    terminal = sys.stdout.isatty()
    try:
        while True:
            try:
                child.wait(HEARTBEAT_TTY if terminal else HEARTBEAT_LOG)
                break
            except subprocess.TimeoutExpired:
                sign = f"    {time.monotonic() - began:4.0f} s  {_last_line(log)}"
                print(f"\r{sign[:100]:<100}" if terminal else sign, end="" if terminal else "\n", flush=True)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        if terminal:
            print("\r" + " " * 100 + "\r", end="", flush=True)


def _last_line(log: Path) -> str:
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - 400))
        lines = [line.strip() for line in source.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def plain_environment() -> dict[str, str]:
    """The environment for tools whose output we read: English, no questions, sbin on the path."""
    env = dict(os.environ)
    env.update(LC_ALL="C.UTF-8", DEBIAN_FRONTEND="noninteractive")
    env["PATH"] = env.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return env


def digest(inputs: Iterable[Path | str]) -> str:
    """A hash over the contents of files and over plain words: the recipe of an artefact."""
    total = hashlib.sha256()
    for item in inputs:
        data = item.read_bytes() if isinstance(item, Path) else item.encode()
        total.update(f"{len(data)}\n".encode())
        total.update(data)
    return total.hexdigest()[:16]


def up_to_date(artefacts: Iterable[Path], stamp: Path, recipe: str) -> bool:
    """Whether every artefact is there and was made by this very recipe."""
    return (
        stamp.is_file() and stamp.read_text().strip() == recipe and all(item.exists() for item in artefacts)
    )


def make(title: str, artefacts: Sequence[Path], stamp: Path, recipe: str, build: Callable[[], None]) -> bool:
    """Build what is missing or stale, then stamp it. Returns whether anything was built."""
    if up_to_date(artefacts, stamp, recipe):
        return False
    with step(title):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        build()
        stamp.write_text(recipe + "\n")
    return True
