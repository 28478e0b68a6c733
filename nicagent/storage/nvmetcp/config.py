"""The declarative contract of a target: which subsystems, for which hosts, backed by what.

Identity (NQN, serial, NSID, UUID, NGUID, EUI-64) is given here and never invented: the same file always
shows the same disks. Nothing here says how the target is built, so that the kernel's nvmet can serve it too.
"""

from __future__ import annotations

import re
import uuid as uuidlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp.auth import Requirement
from nicagent.storage.nvmetcp.dhchap import Group, Hash, parse_key
from nicagent.storage.nvmetcp.spec import DISCOVERY_NQN, NQN_MAX

FILE_MAX = 4 << 20  # bytes of a configuration file
NN = 1024  # highest NSID
SUN_PATH_MAX = 107  # bytes (unix(7))
_NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[^\s\x00]+")
_ASCII = re.compile(r"[\x20-\x7e]+")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is not said is not written: a target that an older agent started, and that has a host on it, goes
    on understanding what this one writes."""


class Listen(_Strict, frozen=True):
    """A TCP address. With `discovery` it serves the discovery subsystem only (port 8009 by custom)."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 4420
    discovery: bool = False


class FileBackend(_Strict, frozen=True, tag_field="type", tag="file"):
    """A raw file or block device."""

    path: str


class NbdBackend(_Strict, frozen=True, tag_field="type", tag="nbd"):
    """An NBD export behind a unix socket, such as qemu-storage-daemon's.

    `hold` bounds in seconds how long requests wait while the server is away.
    """

    path: str
    export: str
    hold: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 120.0


class Namespace(_Strict, frozen=True):
    """One disk. `nguid` and `eui64` are hex of 16 and 8 bytes; empty means none."""

    nsid: Annotated[int, msgspec.Meta(ge=1, le=NN)]
    uuid: uuidlib.UUID
    backend: FileBackend | NbdBackend
    nguid: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{32})?$")] = ""
    eui64: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{16})?$")] = ""
    readonly: bool = False
    block_size: Annotated[int, msgspec.Meta(ge=512, le=4096)] = 512  # bytes: 512 or 4096


class Auth(_Strict, frozen=True):
    """DH-HMAC-CHAP: what a subsystem's hosts prove, and what the controller can prove to them.

    Secrets in their representation (DHHC-1:…); hashes and groups by name in the order of preference, empty
    for ours.
    """

    key: str
    controller_key: str = ""
    hashes: tuple[Literal["sha256", "sha384", "sha512"], ...] = ()
    groups: tuple[Literal["null", "ffdhe2048", "ffdhe3072", "ffdhe4096"], ...] = ()

    def __repr__(self) -> str:
        return "Auth(…)"  # secrets are in no log

    def requirement(self) -> Requirement:
        """As the exchange takes it. Raises ValueError, which does not repeat the secret."""
        wish = Requirement(
            parse_key(self.key), parse_key(self.controller_key) if self.controller_key else None
        )
        if self.hashes:
            wish = replace(wish, hashes=tuple(Hash[name.upper()] for name in self.hashes))
        if self.groups:
            wish = replace(wish, groups=tuple(Group[name.upper()] for name in self.groups))
        return wish


class Subsystem(_Strict, frozen=True):
    """A subsystem and the host NQNs that may connect; nobody else can, and an empty list means nobody.

    With `auth` they prove that they are who they say; it is looked at whenever a queue connects.
    """

    nqn: str
    serial: str
    hosts: tuple[str, ...]
    namespaces: tuple[Namespace, ...] = ()
    model: str = "nicagent"
    auth: Auth | None = None


class TargetConfig(_Strict, frozen=True):
    """The whole file."""

    listen: tuple[Listen, ...]
    control: str
    subsystems: tuple[Subsystem, ...] = ()


def load(path: Path) -> TargetConfig:
    """Reads and checks a configuration file. Raises NicagentError (INVALID, NOT_FOUND) naming the place."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_MAX + 1)
    except OSError as error:
        raise NicagentError(
            Kind.NOT_FOUND, f"cannot read {path}: {error.strerror}", "check the path given with --config"
        ) from None
    if len(raw) > FILE_MAX:
        raise NicagentError(Kind.INVALID, f"{path} is larger than {FILE_MAX} bytes")
    try:
        config = msgspec.json.decode(raw, type=TargetConfig)
    except msgspec.DecodeError as error:
        raise NicagentError(Kind.INVALID, f"{path}: {error}", "correct the file") from None
    problem = next(_problems(config), None)
    if problem is not None:
        raise NicagentError(Kind.INVALID, f"{path}: {problem}", "correct the file")
    return config


def _problems(config: TargetConfig) -> Iterator[str]:
    """What the types cannot say."""
    if not config.listen:
        yield "listen: names no address"
    if len(config.control.encode()) > SUN_PATH_MAX:
        yield f"control: a unix socket's path has at most {SUN_PATH_MAX} bytes"
    yield from _repeated("listen", [f"{where.host}:{where.port}" for where in config.listen if where.port])
    yield from _repeated("subsystems: nqn", [subsystem.nqn for subsystem in config.subsystems])
    for subsystem in config.subsystems:
        at = f"subsystem {subsystem.nqn}"
        if subsystem.nqn == DISCOVERY_NQN:
            yield f"{at}: is the discovery subsystem, which is always there"
        for nqn in (subsystem.nqn, *subsystem.hosts):
            if not _NQN.fullmatch(nqn) or len(nqn.encode()) > NQN_MAX:
                yield f"{at}: {nqn!r} is no NQN (nqn.yyyy-mm.domain:name, at most {NQN_MAX} bytes)"
        yield from _wrong_secrets(at, subsystem.auth)
        for name, value, limit in (("serial", subsystem.serial, 20), ("model", subsystem.model, 40)):
            if not _ASCII.fullmatch(value) or len(value) > limit:
                yield f"{at}: {name} must be 1 to {limit} printable ASCII characters"
        yield from _repeated(f"{at}: nsid", [str(namespace.nsid) for namespace in subsystem.namespaces])
        yield from _repeated(f"{at}: uuid", [str(namespace.uuid) for namespace in subsystem.namespaces])
        for namespace in subsystem.namespaces:
            if namespace.block_size not in (512, 4096):
                yield f"{at}: namespace {namespace.nsid}: block_size is 512 or 4096"


def _wrong_secrets(at: str, auth: Auth | None) -> Iterator[str]:
    if auth is None:
        return
    for name, text in (("key", auth.key), ("controller_key", auth.controller_key)):
        try:
            if text or name == "key":
                parse_key(text)
        except ValueError as error:
            yield f"{at}: auth: {name} {error}"
    if auth.controller_key == auth.key:
        yield f"{at}: auth: both sides have the same secret; each needs its own"


def _repeated(what: str, values: list[str]) -> Iterator[str]:
    for value, count in Counter(values).items():
        if count > 1:
            yield f"{what} {value} is given {count} times"
