"""The block engine: one qemu-storage-daemon a host, driven over QMP, told what must be open and no more.

The daemon outlives us and keeps no notes for us; what it has open *is* the state. Every node is named after
all that made it (path, inode, format, access, place in the chain), so "is it as asked?" is a comparison of
names, also for an agent that has just started.

Every disk is exported by name (its target) over NBD on one unix socket. That socket is bound under another
name and renamed once all exports are there: whoever can connect finds them.

Files are opened through the page cache and flushes are obeyed (QEMU's cache=writeback, libvirt's default):
several hosts share the cached blocks of one base image, tmpfs and overlayfs work, and a flushed byte is on
the disk. The host is another machine, so nothing is cached twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory
from nicagent.model import BlockJob, Disk, JobFacts, JobState, VolumeFormat
from nicagent.proc import Daemon
from nicagent.storage import jobs
from nicagent.storage.keeper import end_listener, has_died, last_line, trim_log
from nicagent.storage.nodes import Plan, group_of, limits_of, plan_of

PROGRAM = "qemu-storage-daemon"
SOCKET_PATH_LIMIT = 107  # bytes of sun_path less its NUL, unix(7)
START_DEADLINE = 10.0  # seconds from its start to its main loop
MONITOR_DEADLINE = 10.0  # seconds for the monitor to answer a command
UNDER_WAY = frozenset({JobState.RUNNING, JobState.READY})

# What QEMU says, and what that means here. It has no error codes for these.
MEANINGS: tuple[tuple[str, Kind, str], ...] = (
    ('"write" lock', Kind.WRONG_STATE, "another process uses it; stop that one first"),
    ('"consistent read" lock', Kind.WRONG_STATE, "another process writes to it; stop that one first"),
    ("Conflicts with use by", Kind.WRONG_STATE, "another disk of this host uses it; detach that first"),
    ('"read" lock', Kind.WRONG_STATE, "another process writes to it; stop that one first"),
    ("No space left", Kind.NO_SPACE, "free some space in the pool"),
    ("No such file", Kind.NOT_FOUND, "create the volume or mend the path"),
    ("Permission denied", Kind.DENIED, "give the agent access to the file"),
    ("Read-only file system", Kind.DENIED, "mount the pool read-write, or mark the disk <readonly/>"),
    ("not in qcow2 format", Kind.INVALID, "say the format that the file has"),
    ("mage is corrupt", Kind.INVALID, "mend it: qemu-img check -f qcow2 -r all"),
)


class BlockEngine:
    """A host's qemu-storage-daemon. Not safe for concurrent calls: the storage driver holds a lock."""

    def __init__(self, host: str, run: Path, log_file: Path, nbd: Path, pools: Sequence[Path]) -> None:
        """`run` is a directory of the host's own; `nbd` the socket on which disks are exported."""
        self.daemon = Daemon(f"block engine of {host}", run / "qsd.pid")
        self.nbd = nbd
        self._host = host
        self._log_file = log_file
        self._qmp = run / "qmp.sock"
        self._ready = run / "qsd.ready"
        self._unpublished = nbd.with_name(nbd.name + ".new")
        self._pools = pools  # those of the moment: clients define more
        for path in (self._qmp, self._unpublished):
            check_socket_path(path)

    async def present(self, disks: Sequence[Disk]) -> None:
        """Export exactly these disks. What is already exported as asked is not touched.

        A failure part-way leaves what was exported before and is still wanted; call again, or `stop`.
        """
        plans = [plan_of(disk, self._pools) for disk in disks]
        if self.daemon.pid() is not None:
            try:
                await self._present(plans)
            except NicagentError as e:
                if e.kind is not Kind.UNAVAILABLE or not await has_died(self.daemon):
                    raise
            else:
                return
        await self._start()
        await self._present(plans)

    async def _present(self, plans: Sequence[Plan]) -> None:
        async with self._monitor() as qmp:
            await self._converge(qmp, plans)

    async def release(self, disks: Sequence[Disk], target: str) -> None:
        """Let go of one disk for a moment: its file is nobody's until the next `present`. Its host's
        requests wait meanwhile. `disks` are those that stay.
        """
        await self.present([disk for disk in disks if disk.target != target])

    def size_of(self, disk: Disk) -> int:
        """Bytes that a host sees, by the disk's file. Raises what `volume.resolve` raises."""
        return plan_of(disk, self._pools).layers[0].size

    # ---- jobs

    async def jobs(self) -> dict[str, JobFacts]:
        """Every job by its disk; empty when the daemon is not there."""
        if self.daemon.pid() is None:
            return {}
        async with self._monitor() as qmp:
            return await jobs.facts(qmp)

    async def start_job(self, job: BlockJob, disk: Disk) -> None:
        """Start a job on a presented disk. Raises EXISTS when it has one, and what `jobs.start` raises."""
        chain = plan_of(disk, self._pools)
        async with self._monitor() as qmp:
            if job.target in await jobs.facts(qmp):
                raise NicagentError(
                    Kind.EXISTS, f"disk {job.target} has a block job already", "end that first"
                )
            try:
                await jobs.start(qmp, job, chain)
            except ExecuteError as e:
                raise _meaning(disk, str(e)) from None

    async def set_job_speed(self, job: JobFacts, speed: int) -> None:
        """In bytes a second, 0 for no limit."""
        async with self._monitor() as qmp:
            name = jobs.name_of(job.kind, job.target)
            await qmp.execute("block-job-set-speed", {"device": name, "speed": speed})

    async def end_job(self, target: str) -> None:
        """Bring a ready job to its end with the disk held: until the next `present` it is exported to nobody.

        Raises what `jobs.end` raises; `present` brings the disk back either way.
        """
        async with self._monitor(jobs.END_SECONDS + MONITOR_DEADLINE) as qmp:
            job = (await jobs.facts(qmp)).get(target)
            if job is None:
                raise NicagentError(
                    Kind.NOT_FOUND, f"disk {target} has no block job", "virsh blockjob shows it"
                )
            if job.state is JobState.READY and target in await _exports(qmp):
                await _unexport(qmp, target)
            await jobs.end(qmp, job)

    async def give_up_job(self, target: str) -> None:
        """End a job wherever it is, or forget one that has ended."""
        async with self._monitor(jobs.END_SECONDS + MONITOR_DEADLINE) as qmp:
            job = (await jobs.facts(qmp)).get(target)
            if job is not None:
                await jobs.give_up(qmp, job)

    async def stop(self) -> None:
        """End the daemon and take its sockets away. Idempotent."""
        await self.daemon.stop()
        await end_listener(self._qmp, PROGRAM)
        self.daemon.pidfile.with_suffix(".new").unlink(missing_ok=True)  # its starter died over it
        for path in (self._qmp, self._ready, self.nbd, self._unpublished):
            path.unlink(missing_ok=True)

    async def _start(self) -> None:
        await self.stop()
        make_private_directory(self._qmp.parent)
        self.nbd.parent.mkdir(parents=True, exist_ok=True)  # a slot is the host's side's too
        trim_log(self._log_file)
        # We bind the monitor's socket and hand it over, so that its mode is ours and its path needs no
        # quoting.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._qmp))
            self._qmp.chmod(0o600)
            listener.listen(8)
            descriptor = listener.fileno()
            chardev = f"socket,id=qmp,fd={descriptor},server=on,wait=off"
            argv = [PROGRAM, "--chardev", chardev, "--monitor", "chardev=qmp"]
            # Relative to cwd, again for want of quoting.
            self.daemon.start(
                [*argv, "--pidfile", self._ready.name],
                log=self._log_file,
                pass_fds=(descriptor,),
                cwd=self._ready.parent,
            )
        await self._started()

    async def _started(self) -> None:
        """Wait until the daemon has written its own pidfile, the last thing before its main loop.

        QEMU 7.2 loses the first command for good, one time in a hundred or so, when it comes before that.
        """
        try:
            async with asyncio.timeout(START_DEADLINE):
                while not self._ready.exists():
                    if self.daemon.pid() is None:
                        raise NicagentError(
                            Kind.UNAVAILABLE,
                            f"{self.daemon.name} ended at once: {last_line(self._log_file)}",
                            f"its log is {self._log_file}",
                        )
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"{self.daemon.name} is not ready after {START_DEADLINE:g} s",
                f"its log is {self._log_file}",
            ) from None

    @contextlib.asynccontextmanager
    async def _monitor(self, seconds: float = MONITOR_DEADLINE) -> AsyncIterator[QMPClient]:
        """A connection for one operation: the daemon serves one client at a time, and needs none to live."""
        qmp = QMPClient(self._host)
        try:
            async with asyncio.timeout(seconds):
                await qmp.connect(str(self._qmp))
                yield qmp
        except ExecuteError as e:
            raise NicagentError(Kind.INTERNAL, f"{self.daemon.name}: {e}") from None
        except (TimeoutError, QMPError, OSError) as e:
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"{self.daemon.name} does not answer ({str(e) or 'timeout'})",
                f"its log is {self._log_file}",
            ) from None
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await qmp.disconnect()

    async def _converge(self, qmp: QMPClient, plans: Sequence[Plan]) -> None:
        wanted = {plan.disk.target: plan for plan in plans}
        exported = await _exports(qmp)
        busy = {t: job for t, job in (await jobs.facts(qmp)).items() if job.state in UNDER_WAY}
        for target in [target for target in busy if target not in wanted]:
            await jobs.give_up(qmp, busy.pop(target))  # with its disk a job has no sense
        heads = {target: jobs.head(plan, busy) for target, plan in wanted.items()}
        for target in [target for target, top in exported.items() if heads.get(target) != top]:
            await _unexport(qmp, target)
        await self._keep(qmp, {node.name for plan in plans for node in plan.nodes}, busy)
        await self._limit(qmp, plans)
        have = await _nodes(qmp)
        for plan in plans:
            await self._open(qmp, plan, have)
        await self._serve(qmp)
        for plan in plans:
            if exported.get(plan.disk.target) != heads[plan.disk.target]:
                await self._export(qmp, plan, heads[plan.disk.target])
        if self._unpublished.exists():
            self._unpublished.replace(self.nbd)
        if not self.nbd.exists():
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"{self.daemon.name}: somebody removed its socket {self.nbd}",
                "stop the domain and start it again",
            )

    async def _keep(self, qmp: QMPClient, names: Iterable[str], busy: Mapping[str, JobFacts]) -> None:
        """Close every node but these and those of jobs, from the top of each chain down."""
        for name in sorted(await _nodes(qmp) - set(names)):
            if not jobs.owns(name, busy):
                await qmp.execute("blockdev-del", {"node-name": name})

    async def _limit(self, qmp: QMPClient, plans: Sequence[Plan]) -> None:
        """Make exactly these limits; those that are there change in place."""
        wanted = {group_of(p.disk.target): p.disk.limits for p in plans if p.disk.limits is not None}
        there = await _groups(qmp)
        for group in there - wanted.keys():
            await qmp.execute("object-del", {"id": group})
        for group, limits in wanted.items():
            if group in there:
                value = {"path": f"/objects/{group}", "property": "limits", "value": limits_of(limits)}
                await qmp.execute("qom-set", value)
            else:
                new = {"qom-type": "throttle-group", "id": group, "limits": limits_of(limits)}
                await qmp.execute("object-add", new)

    async def _open(self, qmp: QMPClient, plan: Plan, have: set[str]) -> None:
        added: list[str] = []
        for node in plan.nodes:
            if node.name in have:
                continue
            try:
                await qmp.execute("blockdev-add", node.options)
            except ExecuteError as e:
                for name in reversed(added):
                    await qmp.execute("blockdev-del", {"node-name": name})
                raise _meaning(plan.disk, str(e)) from None
            added.append(node.name)

    async def _serve(self, qmp: QMPClient) -> None:
        address = {"type": "unix", "data": {"path": str(self._unpublished)}}
        try:
            await qmp.execute("nbd-server-start", {"addr": address})
        except ExecuteError as e:
            if "already running" not in str(e):
                raise
        else:
            self._unpublished.chmod(0o660)

    async def _export(self, qmp: QMPClient, plan: Plan, head: str) -> None:
        target = plan.disk.target
        try:
            await qmp.execute(
                "block-export-add",
                {
                    "type": "nbd",
                    "id": target,
                    "name": target,
                    "node-name": head,
                    "writable": not plan.disk.readonly,
                    # qcow2 keeps changed tables in memory until a flush. Its host outlives this daemon: it
                    # would flush after a restart and be told that writes are safe whose tables are gone.
                    "writethrough": plan.disk.format is VolumeFormat.QCOW2,
                },
            )
        except ExecuteError as e:
            raise _meaning(plan.disk, str(e)) from None


def check_socket_path(path: Path) -> None:
    """Raises INVALID when a unix socket cannot have this path."""
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise NicagentError(
            Kind.INVALID,
            f"the socket path {path} is longer than {SOCKET_PATH_LIMIT} bytes",
            "choose a shorter run_dir or slot",
        )


async def _unexport(qmp: QMPClient, target: str) -> None:
    """Cut an export's clients off; returns once the engine has let go of it."""
    with qmp.listener("BLOCK_EXPORT_DELETED") as deleted:
        await qmp.execute("block-export-del", {"id": target, "mode": "hard"})
        while (await deleted.get())["data"] != {"id": target}:
            pass


async def _exports(qmp: QMPClient) -> dict[str, str]:
    """Export id (a disk's target) → name of its top node."""
    answer: Any = await qmp.execute("query-block-exports")
    return {entry["id"]: entry["node-name"] for entry in answer}


async def _nodes(qmp: QMPClient) -> set[str]:
    answer: Any = await qmp.execute("query-named-block-nodes", {"flat": True})
    return {entry["node-name"] for entry in answer}


async def _groups(qmp: QMPClient) -> set[str]:
    """The limits that are there; the engine makes the place for them with the first one."""
    root: Any = await qmp.execute("qom-list", {"path": "/"})
    if not any(entry["name"] == "objects" for entry in root):
        return set()
    answer: Any = await qmp.execute("qom-list", {"path": "/objects"})
    return {entry["name"] for entry in answer if entry["type"] == "child<throttle-group>"}


def _meaning(disk: Disk, said: str) -> NicagentError:
    for phrase, kind, hint in MEANINGS:
        if phrase in said:
            return NicagentError(kind, f"cannot open {disk.path} for disk {disk.target}: {said}", hint)
    return NicagentError(
        Kind.UNAVAILABLE,
        f"cannot open {disk.path} for disk {disk.target}: {said}",
        "see the block engine's log",
    )
