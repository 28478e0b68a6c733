"""virt-manager, as an operator uses it: it connects, shows the server, starts it, and is its console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from images.clients import HOME
from tests.clients.conftest import qemu_uri
from tests.clients.programs import eventually, program, running
from tests.clients.screen import Screen, screen
from tests.hypervisor_shim.serving import Served

POWER_ON = (124, 46)  # where the tool bar of virt-manager 4 and 5 has it, from the window's corner
CONSOLE = (20, 80, 600, 100)  # left, top, width, height of the terminal's upper part
TYPED = "hello metal"


def test_the_server_is_started_and_its_console_typed_at(agent: Served, conn: Any, home: Path) -> None:
    domain = conn.lookupByName("metal-1")
    with screen(home) as shown:
        argv = [program("dbus-run-session"), "--", program("virt-manager"), "--no-fork", "--connect"]
        argv += [qemu_uri(agent), "--show-domain-console", "metal-1"]
        with running(argv, home, {"DISPLAY": shown.display}):
            try:
                eventually(lambda: shown.window("metal-1 on"), 30, "a window of the domain's own")
                eventually(lambda: _press(shown, domain), 20, "a start by the button")
                eventually(lambda: agent.run(_console(agent)), 20, "a console opened by the window")
                eventually(lambda: _echoed(shown), 20, "an echo in the terminal")
            finally:
                shown.save(HOME / "virt-manager.png")


def _press(shown: Screen, domain: Any) -> bool:
    if not domain.isActive():
        shown.click(*POWER_ON)
    return bool(domain.isActive())


def _echoed(shown: Screen) -> bool:
    """Type; whether letters are there. The in-memory console echoes: they were at the server and are back."""
    shown.do("search", "--name", "metal-1 on", "windowfocus")
    shown.click(400, 300)
    shown.do("type", "--delay", "20", TYPED)
    return shown.colours(*CONSOLE) > 2


async def _console(agent: Served) -> bool:
    return any(domain.console is not None for domain in agent.driver._domains.values())  # type: ignore[attr-defined]
