"""Set Features and Get Features (base 1.4, sections 5.15 and 5.21)."""

from __future__ import annotations

from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.limits import IO_QUEUES_MAX, KATO_MAX
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.spec import (
    DNR,
    EVENT_DISCOVERY,
    EVENT_NAMESPACES,
    Feature,
    NvmeError,
    Status,
)

# Features an I/O controller has, with their value after a reset. No value is saveable.
IO_DEFAULTS: dict[int, int] = {
    Feature.ARBITRATION: 0,
    Feature.POWER: 0,
    Feature.TEMPERATURE: 0,
    Feature.ERROR_RECOVERY: 0,
    Feature.WRITE_CACHE: 1,
    Feature.WRITE_ATOMICITY: 0,
    Feature.ASYNC_EVENTS: 0,
}
DISCOVERY_DEFAULTS: dict[int, int] = {Feature.ASYNC_EVENTS: 0}


def _defaults(controller: Controller) -> dict[int, int]:
    return IO_DEFAULTS if controller.subsystem is not None else DISCOVERY_DEFAULTS


def get(controller: Controller, sqe: Sqe) -> tuple[int, bytes]:
    """Dword 0, and the data for the one feature that has data."""
    feature, select = sqe.cdw10 & 0xFF, sqe.cdw10 >> 8 & 0x7
    if select != 0:  # ONCS offers no default, saved or capability values
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if feature == Feature.KEEP_ALIVE:
        return controller.kato, b""
    if controller.subsystem is not None:
        if feature == Feature.QUEUES:
            return (controller.io_queues - 1) * 0x1_0001, b""
        if feature == Feature.HOST_ID:
            if not sqe.cdw11 & 1:  # EXHID: fabrics host identifiers have 128 bits
                raise NvmeError(Status.INVALID_FIELD | DNR)
            return 0, controller.hostid
    defaults = _defaults(controller)
    if feature not in defaults:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    return controller.features.get(feature, defaults[feature]), b""


def set_(controller: Controller, sqe: Sqe) -> int:
    """Takes the value; returns dword 0."""
    feature, value = sqe.cdw10 & 0xFF, sqe.cdw11
    if feature == Feature.KEEP_ALIVE:
        if value > KATO_MAX:
            raise NvmeError(Status.INVALID_FIELD | DNR)
        controller.kato = value
        controller.watch()
        return 0
    if controller.subsystem is not None and feature == Feature.QUEUES:
        return _set_queues(controller, value)
    if feature == Feature.HOST_ID:  # it came with Connect
        raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
    if feature not in _defaults(controller):
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if feature == Feature.ASYNC_EVENTS:
        offered = EVENT_NAMESPACES if controller.subsystem is not None else EVENT_DISCOVERY
        if value & ~offered & ~0xFF:  # the low byte: SMART warnings, which never come
            raise NvmeError(Status.INVALID_FIELD | DNR)
    if feature == Feature.WRITE_CACHE and not value & 1:
        # The page cache stays: a host that needs durability without Flush asks with FUA.
        raise NvmeError(Status.FEATURE_NOT_CHANGEABLE | DNR)
    controller.features[feature] = value
    return 0


def _set_queues(controller: Controller, value: int) -> int:
    submission, completion = value & 0xFFFF, value >> 16
    if 0xFFFF in (submission, completion):
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if any(controller.queues.keys() - {0}):  # only before I/O queues exist (section 5.21.1.7)
        raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
    controller.io_queues = min(submission + 1, completion + 1, IO_QUEUES_MAX)
    return (controller.io_queues - 1) * 0x1_0001
