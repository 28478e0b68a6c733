"""OpenIPMI's BMC simulator with a chassis of two files: `power` holds 0 or 1, `calls` what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from asyncio.subprocess import DEVNULL
from dataclasses import dataclass, field
from pathlib import Path

PASSWORD = "correct-horse"

LAN = """\
name "sim"
set_working_mc 0x20
startlan 1
addr 127.0.0.1 {port}
priv_limit admin
allowed_auths_admin md5
guid a123456789abcdefa123456789abcdef
endlan
user 2 true "admin" "{password}" admin 10
chassis_control "{script}"
"""

COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""

# Called as: get power | set power 0|1 | set reset 1 | set shutdown 1 (lanserv's chassis control interface)
SCRIPT = """\
#!/bin/sh
cd "{directory}"
case "$1 $2" in
"get power") echo "power:$(cat power)" ;;
*) echo "$2 $3" >> calls
   [ -e dead ] && exit 0
   [ "$1 $2" = "set power" ] && echo "$3" > power.new && mv power.new power
   [ "$1 $2" = "set shutdown" ] && [ -e obeys ] && echo 0 > power.new && mv power.new power ;;
esac
exit 0
"""


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class IpmiSim:
    """`async with` it: a BMC answers on 127.0.0.1:`port`."""

    directory: Path
    port: int = field(default_factory=free_udp_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def password_file(self) -> Path:
        return self.directory / "password"

    async def __aenter__(self) -> IpmiSim:
        here = self.directory
        (here / "state").mkdir(parents=True)
        script = here / "chassis.sh"
        script.write_text(SCRIPT.format(directory=here))
        script.chmod(0o755)
        (here / "lan.conf").write_text(LAN.format(port=self.port, password=PASSWORD, script=script))
        (here / "commands").write_text(COMMANDS)
        (here / "power").write_text("0\n")
        (here / "calls").write_text("")
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)
        await self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def begin(self) -> None:
        """(Re)start the BMC's firmware: sessions are forgotten, the chassis stays as it is."""
        here = self.directory
        self.process = await asyncio.create_subprocess_exec(
            "ipmi_sim", "-n", "-c", here / "lan.conf", "-f", here / "commands", "-s", here / "state",
            stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
        )  # fmt: skip

    async def end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def freeze(self) -> None:
        """Silent, but not gone: no ICMP tells the client."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def is_on(self) -> bool:
        return (self.directory / "power").read_text().strip() == "1"

    def set_power(self, on: bool) -> None:
        """The host switches itself on or off."""
        (self.directory / "power").write_text(f"{int(on)}\n")

    @property
    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()
