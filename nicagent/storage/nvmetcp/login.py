"""AUTH_SEND and AUTH_RECV: how the messages of an authentication travel (NVMe base 2.0, section 6)."""

from __future__ import annotations

from collections.abc import Mapping

from nicagent.storage.nvmetcp.limits import ADMIN_DATA_MAX
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.queue import Handler, Queue
from nicagent.storage.nvmetcp.spec import DNR, AdminOp, FabricsType, NvmeError, Status

REQUIRED = 1 << 17  # ATR among AUTHREQ in a Connect's dword 0
SECURITY = 0xE9 << 24 | 0x01 << 16 | 0x01 << 8  # SECP, SPSP1, SPSP0: NVMe's authentication


def command(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Takes a message of the host, or gives it ours."""
    exchange = queue.authentication
    if exchange is None or sqe.cdw10 & ~0xFF != SECURITY:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    length = sqe.cdw11  # TL, AL
    if not 0 < length <= ADMIN_DATA_MAX or length != sqe.sgl_length:
        raise NvmeError((Status.SGL_LENGTH if length else Status.INVALID_FIELD) | DNR)
    if sqe.nsid & 0xFF == FabricsType.AUTH_SEND:
        exchange.send(bytes(data))
        queue.answers.respond(sqe.cid)
    else:
        queue.answers.respond_data(sqe, exchange.receive(length).ljust(length, b"\0"))
    queue.authentication_moved()


def _only(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    if sqe.nsid & 0xFF not in (FabricsType.AUTH_SEND, FabricsType.AUTH_RECV):
        raise NvmeError(Status.AUTH_REQUIRED | DNR)
    command(queue, sqe, data)


HANDLERS: Mapping[int, Handler] = {AdminOp.FABRICS: _only}  # until the host has proved itself
