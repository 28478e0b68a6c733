"""New files for disks that are in use: an overlay on what a disk is written to, a place for its copy.

Like a pool's volumes they lie inside the pools, are never made over another file, and carry a format that is
said and not guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicagent import proc
from nicagent.errors import Kind, NicagentError
from nicagent.model import DiskFile, VolumeFormat
from nicagent.storage import volume
from nicagent.storage.contract import DiskFiles
from nicagent.threads import in_thread

CREATE_SECONDS = 60.0


class PoolFiles(DiskFiles):
    """`pools` tells the directories of this moment; `declare` remembers the format of a file that is about to
    be one of their volumes, whatever its name says.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[Path]],
        declare: Callable[[Path, VolumeFormat], Awaitable[None]] | None = None,
    ) -> None:
        self._pools = pools
        self._declare = declare

    async def chain(self, path: str, format: VolumeFormat) -> tuple[DiskFile, ...]:
        layers = await in_thread(volume.resolve, Path(path), format, self._pools())
        return tuple(DiskFile(str(layer.path), layer.format, layer.size) for layer in layers)

    def check_place(self, path: str, *, there: bool) -> None:
        place, pools = Path(path), self._pools()
        if not place.is_absolute():
            raise NicagentError(Kind.INVALID, f"{path!r} is no absolute path", "name a file in a pool")
        if not any(place.parent.resolve().is_relative_to(pool.resolve()) for pool in pools):
            places = ", ".join(str(pool) for pool in pools) or "none is configured"
            raise NicagentError(
                Kind.DENIED, f"{path} lies outside the storage pools ({places})", "name a file in one of them"
            )
        exists = place.exists() or place.is_symlink()
        if exists and not there:
            raise NicagentError(
                Kind.EXISTS, f"{path} exists already", "choose another name, or say it is to be reused"
            )
        if there and not exists:
            raise NicagentError(Kind.NOT_FOUND, f"{path} does not exist", "create it first")

    async def create(
        self, path: str, format: VolumeFormat, size: int, backing: DiskFile | None = None
    ) -> None:
        self.check_place(path, there=False)
        argv = ["qemu-img", "create", "-q", "-f", format.value]
        if backing is not None:
            if format is not VolumeFormat.QCOW2:
                raise NicagentError(
                    Kind.INVALID, f"{path} cannot stand on another file: it is raw", "say qcow2"
                )
            argv += ["-u", "-b", backing.path, "-F", backing.format.value]
        if self._declare is not None:
            await self._declare(Path(path), format)
        try:
            await proc.run([*argv, path, str(size)], timeout=CREATE_SECONDS)
            Path(path).chmod(0o600)
        except BaseException:
            self.remove(path)
            raise

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
