"""A server's screen as the graphics device of its domain: stock clients find it, see it, and type.

What is on it is the firmware's; no guest OS is booted. The tests run in the order of the file.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.clients import HOME
from nicagent import client
from tests.clients.programs import environment, eventually, program, run, running
from tests.clients.screen import Screen, screen
from tests.e2e.harness import Agent, domain_xml, events, lab_directory, wired_agent

BOARD = "192.0.2.1"  # an address of the agent's board that desks reach
CONFIG = f"""
[libvirt]
tcp = "{BOARD}:16509"
[graphics]
allow = ["127.0.0.1", "{BOARD}"]
"""
LOOK = Path(__file__).parents[2] / "clients" / "vnc_look.py"
GREY = (0xA8, 0xA8, 0xA8)  # the ground of the firmware's menus: red, green, blue
PICTURE_SECONDS = 90.0  # OVMF takes its time without KVM, on a busy machine more


@dataclass
class Place:
    agent: Agent
    home: Path

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def refused(self, *words: str) -> str:
        return self.agent.refused(*words)

    def beside(self, *argv: str | Path) -> list[str | Path]:
        return self.agent.beside(*argv)

    def look(self, port: int, *password: str, address: str = "127.0.0.1") -> str:
        """What a stock viewer says."""
        return run(self.beside("/usr/bin/python3", LOOK, address, str(port), *password), self.home)

    @contextlib.contextmanager
    def looking(self, port: int, address: str = BOARD) -> Iterator[subprocess.Popen[str]]:
        """A stock viewer that sees the screen now, and stays."""
        viewer = subprocess.Popen(
            self.beside("/usr/bin/python3", LOOK, address, str(port), "--stay"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment(self.home),
        )  # fmt: skip
        assert viewer.stdout is not None
        try:
            assert "sees" in viewer.stdout.readline()
            yield viewer
        finally:
            viewer.kill()
            viewer.wait()

    def define(self, name: str, graphics: str) -> None:
        path = self.home / "definition.xml"
        document = domain_xml(name, None, segment=None)
        path.write_text(document.replace("<console", f"{graphics}<console"))
        self.virsh("define", str(path))

    @property
    def state(self) -> str:
        return self.agent.cli("hosts").stdout


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server that virt-install has made a domain of, with a screen."""
    with tempfile.TemporaryDirectory(prefix="scr-", ignore_cleanup_errors=True) as name:
        place = Place(wired_agent(lab_directory(), Path(name)), Path(name))
        with place.agent.config.open("a") as config:
            config.write(CONFIG)
        subprocess.run(place.beside("ip", "address", "add", f"{BOARD}/32", "dev", "lo"), check=True)
        place.agent.start()
        eventually(lambda: "unknown" not in place.state, 20, "its power being read")
        try:
            uri = place.agent.uri.replace("nic+", "qemu+")
            words = "--name web --memory 512 --vcpus 1 --import --disk none --network none --osinfo debian11"
            graphics = f"--graphics vnc,listen={BOARD} --noautoconsole"
            run([program("virt-install"), "--connect", uri, *words.split(), *graphics.split()], place.home)
            yield place
        finally:
            place.agent.virsh("destroy", "web", check=False)
            place.agent.stop()


def test_its_place_is_told_as_libvirtd_tells_it(place: Place) -> None:
    assert place.virsh("vncdisplay", "web") == f"{BOARD}:0"
    assert place.virsh("domdisplay", "web") == f"vnc://{BOARD}:0"
    live = place.virsh("dumpxml", "web", "--xpath", "//graphics")
    assert live.startswith('<graphics type="vnc" port="5900" autoport="yes" listen="192.0.2.1">')
    assert '<listen type="address" address="192.0.2.1"/>' in live
    kept = place.virsh("dumpxml", "web", "--inactive", "--xpath", "//graphics")
    assert kept.startswith('<graphics type="vnc" port="-1" autoport="yes" listen="192.0.2.1">')
    assert "<value>vnc</value>" in place.virsh("domcapabilities")
    # What kvmagent waits for after a start, and nova's proxy connects to.
    listening = run(place.beside("ss", "-Hltn", "sport = :5900"), place.home)
    assert re.search(r"LISTEN .* 192\.0\.2\.1:5900 ", listening)


def test_a_stock_viewer_sees_it_and_clients_are_told_who_looks(place: Place) -> None:
    with events(place.agent, place.home / "events") as told:
        assert re.match(r"sees \d+x\d+ of ", place.look(5900, address=BOARD))
        eventually(lambda: "disconnect" in told.read_text(), 10, "the end of the viewer")
    where = r"local\[IPv4 192\.0\.2\.1 5900\] remote\[IPv4 192\.0\.2\.1 \d+\] none$"
    assert re.findall(rf"event 'graphics' for domain 'web': (\w+) {where}", told.read_text(), re.M) == [
        "connect", "initialize", "disconnect",
    ]  # fmt: skip


def test_virt_manager_shows_the_picture_and_types(place: Place) -> None:
    """Escape, typed while the firmware starts, leads to its menu; without a key it goes on to the network."""
    with screen(place.home) as shown:
        manager = [program("virt-manager"), "--no-fork", "--show-domain-console", "web"]
        manager += ["--connect", f"qemu+tcp://{BOARD}/system"]
        argv = place.beside(program("dbus-run-session"), "--", *manager)
        with running(argv, place.home, {"DISPLAY": shown.display}):
            try:
                eventually(lambda: shown.window("web on"), 30, "a window of the domain's own")
                place.virsh("reset", "web")  # the firmware asks for keys only at its start
                eventually(lambda: escaped(shown), PICTURE_SECONDS, "the menu that Escape leads to")
            finally:
                shown.save(HOME / "virt-manager-screen.png")


def escaped(shown: Screen) -> bool:
    shown.do("search", "--name", "web on", "windowfocus")
    shown.click(600, 700)
    shown.do("key", "Escape")
    return share_of(GREY, shown) > 0.2


def share_of(colour: Sequence[int], shown: Screen) -> float:
    """How much of the domain's window below its tool bar is nearly of this colour; a sample."""
    blue, green, red = reversed(colour)
    picture = [row[i : i + 3] for row in shown.rows()[72:832:4] for i in range(0, 1024 * 4, 16)]
    near = sum(max(abs(b - blue), abs(g - green), abs(r - red)) < 24 for b, g, r in picture)
    return near / len(picture)


def test_the_screen_is_there_again_after_a_crash_of_the_agent(place: Place) -> None:
    with place.looking(5900) as viewer:
        place.agent.kill()
        assert viewer.stdout is not None and "hung up on" in viewer.stdout.read()
    place.agent.start()
    eventually(lambda: place.look(5900, address=BOARD).startswith("sees"), 20, "the screen at its port")
    assert place.virsh("vncdisplay", "web") == f"{BOARD}:0"


def test_the_screen_ends_with_its_domain(place: Place) -> None:
    with place.looking(5900) as viewer:
        place.virsh("destroy", "web")
        assert viewer.stdout is not None and "hung up on" in viewer.stdout.read()
    assert "Connection refused" in place.look(5900, address=BOARD)
    assert "Domain is not running" in place.refused("vncdisplay", "web")


def test_a_port_that_is_taken_is_a_sentence_and_nothing_is_left_half_done(place: Place) -> None:
    place.define("fixed", "<graphics type='vnc' port='5907'/>")
    listen = "import socket; s = socket.create_server(('127.0.0.1', 5907)); print(flush=True); s.accept()"
    taker = subprocess.Popen(place.beside(sys.executable, "-c", listen), stdout=subprocess.PIPE)
    try:
        assert taker.stdout is not None and taker.stdout.readline()
        assert "port 5907 at 127.0.0.1 is taken by another program" in place.refused("start", "fixed")
    finally:
        taker.kill()
        taker.communicate()
    assert place.virsh("domstate", "fixed") == "shut off" and "\tfree\t" in place.state
    place.virsh("start", "fixed")
    assert place.virsh("vncdisplay", "fixed") == "127.0.0.1:7"
    place.virsh("destroy", "fixed")


@pytest.mark.parametrize(
    ("graphics", "why"),
    [
        (
            "<graphics type='vnc' listen='0.0.0.0'/>",
            "shown at '0.0.0.0' here, only at 127.0.0.1 or",
        ),
        ("<graphics type='vnc' port='22'/>", "port 22 is none that a screen may have here: 5900 to 5999"),
    ],
)
def test_what_the_operator_does_not_allow_is_not_started(place: Place, graphics: str, why: str) -> None:
    place.define("open", graphics)
    said = place.refused("start", "open")
    assert "unsupported configuration" in said and why in said
    place.virsh("undefine", "open")


def test_a_password_is_asked_for_and_told_only_to_whom_it_may_be(place: Place) -> None:
    place.define("locked", "<graphics type='vnc' port='5908' passwd='s3cret' sharePolicy='force-shared'/>")
    place.virsh("start", "locked")
    assert place.look(5908, "s3cret").startswith("sees")
    for wrong in ((), ("s3cre",), ("",)):
        assert "is hung up on" in place.look(5908, *wrong), "nobody comes in without it"
    assert "passwd" not in place.virsh("dumpxml", "locked")
    assert "passwd='s3cret'" in place.virsh("dumpxml", "locked", "--security-info")
    assert place.virsh("domdisplay", "locked", "--include-password") == "vnc://:s3cret@127.0.0.1:8"

    change = place.home / "graphics.xml"  # as oVirt gives out tickets
    change.write_text("<graphics type='vnc' port='5908' passwd='ticket' sharePolicy='force-shared'/>")
    place.virsh("update-device", "locked", str(change), "--live")
    assert place.look(5908, "ticket").startswith("sees")
    assert "is hung up on" in place.look(5908, "s3cret"), "the old one is over"
    change.write_text(
        "<graphics type='vnc' port='5908' passwd='ticket' passwdValidTo='2001-01-01T00:00:00'/>"
    )
    place.virsh("update-device", "locked", str(change), "--live")
    assert "is hung up on" in place.look(5908, "ticket"), "its time is over"
    change.write_text("<graphics type='vnc' port='5909' passwd='ticket'/>")
    assert "cannot change port settings" in place.refused("update-device", "locked", str(change), "--live")
    place.virsh("destroy", "locked")
    assert "s3cret" not in place.agent.log.read_text()
    told = client.call(place.agent.directory / "run/nicagent.sock", "GET", "/v1/domains")
    assert "locked" in str(told) and "s3cret" not in str(told)


def test_spice_alone_is_kept_and_shown_by_nobody(place: Place) -> None:
    place.define("spicy", "<graphics type='spice' autoport='yes'/>")
    place.virsh("start", "spicy")
    assert "Failed to get VNC port" in place.refused("vncdisplay", "spicy")
    place.virsh("destroy", "spicy")
