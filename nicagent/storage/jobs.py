"""Block jobs in the engine: copy, commit and pull under a disk that its host goes on using.

A job has the name `KIND-TARGET` and is not dismissed by the engine itself: how it ended is told to an agent
that was not there. Its own nodes are `j-TARGET-…`, and the filter that it puts above the disk's written layer
is `f-TARGET`.

Nobody is switched over by the engine. A copy or an active commit that is ready is ended while the disk is
held, that is, exported to nobody: then both sides are the same, and whichever of the two a record names
afterwards is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from nicagent.errors import Kind, NicagentError
from nicagent.model import BlockJob, JobFacts, JobKind, JobState, VolumeFormat
from nicagent.storage.nodes import Plan

END_SECONDS = 30.0  # for a ready job to bring its last blocks over, and for any to be given up
POLL = 0.01  # seconds
STATES: Mapping[str, JobState] = {
    "ready": JobState.READY,
    "concluded": JobState.DONE,
    "aborting": JobState.FAILED,
}


def name_of(kind: JobKind, target: str) -> str:
    """The job in the engine."""
    return f"{kind.value}-{target}"


def filter_of(target: str) -> str:
    """The node that a job puts above the disk's written layer."""
    return f"f-{target}"


def owns(node: str, targets: Mapping[str, JobFacts]) -> bool:
    """Whether a node belongs to a job that is still there."""
    return any(node == filter_of(target) or node.startswith(f"j-{target}-") for target in targets)


async def facts(qmp: QMPClient) -> dict[str, JobFacts]:
    """Every job by its disk."""
    answer: Any = await qmp.execute("query-jobs")
    speeds: Any = await qmp.execute("query-block-jobs")
    speed = {entry["device"]: int(entry["speed"]) for entry in speeds}
    found = {}
    for entry in answer:
        kind, _, target = str(entry["id"]).rpartition("-")
        trouble = str(entry.get("error", ""))
        state = JobState.FAILED if trouble else STATES.get(entry["status"], JobState.RUNNING)
        found[target] = JobFacts(
            target,
            JobKind(kind),
            state,
            int(entry["current-progress"]),
            int(entry["total-progress"]),
            speed.get(entry["id"], 0),
            trouble,
        )
    return found


async def start(qmp: QMPClient, job: BlockJob, plan: Plan) -> None:
    """Start a job on a disk that is open as `plan` says. Raises INVALID for a layer that is not in its chain,
    and the engine's own refusal.
    """
    if job.kind in (JobKind.COMMIT, JobKind.ACTIVE_COMMIT) and plan.disk.limits is not None:
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"disk {job.target} has limits, and the engine commits no layer of such a disk",
            "lift them first: virsh blkdeviotune",
        )
    command, arguments = await _command(qmp, job, plan)
    whole = {
        "job-id": name_of(job.kind, job.target),
        # What is pulled from lies below the limits; what is copied passes them, as the host does.
        "device": plan.at(0) if job.kind is JobKind.PULL else plan.top,
        "filter-node-name": filter_of(job.target),
        "speed": job.speed,
        "auto-dismiss": False,
        **arguments,
    }
    try:
        await qmp.execute(command, whole)
    except ExecuteError:
        await drop_nodes(qmp, job.target)
        raise


def head(plan: Plan, busy: Mapping[str, JobFacts]) -> str:
    """What of a disk is exported: its top, or the filter of a job that stands above that."""
    job = busy.get(plan.disk.target)
    if job is None or (job.kind is JobKind.PULL and plan.top != plan.at(0)):
        return plan.top
    return filter_of(plan.disk.target)


async def _command(qmp: QMPClient, job: BlockJob, plan: Plan) -> tuple[str, dict[str, object]]:
    match job.kind:
        case JobKind.COPY:
            target = await _open_copy(qmp, job)
            return "blockdev-mirror", {"target": target, "sync": "top" if job.shallow else "full"}
        case JobKind.PULL:
            return "block-stream", _base(plan, job.path) if job.path else {}
        case JobKind.ACTIVE_COMMIT:
            return "block-commit", {"base-node": _layer(plan, job.path)}
        case JobKind.COMMIT:
            return "block-commit", {**_base(plan, job.path), "top-node": _layer(plan, job.top)}


def _base(plan: Plan, path: str) -> dict[str, object]:
    """The layer that will be right below. Its name is said: the engine would write one of its own into the
    header above, `json:` and all that it was opened with, which nobody could be let open again.
    """
    return {"base-node": _layer(plan, path), "backing-file": str(Path(path).resolve())}


def _layer(plan: Plan, path: str) -> str:
    node = plan.layer(path)
    if node is None:
        raise NicagentError(
            Kind.INVALID, f"{path} is no layer of disk {plan.disk.target}", "see its chain: qemu-img info"
        )
    return node


async def _open_copy(qmp: QMPClient, job: BlockJob) -> str:
    """The file that is copied to. Its backing file is not opened: nothing is read from it meanwhile."""
    file, top = f"j-{job.target}-b", f"j-{job.target}-a"
    common = {"discard": "unmap", "read-only": False}
    await qmp.execute(
        "blockdev-add",
        {"driver": "file", "node-name": file, "filename": job.path, "locking": "on", **common},
    )
    inside: dict[str, Any] = {"driver": job.format.value, "node-name": top, "file": file, **common}
    if job.format is VolumeFormat.QCOW2:
        inside["backing"] = None
    try:
        await qmp.execute("blockdev-add", inside)
    except ExecuteError:
        await qmp.execute("blockdev-del", {"node-name": file})
        raise
    return top


async def drop_nodes(qmp: QMPClient, target: str) -> None:
    """Close the files that a job had of its own."""
    answer: Any = await qmp.execute("query-named-block-nodes", {"flat": True})
    for name in sorted(entry["node-name"] for entry in answer):
        if name.startswith(f"j-{target}-"):
            await qmp.execute("blockdev-del", {"node-name": name})


async def end(qmp: QMPClient, job: JobFacts) -> None:
    """Bring a ready job to its end: returns once both sides are the same and it is gone. The disk is held.

    Raises WRONG_STATE when it is not ready, UNAVAILABLE when it fails over its last blocks.
    """
    name = name_of(job.kind, job.target)
    if job.state is not JobState.READY:
        raise NicagentError(
            Kind.WRONG_STATE, f"block job {name} is not ready ({job.state.value})", "wait until it is"
        )
    # Not forced: what is still to be brought over is, and the engine switches nobody.
    await qmp.execute("block-job-cancel", {"device": name, "force": False})
    ended = await _concluded(qmp, job)
    if ended.state is JobState.FAILED and ended.trouble:
        raise NicagentError(Kind.UNAVAILABLE, f"block job {name} failed: {ended.trouble}", "see the pool")


async def give_up(qmp: QMPClient, job: JobFacts) -> None:
    """End a job wherever it is, and forget it."""
    if job.state in (JobState.RUNNING, JobState.READY):
        await qmp.execute("block-job-cancel", {"device": name_of(job.kind, job.target), "force": True})
    await _concluded(qmp, job)


async def _concluded(qmp: QMPClient, job: JobFacts) -> JobFacts:
    """Wait until a job has ended, and forget it with its files. Returns its last words."""
    name = name_of(job.kind, job.target)
    async with asyncio.timeout(END_SECONDS):
        while True:
            answer: Any = await qmp.execute("query-jobs")
            entry = next((each for each in answer if each["id"] == name), None)
            if entry is None or entry["status"] == "concluded":
                break
            await asyncio.sleep(POLL)
    last = (await facts(qmp)).get(job.target, job)
    if entry is not None:
        await qmp.execute("job-dismiss", {"id": name})
    await drop_nodes(qmp, job.target)
    return last
