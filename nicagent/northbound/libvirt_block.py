"""The block layer under metal: jobs, sizes and limits through the block engine, under a running server."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from hypervisor_shim.driver import BlockJobEvent, Caller, DomainInfo, Impact, TunableEvent
from hypervisor_shim.driver.block import (
    Block,
    BlockJobInfo,
    BlockJobStatus,
    BlockJobType,
    Copy,
    IoTune,
)
from hypervisor_shim.errors import Code, error, uuid_text
from hypervisor_shim.xdr import Tag
from hypervisor_shim.xml.device import disk_named, with_limits, with_source
from hypervisor_shim.xml.domain_def import DomainDef
from hypervisor_shim.xml.domain_live import Mirror, MirrorJob
from nicagent.blockjobs import JobNews
from nicagent.errors import Kind, NicagentError
from nicagent.model import (
    BlockJob,
    Cause,
    Disk,
    DiskFile,
    Domain,
    JobKind,
    JobState,
    Limits,
    VolumeFormat,
)
from nicagent.northbound.libvirt_ground import Ground
from nicagent.northbound.libvirt_words import cause_of, translated

SECTOR = 512  # bytes; no transport shows a smaller unit
TYPES: Mapping[JobKind, BlockJobType] = {
    JobKind.PULL: BlockJobType.PULL,
    JobKind.COPY: BlockJobType.COPY,
    JobKind.COMMIT: BlockJobType.COMMIT,
    JobKind.ACTIVE_COMMIT: BlockJobType.ACTIVE_COMMIT,
}
MIRRORED: Mapping[JobKind, MirrorJob] = {
    JobKind.COPY: MirrorJob.COPY,
    JobKind.ACTIVE_COMMIT: MirrorJob.ACTIVE_COMMIT,
}
NEWS: Mapping[JobNews, BlockJobStatus] = {
    JobNews.READY: BlockJobStatus.READY,
    JobNews.COMPLETED: BlockJobStatus.COMPLETED,
    JobNews.FAILED: BlockJobStatus.FAILED,
    JobNews.CANCELLED: BlockJobStatus.CANCELED,
}


class MetalBlock(Block):
    """Files of disks must lie in the pools."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._files = ground.controller.files
        self._unwatch = ground.controller.jobs.watch(self._told)

    def close(self) -> None:
        """Stop following the jobs."""
        self._unwatch()

    def _told(self, job: BlockJob, news: JobNews) -> None:
        uuid = UUID(job.domain).bytes
        try:
            info = self._ground.info(uuid)
        except KeyError:
            return  # the domain has gone with its run
        status = self._ground.status(uuid)
        path = next((disk.path for disk in status.domain.disks if disk.target == job.target), "")
        self._ground.publish(BlockJobEvent(info, path, job.target, TYPES[job.kind], NEWS[news]))

    # ---- sizes and limits

    async def resize(self, caller: Caller, uuid: bytes, disk: str, size: int) -> None:
        known = self._disk(uuid, disk)
        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            size += -size % SECTOR
            now = (await self._chain(known))[0].size
            if size < now:
                raise error(
                    Code.OPERATION_UNSUPPORTED,
                    f"disk {known.target} has {now} bytes and a running server may use the last of them; "
                    "it only grows",
                )
            self.refuse_busy(uuid, known.target)
            with translated():
                try:
                    await self._ground.controller.devices.resize(
                        uuid_text(uuid), known.target, size, cause_of(caller, f"resize {known.target}")
                    )
                except NicagentError as e:
                    if e.kind is Kind.UNSUPPORTED:
                        raise error(Code.OPERATION_UNSUPPORTED, str(e)) from None
                    raise

    def io_tune(self, uuid: bytes, disk: str | None, impact: Impact) -> IoTune:
        if disk is None:
            return {}
        ground = self._ground
        definition = ground.live(uuid) if impact & Impact.LIVE else ground.persistent(uuid)
        return disk_named(definition, disk).iotune

    async def set_io_tune(
        self, caller: Caller, uuid: bytes, disk: str, given: IoTune, impact: Impact
    ) -> None:
        if given.get("group_name"):
            raise error(Code.ARGUMENT_UNSUPPORTED, "a disk of metal has limits of its own and shares none")
        ground = self._ground

        def edit(definition: DomainDef) -> DomainDef:
            known = disk_named(definition, disk)
            merged = merged_limits(known.iotune, given)
            return with_limits(definition, known.target, merged)

        async with ground.controller.devices.changing(uuid_text(uuid)):
            live = edit(ground.live(uuid)) if impact & Impact.LIVE else None
            config = edit(ground.persistent(uuid)) if impact & Impact.CONFIG else None
            if live is not None:
                self.refuse_busy(uuid, disk_named(live, disk).target)
            with translated():
                await ground.controller.devices.change(
                    uuid_text(uuid),
                    None if live is None else ground.to_domain(live),
                    None if config is None else ground.to_domain(config),
                    cause_of(caller, f"limits of {disk}"),
                )
            if live is not None:
                ground.publish(_tuned(ground.info(uuid), disk, given))

    # ---- jobs

    async def copy(self, caller: Caller, uuid: bytes, disk: str, copy: Copy) -> None:
        known = self._disk(uuid, disk)
        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            self.refuse_busy(uuid, known.target)
            with translated():
                format = _format(copy.format, known)
                layers = await self._chain(known)
                below = layers[1:2] if copy.shallow else ()
                if copy.reuse:
                    self._files.check_place(copy.path, there=True)
                else:
                    await self._files.create(copy.path, format, layers[0].size, next(iter(below), None))
                job = BlockJob(
                    uuid_text(uuid),
                    known.target,
                    JobKind.COPY,
                    copy.path,
                    format,
                    shallow=bool(below),
                    speed=copy.bandwidth,
                )
                try:
                    await self._ground.controller.jobs.start(job, cause_of(caller, f"copy {known.target}"))
                except NicagentError:
                    if not copy.reuse:
                        self._files.remove(copy.path)
                    raise

    async def pull(self, caller: Caller, uuid: bytes, disk: str, base: str | None, bandwidth: int) -> None:
        known = self._disk(uuid, disk)
        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            self.refuse_busy(uuid, known.target)
            layers = await self._chain(known)
            left = "" if base is None else _layer(layers, known.target, base).path
            if len(layers) == 1:
                raise error(Code.OPERATION_INVALID, f"disk {known.target} has no backing file to pull from")
            job = BlockJob(uuid_text(uuid), known.target, JobKind.PULL, left, speed=bandwidth)
            with translated():
                await self._ground.controller.jobs.start(job, cause_of(caller, f"pull {known.target}"))

    async def commit(
        self,
        caller: Caller,
        uuid: bytes,
        disk: str,
        base: str | None,
        top: str | None,
        bandwidth: int,
        *,
        shallow: bool,
        active: bool,
    ) -> None:
        known = self._disk(uuid, disk)
        async with self._ground.controller.devices.changing(uuid_text(uuid)):
            self.refuse_busy(uuid, known.target)
            layers = await self._chain(known)
            upper = layers[0] if top is None else _layer(layers, known.target, top)
            at = layers.index(upper)
            if at == 0 and not active:
                detail = f"commit of '{known.target}' active layer requires active flag"
                raise error(Code.INVALID_ARG, detail)
            if at > 0 and active:
                raise error(Code.INVALID_ARG, f"active commit requested but '{upper.path}' is not active")
            if at + 1 == len(layers):
                raise error(
                    Code.INVALID_ARG, f"top '{upper.path}' in chain for '{known.target}' has no backing file"
                )
            lower = _lower(layers, known.target, at, base, shallow=shallow)
            await self._refuse_shared(uuid, layers[at + 1 : layers.index(lower) + 1])
            job = BlockJob(
                uuid_text(uuid),
                known.target,
                JobKind.ACTIVE_COMMIT if at == 0 else JobKind.COMMIT,
                lower.path,
                lower.format,
                top="" if at == 0 else upper.path,
                speed=bandwidth,
            )
            with translated():
                await self._ground.controller.jobs.start(job, cause_of(caller, f"commit {known.target}"))

    async def _refuse_shared(self, uuid: bytes, changed: Sequence[DiskFile]) -> None:
        """A commit changes what other domains' disks may stand on, such as an image that many share. libvirt
        lets it happen, and their next start finds them broken.
        """
        controller = self._ground.controller
        paths = {layer.path for layer in changed}
        for other in controller.domains():
            if other.domain.uuid == uuid_text(uuid):
                continue
            for disk in {*other.domain.disks, *controller.definition(other.domain.uuid).disks}:
                with contextlib.suppress(NicagentError):  # a disk that is not there cannot be broken
                    for layer in await controller.files.chain(disk.path, disk.format):
                        if layer.path in paths:
                            raise error(
                                Code.OPERATION_INVALID,
                                f"a commit into {layer.path} would break disk {disk.target} of domain "
                                f"{other.domain.name}, which stands on it too",
                            )

    async def job_info(self, uuid: bytes, disk: str) -> BlockJobInfo | None:
        known = self._disk(uuid, disk)
        with translated():
            facts = await self._ground.controller.jobs.facts(uuid_text(uuid), known.target)
        if facts is None:
            return None
        # Both sides the same means ready, and nothing else may look like it.
        end = facts.total if facts.state is JobState.READY else max(facts.total, facts.done + 1)
        done = end if facts.state is JobState.READY else facts.done
        return BlockJobInfo(TYPES[facts.kind], facts.speed, done, end)

    def mirrors(self, uuid: bytes) -> dict[str, Mirror]:
        """By disk, the other side of the job that keeps two files the same; from memory."""
        jobs = self._ground.controller.jobs
        return {
            job.target: Mirror(
                MIRRORED[job.kind],
                job.path,
                job.format.value,
                jobs.ready(job.domain, job.target),
                job.shallow,
            )
            for job in jobs.of_domain(uuid_text(uuid))
            if job.kind in MIRRORED
        }

    async def set_job_speed(self, caller: Caller, uuid: bytes, disk: str, bandwidth: int) -> None:
        known = self._disk(uuid, disk)
        self._job(uuid, known.target)
        with translated():
            await self._ground.controller.jobs.set_speed(uuid_text(uuid), known.target, bandwidth)

    async def abort(self, caller: Caller, uuid: bytes, disk: str, *, pivot: bool) -> None:
        known = self._disk(uuid, disk)
        job = self._job(uuid, known.target)
        ground, jobs = self._ground, self._ground.controller.jobs
        cause = cause_of(caller, f"{'pivot' if pivot else 'end'} of the {job.kind.value} of {known.target}")
        async with ground.controller.devices.changing(uuid_text(uuid)):
            if not pivot:
                with translated():
                    await jobs.give_up(uuid_text(uuid), known.target, cause)
                return
            if job.kind not in (JobKind.COPY, JobKind.ACTIVE_COMMIT):
                detail = f"job type '{job.kind.value}' does not support pivot"
                raise error(Code.OPERATION_INVALID, detail)
            facts = await jobs.facts(uuid_text(uuid), known.target)
            if facts is not None and facts.state is not JobState.READY:
                raise error(Code.BLOCK_COPY_ACTIVE, f"disk '{known.target}' not ready for pivot yet")
            with translated():
                await jobs.pivot(uuid_text(uuid), known.target, lambda: self._move(uuid, job, cause), cause)

    async def _move(self, uuid: bytes, job: BlockJob, cause: Cause) -> None:
        """The record, and the definition where it names the same file, name the other one from now on."""
        live, config = self.moved(uuid, {job.target: (job.path, job.format)})
        await self._ground.controller.devices.change(uuid_text(uuid), live, config, cause)

    def moved(
        self, uuid: bytes, files: Mapping[str, tuple[str, VolumeFormat]]
    ) -> tuple[Domain | None, Domain | None]:
        """The run's and the definition's domain with disks on other files; None for what does not change."""
        ground = self._ground
        status = ground.status(uuid)
        running = status.id is not None
        live = config = None
        current = ground.live(uuid) if running else ground.persistent(uuid)
        before = {disk.target: disk.path for disk in ground.to_domain(current).disks}
        if running:
            live = ground.to_domain(on_files(current, files))
        if status.domain.persistent:
            kept = ground.persistent(uuid)
            paths = {disk.target: disk.path for disk in ground.to_domain(kept).disks}
            same = {target: file for target, file in files.items() if paths.get(target) == before[target]}
            if same:
                config = ground.to_domain(on_files(kept, same))
        return live, config

    # ---- within

    def _disk(self, uuid: bytes, name: str) -> Disk:
        """A disk of the running domain by its target or file."""
        status = self._ground.running(uuid)
        for disk in status.domain.disks:
            if name in (disk.target, disk.path):
                return disk
        raise error(Code.INVALID_ARG, f"disk '{name}' not found in domain")

    def _job(self, uuid: bytes, target: str) -> BlockJob:
        job = self._ground.controller.jobs.of(uuid_text(uuid), target)
        if job is None:
            raise error(Code.INVALID_ARG, f"disk {target} does not have an active block job")
        return job

    def refuse_busy(self, uuid: bytes, target: str) -> None:
        """Raises for a disk that a job works on."""
        job = self._ground.controller.jobs.of(uuid_text(uuid), target)
        if job is not None:
            code = Code.BLOCK_COPY_ACTIVE if job.kind is JobKind.COPY else Code.OPERATION_UNSUPPORTED
            raise error(code, f"disk '{target}' already in active block job")

    async def _chain(self, disk: Disk) -> tuple[DiskFile, ...]:
        with translated():
            return await self._files.chain(disk.path, disk.format)


def on_files(definition: DomainDef, files: Mapping[str, tuple[str, VolumeFormat]]) -> DomainDef:
    for target, (path, format) in files.items():
        definition = with_source(definition, target, path, format.value)
    return definition


def _format(asked: str | None, disk: Disk) -> VolumeFormat:
    try:
        return disk.format if asked is None else VolumeFormat(asked)
    except ValueError:
        raise NicagentError(
            Kind.UNSUPPORTED, f"format '{asked}' is not known here", "use raw or qcow2"
        ) from None


def _layer(layers: Sequence[DiskFile], target: str, name: str) -> DiskFile:
    """A layer by its file, or by its number: vda[1] is the file right below the written one."""
    number = name.removeprefix(f"{target}[").removesuffix("]")
    if number != name and number.isdigit() and int(number) < len(layers):
        return layers[int(number)]
    for layer in layers:
        if layer.path == str(Path(name).resolve()):
            return layer
    raise error(Code.INVALID_ARG, f"could not find image '{name}' in chain for '{target}'")


def _lower(layers: Sequence[DiskFile], target: str, at: int, base: str | None, *, shallow: bool) -> DiskFile:
    if base is None:
        return layers[at + 1] if shallow else layers[-1]
    lower = _layer(layers, target, base)
    if layers.index(lower) <= at:
        raise error(
            Code.INVALID_ARG, f"base '{base}' is not below '{layers[at].path}' in chain for '{target}'"
        )
    if shallow and layers.index(lower) != at + 1:
        raise error(Code.INVALID_ARG, f"base '{base}' is not immediately below '{layers[at].path}'")
    return lower


def _tuned(info: DomainInfo, disk: str, given: IoTune) -> TunableEvent:
    """What a client has set, under the names of libvirt's VIR_DOMAIN_TUNABLE_BLKDEV_*."""
    values = [("disk", disk), *given.items()]
    return TunableEvent(
        info,
        [
            (f"blkdeviotune.{name}", Tag.STRING if isinstance(value, str) else Tag.ULLONG, value)
            for name, value in values
        ],
    )


def merged_limits(known: IoTune, given: IoTune) -> IoTune:
    """Limits with those of a client put over them. Raises INVALID_ARG for what contradicts itself."""
    merged = {**known, **given}
    for unit in ("bytes", "iops"):
        for suffix in ("_sec", "_sec_max"):
            total, read, write = (merged.get(f"{way}_{unit}{suffix}") for way in ("total", "read", "write"))
            name = f"{unit}{suffix}"
            if total and (read or write):
                # A client that sets one of the two means it instead of the other.
                if given.get(f"total_{name}"):
                    merged[f"read_{name}"] = merged[f"write_{name}"] = 0
                else:
                    merged[f"total_{name}"] = 0
                if given.get(f"total_{name}") and (given.get(f"read_{name}") or given.get(f"write_{name}")):
                    raise error(
                        Code.INVALID_ARG, f"total and read/write of {name} cannot be set at the same time"
                    )
    for name in asdict(Limits()):
        if name.endswith("_max") and merged.get(name) and not merged.get(name.removesuffix("_max")):
            raise error(
                Code.CONFIG_UNSUPPORTED,
                f"value '{name}' cannot be set if '{name.removesuffix('_max')}' is not set",
            )
        if name.endswith("_max_length") and merged.get(name) and not merged.get(name.removesuffix("_length")):
            raise error(
                Code.CONFIG_UNSUPPORTED,
                f"value '{name}' cannot be set if '{name.removesuffix('_length')}' is not set",
            )
    return merged
