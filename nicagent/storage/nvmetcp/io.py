"""I/O commands of the NVM command set (base 1.4, section 6): checks, then the back end."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from nicagent.storage.nvmetcp import fabrics
from nicagent.storage.nvmetcp.limits import TRANSFER_MAX
from nicagent.storage.nvmetcp.operation import Operation, together
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.queue import Handler, Queue
from nicagent.storage.nvmetcp.spec import CSTS_READY, DNR, NSID_ALL, AdminOp, IoOp, NvmeError, Status
from nicagent.storage.nvmetcp.subsystem import Namespace

FUA = 1 << 30  # cdw12
DEALLOCATE = 1 << 25  # cdw12 of Write Zeroes
AD = 1 << 2  # cdw11 of Dataset Management: deallocate
RANGE = Struct("<IIQ")  # context attributes, blocks, first block


def _namespace(queue: Queue, nsid: int) -> Namespace:
    controller = queue.controller
    if controller is None or controller.subsystem is None or not controller.csts & CSTS_READY:
        raise NvmeError(Status.COMMAND_SEQUENCE | DNR)
    namespace = controller.subsystem.namespaces.get(nsid)
    if namespace is None:
        raise NvmeError(Status.INVALID_NAMESPACE | DNR)
    return namespace


def _range(namespace: Namespace, sqe: Sqe) -> tuple[int, int]:
    """Offset and length in bytes of SLBA and NLB."""
    offset = (sqe.cdw11 << 32 | sqe.cdw10) << namespace.shift
    length = ((sqe.cdw12 & 0xFFFF) + 1) << namespace.shift
    if offset + length > namespace.backend.size:
        raise NvmeError(Status.LBA_RANGE | DNR)
    return offset, length


def _writable(namespace: Namespace) -> None:
    if namespace.readonly:
        raise NvmeError(Status.WRITE_PROTECTED | DNR)


def _counted(namespace: Namespace, operation: Operation) -> Operation:
    """`operation`, whose failure is counted."""
    return operation.then(namespace.counters.outcome)


def read(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Read (6.9). Served in this wake-up if the back end has the data at hand."""
    namespace = _namespace(queue, sqe.nsid)
    offset, length = _range(namespace, sqe)
    if length > TRANSFER_MAX:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if sqe.sgl_length != length:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    namespace.counters.read(length)
    backend = namespace.backend
    if not queue.answers.read_now(sqe.cid, length, backend.read_now, offset):
        queue.pending.read(
            sqe.cid, length, lambda place: _counted(namespace, backend.read(offset, place)), Status.READ_ERROR
        )


def write(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Write (6.15)."""
    namespace = _namespace(queue, sqe.nsid)
    offset, length = _range(namespace, sqe)
    if len(data) != length:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    _writable(namespace)
    namespace.counters.write_ops += 1
    namespace.counters.write_bytes += length
    durable = bool(sqe.cdw12 & FUA)
    if not durable and namespace.backend.write_now(offset, data):
        queue.answers.respond(sqe.cid)
        return
    kept = queue.keep(data)
    queue.pending.add(
        sqe.cid,
        _counted(namespace, namespace.backend.write(offset, kept, durable=durable)),
        Status.WRITE_FAULT,
        weight=length if kept is not data else 0,  # data that came by R2T is accounted for already
    )


def flush(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Flush (6.8); with NSID FFFFFFFFh every namespace of the subsystem (VWC says so)."""
    if sqe.nsid == NSID_ALL and queue.controller is not None and queue.controller.subsystem is not None:
        namespaces = [*queue.controller.subsystem.namespaces.values()]
    else:
        namespaces = [_namespace(queue, sqe.nsid)]
    for namespace in namespaces:
        namespace.counters.flush_ops += 1
    if not namespaces:
        queue.answers.respond(sqe.cid)
        return
    flushes = [_counted(namespace, namespace.backend.flush()) for namespace in namespaces]
    queue.pending.add(sqe.cid, together(flushes), Status.WRITE_FAULT)


def write_zeroes(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Write Zeroes (6.17)."""
    namespace = _namespace(queue, sqe.nsid)
    offset, length = _range(namespace, sqe)
    _writable(namespace)
    namespace.counters.write_zeroes_ops += 1
    may_unmap, durable = bool(sqe.cdw12 & DEALLOCATE), bool(sqe.cdw12 & FUA)
    zeroing = namespace.backend.write_zeroes(offset, length, may_unmap=may_unmap, durable=durable)
    queue.pending.add(sqe.cid, _counted(namespace, zeroing), Status.WRITE_FAULT)


def dataset_management(queue: Queue, sqe: Sqe, data: memoryview) -> None:
    """Dataset Management (6.7): deallocation; every other attribute is a hint we need not take."""
    namespace = _namespace(queue, sqe.nsid)
    count = (sqe.cdw10 & 0xFF) + 1
    if len(data) < count * RANGE.size:
        raise NvmeError(Status.SGL_LENGTH | DNR)
    _writable(namespace)
    namespace.counters.discard_ops += 1
    ranges = []
    for at in range(0, count * RANGE.size, RANGE.size):
        _, blocks, first = RANGE.unpack_from(data, at)
        offset, length = first << namespace.shift, blocks << namespace.shift
        if offset + length > namespace.backend.size:
            raise NvmeError(Status.LBA_RANGE | DNR)
        if length:
            ranges.append((offset, length))
    if not sqe.cdw11 & AD or not ranges:
        queue.answers.respond(sqe.cid)
        return
    discards = [_counted(namespace, namespace.backend.discard(*one)) for one in ranges]
    queue.pending.add(sqe.cid, together(discards), Status.WRITE_FAULT)


IO: Mapping[int, Handler] = {
    IoOp.FLUSH: flush,
    IoOp.WRITE: write,
    IoOp.READ: read,
    IoOp.WRITE_ZEROES: write_zeroes,
    IoOp.DATASET_MANAGEMENT: dataset_management,
    AdminOp.FABRICS: fabrics.command,
}
