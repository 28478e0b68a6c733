"""A volume as a chain of files: the layer that is written, and the backing files under it.

Two rules keep a tenant's image from showing the agent's own files to the tenant, the classic attack with a
forged qcow2 header:

- a format is never guessed from content: it comes from the definition, for a backing file from the overlay's
  header, which must name it;
- every file of a chain lies, symbolic links resolved, in one of the agent's pools. Protocols (`nbd:`,
  `json:`) and external data files are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nicagent.errors import Kind, NicagentError
from nicagent.model import VolumeFormat
from nicagent.storage import qcow2

CHAIN_LIMIT = 32  # layers
SECTOR = 512  # bytes; no transport shows a smaller unit


@dataclass(frozen=True)
class Layer:
    """One file of a chain. `device` and `inode` tell a file from a later one of the same name."""

    path: Path  # absolute, links resolved
    format: VolumeFormat
    size: int  # virtual, bytes
    device: int
    inode: int


def resolve(path: Path, format: VolumeFormat, pools: Sequence[Path]) -> tuple[Layer, ...]:
    """The chain of a volume, the written layer first.

    Raises NOT_FOUND for a missing file, DENIED for one outside the pools, INVALID for a header that does not
    fit, UNSUPPORTED for what is not opened here (encryption, external data).
    """
    layers: list[Layer] = []
    at: Path | None = path
    while at is not None:
        if len(layers) == CHAIN_LIMIT:
            raise NicagentError(
                Kind.INVALID,
                f"the backing chain of {path} is longer than {CHAIN_LIMIT} files or runs in a circle",
                "flatten it: qemu-img convert",
            )
        real = _inside(at, layers[-1].path if layers else None, pools)
        with _open_regular(real) as file:
            layer, backing = _read(file, real, format)
        layers.append(layer)
        at = None
        if backing is not None:
            at, format = backing
    return tuple(layers)


def _inside(path: Path, above: Path | None, pools: Sequence[Path]) -> Path:
    what = f"volume {path}" if above is None else f"backing file {path} of {above}"
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise NicagentError(Kind.NOT_FOUND, f"{what} does not exist", "create it or mend the path") from None
    except (OSError, RuntimeError, ValueError) as e:
        raise NicagentError(Kind.INVALID, f"{what} cannot be looked up: {e}", "mend the path") from None
    if not any(real.is_relative_to(pool.resolve()) for pool in pools):
        places = ", ".join(str(pool) for pool in pools) or "none is configured"
        raise NicagentError(
            Kind.DENIED,
            f"{what} lies outside the storage pools ({places})",
            "move it into a pool, or add its directory as a [pools.NAME]",
        )
    return real


def _open_regular(path: Path) -> BinaryIO:
    try:
        # Non-blocking: a FIFO put in place of a volume must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        raise NicagentError(Kind.DENIED, f"the agent may not read {path}", "mend its permissions") from None
    except OSError as e:
        raise NicagentError(Kind.NOT_FOUND, f"cannot open {path}: {e.strerror}", "mend the path") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NicagentError(Kind.INVALID, f"{path} is not a regular file", "a pool's volumes are files")
    return os.fdopen(descriptor, "rb")


def _read(file: BinaryIO, path: Path, format: VolumeFormat) -> tuple[Layer, tuple[Path, VolumeFormat] | None]:
    """One layer, and the name and format of the file beneath it."""
    facts = os.fstat(file.fileno())
    if format is VolumeFormat.RAW:
        if facts.st_size == 0 or facts.st_size % SECTOR:
            raise NicagentError(
                Kind.INVALID,
                f"raw volume {path} is {facts.st_size} bytes long, not a multiple of {SECTOR}",
                f"truncate -s %{SECTOR} rounds it up",
            )
        return Layer(path, format, facts.st_size, facts.st_dev, facts.st_ino), None
    header = qcow2.read_header(file, str(path))
    if header.encrypted:
        raise NicagentError(Kind.UNSUPPORTED, f"{path} is encrypted", "convert it to a plain qcow2 or raw")
    if header.external_data:
        raise NicagentError(
            Kind.UNSUPPORTED, f"{path} keeps its data in another file", "flatten it: qemu-img convert"
        )
    if header.corrupt:
        raise NicagentError(
            Kind.INVALID, f"{path} is marked corrupt", "mend it: qemu-img check -f qcow2 -r all"
        )
    layer = Layer(path, format, header.size, facts.st_dev, facts.st_ino)
    return layer, _backing(header, path)


def _backing(header: qcow2.Header, path: Path) -> tuple[Path, VolumeFormat] | None:
    name = header.backing_file
    if name is None:
        return None
    # QEMU reads a name with a colon before the first slash as protocol:rest (qemu(1)).
    if ":" in name.partition("/")[0]:
        raise NicagentError(
            Kind.DENIED, f"the backing file of {path} is not a plain path", "rebase it: qemu-img rebase -u"
        )
    try:
        format = VolumeFormat(header.backing_format or "")
    except ValueError:
        said = header.backing_format or "nothing"
        raise NicagentError(
            Kind.INVALID,
            f"{path} says {said!r} about the format of its backing file, and formats are never guessed",
            f"state it: qemu-img rebase -u -b {name!r} -F raw|qcow2",
        ) from None
    return path.parent / name, format
