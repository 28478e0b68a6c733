"""Fabrics commands and a controller's properties (NVMe-oF 1.1, section 3)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from nicagent.storage.nvmetcp import login
from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.limits import QUEUE_ENTRIES, VERSION
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.queue import Queue
from nicagent.storage.nvmetcp.spec import (
    CC_ENABLE,
    CC_SHUTDOWN,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN_DONE,
    DNR,
    FabricsType,
    NvmeError,
    Status,
)

# Offsets of properties (base 1.4, section 3.1).
CAP, VS, CC, CSTS = 0x00, 0x08, 0x14, 0x1C

READY_TIMEOUT = 30  # CAP.TO, in 500 ms

CONNECT_DATA = Struct("<16sH238x256s256s256x")
DISABLE_SQ_FLOW = 0x04  # CATTR
# Invalid Connect parameters are named by offset (IPO) and place (IATTR bit 0: in the data) in dword 0.
IN_DATA = 1 << 16
AT_CNTLID, AT_SUBNQN, AT_HOSTNQN = 16 | IN_DATA, 256 | IN_DATA, 512 | IN_DATA
AT_QID, AT_SQSIZE = 42, 44


class Connect(NamedTuple):
    """A Connect command and its data (NVMe-oF 1.1, figures 18 and 19)."""

    record_format: int
    qid: int
    entries: int  # of the queue
    sq_flow_control: bool
    kato: int  # milliseconds
    hostid: bytes
    cntlid: int
    subnqn: str
    hostnqn: str


def parse_connect(sqe: Sqe, data: memoryview) -> Connect:
    """Raises NvmeError for what no subsystem could accept."""
    record_format, qid = sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16
    if record_format != 0:
        raise NvmeError(Status.CONNECT_FORMAT | DNR)
    if len(data) != CONNECT_DATA.size:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    hostid, cntlid, subnqn, hostnqn = CONNECT_DATA.unpack(data)
    return Connect(
        record_format,
        qid,
        (sqe.cdw11 & 0xFFFF) + 1,
        not sqe.cdw11 >> 16 & DISABLE_SQ_FLOW,
        sqe.cdw12,
        hostid,
        cntlid,
        _nqn(subnqn, AT_SUBNQN),
        _nqn(hostnqn, AT_HOSTNQN),
    )


def _nqn(field: bytes, at: int) -> str:
    text, terminator, _ = field.partition(b"\0")
    try:
        if not text or not terminator:
            raise ValueError
        return text.decode()
    except ValueError:
        raise NvmeError(Status.CONNECT_INVALID | DNR, at) from None


def capabilities(entries: int) -> int:
    """CAP: MQES, contiguous queues, TO, the NVM command set, 4 KiB pages."""
    return (entries - 1) | 1 << 16 | READY_TIMEOUT << 24 | 1 << 37


def enabled(queue: Queue) -> Controller:
    """The queue's controller, if its host has enabled it; admin commands before that are out of sequence."""
    controller = queue.controller
    if controller is None or not controller.csts & CSTS_READY:
        raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
    return controller


def command(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """A fabrics command on a connected queue."""
    controller = queue.controller
    fctype = sqe.nsid & 0xFF
    if controller is None or fctype == FabricsType.CONNECT:
        raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
    if fctype == FabricsType.DISCONNECT:
        if queue.qid == 0:
            raise NvmeError(Status.CONNECT_QUEUE_TYPE | DNR)
        queue.answers.respond(sqe.cid)
        queue.close()
    elif fctype == FabricsType.PROPERTY_GET and queue.qid == 0:
        queue.answers.respond(sqe.cid, 0, _property(controller, sqe))
    elif fctype == FabricsType.PROPERTY_SET and queue.qid == 0:
        _set_property(controller, sqe)
        queue.answers.respond(sqe.cid)
    elif queue.authentication is not None and fctype in (FabricsType.AUTH_SEND, FabricsType.AUTH_RECV):
        login.command(queue, sqe, data)
    else:
        raise NvmeError(Status.INVALID_FIELD | DNR)


def _property(controller: Controller, sqe: Sqe) -> int:
    wide = sqe.cdw10 & 0x7
    offset = sqe.cdw11
    if (offset, wide) == (CAP, 1):
        return capabilities(QUEUE_ENTRIES)
    if wide == 0:
        if offset == VS:
            return VERSION
        if offset == CC:
            return controller.cc
        if offset == CSTS:
            return controller.csts
    raise NvmeError(Status.INVALID_FIELD | DNR)


def _set_property(controller: Controller, sqe: Sqe) -> None:
    if sqe.cdw10 & 0x7 != 0 or sqe.cdw11 != CC:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    before, controller.cc = controller.cc, sqe.cdw12
    if controller.cc & CC_ENABLE and not before & CC_ENABLE:
        # MPS, CSS and AMS must be what CAP offers; entry sizes are checked where the host gave any.
        if controller.cc & 0x3FF0:
            controller.csts = CSTS_FATAL
        else:
            controller.csts = CSTS_READY
    elif not controller.cc & CC_ENABLE and before & CC_ENABLE:
        controller.csts = 0
        controller.drop_requests()
        for qid in [qid for qid in controller.queues if qid]:
            controller.queues.pop(qid).close()
    if controller.cc & CC_SHUTDOWN:
        controller.csts |= CSTS_SHUTDOWN_DONE
    elif before & CC_SHUTDOWN:
        controller.csts &= ~CSTS_SHUTDOWN_DONE
