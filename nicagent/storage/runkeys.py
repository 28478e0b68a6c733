"""The keys of a host's run: taken when its exports come up, the same until they go.

The host's OS got them when it was started and nobody can hand it others: a target that asked for new ones
after a restart would cost the host its root disk. So they are kept where they survive the agent, its board's
reboot and a changed secret; what a client changes meanwhile is for the next start, as it is in libvirt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from nicagent.files import make_private_directory, replace_private
from nicagent.model import Credentials
from nicagent.threads import in_thread

Source = Callable[[], Credentials | None]


class RunKeys:
    """Of one host. `file` is the agent's alone (0600); `source` tells the keys for a new run, and raises
    NicagentError when it has none."""

    def __init__(self, file: Path, source: Source) -> None:
        self._file = file
        self._source = source

    def held(self) -> Credentials | None:
        """Those of the run, None where it has none or there is no run."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Credentials | None)
        except FileNotFoundError:
            return None

    async def take(self, *, running: bool) -> Credentials | None:
        """Those of the run. One that is `running` already, without any, began before there were keys."""
        if not self._file.exists():
            taken = None if running else self._source()
            make_private_directory(self._file.parent)
            await in_thread(replace_private, self._file, msgspec.json.encode(taken), durably=True)
        return self.held()

    def forget(self) -> None:
        """The run is over. Idempotent."""
        self._file.unlink(missing_ok=True)
        self._file.with_name(self._file.name + ".new").unlink(missing_ok=True)
