"""The main job, end to end: two agents, one emulated server behind each, driven by the distribution's virsh.

Runs inside the lab of demo.toml; see `make demo`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from nicagent import client
from nicagent.emulator.control import ChassisControl
from tests.e2e.harness import (
    BOOT_SECONDS,
    Agent,
    Console,
    Figures,
    disk,
    domain_xml,
    events,
    lab_directory,
    make_agents,
)

SHUTDOWN_SECONDS = 120.0

terminal = Terminal(highlight=False)
began = time.monotonic()


def say(who: str, text: str) -> None:
    terminal.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  [bold]{who:8}[/] {text}")


def main() -> int:
    lab = lab_directory()
    home = Path(tempfile.mkdtemp(prefix="nicagent-demo-"))
    agents: list[Agent] = []
    try:
        agents = list(make_agents(lab, home))
        for agent in agents:
            seconds = agent.start()
            say(agent.name, f"ready {seconds:.2f} s after exec, at {agent.uri}")
        figures = show(agents, home)
    except AssertionError as failure:
        terminal.print(f"[red]demo failed:[/] {failure}", markup=True)
        for agent in agents:
            print(f"--- {agent.log}", *agent.log.read_text(errors="replace").splitlines()[-20:], sep="\n")
        return 1
    finally:
        for agent in agents:
            agent.stop()
        shutil.rmtree(home, ignore_errors=True)
    report(figures)
    return 0


def show(agents: list[Agent], home: Path) -> list[Figures]:
    figures = [
        Figures("metal-1", "GPIO (button, reset, LED)"),
        Figures("metal-2", "IPMI 2.0 (BMC)"),
    ]
    names = ["web-1", "web-2"]
    with events(agents[0], home / "events-1"), events(agents[1], home / "events-2"):
        for agent, name in zip(agents, names, strict=True):
            volume = disk(agent.directory, name)
            definition = home / f"{name}.xml"
            definition.write_text(domain_xml(name, volume.name))
            say(agent.name, f"virsh define {definition.name}: {agent.virsh('define', str(definition))}")
        consoles = in_parallel(
            lambda n: boot(agents[n], names[n], figures[n]), "both servers boot to a login prompt"
        )
        try:
            ping_each_other(agents, names, consoles, figures)
            for agent, name, console, figure in zip(agents, names, consoles, figures, strict=True):
                root = console.run("findmnt -no SOURCE /")
                say(name, f"root file system on {root}; {console.run('uname -sr')}")
                disks = agent.cli("hosts").stdout.strip().replace("\t", "  ")
                say(agent.name, f"nicagent hosts: {disks}")
                count(agent, name, figure)
            in_parallel(lambda n: shut_down(agents[n], names[n]), "both are asked to shut down")
        finally:
            for console in consoles:
                console.close()
        for agent, name in zip(agents, names, strict=True):
            say(agent.name, f"virsh undefine {name}: {agent.virsh('undefine', name)}")
            left = agent.virsh("list", "--all")
            assert not left, f"after undefine, virsh list still shows: {left}"
    for number in (1, 2):
        for line in (home / f"events-{number}").read_text().splitlines():
            if line.strip():
                say(f"agent-{number}", f"virsh event: {line}")
    return figures


def boot(agent: Agent, name: str, figure: Figures) -> Console:
    """Start and follow the console to a shell."""
    figure.asked = time.time()
    threading.Thread(target=watch_first_read, args=(figure,), daemon=True).start()
    say(agent.name, f"virsh start {name}: {agent.virsh('start', name)}")
    figure.pgood = time.time() - figure.asked
    console = Console.open(agent, name)
    try:
        console.expect(r"login: ", BOOT_SECONDS)
        figure.login = time.time() - figure.asked
        say(name, f"login prompt after {figure.login:.1f} s")
        # The prompt was taken; an empty line brings a new one.
        console.send("")
        console.login(60)
    except BaseException:
        console.close()
        raise
    return console


def watch_first_read(figure: Figures) -> None:
    """When the host first reads a disk on its PCIe bus, as its chassis sees it. A network disk is none."""
    chassis = ChassisControl.of(lab_directory(), figure.name)
    while figure.first_read is None and time.time() < figure.asked + BOOT_SECONDS:
        if any(disk["rd_bytes"] for disk in in_slot(chassis)):
            figure.first_read = time.time() - figure.asked
        time.sleep(0.05)


def in_slot(chassis: ChassisControl) -> list[dict[str, Any]]:
    """Counters of the disks in the PCIe slot: the firmware's own flash is one, too, and does not count."""
    return [disk for disk in chassis.disks() if disk["disk"].startswith("slot")]


def ping_each_other(
    agents: list[Agent], names: list[str], consoles: list[Console], figures: list[Figures]
) -> None:
    addresses = [address(agent, name) for agent, name in zip(agents, names, strict=True)]
    for here, there in ((0, 1), (1, 0)):
        output = consoles[here].run(f"ping -c 4 -i 0.3 -W 5 {addresses[there]}", 60)
        figures[here].pings = [float(each) for each in re.findall(r"time=([\d.]+) ms", output)]
        got = len(figures[here].pings)
        say(names[here], f"ping {addresses[there]} over VXLAN segment blue (VNI 100): {got} of 4 came back")
        assert got >= 3, f"{names[here]} cannot reach {names[there]}:\n{output}"


def address(agent: Agent, name: str) -> str:
    found = re.search(r"ipv4=['\"]([\d.]+)['\"]", agent.virsh("dumpxml", name))
    assert found, f"the live XML of {name} tells no address"
    return found[1]


def count(agent: Agent, name: str, figure: Figures) -> None:
    """Figures as the agent's own counters have them."""
    control = agent.directory / "run/nicagent.sock"
    uuid = agent.virsh("domuuid", name)
    export = client.call(control, "GET", f"/v1/domains/{uuid}/statistics")["exports"][0]
    figure.transport = export["transport"]
    if export["read_bytes"] is not None:
        figure.read_bytes = export["read_bytes"]
        figure.first_read = export["first_read"] - figure.asked
    else:
        # The block engine does not count what a virtio disk reads (docs/storage.md); its chassis does.
        chassis = ChassisControl.of(lab_directory(), figure.name)
        figure.read_bytes = sum(each["rd_bytes"] for each in in_slot(chassis))


def shut_down(agent: Agent, name: str) -> None:
    since = time.monotonic()
    say(agent.name, f"virsh shutdown {name}: {agent.virsh('shutdown', name)}")
    while (state := agent.virsh("domstate", name)) != "shut off":
        assert time.monotonic() - since < SHUTDOWN_SECONDS, f"{name} is still {state}; the OS did not go down"
        time.sleep(0.2)
    say(name, f"the OS went down and power-good went after {time.monotonic() - since:.1f} s")


def in_parallel(work: Callable[[int], Any], what: str) -> list[Any]:
    """Run `work(0)` and `work(1)` at once; the first failure is raised."""
    say("both", what)
    results: list[Any] = [None, None]
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        for result in results:
            if isinstance(result, Console):
                result.close()
        raise failures[0]
    return results


def report(figures: list[Figures]) -> None:
    table = Table("", *(figure.name for figure in figures), title="one server, end to end")

    def row(title: str, *values: str) -> None:
        table.add_row(title, *values)

    row("power path", *(figure.power_path for figure in figures))
    row("transport", *(figure.transport for figure in figures))
    row("start to power-good", *(f"{figure.pgood:.1f} s" for figure in figures))
    row("start to first disk read", *(seconds(figure.first_read) for figure in figures))
    row("start to login prompt", *(f"{figure.login:.1f} s" for figure in figures))
    row("bytes read from the disk", *(mebibytes(figure.read_bytes) for figure in figures))
    row("ping to the other", *(pings(figure.pings) for figure in figures))
    terminal.print(table)
    print(json.dumps([figure.__dict__ for figure in figures]))


def seconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f} s"


def mebibytes(value: int | None) -> str:
    return "not known" if value is None else f"{value / 2**20:.1f} MiB"


def pings(values: list[float]) -> str:
    return f"{min(values):.1f} / {sum(values) / len(values):.1f} / {max(values):.1f} ms (min/avg/max)"


if __name__ == "__main__":
    sys.exit(main())
