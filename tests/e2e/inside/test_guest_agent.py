"""The operating system on metal as libvirt clients ask it: one boot of the stock image, whose stock
qemu-guest-agent answers; its screen, its keyboard, a diagnostic interrupt, and counters that grow.

The tests share that boot and run in the order of the file. Beside it stands what the agent refuses.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from tests.e2e.harness import (
    BOOT_SECONDS,
    PASSWORD,
    Agent,
    Console,
    c_locale,
    disk,
    domain_xml,
    events,
    lab_directory,
    wired_agent,
)

MAC = "02:00:00:02:00:02"


@dataclass
class Running:
    agent: Agent
    home: Path
    console: Console

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def said(self, *words: str) -> str:
        """What virsh tells a person of what it did."""
        done = self._run(*words)
        assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"
        return done.stdout

    def refused(self, *words: str) -> str:
        done = self._run(*words)
        assert done.returncode != 0, f"virsh {' '.join(words)} was not refused: {done.stdout}"
        return done.stderr.strip()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["virsh", "-c", self.agent.uri, *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=c_locale())


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="nicagent-guest-") as directory:
        home = Path(directory)
        agent = wired_agent(lab_directory(), home)
        agent.start()
        definition = home / "web.xml"
        definition.write_text(domain_xml("web", disk(agent.directory, "web").name))
        agent.virsh("define", str(definition))

        def started() -> bool:  # a host whose BMC has not answered yet is not taken
            agent.virsh("start", "web", check=False)
            return agent.virsh("domstate", "web") == "running"

        until(started, "the domain runs")
        console = Console.open(agent, "web")
        try:
            console.login(BOOT_SECONDS)
            host = Running(agent, home, console)
            until(lambda: "debian" in agent.virsh("domhostname", "web", check=False), "its agent answers", 60)
            yield host
        finally:
            console.close()
            agent.virsh("destroy", "web", check=False)
            agent.stop()


def test_the_guest_tells_of_itself(running: Running) -> None:
    assert running.virsh("domhostname", "web") == "debian"
    assert re.search(r"\d{10}", running.virsh("domtime", "web"))
    told = running.virsh("domfsinfo", "web")
    assert re.search(r"^\s*/\s+vda2\s+ext4\s+vda\s*$", told, re.M), f"its root is on vda: {told}"
    info = running.virsh("guestinfo", "web")
    for line in (
        "os.id",
        "os.kernel-release",
        "hostname",
        "timezone.name",
        "fs.count",
        "if.count",
        "user.count",
    ):
        assert line in info, f"{line} is missing from:\n{info}"
    assert re.search(r"hostname\s*: debian", info)
    assert '"return":' in running.virsh("qemu-agent-command", "web", '{"execute":"guest-info"}')


def test_its_addresses_are_told_by_lease_and_by_agent(running: Running) -> None:
    lease = running.virsh("domifaddr", "web")
    assert re.search(rf"port0\s+{MAC}\s+ipv4\s+10\.100\.0\.10/24", lease), lease

    def by_agent() -> bool:
        found = running.virsh("domifaddr", "web", "--source", "agent")
        return re.search(rf"{MAC}\s+ipv4\s+10\.100\.0\.10/24", found) is not None

    until(by_agent, "the guest shows the address that it was given")


def test_its_clock_and_its_passwords_can_be_set(running: Running) -> None:
    running.virsh("domtime", "web", "--time", "1900000000")
    assert running.console.run("date +%s").startswith("19000000")
    running.virsh("domtime", "web", "--now")
    running.virsh("set-user-password", "web", "debian", "correct horse")
    said = running.console.run("echo 'correct horse' | su -c 'echo changed' debian 2>&1 | tail -1")
    assert "changed" in said
    running.virsh("set-user-password", "web", "debian", PASSWORD)


def test_file_systems_freeze_and_thaw(running: Running) -> None:
    froze = running.said("domfsfreeze", "web")
    thawed = running.said("domfsthaw", "web")
    assert "Froze 1 filesystem" in froze and "Thawed 1 filesystem" in thawed, f"{froze}, {thawed}"


def test_counters_grow(running: Running) -> None:
    def count(command: str, field: str) -> int:
        words = command.split()
        found = re.search(rf"{re.escape(field)}[ =](\d+)", running.virsh(*words))
        return int(found[1]) if found else -1

    wrote, received = count("domblkstat web vda", "wr_bytes"), count("domifstat web port0", "tx_bytes")
    busy = count("domstats web --cpu-total", "cpu.time")
    running.console.run("dd if=/dev/urandom of=pattern bs=1M count=8 oflag=direct status=none; sync")
    running.console.run("ping -c 3 -i 0.3 10.100.0.20 || true")
    assert wrote >= 0 and received >= 0 and busy >= 0, f"unknown: {wrote}, {received}, {busy}"
    until(lambda: count("domblkstat web vda", "wr_bytes") >= wrote + (8 << 20), "eight MiB are counted")
    until(lambda: count("domifstat web port0", "tx_bytes") > received, "what it sent is counted")
    until(lambda: count("domstats web --cpu-total", "cpu.time") > busy, "its processor time is counted")
    stats = running.virsh("domstats", "web")
    for line in (
        "block.0.wr.bytes",
        "block.0.capacity=4294967296",
        "net.0.rx.bytes",
        "vcpu.0.time",
        "balloon.current",
    ):
        assert line in stats, f"{line} is missing from:\n{stats}"
    assert "perf." not in stats
    assert "Total" in running.virsh("cpu-stats", "web")
    assert "Capacity:       4294967296" in running.virsh("domblkinfo", "web", "vda")


def shades(png: bytes) -> int:
    """How many different bytes a PNG's rows have: a blank screen has two or three."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += 12 + size
    return len(set(zlib.decompress(data)))


def test_its_screen_is_a_picture_and_its_keyboard_types(running: Running) -> None:
    picture = running.home / "screen.png"
    assert "image/png" in running.said("screenshot", "web", str(picture))
    before = picture.read_bytes()
    assert before.startswith(b"\x89PNG\r\n\x1a\n")
    assert shades(before) > 3, "there is nothing on the screen"
    # What is typed arrives at the keyboard that the OS sees.
    running.console.run(f"echo {PASSWORD} | sudo -S true")
    running.console.run("sudo sh -c 'head -c 720 /dev/input/by-path/*-event-kbd > /tmp/keys &'")

    def typed() -> bool:
        running.virsh("send-key", "web", "KEY_LEFTSHIFT", "KEY_A", "--holdtime", "50")
        return running.console.run("stat -c %s /tmp/keys") == "720"

    until(typed, "thirty events of the keyboard have come: a press and a release whole among them")
    pressed = running.console.run("od -An -v -w24 -tx2 /tmp/keys")
    assert re.search(r"0001 001e 0001 0000$", pressed, re.M), f"KEY_A (0x1e) did not go down: {pressed}"
    assert re.search(r"0001 001e 0000 0000$", pressed, re.M), f"KEY_A did not come up again: {pressed}"


def test_clients_are_told_when_its_agent_goes_and_comes(running: Running) -> None:
    with events(running.agent, running.home / "events.log") as log:

        def listening() -> bool:
            running.virsh("desc", "web", "--config", "as before")
            return "metadata-change" in log.read_text()

        until(listening, "virsh is told of a changed description")
        running.console.run(f"echo {PASSWORD} | sudo -S true")
        for verb, state in (("stop", "disconnected"), ("start", "connected")):
            running.console.run(f"sudo systemctl {verb} qemu-guest-agent")
            line = f"event 'agent-lifecycle' for domain 'web': state: '{state}' reason: 'channel event'"
            until(lambda line=line: line in log.read_text(), line, 60)  # type: ignore[misc]


def test_disks_come_and_go_in_its_pcie_slot(running: Running) -> None:
    """As test_hotplug.py has it over NVMe/TCP; here the OS is asked to let go of its disk."""
    pool = running.agent.directory / "pool"
    extra = pool / "extra.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", extra, "32M"], check=True)
    with events(running.agent, running.home / "events.log") as told:
        attach = ("attach-disk", "web", str(extra), "vdb", "--subdriver", "qcow2", "--live")
        running.virsh(*attach)
        until(lambda: "32M" in running.console.run("lsblk -no SIZE /dev/vdb || true"), "the OS sees its disk")
        assert "vdb" not in running.virsh("dumpxml", "web", "--inactive")
        assert "target vdb already exists" in running.refused(*attach)
        sudo(running, "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt")
        sudo(running, "head -c 8000000 /dev/urandom > /mnt/pattern; md5sum /mnt/pattern > /tmp/sum; sync")
        other = pool / "other.raw"
        other.write_bytes(bytes(1 << 20))
        full = running.refused("attach-disk", "web", str(other), "vdc", "--subdriver", "raw", "--live")
        assert "none of the 2 ports" in full, full
        running.virsh("blockresize", "web", "vdb", "64M")
        running.virsh("blockresize", "web", "vda", "5G")
        until(lambda: "5G" in running.console.run("lsblk -dno SIZE /dev/vda"), "the OS sees its disk grow")
        sudo(running, "resize2fs /dev/vdb")
        running.virsh("snapshot-create-as", "web", "one", "--disk-only", "--no-metadata")
        sudo(running, "cp /mnt/pattern /mnt/copy; sync")
        running.agent.kill()
        running.agent.start()
        running.console.close()
        running.console = Console.open(running.agent, "web")
        running.console.wake(r"\$ ", 60)
        for target in ("vda", "vdb"):
            running.virsh("blockcommit", "web", target, "--active", "--shallow", "--wait", "--pivot")
        said = sudo(
            running, "echo 3 > /proc/sys/vm/drop_caches; md5sum -c /tmp/sum; cmp /mnt/pattern /mnt/copy"
        )
        assert "OK" in said
        sudo(running, "umount /mnt")
    with events(running.agent, told) as told:
        running.virsh("detach-disk", "web", "vdb", "--live")
        assert "vdb" not in running.console.run("ls /dev")
        assert "vdb" not in running.virsh("domblklist", "web")
        running.virsh(*attach)
        until(lambda: "64M" in running.console.run("lsblk -no SIZE /dev/vdb || true"), "it is back")
        until(lambda: "device-removed" in told.read_text(), "the event of its going")
        assert "device-added" in told.read_text()
    assert sudo(running, "dmesg | grep -ciE 'I/O error|remounting' || true") == "0"


def sudo(running: Running, command: str) -> str:
    return running.console.run(f"echo {PASSWORD} | sudo -S -p '' sh -c \"{command}\"", 60)


def test_a_diagnostic_interrupt_reaches_the_os(running: Running) -> None:
    running.virsh("inject-nmi", "web")
    until(
        lambda: "NMI" in running.console.run("sudo dmesg | grep -i nmi | tail -1 || true"),
        "the NMI is logged",
    )


REFUSED = {
    "suspend web": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "managedsave web": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "save web /tmp/nowhere": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "dump web /tmp/nowhere": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "dompmsuspend web mem": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "setvcpus web 1 --live": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "setmem web 512M --live": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "vcpupin web 0 0": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "schedinfo web": libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    "domrename web other": libvirt.VIR_ERR_OPERATION_INVALID,
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_metal_cannot_do_is_refused_in_a_sentence(running: Running, command: str) -> None:
    said = running.refused(*command.split())
    assert "not supported by the connection driver" not in said, said
    expected = {
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED: "Operation not supported: ",
        libvirt.VIR_ERR_OPERATION_INVALID: "Requested operation is not valid: ",
    }[REFUSED[command]]
    assert expected in said, said


def test_it_goes_down_when_its_agent_is_asked(running: Running) -> None:
    running.virsh("shutdown", "web", "--mode", "agent")
    until(lambda: running.virsh("domstate", "web") == "shut off", "the OS has gone down", 90)
    assert "domain is not running" in running.refused("domhostname", "web")
    running.virsh("setvcpus", "web", "1", "--config")
    running.virsh("domrename", "web", "wide-web")
    assert running.virsh("domstate", "wide-web") == "shut off"
    running.virsh("undefine", "wide-web")
