"""The driver's end of an IPMI worker process: start it, ask it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from dataclasses import dataclass
from typing import Literal

import msgspec

from nicagent import proc
from nicagent.config import IpmiPower

END_SECONDS = 2.0  # for a worker to log out before it is killed

Op = Literal["status", "on", "off", "reset", "soft", "interrupt"]
Fault = Literal["silent", "denied", "unsupported", "state", "refused"]


class Answer(msgspec.Struct, frozen=True):
    """A worker's answer; `ipmi_worker` says what the words mean."""

    id: int
    ok: bool
    power: Literal["on", "off"] | None = None
    fault: Fault = "refused"
    text: str = ""


class WorkerGone(Exception):
    """The worker ended, or answered nonsense, before it answered the question."""


@dataclass
class WorkerLink:
    """One worker process and the conversation with it. Not for two tasks at once."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    last_id: int = 0

    @staticmethod
    async def spawn(config: IpmiPower) -> WorkerLink:
        """Start a worker for this BMC. Only the path of the password goes over."""
        ours, theirs = socket.socketpair()
        try:
            process = await proc.spawn(
                [sys.executable, "-m", "nicagent.power.ipmi_worker"], stdin=theirs.fileno()
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = WorkerLink(process, reader, writer)
        link._send(
            {
                "address": config.address,
                "port": config.port,
                "user": config.user,
                "password_file": config.password_file,
            }
        )
        return link

    async def ask(self, op: Op) -> Answer:
        """One question, one answer. The caller sets the deadline, and kills the worker when it is missed."""
        self.last_id += 1
        self._send({"id": self.last_id, "op": op})
        try:
            answer = msgspec.json.decode(await self.reader.readuntil(), type=Answer)
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            OSError,
            msgspec.DecodeError,
        ) as error:
            raise WorkerGone(f"{type(error).__name__}") from None
        if answer.id != self.last_id:
            raise WorkerGone("answered another question")
        return answer

    async def end(self) -> None:
        """Close the conversation: the worker logs out and ends, or is killed."""
        self.writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self.process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it now. Its session at the BMC is left to time out there."""
        self.writer.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    def _send(self, message: dict[str, object]) -> None:
        self.writer.write(msgspec.json.encode(message) + b"\n")
