"""Disks of a PCIe slot by stock virsh, on a host whose OS never answers: what is told, what is kept, and what
a SIGKILL of the agent leaves. test_guest_agent.py has the same with an OS that does.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nicagent.emulator.control import ChassisControl
from tests.e2e.harness import Agent, configure, domain_xml, events, lab_directory

NAME = "web"
CONFIG = """
[hosts.metal]
memory_mib = 128
[hosts.metal.power]
driver = "gpio"
pins = "socket:{lab}/metal/lines.sock"
[hosts.metal.storage]
transport = "virtio"
slot = "{lab}/metal/slot"
"""


@dataclass
class Bench:
    agent: Agent
    told: Path

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def refused(self, *words: str) -> str:
        return self.agent.refused(*words)

    def volume(self, name: str) -> str:
        path = self.agent.directory / "pool" / name
        path.write_bytes(bytes(1 << 20))
        return str(path)

    def start(self) -> None:
        until(lambda: "error" not in self.agent.virsh("start", NAME, check=False), "the domain runs")

    def defined(self, *which: str) -> set[str]:
        return {line.split()[0] for line in self.virsh("domblklist", NAME, *which).splitlines()}

    def plugged(self) -> set[str]:
        """What the metal has; nothing while that differs from what is in its slot."""
        chassis = ChassisControl.of(lab_directory(), "metal")
        there = {each["disk"] for each in chassis.disks() if str(each["disk"]).startswith("slot")}
        entries = {path.stem.partition("-")[2] for path in (lab_directory() / "metal/slot").glob("*.nbd")}
        return entries if len(there) == len(entries) else set()


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="nicagent-slot-") as home:
        agent = configure("agent-1", Path(home), CONFIG.format(lab=lab_directory()))
        agent.start()
        image = agent.directory / "pool/root.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
        definition = agent.directory / "web.xml"
        definition.write_text(domain_xml(NAME, image.name, memory_mib=128, segment=None))
        agent.virsh("define", str(definition))
        bench = Bench(agent, Path(home) / "events.log")
        bench.start()
        try:
            yield bench
        finally:
            agent.virsh("destroy", NAME, check=False)
            agent.stop()


def test_disks_come_for_this_run_or_for_good(bench: Bench) -> None:
    with events(bench.agent, bench.told) as told:
        attach = ("--subdriver", "raw", "--live")
        bench.virsh("attach-disk", NAME, bench.volume("run.raw"), "vdb", *attach)
        bench.virsh("attach-disk", NAME, bench.volume("good.raw"), "vdc", *attach, "--config")
        assert bench.plugged() == bench.defined() == {"vda", "vdb", "vdc"}
        assert bench.defined("--inactive") == {"vda", "vdc"}
        full = bench.refused("attach-disk", NAME, bench.volume("more.raw"), "vdd", *attach)
        assert "none of the 3 ports of host metal's PCIe slot is free" in full, full
        until(lambda: told.read_text().count("device-added") == 2, "two events")


def test_what_no_os_has_ever_used_goes_at_once(bench: Bench) -> None:
    with events(bench.agent, bench.told) as told:
        bench.virsh("detach-device-alias", NAME, alias(bench, "vdb"), "--live")
        until(lambda: "device-removed" in told.read_text(), "its event")
    assert bench.plugged() == bench.defined() == {"vda", "vdc"}


def test_a_disk_that_no_os_lets_go_of_stays(bench: Bench) -> None:
    with events(bench.agent, bench.told) as told:
        said = bench.refused("detach-disk", NAME, "vda", "--live", "--config")
        assert "asked to let go of disk vda and has not" in said, said
        until(lambda: "device-removal-failed" in told.read_text(), "its event")
        assert "device-removed" not in told.read_text()
    assert bench.plugged() == bench.defined() == bench.defined("--inactive") == {"vda", "vdc"}


def test_an_agent_that_is_killed_over_it_brings_it_to_its_end(bench: Bench) -> None:
    bench.agent.kill()
    bench.agent.start()
    assert bench.plugged() == bench.defined() == {"vda", "vdc"}, "it did not find them again"
    volume = bench.volume("killed.raw")
    words = ("attach-disk", NAME, volume, "vdb", "--subdriver", "raw", "--live")
    asking = threading.Thread(target=lambda: bench.agent.virsh(*words, check=False, seconds=20))
    asking.start()
    time.sleep(0.1)  # somewhere in the middle: any moment must do
    bench.agent.kill()
    asking.join()
    bench.agent.start()
    until(lambda: bench.plugged() == bench.defined(), "the host to have what the run's document says")
    assert bench.defined() >= {"vda", "vdc"}


def test_an_agent_that_is_killed_while_the_os_thinks_serves_on(bench: Bench) -> None:
    words = ("detach-disk", NAME, "vda", "--live")
    asking = threading.Thread(target=lambda: bench.agent.virsh(*words, check=False, seconds=20))
    asking.start()
    until(lambda: "vda" not in bench.plugged(), "the OS to be asked")
    bench.agent.kill()
    asking.join()
    bench.agent.start()
    assert "vda" not in bench.defined(), "what was durable is forgotten"
    export = ["nbd+unix:///vda?socket=" + str(lab_directory() / "metal/slot/server.sock")]
    subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", *export], check=True, timeout=20)


def test_the_next_run_has_what_the_definition_says(bench: Bench) -> None:
    began = time.monotonic()
    bench.virsh("destroy", NAME)
    assert time.monotonic() - began < 18, "what the OS has not let go of was waited for"
    assert not list((lab_directory() / "metal/slot").glob("*.nbd")), "something of the tenant is left"
    bench.start()
    assert bench.plugged() == bench.defined() == {"vda", "vdc"}
    described = next((lab_directory() / "metal/slot").glob("*-vdc.json"))
    assert json.loads(described.read_bytes())["size"] == 1 << 20


def alias(bench: Bench, target: str) -> str:
    """A disk's alias, as the live document has it."""
    document = bench.virsh("dumpxml", NAME)
    disk = next(each for each in document.split("<disk ")[1:] if f"<target dev='{target}'" in each)
    return disk.split("<alias name='")[1].split("'")[0]
