"""The admin commands: a table of opcodes, and a smaller one for discovery (NVMe-oF 1.1, figure 34)."""

from __future__ import annotations

from collections.abc import Mapping

from nicagent.storage.nvmetcp import fabrics, features, identify, logpages
from nicagent.storage.nvmetcp.fabrics import enabled
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.queue import Handler, Queue
from nicagent.storage.nvmetcp.spec import DNR, PAGE, AdminOp, NvmeError, Status


def _identify(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    controller = enabled(queue)
    if sqe.sgl_length < PAGE:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    queue.answers.respond_data(sqe, identify.identify(controller, sqe))


def _get_log_page(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    queue.answers.respond_data(sqe, logpages.read(enabled(queue), queue.local_address, sqe))


def _get_features(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    result, payload = features.get(enabled(queue), sqe)
    if payload:
        queue.answers.respond_data(sqe, payload)
    else:
        queue.answers.respond(sqe.cid, 0, result)


def _set_features(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    queue.answers.respond(sqe.cid, 0, features.set_(enabled(queue), sqe))


def _async_event(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    enabled(queue).request_event(sqe.cid)


def _keep_alive(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    if queue.controller is None or queue.controller.kato == 0:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    queue.answers.respond(sqe.cid)


def _abort(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    # Abort is best effort (base 1.4, section 5.1): bit 0 of dword 0 says "not aborted", and the command it
    # names completes as if nothing had been asked.
    enabled(queue)
    queue.answers.respond(sqe.cid, 0, 1)


ADMIN: Mapping[int, Handler] = {
    AdminOp.GET_LOG_PAGE: _get_log_page,
    AdminOp.IDENTIFY: _identify,
    AdminOp.ABORT: _abort,
    AdminOp.SET_FEATURES: _set_features,
    AdminOp.GET_FEATURES: _get_features,
    AdminOp.ASYNC_EVENT: _async_event,
    AdminOp.KEEP_ALIVE: _keep_alive,
    AdminOp.FABRICS: fabrics.command,
}

DISCOVERY: Mapping[int, Handler] = {op: handler for op, handler in ADMIN.items() if op != AdminOp.ABORT}
