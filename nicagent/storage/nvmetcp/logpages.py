"""Get Log Page (base 1.4, section 5.14; discovery log: NVMe-oF 1.1, section 5.3)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from struct import pack, pack_into

from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.limits import FIRMWARE, TRANSFER_MAX
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.spec import DNR, AdminOp, IoOp, LogPage, NvmeError, Status

ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104
TRTYPE_TCP = 3
ADRFAM = {4: 1, 6: 2}
SUBTYPE_NVM = 2
TREQ = 0x06  # secure channel not required; SQ flow control may be off
ADMIN_QUEUE_SIZE = 32

Page = Callable[[Controller, str], bytes]


def read(controller: Controller, address: str, sqe: Sqe) -> bytes:
    """The part of a page that the command asks for, at most as long as the page.

    `address` is ours as the host knows it.
    """
    lid = sqe.cdw10 & 0xFF
    length = ((sqe.cdw11 & 0xFFFF) << 16 | sqe.cdw10 >> 16) * 4 + 4
    offset = sqe.cdw13 << 32 | sqe.cdw12
    page = (DISCOVERY_PAGES if controller.subsystem is None else IO_PAGES).get(lid)
    if page is None:
        raise NvmeError(Status.INVALID_LOG_PAGE | DNR)
    if length > TRANSFER_MAX or offset % 4:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if sqe.sgl_length < length:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    content = page(controller, address)
    if offset > len(content):
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if not sqe.cdw10 >> 15 & 1:  # RAE
        controller.page_was_read(lid)
        if lid == LogPage.CHANGED_NAMESPACES:
            controller.changed.clear()
    return content[offset : offset + length].ljust(length, b"\0")


def _errors(controller: Controller, address: str) -> bytes:
    return bytes(64)  # ELPE 0: one entry, and an error count of 0 says it is empty


def _smart(controller: Controller, address: str) -> bytes:
    """Counters of all namespaces; a remote disk has no temperature, so 0 ("not reported")."""
    page = bytearray(512)
    page[3] = 100  # available spare, %
    counters = [] if controller.subsystem is None else [
        namespace.counters for namespace in controller.subsystem.namespaces.values()
    ]  # fmt: skip
    values = (
        sum(-(-counter.read_bytes // 512_000) for counter in counters),  # thousands of 512 bytes
        sum(-(-counter.write_bytes // 512_000) for counter in counters),
        sum(counter.read_ops for counter in counters),
        sum(counter.write_ops for counter in counters),
    )
    for at, value in zip(range(32, 96, 16), values, strict=True):
        page[at : at + 16] = value.to_bytes(16, "little")
    return bytes(page)


def _firmware(controller: Controller, address: str) -> bytes:
    return (b"\x01".ljust(8, b"\0") + FIRMWARE.encode("ascii").ljust(8)).ljust(512, b"\0")


def _changed(controller: Controller, address: str) -> bytes:
    changed = sorted(controller.changed)
    return pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _commands(controller: Controller, address: str) -> bytes:
    """CSUPP for what we do, LBCC for what changes blocks (figure 202)."""
    page = bytearray(4096)
    for op in AdminOp:
        if op != AdminOp.FABRICS:
            pack_into("<I", page, op * 4, 1)
    for io_op in IoOp:
        if io_op != IoOp.COMPARE:
            changes = io_op in (IoOp.WRITE, IoOp.WRITE_ZEROES, IoOp.DATASET_MANAGEMENT)
            pack_into("<I", page, 1024 + io_op * 4, 3 if changes else 1)
    return bytes(page)


def _discovery(controller: Controller, address: str) -> bytes:
    """One entry for each subsystem this very host may use, times each listener."""
    catalogue = controller.catalogue
    entries = [
        _entry(subsystem.nqn, port, address if listener.host in ANY_ADDRESS else listener.host, listener.port)
        for subsystem in catalogue.subsystems.values()
        if subsystem.allows(controller.hostnqn)
        for port, listener in enumerate(catalogue.listeners, 1)
        if not listener.discovery
    ]
    return pack("<QQH", catalogue.generation, len(entries), 0).ljust(1024, b"\0") + b"".join(entries)


def _entry(nqn: str, port: int, address: str, service: int) -> bytes:
    family = ADRFAM[ipaddress.ip_address(address).version]
    head = pack("<BBBBHHH", TRTYPE_TCP, family, SUBTYPE_NVM, TREQ, port, 0xFFFF, ADMIN_QUEUE_SIZE)
    return b"".join(
        (
            head.ljust(32, b"\0"),
            str(service).encode().ljust(32),
            bytes(192),
            nqn.encode().ljust(256, b"\0"),
            address.encode().ljust(256),
            bytes(256),  # TSAS: SECTYPE 0, no TLS
        )
    )


IO_PAGES: Mapping[int, Page] = {
    LogPage.ERRORS: _errors,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE: _firmware,
    LogPage.CHANGED_NAMESPACES: _changed,
    LogPage.COMMANDS: _commands,
}
DISCOVERY_PAGES: Mapping[int, Page] = {LogPage.ERRORS: _errors, LogPage.DISCOVERY: _discovery}
