"""The one choke point for running processes.

Three ways to run something:

- `run()`: a short command whose end we await, with a deadline and bounded output.
- `spawn()`: a process that lives with us and ends with us, even when we are killed.
- `Daemon`: a process that outlives the agent (the data path, promise 2). It is started in a session of its
  own, recorded in a pidfile together with the kernel's start time of that pid, found again after our own
  death, and never signalled unless pid *and* start time still match: a recycled pid is never killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nicagent.errors import Kind, NicagentError

OUTPUT_LIMIT = 1 << 20  # bytes of stdout kept from a short command
TERM_GRACE = 5.0  # seconds between SIGTERM and SIGKILL

# Debian package that ships a tool, for the hint when it is missing; two where it has moved between releases.
PACKAGE_OF: Mapping[str, str] = {
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "ipmitool": "ipmitool",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common qemu-utils",  # Debian 12's, 13's
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "virsh": "libvirt-clients",
}


@dataclass(frozen=True)
class Completed:
    """A finished short command: exit status and decoded output (undecodable bytes replaced)."""

    status: int
    stdout: str
    stderr: str


def find_tool(name: str) -> str:
    """Absolute path of a tool. Raises UNAVAILABLE with the package to install when it is missing."""
    search = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
    found = shutil.which(name, path=search)
    if found is None:
        package = PACKAGE_OF.get(Path(name).name)
        hint = f"install it: apt-get install {package}" if package else "install it or put it on PATH"
        raise NicagentError(Kind.UNAVAILABLE, f"the program {name!r} is missing", hint)
    return found


async def run(
    argv: Sequence[str],
    *,
    timeout: float = 30.0,
    stdin: bytes = b"",
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a short command to its end, at most `timeout` seconds; it is killed if we are cancelled.

    With `check`, a non-zero exit raises INTERNAL carrying the last line of stderr.
    """
    program = find_tool(argv[0])
    process = await asyncio.create_subprocess_exec(
        program,
        *argv[1:],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env) if env is not None else None,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise NicagentError(
            Kind.UNAVAILABLE,
            f"{argv[0]} did not finish within {timeout:g} s",
            "try again when the machine is less busy",
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    done = Completed(
        process.returncode or 0,
        out[:OUTPUT_LIMIT].decode(errors="replace"),
        err[:OUTPUT_LIMIT].decode(errors="replace"),
    )
    if check and done.status != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise NicagentError(Kind.INTERNAL, f"{argv[0]} failed with status {done.status}: {last[0]}")
    return done


async def spawn(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int | None = asyncio.subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    own_session: bool = True,
) -> asyncio.subprocess.Process:
    """Start a process of our own; the caller awaits its end. Output goes to `log` (appended), or to ours.

    The kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)), so it never
    outlives us; start it from the main thread. Without `own_session` it stays in the terminal's foreground
    group.
    """
    program = find_tool(argv[0])
    sink = log.open("ab") if log is not None else None
    try:
        return await asyncio.create_subprocess_exec(
            find_tool("setpriv"),
            "--pdeathsig=KILL",
            "--",
            program,
            *argv[1:],
            stdin=stdin,
            stdout=sink,
            stderr=sink,
            env=dict(env) if env is not None else None,
            pass_fds=tuple(pass_fds),
            start_new_session=own_session,
        )
    finally:
        if sink is not None:
            sink.close()


def start_time(pid: int) -> int | None:
    """Kernel start time of a live process in clock ticks since boot (proc(5), field 22 of stat), else None.

    A zombie counts as dead: it holds no resource but its number.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses: fields are counted from the last ')'.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Daemon:
    """A process that outlives us, known by its pidfile (`<pid> <start time>`)."""

    name: str
    pidfile: Path

    def pid(self) -> int | None:
        """The pid if the very process we started is still alive, else None."""
        try:
            pid_text, start_text = self.pidfile.read_text().split()
            pid, started = int(pid_text), int(start_text)
        except (FileNotFoundError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    def start(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> int:
        """Start it in a session of its own, output to `log`, and record it. Returns the pid.

        Crash window: between the fork and the pidfile we may die and leave an unrecorded process. Daemons
        therefore bind a socket or take a lock of their own, so that a second start fails loudly.
        """
        program = find_tool(argv[0])
        self.pidfile.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(env) if env is not None else None,
                pass_fds=tuple(pass_fds),
                cwd=cwd,
                start_new_session=True,
            )
        # Popen's finaliser warns about a live child; this child is meant to outlive the object.
        process.returncode = 0
        started = start_time(process.pid)
        partial = self.pidfile.with_suffix(".new")
        partial.write_text(f"{process.pid} {started if started is not None else 0}\n")
        partial.replace(self.pidfile)
        return process.pid

    async def stop(self, *, grace: float = TERM_GRACE) -> None:
        """End it: SIGTERM, `grace` seconds, SIGKILL. Returns when it is gone; idempotent."""
        pid = self.pid()
        if pid is not None:
            await end(pid, lambda: self.pid() == pid, grace=grace)
        self.pidfile.unlink(missing_ok=True)


async def end(pid: int, meant: Callable[[], bool], *, grace: float = TERM_GRACE) -> None:
    """End a process: SIGTERM, `grace` seconds, SIGKILL. Returns when it is gone; nothing happens if it is.

    `meant` says whether `pid` is the process that is meant. It is asked once a handle pins the process: the
    number may just have gone to somebody else.
    """
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if meant():
                await _end(handle, grace)
        finally:
            os.close(handle)
    with contextlib.suppress(ChildProcessError):  # reap it if it was our own child
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 (does not wait)


async def _end(handle: int, grace: float) -> None:
    for number, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        if await _gone(handle, limit):
            break


async def _gone(handle: int, limit: float) -> bool:
    """Await a pidfd: it becomes readable when its process ends (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(limit):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
    return True
