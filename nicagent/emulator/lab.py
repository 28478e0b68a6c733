"""`nicagent emulate LAB.toml [-- COMMAND …]`: a whole outside world in namespaces of its own.

This half runs in the caller's world: it checks the file, starts the other half (`labinit`) in fresh mount,
network and pid namespaces, hands on its exit status and carries its errors back. As an ordinary user a user
namespace with a root mapping goes on top, so no privilege is needed where the kernel allows that. The pid
namespace makes the end clean: when its first process ends the kernel ends everything in it, taps and cables
included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nicagent import proc
from nicagent.emulator.chassis import chassis_directory
from nicagent.emulator.settings import Lab, load_lab, place
from nicagent.errors import Kind, NicagentError

JOB, ERROR = "lab.json", "error.json"  # files in the run directory: what to do, what went wrong
STOP_GRACE = 30.0  # seconds the lab may take to end after it was asked to


class Job(msgspec.Struct, frozen=True):
    """What the inner half is to do."""

    lab: Lab
    command: list[str] | None


class Failure(msgspec.Struct, frozen=True):
    """An error of the inner half, to be raised in the outer one."""

    kind: str
    message: str
    hint: str


def run_lab(config_path: Path, command: Sequence[str] | None = None) -> int:
    """Bring the lab up, run `command` in it (its environment has NICAGENT_LAB, the run directory), take it
    down.

    Returns the command's exit status (128 + n after signal n); without a command waits for SIGINT or
    SIGTERM and returns 0. Raises NicagentError for a bad file, a missing program, or namespaces that this
    user may not make.
    """
    lab = load_lab(config_path)
    temporary = not lab.run_dir
    if temporary:
        run_dir = Path(tempfile.mkdtemp(prefix="nicagent-lab-"))
    else:
        run_dir = Path(lab.run_dir).absolute()
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NicagentError(
                Kind.INVALID, f"cannot make the run directory {run_dir}: {error.strerror}", "choose another"
            ) from None
    try:
        for chassis in lab.chassis:
            chassis_directory(run_dir, chassis.name)
        job = Job(place(lab, run_dir), list(command) if command else None)
        (run_dir / JOB).write_bytes(msgspec.json.encode(job))
        (run_dir / ERROR).unlink(missing_ok=True)
        status = asyncio.run(_outside(run_dir))
        _raise_failure(run_dir / ERROR)
        return status
    finally:
        if temporary:
            shutil.rmtree(run_dir, ignore_errors=True)


def namespace_flags(euid: int) -> list[str]:
    """unshare(1)'s flags for a fresh world; an ordinary user gets a user namespace, and is root in it."""
    user = [] if euid == 0 else ["--user", "--map-root-user"]
    return [*user, "--mount", "--net", "--pid", "--fork", "--kill-child"]


async def _outside(run_dir: Path) -> int:
    """Start the inner half and await it. It ends when its end of the lifeline closes."""
    theirs, ours = os.pipe()
    code = f"from nicagent.emulator.labinit import main; main({str(run_dir)!r}, {theirs})"
    argv = ["unshare", *namespace_flags(os.geteuid()), "--", sys.executable, "-P", "-c", code]
    try:
        process = await proc.spawn(argv, pass_fds=(theirs,), stdin=None, own_session=False)
    finally:
        os.close(theirs)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    stop, ended = asyncio.create_task(asked_to_stop.wait()), asyncio.create_task(process.wait())
    try:
        await asyncio.wait((stop, ended), return_when=asyncio.FIRST_COMPLETED)
        os.close(ours)
        ours = -1
        await asyncio.wait((ended,), timeout=STOP_GRACE)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        status = await ended
    finally:
        stop.cancel()
        if ours >= 0:
            os.close(ours)
    return 0 if asked_to_stop.is_set() and status == 0 else 128 - status if status < 0 else status


def _raise_failure(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        failure = msgspec.json.decode(path.read_bytes(), type=Failure)
        raise NicagentError(Kind(failure.kind), failure.message, failure.hint)
