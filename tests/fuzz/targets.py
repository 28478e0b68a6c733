"""What is fuzzed: functions of bytes that raise when something happens that no input may bring about.

New rows of procedures and new parsers of documents are found by themselves: a parser is a public function
`parse_…` of a module of `hypervisor_shim.xml` that needs nothing but a text.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import struct
from collections.abc import Callable
from functools import cache, partial
from uuid import UUID

import hypervisor_shim.xml
from hypervisor_shim.access import About, Policy, Right, Rule, about
from hypervisor_shim.driver import Caller, CreateFlags, DestroyFlags
from hypervisor_shim.errors import LibvirtError
from hypervisor_shim.frame import HEADER, STREAM_DATA_MAX, Program, Status, Type, packet
from hypervisor_shim.procedures import Procedure
from hypervisor_shim.xdr import XdrError
from tests.hypervisor_shim.serving import TEST_UUID, number, optional, text

from .arguments import Arguments
from .documents import document
from .handshakes import Door
from .logins import logins
from .metal import Metal
from .rig import Client, Rig, Violation, is_stream
from .source import Source
from .worlds import WITH_CONSOLE, InMemory

Target = Callable[[bytes], None]

_OPEN = packet(Program.REMOTE, 1, 1, Type.CALL, 0, Status.OK, optional(text("nic:///system")) + number(0))
_CALLS_MAX = 12  # of one client
_SIZES = (0, 3, 27, 28, 29, 2**25 + 4, 2**25 + 5, 2**31, 2**32 - 1)


@cache
def _rig() -> Rig:
    return Rig()


@cache
def _metal_rig(*, running: bool) -> Rig:
    return Rig(Metal(running=running))


@cache
def _door() -> Door:
    return Door()


async def _opened(rig: Rig, source: Source) -> Client:
    client = rig.client(read_only=source.one_in(4))
    if not source.one_in(16):
        await client.feed(_OPEN)
    return client


# ---- frames ----------------------------------------------------------------------------------------------


async def _frames(rig: Rig, source: Source) -> None:
    """Headers of every kind, bodies of every size, cut into pieces anywhere."""
    client = await _opened(rig, source)
    programs = (*Program, 0)
    while source and client.connected:
        number_ = source.pick((source.below(460), 0, 1, 2, 60, 66, 316, 2**32 - 1))
        body = source.blob()
        size = source.pick(_SIZES) if source.one_in(16) else 28 + len(body)
        program = source.pick(programs) if source.one_in(4) else Program.REMOTE
        kind = source.below(8) if source.one_in(2) else Type.CALL
        status = source.below(4) if source.one_in(8) else Status.OK
        head = HEADER.pack(size, program, 1 - source.one_in(16), number_, kind, source.below(4), status)
        whole = head + body
        cut = source.below(len(whole) + 1)
        await client.feed(whole[:cut])
        await client.feed(whole[cut:])
    await client.settle()


def _arguments(rig: Rig, row: Procedure, source: Source) -> bytes:
    return Arguments(row, source, rig.names, rig.uuids).encoded()


# ---- calls -----------------------------------------------------------------------------------------------


async def _calls(rig: Rig, source: Source) -> None:
    """Every row with arguments of its own shape, in any order, by a few clients at once."""
    clients = [await _opened(rig, source) for _ in range(1 + source.below(2))]
    rows = list(rig.rows.values())
    family = source.pick(rows).handler.__module__  # most calls are about one kind of object
    related = [row for row in rows if row.handler.__module__ == family]
    for _ in range(_CALLS_MAX):
        client, row = source.pick(clients), source.pick(related if source.below(4) else rows)
        if not source:
            break
        await client.call(row.number, _arguments(rig, row, source), program=row.program)


# ---- rights ----------------------------------------------------------------------------------------------

_HIDDEN = UUID("0b5c0ffe-e000-4000-8000-00000000d00d")
_HIDDEN_NAME = "not-for-you"
_SEEN = str(UUID(bytes=TEST_UUID))
_HIDDEN_DOCUMENT = WITH_CONSOLE.replace("<name>test", f"<name>{_HIDDEN_NAME}").replace(
    "6695eb01f6a4830479aa97f2502e193f", str(_HIDDEN)
)
_TENANT = Policy([Rule(("uid:*",), Right.ALL, ("t*", "vda", "default"), shared=Right.READ)])
_OWNER = Caller("uid:0", "the owner", False, True, 2)
_TELLING = (_HIDDEN.bytes, str(_HIDDEN).encode(), _HIDDEN.hex.encode(), _HIDDEN_NAME.encode())


@cache
def _shared_rig() -> Rig:
    return Rig(InMemory(_HIDDEN_DOCUMENT))


async def _rights(rig: Rig, source: Source) -> None:
    """A client with rights on some domains calls what it likes, while the owner of another works that: its
    name and UUID are in no answer, error or event, and nothing happens to it. Half of the clients know its
    UUID, as from an earlier time, and ask for it.
    """
    client, driver = rig.client(policy=_TENANT), rig.driver
    await client.feed(_OPEN)
    for event in (0, 1, 23):
        await client.call(316, number(event) + number(0))
    uuid, rows = _HIDDEN.bytes, list(rig.rows.values())
    of_domains = [row for row in rows if about(row) in (About.DOMAIN, About.DOMAINS)]
    knowing = source.one_in(2)
    before = driver.domain_xml(uuid, inactive=True, secure=True)
    running = True
    for _ in range(_CALLS_MAX):
        if not source:
            break
        if source.one_in(4):
            running = not running
            if running:
                await driver.create(_OWNER, uuid, CreateFlags.NONE)
            else:
                await driver.destroy(_OWNER, uuid, DestroyFlags.DEFAULT)
        row = source.pick(of_domains if source.below(4) else rows)
        body = _arguments(rig, row, source)
        if knowing and source.below(2):
            body = body.replace(TEST_UUID, uuid).replace(_SEEN.encode(), str(_HIDDEN).encode())
        await client.call(row.number, body, program=row.program)
    await client.settle()
    for each in _TELLING[-1:] if knowing else _TELLING:
        if each in client.said:
            raise Violation(f"a client that may not see the domain was told {each!r}")
    now = driver.domain(uuid)
    if now is None or now.active is not running or now.autostart or not now.persistent:
        raise Violation(f"a client that may not see the domain made it {now}")
    if driver.domain_xml(uuid, inactive=True, secure=True) != before:
        raise Violation("a client that may not see the domain has changed it")


# ---- the agent's face ------------------------------------------------------------------------------------


async def looks(rig: Rig, source: Source) -> None:
    """A client that may only read calls what it likes: no host is touched, and nothing written."""
    client = rig.client(read_only=True)
    await client.feed(_OPEN)
    before = rig.world.marks()
    rows = list(rig.rows.values())
    for _ in range(_CALLS_MAX):
        if not source:
            break
        row = source.pick(rows)
        await client.call(row.number, _arguments(rig, row, source), program=row.program)
    if rig.world.marks() != before:
        raise Violation(f"a client that may only read made the agent act: {before} → {rig.world.marks()}")


# ---- streams ---------------------------------------------------------------------------------------------


_POOL = text("default-pool") + bytes.fromhex("dfe224cb28fb8dd0c4b264eb3f0f4566")
_VOLUME = text("<volume><name>v</name><capacity>300000</capacity></volume>")
_REFERENCE = text("default-pool") + text("v") + text("/default-pool/v")
_CREATE_VOLUME = 93


def _stream_arguments(rig: Rig, row: Procedure, source: Source) -> bytes:
    """As of any call; half of the time about the volume that is there."""
    if "StorageVol" not in row.api or source.one_in(2):
        return _arguments(rig, row, source)
    offset, length = (source.pick((0, 1, 4096, 299_999, 300_000, 2**63)) for _ in range(2))
    return _REFERENCE + struct.pack(">QQI", offset, length, source.below(3))


async def _streams(rig: Rig, source: Source) -> None:
    """Streams opened by every call that can, then data, holes, ends and errors on right and wrong serials."""
    client = await _opened(rig, source)
    await client.call(_CREATE_VOLUME, _POOL + _VOLUME + number(0))
    rows = [row for row in rig.rows.values() if is_stream(row)]
    opened: list[tuple[int, int]] = [(rows[0].number, 0)]
    while source and client.connected:
        if len(opened) == 1 or source.one_in(3):
            row = source.pick(rows)
            opened.append((row.number, await client.call(row.number, _stream_arguments(rig, row, source))))
            continue
        number_, serial = source.pick(opened[-4:])
        data = source.pick((b"", source.blob(), bytes(STREAM_DATA_MAX), bytes(12)))
        kind = Type.STREAM if source.below(4) else source.pick((Type.STREAM, 6))
        status = source.pick((Status.CONTINUE, Status.CONTINUE, Status.OK, Status.ERROR, 9))
        await client.feed(packet(Program.REMOTE, 1, number_, kind, serial, status, data))
        if source.one_in(3):
            await client.settle()
    await client.settle()


# ---- codecs ----------------------------------------------------------------------------------------------


def _codecs(data: bytes) -> None:
    """Every row's arguments from bytes as they come; what was read is what is read when it was written."""
    source = Source(data)
    row = source.pick([row for row in _rig().rows.values() if row.args is not None])
    body = source.rest() if source.one_in(2) else Arguments(row, source).encoded()
    assert row.args is not None
    try:
        values, behind = row.args.read(body, 0, len(body))
    except XdrError:
        return
    assert behind <= len(body), f"{row.api} read {behind} of {len(body)} bytes"
    out: list[bytes] = []
    try:
        row.args.write(values, out)
    except NotImplementedError:  # a reference that is only ever read
        return
    again, _ = row.args.read(b"".join(out), 0, sum(map(len, out)))
    assert repr(again) == repr(values), f"{row.api}: {values} came back as {again}"


# ---- documents -------------------------------------------------------------------------------------------


def parsers() -> dict[str, Callable[[str], object]]:
    """Every function that makes something of a text."""
    found: dict[str, Callable[[str], object]] = {}
    for module in pkgutil.iter_modules(hypervisor_shim.xml.__path__, "hypervisor_shim.xml."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if not name.startswith("parse_") or not inspect.isfunction(function):
                continue
            first, *others = inspect.signature(function).parameters.values()
            if first.annotation == "str" and all(each.default is not each.empty for each in others):
                found[name] = function
    return found


def _parse(parser: Callable[[str], object], about: str, data: bytes) -> None:
    source = Source(data)
    whole = source.rest().decode("utf-8", "surrogateescape") if source.one_in(16) else document(source, about)
    try:
        parser(whole)
    except LibvirtError as refused:
        refused.message.encode("utf-8", "surrogateescape")  # it goes on the wire


def targets() -> dict[str, Target]:
    """All of them, by name."""
    found: dict[str, Target] = {
        "frames": lambda data: _rig().run(_frames, data),
        "calls": lambda data: _rig().run(_calls, data),
        "streams": lambda data: _rig().run(_streams, data),
        "handshakes": lambda data: _door().run(data),
        "logins": lambda data: _rig().run(logins, data),
        "rights": lambda data: _shared_rig().run(_rights, data),
        "metal": lambda data: _metal_rig(running=bool(sum(data[-1:]) & 1)).run(_calls, data),
        "looks": lambda data: _metal_rig(running=True).run(looks, data),
        "codecs": _codecs,
    }
    found.update({name: partial(_parse, parser, name) for name, parser in sorted(parsers().items())})
    return found
