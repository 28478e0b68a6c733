"""The block layer under a domain: jobs, sizes, limits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hypervisor_shim.driver.facts import Caller, Impact
from hypervisor_shim.errors import Code, error

#: A limit by its name (libvirt: VIR_DOMAIN_BLOCK_IOTUNE_*); 0 for none. `group_name` alone is text.
IoTune = dict[str, int | str]

#: In the order of libvirt's answers; those behind `group_name` came later than it.
IO_TUNE_NAMES = (
    *(f"{way}_{unit}_sec" for unit in ("bytes", "iops") for way in ("total", "read", "write")),
    *(f"{way}_{unit}_sec_max" for unit in ("bytes", "iops") for way in ("total", "read", "write")),
    "size_iops_sec",
    "group_name",
    *(f"{way}_{unit}_sec_max_length" for unit in ("bytes", "iops") for way in ("total", "read", "write")),
)


class BlockJobType(IntEnum):
    """libvirt: virDomainBlockJobType."""

    PULL = 1
    COPY = 2
    COMMIT = 3
    ACTIVE_COMMIT = 4


class BlockJobStatus(IntEnum):
    """How a job ended, or that it is ready (libvirt: virConnectDomainEventBlockJobStatus)."""

    COMPLETED = 0
    FAILED = 1
    CANCELED = 2
    READY = 3


@dataclass(frozen=True, slots=True)
class BlockJobInfo:
    """A job under way. `bandwidth` in bytes a second, 0 for no limit; `cur` of `end` in units of its own."""

    type: BlockJobType
    bandwidth: int
    cur: int
    end: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Where a copy goes, and how. `format` None: that of the disk."""

    path: str
    format: str | None = None
    shallow: bool = False  # the written layer alone
    reuse: bool = False  # the file is there
    bandwidth: int = 0  # bytes a second


class Block:
    """Disks are named by their target or their file. Each call a driver leaves out is refused with code 3.

    Raises INVALID_ARG for a disk that is not there, OPERATION_INVALID for a domain that does not run.
    """

    async def resize(self, caller: Caller, uuid: bytes, disk: str, size: int) -> None:
        """In bytes."""
        raise _missing("virDomainBlockResize")

    def io_tune(self, uuid: bytes, disk: str | None, impact: Impact) -> IoTune:
        """Every limit by its name. No disk: an answer in the shape of any, for a client that counts."""
        raise _missing("virDomainGetBlockIoTune")

    async def set_io_tune(
        self, caller: Caller, uuid: bytes, disk: str, given: IoTune, impact: Impact
    ) -> None:
        """What is not given stays as it is."""
        raise _missing("virDomainSetBlockIoTune")

    async def copy(self, caller: Caller, uuid: bytes, disk: str, copy: Copy) -> None:
        """Begin to copy a disk; it goes on in the copy when the job is aborted with `pivot`."""
        raise _missing("virDomainBlockCopy")

    async def pull(self, caller: Caller, uuid: bytes, disk: str, base: str | None, bandwidth: int) -> None:
        """Begin to bring what is below the written layer, down to `base`, into that."""
        raise _missing("virDomainBlockPull")

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
        """Begin to bring what is in `top` (None: the written layer) into `base` (None: the lowest one, or
        that right below with `shallow`).
        """
        raise _missing("virDomainBlockCommit")

    async def job_info(self, uuid: bytes, disk: str) -> BlockJobInfo | None:
        """None: there is no job."""
        raise _missing("virDomainGetBlockJobInfo")

    async def set_job_speed(self, caller: Caller, uuid: bytes, disk: str, bandwidth: int) -> None:
        raise _missing("virDomainBlockJobSetSpeed")

    async def abort(self, caller: Caller, uuid: bytes, disk: str, *, pivot: bool) -> None:
        """End a job; with `pivot` the disk goes on in the job's other file. A BlockJobEvent tells of it."""
        raise _missing("virDomainBlockJobAbort")


def _missing(function: str) -> Exception:
    return error(Code.NO_SUPPORT, function)
