"""The inside of a lab: first process of its pid namespace, mounts, wires, chassis, and the command."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nicagent import proc
from nicagent.emulator.bmclink import BmcUnit
from nicagent.emulator.chassis import Chassis, chassis_directory
from nicagent.emulator.control import serve_control
from nicagent.emulator.lab import ERROR, JOB, Failure, Job
from nicagent.emulator.netns import NETNS_DIR
from nicagent.emulator.settings import Cable, Lab
from nicagent.errors import Kind, NicagentError

COMMAND_GRACE = 10.0  # seconds between SIGTERM and SIGKILL for the command when the lab is asked to end

log = logging.getLogger(__name__)


def main(run_dir: str, lifeline: int) -> None:
    """Called by `lab` as the first process of the namespaces; never returns.

    It splits: the first process must reap every orphan of the lab (the agents' daemons outlive the agents),
    and asyncio wants its children for itself, so the emulator is a child of its own.
    """
    child = os.fork()
    if child == 0:
        os._exit(_emulate(Path(run_dir), lifeline))
    os.close(lifeline)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _emulate(run_dir: Path, lifeline: int) -> int:
    """The emulator process. Errors go to the outer half through a file, surprises also to the log."""
    logging.basicConfig(
        filename=run_dir / "emulator.log", level=logging.INFO, format="%(asctime)s %(name)s %(message)s"
    )
    logging.getLogger("qemu.qmp").setLevel(logging.ERROR)
    try:
        job = msgspec.json.decode((run_dir / JOB).read_bytes(), type=Job)
        status = asyncio.run(_run(job, run_dir, lifeline))
        sys.stdout.flush()
        return status
    except NicagentError as error:
        failure = Failure(str(error.kind), error.message, error.hint)
    except BaseException as error:
        log.error("%s", traceback.format_exc())
        failure = Failure(
            "internal", f"the lab broke: {error!r}", f"see {run_dir / 'emulator.log'} if it is still there"
        )
    (run_dir / ERROR).write_bytes(msgspec.json.encode(failure))
    return 1


async def _run(job: Job, run_dir: Path, lifeline: int) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(lifeline, stop.set)
    await _mounts(run_dir)
    await _wires(job.lab)
    async with contextlib.AsyncExitStack() as stack:
        for settings in job.lab.chassis:
            chassis = await stack.enter_async_context(
                Chassis(settings, chassis_directory(run_dir, settings.name))
            )
            if settings.bmc is not None:
                bmc = await stack.enter_async_context(BmcUnit(chassis, settings.bmc))
                await stack.enter_async_context(serve_control(chassis, bmc.status))
            else:
                await stack.enter_async_context(serve_control(chassis))
        if job.command is not None:
            return await _command(job.command, run_dir, stop)
        names = ", ".join(chassis.name for chassis in job.lab.chassis) or "no chassis"
        print(f"lab is up in {run_dir}: {names}; Ctrl-C ends it", file=sys.stderr, flush=True)
        await stop.wait()
    return 0


async def _mounts(run_dir: Path) -> None:
    """A /proc that fits the pid namespace, and a private /run/netns, so that `ip netns` works and leaves no
    trace.
    """
    try:
        await proc.run(["mount", "-t", "proc", "proc", "/proc"])
    except NicagentError as error:
        raise NicagentError(
            Kind.DENIED,
            f"the kernel does not let this user mount a private /proc ({error.message})",
            "run the lab as root",
        ) from None
    if not NETNS_DIR.is_dir() and not _made(NETNS_DIR):
        await _private_run(run_dir / "run")
        NETNS_DIR.mkdir(exist_ok=True)
    await proc.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(NETNS_DIR)])


def _made(directory: Path) -> bool:
    try:
        directory.mkdir()
    except OSError:
        return False
    return True


async def _private_run(aside: Path) -> None:
    """A /run of our own that shows everything the old one had: an ordinary user cannot add a directory to
    it.
    """
    run = NETNS_DIR.parent
    aside.mkdir(exist_ok=True)
    await proc.run(["mount", "--rbind", str(run), str(aside)])
    await proc.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(run)])
    for entry in aside.iterdir():
        here = run / entry.name
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
            continue
        if entry.is_dir():
            here.mkdir()
        else:
            here.touch()
        with contextlib.suppress(NicagentError):  # a mount that went away meanwhile is no loss
            await proc.run(["mount", "--rbind", str(entry), str(here)])
    await proc.run(["umount", "--lazy", str(aside)])


async def _wires(lab: Lab) -> None:
    """Named namespaces, loopback up in each, and the cables between them."""
    lines = ["link set lo up", *(f"netns add {name}" for name in lab.netns)]
    await _ip(None, lines)
    for name in lab.netns:
        await _ip(name, ["link set lo up"])
    for cable in lab.cables:
        await _ip(None, [_veth(cable)])
        for end in cable.ends:
            device = end.device
            addresses = [f"addr add {address} dev {device}" for address in end.addresses]
            await _ip(end.netns, [*addresses, f"link set {device} up"])


def _veth(cable: Cable) -> str:
    first, second = (
        f"name {end.device} mtu {cable.mtu}" + (f" netns {end.netns}" if end.netns else "")
        for end in cable.ends
    )
    return f"link add {first} type veth peer {second}"


async def _ip(netns: str | None, lines: Sequence[str]) -> None:
    where = ["-n", netns] if netns else []
    script = "".join(line + "\n" for line in lines).encode()
    await proc.run(["ip", *where, "-batch", "-"], stdin=script)


async def _command(command: Sequence[str], run_dir: Path, stop: asyncio.Event) -> int:
    """Run the user's command in the lab, in the terminal's foreground; its exit status, shell style."""
    program = proc.find_tool(command[0])
    argv = ["env", f"NICAGENT_LAB={run_dir}", program, *command[1:]]
    process = await proc.spawn(argv, stdin=None, own_session=False)
    ended, asked = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            await asyncio.wait((ended,), timeout=COMMAND_GRACE)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        status = await ended
    finally:
        asked.cancel()
    return status if status >= 0 else 128 - status
