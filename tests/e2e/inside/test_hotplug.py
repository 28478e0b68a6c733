"""Disks and ports come and go, grow, move and are snapshot under one running OS on NVMe/TCP, by stock virsh.

All tests share one boot of metal-1 and run in the order of the file. Behind them the OS writes to its root
disk all the time and keeps count: at the end every file is as it was written, no request has failed, and no
line of the front panel has moved.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nicagent.emulator.control import ChassisControl
from tests.e2e.harness import (
    BOOT_SECONDS,
    PASSWORD,
    Agent,
    Console,
    disk,
    domain_xml,
    events,
    job_is_ready,
    lab_directory,
    make_agents,
)

pytestmark = pytest.mark.timeout(2 * BOOT_SECONDS)  # a suite's own bound is in its lab's table
BUTTON, RESET = 23, 27
MAC = "02:00:00:01:00:02"  # of the one NIC that leads to a segment
NAME = "web-1"
LOAD = """
(n=0; while [ ! -e stop ]; do n=$((n+1)); f=load.$((n%4));
 cat /dev/shm/seed > $f.new && sync -d $f.new && mv $f.new $f &&
 echo $n > n.new && mv n.new count || echo bad >> failed;
 done &)
"""


@dataclass
class Running:
    """metal-1, up and logged in, with work going on."""

    agent: Agent
    console: Console
    chassis: ChassisControl
    told: Path

    @property
    def pool(self) -> Path:
        return self.agent.directory / "pool"

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def refused(self, *words: str) -> str:
        return self.agent.refused(*words)

    def root(self, command: str, seconds: float = 60) -> str:
        return self.console.run(f"sudo -n sh -c '{command}'", seconds)

    def path(self) -> Path:
        """The file of the root disk now, as the live document says it."""
        shown = self.virsh("domblklist", NAME).splitlines()
        (line,) = [line for line in shown if line.split()[0] == "vda"]
        return self.pool / line.split()[1]  # a volume goes by its name

    def edges(self) -> list[dict[str, object]]:
        return [edge for line in (BUTTON, RESET) for edge in self.chassis.waveform(line)]

    def works(self) -> None:
        """The OS goes on writing."""
        before = int(self.console.run("cat count"))
        self.until(lambda: int(self.console.run("cat count")) > before, "the OS to write on")

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="nicagent-hotplug-") as home:
        agent, _ = make_agents(lab_directory(), Path(home))
        agent.start()
        volume = disk(agent.directory, NAME)
        definition = Path(home) / "web-1.xml"
        definition.write_text(domain_xml(NAME, volume.name))
        agent.virsh("define", str(definition))
        with events(agent, Path(home) / "events.log") as told:
            agent.virsh("start", NAME)
            console = Console.open(agent, NAME)
            console.login(BOOT_SECONDS)
            console.run(
                f"echo {PASSWORD} | sudo -S sh -c 'echo debian ALL=NOPASSWD: ALL > /etc/sudoers.d/test'"
            )
            console.run("head -c 2000000 /dev/urandom > /dev/shm/seed; echo 0 > count")
            console.run(" ".join(LOAD.split()))
            try:
                yield Running(agent, console, ChassisControl.of(lab_directory(), "metal-1"), told)
            finally:
                print("\n".join(agent.log.read_text().splitlines()[-60:]))
                console.close()
                agent.virsh("destroy", NAME, check=False)
                agent.stop()


def test_a_disk_appears_in_the_running_os_and_goes_again(running: Running) -> None:
    before = running.edges()
    extra = running.pool / "extra.raw"
    with extra.open("wb") as file:
        file.truncate(32 << 20)
    running.virsh("attach-disk", NAME, str(extra), "vdb", "--subdriver", "raw", "--live")
    running.until(lambda: "nvme0n2" in running.console.run("ls /dev"), "/dev/nvme0n2")
    running.root("head -c 8388608 /dev/urandom > /dev/shm/pattern")
    running.root("dd if=/dev/shm/pattern of=/dev/nvme0n2 bs=1M conv=fsync status=none")
    written = running.console.run("sha256sum < /dev/shm/pattern").split()[0]
    assert hashlib.sha256(extra.read_bytes()[: 8 << 20]).hexdigest() == written, (
        "the pattern is not in the volume"
    )
    assert "target vdb already exists" in running.refused("attach-disk", NAME, str(extra), "vdb", "--live")
    assert "vdb" not in running.virsh("dumpxml", NAME, "--inactive")
    running.virsh("detach-disk", NAME, "vdb", "--live")
    running.until(lambda: "nvme0n2" not in running.console.run("ls /dev"), "/dev/nvme0n2 to be gone")
    told = running.told.read_text()
    assert "device-added" in told and "device-removed" in told, f"no events: {told}"
    running.works()
    assert running.edges() == before, "a line moved"


def bridged() -> bool:
    """Whether the port of metal-1's NIC is on its segment's bridge."""
    shown = subprocess.run(
        ["ip", "-n", "agent-1", "link", "show", "port0"], capture_output=True, text=True, check=True
    )
    return "master na-br100" in shown.stdout


def test_a_port_goes_dark_and_comes_back(running: Running) -> None:
    assert bridged(), "the port is not on its segment to begin with"
    assert "no NIC left" in running.refused("attach-interface", NAME, "network", "blue", "--live")
    running.virsh("domif-setlink", NAME, MAC, "down")
    assert not bridged(), "the link is down and the port still on the segment"
    assert "down" in running.virsh("domif-getlink", NAME, MAC)
    running.virsh("domif-setlink", NAME, MAC, "up")
    assert bridged()
    running.virsh("detach-interface", NAME, "network", "--mac", MAC, "--live")
    assert not bridged()
    running.virsh("attach-interface", NAME, "network", "blue", "--live")
    assert bridged() and MAC in running.virsh("dumpxml", NAME)
    running.works()


def test_the_os_sees_its_disk_grow(running: Running) -> None:
    before = int(running.console.run("cat /sys/block/nvme0n1/size"))
    running.virsh("blockresize", NAME, "vda", f"{before * 512 + (64 << 20)}B")
    running.until(
        lambda: int(running.console.run("cat /sys/block/nvme0n1/size")) == before + (64 << 11),
        "the OS to see the new size",
    )
    assert "only grows" in running.refused("blockresize", NAME, "vda", "1G")
    running.works()


def test_limits_come_and_go(running: Running) -> None:
    running.virsh("blkdeviotune", NAME, "vda", "--write-bytes-sec", str(4 << 20), "--live")
    assert f"write_bytes_sec: {4 << 20}" in running.virsh("blkdeviotune", NAME, "vda", "--live")
    running.works()
    running.virsh("blkdeviotune", NAME, "vda", "--write-bytes-sec", "0", "--live")
    running.works()


def test_a_snapshot_is_taken_and_brought_back_together(running: Running) -> None:
    base = running.path()
    running.virsh("snapshot-create-as", NAME, "first", "--disk-only", "--atomic")
    first = running.path()
    assert first != base and "first" in running.virsh("snapshot-list", NAME, "--name")
    assert "--disk-only" in running.refused("snapshot-create-as", NAME, "with-memory")
    running.works()
    running.virsh("snapshot-create-as", NAME, "second", "--disk-only", "--no-metadata")
    second = running.path()
    running.works()
    running.virsh("blockcommit", NAME, "vda", "--top", str(first), "--base", str(base), "--wait")
    running.works()
    running.virsh("blockcommit", NAME, "vda", "--base", str(base), "--active", "--wait", "--pivot")
    assert running.path() == base
    running.virsh("snapshot-delete", NAME, "first", "--metadata")
    for overlay in (first, second):
        overlay.unlink()
    running.works()


def test_the_root_disk_is_copied_and_goes_on_in_the_copy(running: Running) -> None:
    old, copy = running.path(), running.pool / "copy.qcow2"
    running.virsh(
        "blockcopy",
        NAME,
        "vda",
        str(copy),
        "--format",
        "qcow2",
        "--shallow",
        "--wait",
        "--pivot",
        "--transient-job",
    )
    assert running.path() == copy and str(copy) in running.virsh("dumpxml", NAME, "--inactive")
    old.unlink()
    running.works()


def test_an_agent_that_is_killed_in_a_copy_finds_it_again(running: Running) -> None:
    before, copy = running.path(), running.pool / "second.qcow2"
    running.virsh(
        "blockcopy",
        NAME,
        "vda",
        str(copy),
        "--format",
        "qcow2",
        "--shallow",
        "--bandwidth",
        "1",
        "--transient-job",
    )
    running.agent.kill()
    time.sleep(1)
    running.agent.start()
    running.console.close()
    running.console = Console.open(running.agent, NAME)
    running.console.wake(r"\$ ", 60)
    assert "1048576 bytes/s" in running.virsh("blockjob", NAME, "vda", "--info"), "the job is not seen again"
    assert running.path() == before
    running.virsh("blockjob", NAME, "vda", "--bandwidth", "0")
    running.until(
        lambda: job_is_ready(running.virsh("blockjob", NAME, "vda", "--info")), "the copy to be ready", 60
    )
    running.virsh("blockjob", NAME, "vda", "--pivot")
    assert running.path() == copy
    before.unlink()
    running.works()


def test_nothing_was_lost_and_nothing_moved(running: Running) -> None:
    running.console.run("touch stop; sleep 2; sync")
    seed = running.console.run("sha256sum < /dev/shm/seed").split()[0]
    for number in range(4):
        assert seed in running.root(
            f"echo 1 > /proc/sys/vm/drop_caches; sha256sum < /home/debian/load.{number}"
        ), f"load.{number} is not as it was written"
    assert "No such file" in running.console.run("cat failed 2>&1 || true"), "a write failed"
    assert running.root('dmesg | grep -ciE "I/O error|remounting|reset controller" || true') == "0"
    history = [each["event"] for each in running.chassis.history()]
    assert len(running.edges()) <= 2, f"more than the one press that started it: {history}"
