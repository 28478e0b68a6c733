"""Commands of one queue that wait for a back end: their number, their memory, and how they end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial

from nicagent.storage.nvmetcp.answers import Answers
from nicagent.storage.nvmetcp.backend import BackendError
from nicagent.storage.nvmetcp.limits import PENDING_BYTES
from nicagent.storage.nvmetcp.operation import Operation
from nicagent.storage.nvmetcp.spec import DNR, NvmeError, Status

log = logging.getLogger(__name__)

# What an error of a back end means to a host; any other is the failure of its command's kind.
MEANINGS: dict[int, int] = {
    errno.ENOSPC: Status.CAPACITY_EXCEEDED,
    errno.EDQUOT: Status.CAPACITY_EXCEEDED,
    errno.EROFS: Status.WRITE_PROTECTED | DNR,
    # The server behind the disk is away: the host may well try again.
    errno.ESHUTDOWN: Status.NAMESPACE_NOT_READY,
    errno.ETIMEDOUT: Status.NAMESPACE_NOT_READY,
}


class Pending:
    """By CID. `balance` is called when the memory held passes PENDING_BYTES, in either direction."""

    __slots__ = ("_answers", "_balance", "_bytes", "operations")

    def __init__(self, answers: Answers, balance: Callable[[], None]) -> None:
        self.operations: dict[int, Operation] = {}
        self._answers = answers
        self._balance = balance
        self._bytes = 0

    @property
    def full(self) -> bool:
        """No more commands should come for now."""
        return self._bytes > PENDING_BYTES

    def add(
        self,
        cid: int,
        operation: Operation,
        failure: int,
        done: Callable[[], None] | None = None,
        weight: int = 0,
    ) -> None:
        """Completes `cid` when `operation` ends: by `done()` if it went well, else with a status.

        `failure` is the status of a medium error, `weight` the bytes of memory held meanwhile.
        """
        self.operations[cid] = operation
        self._bytes += weight
        operation.then(partial(self._finish, cid, failure, done, weight))
        if self.full:
            self._balance()

    def read(self, cid: int, length: int, start: Callable[[memoryview], Operation], failure: int) -> None:
        """Completes `cid` with the `length` bytes that the operation of `start(place)` puts in place."""
        frame, place = self._answers.frame(length)
        self.add(cid, start(place), failure, partial(self._answers.respond_frame, cid, frame, length), length)

    def drop(self) -> None:
        """Nobody waits for answers any more."""
        operations, self.operations = self.operations, {}
        self._bytes = 0
        for operation in operations.values():
            operation.cancel()

    def _finish(
        self,
        cid: int,
        failure: int,
        done: Callable[[], None] | None,
        weight: int,
        error: Exception | None,
    ) -> None:
        was_full = self.full
        del self.operations[cid]
        self._bytes -= weight
        if error is not None:
            self._answers.respond(cid, *_status_of(error, failure))
        elif done is None:
            self._answers.respond(cid)
        else:
            done()
        if was_full:
            self._balance()


def _status_of(error: Exception, failure: int) -> tuple[int, int]:
    """Status and result for an error of a back end or of a deferred command."""
    if isinstance(error, NvmeError):
        return error.status, error.result
    if isinstance(error, BackendError):
        return MEANINGS.get(error.errno, failure), 0
    log.error("a command failed: %r", error)
    return Status.INTERNAL, 0
