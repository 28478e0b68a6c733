"""The NVMe/TCP target process as the agent sees it: start, tell, ask, end.

Its configuration file is the whole truth: it is made durable before the process hears of it, so a target
that is started again by anybody shows the very same subsystems.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec

from nicagent.errors import Kind, NicagentError
from nicagent.files import make_private_directory, replace_private
from nicagent.proc import Daemon
from nicagent.storage.keeper import end_listener, has_died, last_line, trim_log
from nicagent.storage.nvmetcp import control
from nicagent.storage.nvmetcp.config import TargetConfig, load
from nicagent.storage.nvmetcp.contract import TargetStatus
from nicagent.storage.qsd import check_socket_path
from nicagent.threads import in_thread

MODULE = "nicagent.storage.nvmetcp"
START_DEADLINE = 15.0  # seconds to show its subsystems; an interpreter starts in well under one
POLL = 0.01  # seconds between looks at a process that starts


class TargetProcess:
    """A host's target. Not safe for concurrent calls: the storage driver holds a lock."""

    def __init__(self, host: str, run: Path, log_file: Path) -> None:
        self.daemon = Daemon(f"NVMe/TCP target of {host}", run / "nvmetcp.pid")
        self.control = run / "nvmetcp.sock"
        self._file = run / "nvmetcp.json"
        self._log_file = log_file
        check_socket_path(self.control)

    async def converge(self, config: TargetConfig) -> None:
        """Make the running target show exactly this. One that shows it already is not disturbed.

        Raises UNAVAILABLE with the target's own reason when it does not start or refuses.
        """
        content = msgspec.json.format(msgspec.json.encode(config), indent=1)
        alive = self.daemon.pid() is not None
        before = self._file.read_bytes() if self._file.exists() else None
        if alive and before == content and await self._shown(config):
            return
        make_private_directory(self._file.parent)
        try:
            await in_thread(replace_private, self._file, content, durably=True)
            if not alive or not await self._reloaded():
                await self._start(config)
        except BaseException as e:
            # What was written does not stand: the file says again what the target shows, or last showed.
            if before is not None:
                replace_private(self._file, before, durably=True)
            else:
                self._file.unlink(missing_ok=True)
            if isinstance(e, NicagentError):
                raise self._unavailable(e.message.removeprefix(f"{self.daemon.name}: ")) from None
            raise

    def serials(self) -> dict[str, str]:
        """NQN → serial of what the target shows, or showed when it died; empty when there was none."""
        if not self._file.exists():
            return {}
        return {subsystem.nqn: subsystem.serial for subsystem in load(self._file).subsystems}

    async def look_again(self) -> None:
        """Have it compare the sizes of its disks with what hosts know, and tell them."""
        await control.ask(self.control, "reload")

    async def status(self) -> TargetStatus:
        """Its counters. Raises UNAVAILABLE when it does not answer."""
        return await control.ask_status(self.control)

    async def stop(self) -> None:
        """End it and leave nothing. Idempotent."""
        await self.daemon.stop()
        await end_listener(self.control, MODULE)
        self.daemon.pidfile.with_suffix(".new").unlink(missing_ok=True)  # its starter died over it
        for path in (self.control, self._file):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".new").unlink(missing_ok=True)

    async def _start(self, config: TargetConfig) -> None:
        await end_listener(self.control, MODULE)
        trim_log(self._log_file)
        argv = [sys.executable, "-P", "-m", MODULE, "--config", str(self._file)]
        self.daemon.start(argv, log=self._log_file)
        try:
            if await self._shown(config):
                return
        except NicagentError:
            await self.daemon.stop()
            raise
        raise self._unavailable(f"it does not start: {last_line(self._log_file)}")

    async def _reloaded(self) -> bool:
        """Have it read its file; False when it died over it."""
        try:
            await control.ask(self.control, "reload")
        except NicagentError:
            if not await has_died(self.daemon):
                raise
            return False
        return True

    async def _shown(self, config: TargetConfig) -> bool:
        """Wait until it listens and shows every subsystem; False when it ended instead.

        Its control socket answers a little earlier than its first host could connect.
        """
        wanted = {subsystem.nqn for subsystem in config.subsystems}
        try:
            async with asyncio.timeout(START_DEADLINE):
                while self.daemon.pid() is not None:
                    with contextlib.suppress(NicagentError):
                        status = await self.status()
                        shown = {subsystem.nqn for subsystem in status.subsystems}
                        if shown == wanted and len(status.listen) >= len(config.listen):
                            return True
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise self._unavailable(f"it shows nothing after {START_DEADLINE:g} s") from None
        return False

    def _unavailable(self, what: str) -> NicagentError:
        return NicagentError(Kind.UNAVAILABLE, f"{self.daemon.name}: {what}", f"its log is {self._log_file}")
