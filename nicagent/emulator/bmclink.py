"""The chassis' end of the wire to its BMC: starts the BMC's process, answers its questions, starts it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nicagent import proc
from nicagent.emulator.bmc import MESSAGE_LIMIT, Ask, OrderName, Setup, Told
from nicagent.emulator.body import Event, Power, Verdict
from nicagent.emulator.chassis import BootFlags, Chassis
from nicagent.emulator.faults import Fault
from nicagent.emulator.settings import Bmc as Settings
from nicagent.errors import Kind, NicagentError

START_DEADLINE = 20.0  # seconds until the first BMC listens
RESTART_DELAY = 0.5  # seconds between a BMC's end and the next one
PASSWORD_LIMIT = 20  # bytes (IPMI 2.0, 13.33)

EVENTS: Mapping[OrderName, Event] = {
    "on": Event.ORDER_ON,
    "off": Event.ORDER_OFF,
    "cycle": Event.ORDER_CYCLE,
    "reset": Event.ORDER_RESET,
    "interrupt": Event.ORDER_INTERRUPT,
    "soft": Event.ORDER_SOFT,
}

log = logging.getLogger(__name__)


def password(path: Path) -> str:
    """The BMC's password: the first line of `path`, made up and written there (mode 0600) when it is
    missing.
    """
    try:
        found = path.read_text().split("\n", 1)[0]
    except FileNotFoundError:
        found = secrets.token_urlsafe(12)
        path.touch(mode=0o600)
        path.write_text(found + "\n")
    except OSError as error:
        raise NicagentError(
            Kind.INVALID, f"cannot read the BMC's password from {path}: {error.strerror}", "mend the path"
        ) from None
    if not 1 <= len(found.encode()) <= PASSWORD_LIMIT:
        raise NicagentError(
            Kind.INVALID,
            f"the first line of {path} is no IPMI password",
            f"it must have 1 to {PASSWORD_LIMIT} bytes",
        )
    return found


class BmcUnit:
    """`async with BmcUnit(chassis, settings)`: a BMC listens from then on, except while mains are off.

    Raises NicagentError when its address cannot be used.
    """

    def __init__(self, chassis: Chassis, settings: Settings) -> None:
        self._chassis = chassis
        self._settings = settings
        given = settings.password_file
        self.password_file = Path(given) if given else chassis.directory / "bmc.password"
        self._writer: asyncio.StreamWriter | None = None
        self._ready: asyncio.Future[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.starts = 0

    async def __aenter__(self) -> BmcUnit:
        self._setup = self._describe()
        self._ready = asyncio.get_running_loop().create_future()
        self._chassis.on_faults.append(self._tell_faults)
        self._keeper = asyncio.create_task(self._keep(), name=f"BMC {self._chassis.settings.name}")
        try:
            async with asyncio.timeout(START_DEADLINE):
                await self._ready
        except TimeoutError:
            await self.__aexit__()
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the BMC of {self._chassis.settings.name} did not start",
                f"see {self._chassis.directory / 'bmc.log'}",
            ) from None
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._chassis.on_faults.remove(self._tell_faults)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    def status(self) -> Mapping[str, object]:
        """What the control socket says about the BMC."""
        pid = self._process.pid if self._process is not None else None
        settings = self._settings
        return {
            "bmc": {
                "address": settings.address,
                "port": settings.port,
                "netns": settings.netns,
                "user": settings.user,
                "password_file": str(self.password_file),
                "pid": pid,
                "starts": self.starts,
            }
        }

    def _describe(self) -> Setup:
        chassis, settings = self._chassis.settings, self._settings
        seed = chassis.uuid or chassis.name
        return Setup(
            address=settings.address,
            port=settings.port,
            netns=settings.netns,
            user=settings.user,
            password=password(self.password_file),
            guid=hashlib.sha256(f"nicagent BMC {seed}".encode()).hexdigest()[:32],
        )

    async def _keep(self) -> None:
        while True:
            await self._chassis.mains_on.wait()
            await self._one_life()
            await asyncio.sleep(RESTART_DELAY)

    async def _one_life(self) -> None:
        """One BMC process from start to end; it is ended when mains go away or the chassis does."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            fd = theirs.fileno()
            code = f"from nicagent.emulator.bmc import main; main({fd})"
            argv = [sys.executable, "-P", "-c", code]
            log_file = self._chassis.directory / "bmc.log"
            process = await proc.spawn(argv, log=log_file, pass_fds=(fd,))
        self._process = process
        self.starts += 1
        dark = asyncio.create_task(self._chassis.mains_off.wait())
        talk = asyncio.create_task(self._talk(ours))
        try:
            await asyncio.wait((dark, talk), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (dark, talk):
                task.cancel()
            await asyncio.wait((dark, talk))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            self._process = None
        if not talk.cancelled() and (error := talk.exception()) is not None:
            log.error("BMC of %s: %s", self._chassis.settings.name, error)

    async def _talk(self, wire: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=wire, limit=MESSAGE_LIMIT)
        self._writer = writer
        try:
            writer.write(msgspec.json.encode(self._setup) + b"\n")
            self._tell_faults()
            async with asyncio.TaskGroup() as tasks:
                while line := await reader.readline():
                    ask = msgspec.json.decode(line, type=Ask)
                    tasks.create_task(self._answer(ask, writer))
        finally:
            self._writer = None
            writer.close()

    async def _answer(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        chassis = self._chassis
        told = Told(ask.id)
        match ask.op:
            case "ready" | "failed":
                self._started(ask.error)
                return
            case "power":
                told = Told(ask.id, on=chassis.power is Power.ON)
            case "order" if ask.order is not None:
                told = Told(ask.id, verdict=await self._order(ask.order))
            case "boot":
                told = Told(ask.id, boot=tuple(chassis.boot.raw))
            case "set-boot":
                chassis.boot = BootFlags(bytes(ask.boot[:5]).ljust(5, b"\0"))
        writer.write(msgspec.json.encode(told) + b"\n")

    async def _order(self, order: OrderName) -> Verdict:
        if Fault.BMC_LIES in self._chassis.faults:
            return Verdict.DONE
        return await self._chassis.order(EVENTS[order], "BMC")

    def _started(self, error: str) -> None:
        if self._ready is None or self._ready.done():
            return
        if not error:
            self._ready.set_result(None)
            return
        self._ready.set_exception(
            NicagentError(
                Kind.UNAVAILABLE,
                f"the BMC of {self._chassis.settings.name} cannot listen on {error}",
                "is the address configured in that netns, and the port free?",
            )
        )

    def _tell_faults(self) -> None:
        if self._writer is not None:
            faults = self._chassis.faults
            told = Told(silent=Fault.BMC_SILENT in faults, slow=faults.get(Fault.BMC_SLOW, 0.0))
            self._writer.write(msgspec.json.encode(told) + b"\n")
