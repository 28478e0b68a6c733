"""Promises 1 and 2 on a host that runs a real OS from NVMe/TCP: nobody who did not ask moves a line, and the
disk outlives the agent and its own target.

The tests share one boot of metal-1 and run in the order of the file.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nicagent import client
from nicagent.emulator.control import ChassisControl
from nicagent.errors import NicagentError
from tests.e2e.harness import BOOT_SECONDS, Agent, Console, disk, domain_xml, lab_directory, make_agents

pytestmark = pytest.mark.timeout(2 * BOOT_SECONDS)  # a suite's own bound is in its lab's table
BUTTON, RESET = 23, 27
MEBIBYTES = 1024
ROUNDS = int(os.environ.get("NICAGENT_ROUNDS", "50"))


@dataclass
class Running:
    """metal-1, up and logged in."""

    agent: Agent
    console: Console
    chassis: ChassisControl
    uuid: str

    def edges(self) -> list[dict[str, object]]:
        return [edge for line in (BUTTON, RESET) for edge in self.chassis.waveform(line)]

    def written(self) -> int:
        """Bytes that the host has written so far, by the target's own count; 0 while no agent answers."""
        try:
            statistics = client.call(
                self.agent.directory / "run/nicagent.sock", "GET", f"/v1/domains/{self.uuid}/statistics"
            )
            return int(statistics["exports"][0]["write_bytes"] or 0)
        except (NicagentError, IndexError):
            return 0

    def target_pid(self) -> int:
        pidfile = next((self.agent.directory / "run").rglob("nvmetcp.pid"))
        return int(pidfile.read_text().split()[0])

    def reopen_console(self, seconds: float = 30) -> None:
        self.console.close()
        self.console = Console.open(self.agent, "web-1")
        self.console.wake(r"\$ ", seconds)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="nicagent-survival-") as home:
        agent, _ = make_agents(lab_directory(), Path(home))
        agent.start()
        volume = disk(agent.directory, "web-1")
        definition = Path(home) / "web-1.xml"
        definition.write_text(domain_xml("web-1", volume.name))
        agent.virsh("define", str(definition))
        agent.virsh("start", "web-1")
        console = Console.open(agent, "web-1")
        console.login(BOOT_SECONDS)
        chassis = ChassisControl.of(lab_directory(), "metal-1")
        host = Running(agent, console, chassis, agent.virsh("domuuid", "web-1"))
        try:
            yield host
        finally:
            host.console.close()
            agent.stop()


def test_its_stage_1_has_told_what_the_host_is_made_of(running: Running) -> None:
    agent = running.agent
    assert "QEMU" in agent.virsh("sysinfo")
    boot_nic = agent.virsh("nodedev-list", "--cap", "net").split()
    assert len(boot_nic) == 2, "its NICs are those that the config knows by MAC, now with a name"
    parents = [agent.virsh("nodedev-info", name) for name in boot_nic]
    assert all("Parent:         pci_0000_" in each for each in parents), "and with a place on the bus"
    assert "told what it is made of" in agent.log.read_text()


def test_a_killed_agent_is_not_noticed(running: Running) -> None:
    before = running.edges()
    boot_id = running.console.run("cat /proc/sys/kernel/random/boot_id")
    # Work on the disk that goes on while no agent is there to see it.
    running.console.run(
        "touch work; (nohup sh -c 'while sync -d work; do date >> work; done' >/dev/null 2>&1 &)"
    )
    running.agent.kill()
    time.sleep(2)  # a while without any agent
    running.agent.start()
    written = running.written()
    assert running.agent.virsh("domstate", "web-1") == "running", (
        "the domain is not running after the restart"
    )
    running.reopen_console()
    assert running.console.run("cat /proc/sys/kernel/random/boot_id") == boot_id, "the host was restarted"
    assert int(running.console.run("wc -l < work; sync; rm work").split()[0]) > 0
    assert running.written() > written, "the host's writes no longer reach the disk"
    assert running.edges() == before, "a line moved though nobody asked"


@pytest.mark.timeout(700)  # a minute or two, but a loaded machine takes its time over a GiB
def test_a_gibibyte_survives_two_deaths_of_the_agent_and_one_of_the_target(running: Running) -> None:
    console = running.console
    # Blocks of 16 MiB, each with its number in front: one that is lost, old or misplaced does not compare.
    console.run("head -c 16776192 /dev/urandom > /dev/shm/seed")
    block = "printf '%01024d' $i; cat /dev/shm/seed"
    console.run(f"gen() {{ i=0; while [ $i -lt {MEBIBYTES // 16} ]; do {block}; i=$((i+1)); done; }}")
    start = running.written()
    console.send(
        "gen | dd of=pattern bs=1M iflag=fullblock oflag=direct conv=fsync status=none; echo writ''ten $?"
    )

    def reach(mebibytes: int) -> None:
        deadline = time.monotonic() + 240
        while running.written() - start < mebibytes << 20:
            assert time.monotonic() < deadline, f"the guest did not write {mebibytes} MiB in 240 s"
            time.sleep(0.2)

    reach(150)
    running.agent.kill()
    running.agent.start()
    reach(350)
    os.kill(running.target_pid(), signal.SIGKILL)
    # The target counts anew after its death.
    start = 0
    reach(150)
    running.agent.kill()
    running.agent.start()
    running.reopen_console(seconds=400)  # the prompt comes once everything is written
    console = running.console
    compared = console.run(
        "dd if=pattern bs=1M iflag=direct status=none | cmp - <(gen) && wc -c < pattern", 300
    )
    assert compared.split()[-1] == str(MEBIBYTES << 20), f"the pattern did not come back: {compared}"


def test_no_line_moves_over_many_starts_stops_and_kills(running: Running) -> None:
    before = running.edges()
    boot_id = running.console.run("cat /proc/sys/kernel/random/boot_id")
    running.console.close()
    choose = random.Random(20)  # a seed, so that a failure comes again
    for number in range(ROUNDS):
        kind = choose.choice(["stop", "kill", "kill at start"])
        if kind == "kill at start":
            running.agent.kill()
            running.agent.launch()
            time.sleep(choose.uniform(0.0, 1.5))  # the random moment is the test
            running.agent.kill()
            running.agent.start()
        elif kind == "kill":
            time.sleep(choose.uniform(0.0, 0.5))
            running.agent.kill()
            running.agent.start()
        else:
            running.agent.stop()
            running.agent.start()
        assert running.edges() == before, f"a line moved in round {number} ({kind})"
    assert running.agent.virsh("domstate", "web-1") == "running"
    running.reopen_console()
    assert running.console.run("cat /proc/sys/kernel/random/boot_id") == boot_id, "the host was restarted"
    print(f"{ROUNDS} rounds, {len(before)} edges before, {len(running.edges())} after")


def test_the_os_still_goes_down_when_asked(running: Running) -> None:
    running.agent.virsh("shutdown", "web-1")
    deadline = time.monotonic() + 120
    while running.agent.virsh("domstate", "web-1") != "shut off":
        assert time.monotonic() < deadline, "the OS did not go down in 120 s"
        time.sleep(0.2)
    running.agent.virsh("undefine", "web-1")
