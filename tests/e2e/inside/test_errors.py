"""A mistake or a broken thing gives one clear sentence that says what to do, loses nothing, and is over when
it is mended.

Everything is real but the outside world: `nicagent serve` as a process, stock virsh, the `nicagent` command.
No guest OS is booted: power-good is all that these tests wait for. docs/troubleshooting.md is the reader's
side of this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from nicagent import client
from nicagent.emulator.control import ChassisControl
from nicagent.storage.nvmetcp import dhchap
from tests.e2e.harness import Agent, domain_xml, lab_directory, make_agents

BUTTON = 23
PROVISION_ADDRESS = "172.31.0.1"  # of the agent on metal-1's link, the default
PATIENCE = 30.0  # seconds for what takes one or two on an idle machine


@dataclass
class Bench:
    """A host, its agent, and a domain `web` with a small empty disk."""

    host: str
    agent: Agent
    chassis: ChassisControl
    config: str

    # ---- the agent

    def up(self) -> None:
        if self.agent.process is None or self.agent.process.poll() is not None:
            self.agent.start()
            self.until(lambda: self.status()["power"] != "unknown", "its power is read")

    def down(self) -> None:
        self.agent.stop()

    def refuses_to_serve(self) -> str:
        """`nicagent serve` ends by itself, telling why. Its exit code is that of "not available"."""
        done = self.nicagent("serve", seconds=20)
        assert done.returncode == 3, f"exit code {done.returncode}: {done.stderr}"
        return sentence(done.stderr)

    def nicagent(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A `nicagent` command beside the agent, with its config."""
        argv = self.agent.beside(sys.executable, "-m", "nicagent.cli", *words, "-c", self.agent.config)
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds)

    def doctor(self) -> str:
        return self.nicagent("doctor").stdout

    # ---- virsh and the control socket

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def refused(self, *words: str) -> str:
        return self.agent.refused(*words)

    def status(self) -> dict[str, Any]:
        control = self.agent.directory / "run/nicagent.sock"
        return dict(client.call(control, "GET", f"/v1/hosts/{self.host}"))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}; now {self.status()}"
            time.sleep(0.1)

    def until_free(self) -> None:
        self.until(lambda: self.status()["state"] == "free", "the host is free")

    # ---- definitions

    @property
    def pool(self) -> Path:
        return self.agent.directory / "pool"

    def volume(self, name: str, *backing: str) -> None:
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self.pool / name)]
        subprocess.run([*command, *(() if backing else ("64M",))], check=True)

    def file(self, text: str | bytes) -> str:
        path = self.agent.directory / "definition.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    # ---- what is there

    def traces(self) -> set[str]:
        """Processes, sockets and files of a run, and listening ports: what must not be left by a failure."""
        found = set()
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = each.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.agent.directory) in words and "nicagent.cli" not in words:
                    found.add(words)
        run = self.agent.directory / "run"
        found |= {str(path) for path in run.rglob("*") if not path.is_dir() and not _chose_nothing(path)}
        found |= {str(path) for path in (lab_directory() / self.host / "slot").iterdir()}
        ports = subprocess.run(
            self.agent.beside("ss", "-Hlntu"),
            capture_output=True,
            text=True,
            check=True,
        )
        return found | {line.split()[4] for line in ports.stdout.splitlines()}


def _chose_nothing(path: Path) -> bool:
    return path.name == "choice.json" and path.read_bytes() == b"null"


def sentence(text: str) -> str:
    """What the `nicagent` command said last: one sentence, and a line that says what to do."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]  # without the log
    assert len(lines) == 2, f"not one sentence with a hint: {lines}"
    assert lines[0].startswith("nicagent: ")
    assert lines[1].startswith("  → ")
    return f"{lines[0].removeprefix('nicagent: ')}; {lines[1].removeprefix('  → ')}"


@pytest.fixture(scope="module", autouse=True)
def _mounts_reach_agents() -> None:
    """`ip netns exec` gives an agent mounts of its own, which follow ours when ours are shared. The lab has a
    mount namespace of its own: nothing of this gets out.
    """
    subprocess.run(["mount", "--make-rshared", "/"], check=True)


@pytest.fixture(scope="module")
def benches() -> Iterator[dict[str, Bench]]:
    with tempfile.TemporaryDirectory(prefix="nicagent-errors-") as home:
        made = {}
        for host, agent in zip(("metal-1", "metal-2"), make_agents(lab_directory(), Path(home)), strict=True):
            text = agent.config.read_text()
            pgood = 2.0 if host == "metal-1" else 3.0  # a BMC is asked but once a second
            text = text.replace("memory_mib = 1024", f"memory_mib = 1024\npgood_seconds = {pgood}")
            text = text.replace('lines.sock"', 'lines.sock"\nhold_seconds = 4.5')
            text = text.replace('user = "admin"', 'user = "admin"\npoll_seconds = 1.0\ncommand_seconds = 3.0')
            agent.config.write_text(text)
            bench = Bench(host, agent, ChassisControl.of(lab_directory(), host), text)
            bench.volume("web.qcow2")
            bench.up()
            bench.virsh("define", bench.file(domain_xml("web", "web.qcow2")))
            made[host] = bench
        try:
            yield made
        finally:
            for bench in made.values():
                bench.down()


def _whole(bench: Bench) -> Iterator[Bench]:
    """A bench to break something at; afterwards it is as it was."""
    yield bench
    bench.chassis.clear()
    bench.agent.config.write_text(bench.config)
    bench.up()
    bench.until(lambda: bench.status()["power"] != "unknown", "its power is read")
    if bench.status()["power"] == "on" and bench.host == "metal-1":
        # Quicker than a button that is held for seconds.
        bench.chassis.mains(False)
        bench.chassis.mains(True)
    elif bench.status()["power"] == "on":
        bench.agent.cli("power", "off", bench.host)
    bench.until(lambda: bench.status()["power"] == "off", "it is off")
    bench.until_free()


@pytest.fixture
def gpio(benches: dict[str, Bench]) -> Iterator[Bench]:
    """metal-1: GPIO, NVMe/TCP over a provision link."""
    yield from _whole(benches["metal-1"])


@pytest.fixture
def ipmi(benches: dict[str, Bench]) -> Iterator[Bench]:
    """metal-2: a BMC, virtio."""
    yield from _whole(benches["metal-2"])


# ---- a wrong config

# what was done to the file → what the sentence must hold
MISTAKES = {
    "not TOML": (("[agent]", "[agent"), "not valid TOML: .*line 2.*; mend that line"),
    "unknown key": (("state_dir =", "state_dri ="), "agent: no key is called 'state_dri' .* mean state_dir"),
    "wrong type": (("memory_mib = 1024", "memory_mib = '1 GB'"), "metal-1.memory_mib: .*int.*str.*; docs/"),
    "wrong value": (("vni = 100", "vni = 0"), r"segments.blue.vni: .*>= 1.*; docs/config.md"),
    "no such driver": (('driver = "gpio"', 'driver = "gpoi"'), "hosts.metal-1.power.*'gpoi' is none of"),
    "missing key": (('device = "prov0"', ""), "hosts.metal-1.provision: the key 'device' is missing"),
    "a MAC": (("02:00:00:01:00:02", "02-00-00-01-00-02"), "hosts.metal-1.nics.*a MAC is written 52:54:00"),
    "contradiction": (('device = "port0"', 'device = "prov0"'), "metal-1: netdev prov0 is wired twice.*;"),
    "address not in network": (('"10.100.0.10"', '"10.9.0.1"'), "segments.blue.range: 10.9.0.1 .*; mend the"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_config_is_told_with_its_file_and_key(
    benches: dict[str, Bench], mistake: str, tmp_path: Path
) -> None:
    (old, new), words = MISTAKES[mistake]
    text = benches["metal-1"].config
    assert old in text
    path = tmp_path / "nicagent.toml"
    path.write_text(text.replace(old, new, 1))
    done = subprocess.run(
        [sys.executable, "-m", "nicagent.cli", "serve", "-c", path],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2, f"exit code {done.returncode}: {done.stderr}"
    told = sentence(done.stderr)
    assert told.startswith(f"{path}: "), told
    assert re.search(words, told), told


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "nothing.toml"
    for command in ("serve", "doctor", "hosts"):
        done = subprocess.run(
            [sys.executable, "-m", "nicagent.cli", command, "-c", path],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 2
        assert str(path) in sentence(done.stderr)


# ---- a missing package


@contextlib.contextmanager
def without(program: str) -> Iterator[None]:
    """As if its package were not installed: what is there cannot be executed."""
    path = shutil.which(program, path="/usr/sbin:/usr/bin")
    assert path is not None
    subprocess.run(["mount", "--bind", "/dev/null", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_an_agent_without_dnsmasq_names_the_package(gpio: Bench) -> None:
    gpio.down()
    for pidfile in gpio.agent.directory.glob("run/provision/*/dnsmasq.pid"):
        os.kill(int(pidfile.read_text().split()[0]), 9)  # the one of before would do
    with without("dnsmasq"):
        assert "'dnsmasq' is missing; install it: apt-get install dnsmasq-base" in gpio.refuses_to_serve()
        assert re.search("broken\tdnsmasq\t.*\tinstall it: apt-get install dnsmasq-base", gpio.doctor())
    gpio.up()
    assert gpio.virsh("domstate", "web") == "shut off", "the definition was lost"


@pytest.mark.parametrize(
    ("host", "program", "package"),
    [
        ("metal-1", "qemu-storage-daemon", "qemu-system-common qemu-utils"),
        ("metal-2", "qemu-storage-daemon", "qemu-system-common qemu-utils"),
        ("metal-2", "dnsmasq", "dnsmasq-base"),
    ],
)
def test_a_start_without_a_package_names_it_and_leaves_nothing(
    host: str, program: str, package: str, request: pytest.FixtureRequest
) -> None:
    bench: Bench = request.getfixturevalue("gpio" if host == "metal-1" else "ipmi")
    before, edges = bench.traces(), bench.chassis.waveform()
    with without(program):
        told = bench.refused("start", "web")
    assert f"the program '{program}' is missing; install it: apt-get install {package}" in told
    assert bench.virsh("domstate", "web", "--reason") == "shut off (failed)"
    assert (bench.status()["state"], bench.status()["power"]) == ("free", "off")
    assert bench.traces() == before, "the failed start left something"
    assert bench.chassis.waveform() == edges, "a line moved for a start that could not be"
    bench.virsh("start", "web")
    assert bench.virsh("domstate", "web") == "running"


# ---- a taken port


@contextlib.contextmanager
def taken(bench: Bench, address: str, port: int) -> Iterator[None]:
    """Another program listens there, in the agent's network."""
    code = (
        "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); print(flush=True);"
        "sys.stdin.read()"
    )
    argv = bench.agent.beside(sys.executable, "-c", code, address, str(port))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline(), "the other program could not listen"
        try:
            yield
        finally:
            other.terminate()


def test_the_libvirt_socket_of_another_is_not_taken_over(gpio: Bench) -> None:
    gpio.down()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(gpio.agent.socket))
        other.listen()
        told = gpio.refuses_to_serve()
        assert f"cannot listen for libvirt clients at {gpio.agent.socket}: Address already in use" in told
        assert "stop it, or choose another place in [libvirt]" in told
        assert re.search("broken\tlibvirt\tsomething else answers", gpio.doctor())
        assert gpio.agent.socket.exists(), "the other's socket was removed"
    gpio.up()  # and what a dead one left is replaced


def test_a_taken_port_of_libvirt_over_tcp(gpio: Bench) -> None:
    gpio.down()
    gpio.agent.config.write_text(gpio.config + '\n[libvirt]\ntcp = "127.0.0.1:16509"\n')
    with taken(gpio, "127.0.0.1", 16509):
        assert "cannot listen for libvirt clients at 127.0.0.1:16509: Address already in use" in (
            gpio.refuses_to_serve()
        )
        assert "ss -tlnp 'sport = 16509' tells by whom" in gpio.doctor()
    gpio.up()


def test_a_taken_port_of_the_boot_files_stops_that_host_only_and_only_as_long(gpio: Bench) -> None:
    gpio.down()
    with taken(gpio, PROVISION_ADDRESS, 8080):
        gpio.up()  # an agent has other hosts, and this one's console and power, too
        told = gpio.refused("start", "web")
        assert f"TCP port 8080 of {PROVISION_ADDRESS}, for the boot files of metal-1, is taken" in told
        assert "ss -" in told
        assert gpio.status()["state"] == "free", "the failed start left something"
    gpio.until(lambda: started(gpio), "the link is served once the port is free")


def started(bench: Bench) -> bool:
    """Whether `virsh start` works by now."""
    bench.agent.virsh("start", "web", check=False)
    return bench.virsh("domstate", "web") == "running"


@pytest.mark.parametrize("port", [4420, 8009])
def test_a_taken_nvme_port_fails_the_start_and_leaves_nothing(gpio: Bench, port: int) -> None:
    before, edges = gpio.traces(), gpio.chassis.waveform()
    with taken(gpio, PROVISION_ADDRESS, port):
        told = gpio.refused("start", "web")
    assert f"cannot listen on {PROVISION_ADDRESS}:{port}: the address is taken" in told
    assert gpio.status()["state"] == "free"
    assert gpio.traces() == before, "the failed start left something"
    assert gpio.chassis.waveform() == edges
    gpio.virsh("start", "web")


def test_a_second_agent_is_kept_out(gpio: Bench, tmp_path: Path) -> None:
    state, run = gpio.agent.directory / "state", gpio.agent.directory / "run"
    assert f"another nicagent runs in {run}; stop that one first" in gpio.refuses_to_serve()
    text = gpio.config.replace(f'run_dir = "{run}"', f'run_dir = "{tmp_path}/run"')
    gpio.agent.config.write_text(text)
    assert f"the state {state}/nicagent.db is in use by another nicagent; stop that one" in (
        gpio.refuses_to_serve()
    )
    gpio.agent.config.write_text(gpio.config.replace(f'"{state}"', f'"{tmp_path}/state"'))
    assert f"another nicagent runs in {run}" in gpio.refuses_to_serve()
    assert gpio.virsh("domstate", "web") == "shut off", "the first agent was disturbed"


# ---- a dead BMC


@contextlib.contextmanager
def measured(bench: Bench) -> Iterator[list[float]]:
    """Seconds of `list` with each domain's info, again and again, over a connection of its own."""
    took: list[float] = []
    end = threading.Event()
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(bench.agent.uri)

    def ask() -> None:
        while not end.wait(0.05):
            began = time.monotonic()
            for each in connection.listAllDomains():
                each.info()
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        end.set()
        thread.join()
        connection.close()


def assert_quick(took: list[float]) -> None:
    # The median, since the machine has other work; the worst, since nothing may hang.
    assert statistics.median(took) < 0.1, f"list takes {1000 * statistics.median(took):.0f} ms"
    assert max(took) < 1.5, f"one list took {max(took):.1f} s"


def test_a_bmc_that_dies_over_a_start(ipmi: Bench) -> None:
    ipmi.chassis.fault("bmc-silent")
    began = time.monotonic()
    with measured(ipmi) as took:
        told = ipmi.refused("start", "web")
    assert time.monotonic() - began < 20, "the start outlived its deadline"
    assert_quick(took)
    assert re.search(
        r"its BMC at 127.0.0.1 does not answer \(.*see that the BMC has power and its cable", told
    )
    if ipmi.status()["state"] == "fault":
        # The command was on its way when the BMC died: nobody knows what became of it.
        assert "stays in fault until its power reads off or the domain is destroyed" in told
        assert ipmi.virsh("domstate", "web") == "crashed"
    for words in (["hosts"], ["power", "status", "metal-2"]):
        done = ipmi.nicagent(*words)
        assert done.returncode == 0
        assert "its BMC at 127.0.0.1 does not answer" in done.stdout, done.stdout
    assert re.search(
        "broken\tmetal-2 BMC\t127.0.0.1 UDP port 623 is silent.*\tcheck its cable", ipmi.doctor()
    )

    ipmi.chassis.clear()
    ipmi.until_free()
    ipmi.until(lambda: ipmi.status()["power"] == "off", "the BMC is asked again")
    assert ipmi.virsh("domstate", "web").startswith("shut off")
    ipmi.virsh("start", "web")
    assert ipmi.virsh("domstate", "web") == "running"


def test_a_dead_bmc_refuses_at_once_and_says_why(ipmi: Bench) -> None:
    ipmi.chassis.fault("bmc-silent")
    ipmi.until(lambda: ipmi.status()["power"] == "unknown", "the BMC is missed")
    began = time.monotonic()
    told = ipmi.refused("start", "web")
    assert time.monotonic() - began < 2, "a dead BMC held up a start that could be refused at once"
    assert "no host can take domain web: metal-2 has no readable power state" in told
    assert "its BMC at 127.0.0.1 does not answer" in told
    done = ipmi.nicagent("power", "on", "metal-2")
    assert done.returncode == 3
    assert "does not answer" in sentence(done.stderr)


def test_a_bmc_that_dies_under_a_running_host(ipmi: Bench) -> None:
    ipmi.virsh("start", "web")
    history, qemu = len(ipmi.chassis.history()), ipmi.chassis.status()["qemu_pid"]
    with measured(ipmi) as took:
        ipmi.chassis.fault("bmc-silent")
        ipmi.until(lambda: ipmi.virsh("domstate", "web") == "no state", "the domain's state is not known")
        assert "its BMC at 127.0.0.1 does not answer" in ipmi.nicagent("power", "status", "metal-2").stdout
        assert "power state cannot be read" in ipmi.virsh("dominfo", "web")
        ipmi.chassis.clear()
        ipmi.until(lambda: ipmi.virsh("domstate", "web") == "running", "it is running again")
    assert_quick(took)
    assert len(ipmi.chassis.history()) == history, "somebody worked the power meanwhile"
    assert ipmi.chassis.status()["qemu_pid"] == qemu, "the host was restarted"


def test_a_bmc_that_says_yes_and_does_nothing(ipmi: Bench) -> None:
    before = ipmi.traces()
    ipmi.chassis.fault("bmc-lies")
    told = ipmi.refused("start", "web")
    assert "power-good did not come on host metal-2 within 3 s; its BMC said yes and did nothing" in told
    assert ipmi.virsh("domstate", "web", "--reason") == "shut off (failed)"
    assert ipmi.traces() == before, "the failed start left something"
    done = ipmi.nicagent("power", "on", "metal-2")
    assert done.returncode == 3
    assert "told to power on but its power reads off; its BMC said yes" in sentence(done.stderr)


def test_a_wrong_password_is_not_told_as_a_dead_bmc(ipmi: Bench, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    ipmi.down()
    right = lab_directory() / "metal-2/bmc.password"
    ipmi.agent.config.write_text(ipmi.config.replace(str(right), str(wrong)))
    ipmi.agent.start()
    ipmi.until(lambda: bool(ipmi.status()["trouble"]), "the BMC has refused us")
    what = r"its BMC at 127.0.0.1 does not let us in \(Incorrect password provided\)"
    hint = "check user and password_file of this host's power table"
    assert re.search(f"{what}; {hint}", ipmi.refused("start", "web"))
    done = ipmi.nicagent("power", "on", "metal-2")
    assert re.search(f"{what}; it is asked again in .*{hint}", sentence(done.stderr))
    assert re.search(f"broken\tmetal-2\tits power cannot be read: {what}; {hint}", ipmi.doctor())
    assert "wrong" not in ipmi.agent.log.read_text(), "the password is in the log"
    ipmi.down()


# ---- a full disk


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Every byte of its file system taken."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix="somebody-elses-") as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file.fileno(), bytes(4096))
        yield


@pytest.fixture
def small(gpio: Bench) -> Iterator[Bench]:
    """The bench with its state on a small disk."""
    state = gpio.agent.directory / "state"
    gpio.down()
    kept = state.rename(state.with_name("state-kept"))
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", state], check=True)
    shutil.copytree(kept, state, dirs_exist_ok=True)
    try:
        gpio.up()
        yield gpio
    finally:
        gpio.down()
        subprocess.run(["umount", state], check=True)
        state.rmdir()
        kept.rename(state)


def test_a_full_disk_refuses_what_must_last_and_lets_power_be_taken_away(small: Bench) -> None:
    state = small.agent.directory / "state"
    other = domain_xml("other", "web.qcow2")
    sentence = f"the disk that holds the state {state}/nicagent.db is full; free some space, then ask again"
    with full(state):
        assert sentence in small.refused("define", small.file(other))
        assert sentence in small.refused("start", "web")
        assert sentence in small.refused("autostart", "web")
        assert small.virsh("list", "--all", "--name") == "web", "the domains are not as they were"
        assert small.status()["state"] == "free"
        assert re.search("warning\tstate\t.*only 0 MiB are free\tmake room", small.doctor())
    small.virsh("start", "web")
    edges = small.chassis.waveform()
    with full(state):
        assert sentence in small.refused("undefine", "web")
        assert sentence in small.refused("autostart", "web")
        # Also an agent that comes up then finds its host, and leaves it as it is.
        small.agent.kill()
        small.agent.start()
        assert small.virsh("domstate", "web") == "running"
        assert small.agent.process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            small.agent.process.wait(1)  # it stays
        assert small.chassis.waveform() == edges, "a line moved though nothing could be made durable"
        small.virsh("destroy", "web")
        assert (small.status()["state"], small.status()["power"]) == ("free", "off")
        with full(state):  # of what was kept for that as well
            small.agent.kill()
            small.agent.start()
            assert small.virsh("domstate", "web") == "shut off", "the stop was lost"
    small.virsh("define", small.file(other))
    small.virsh("undefine", "other")


# ---- a malformed definition

GOOD = domain_xml("web2", "web.qcow2")
TAKEN_UUID = "6b0d0d6e-6b8f-4c1c-9d55-000000000001"

MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": (" ", r"\(domain_definition\):1: Document is empty"),
    "not well-formed": ("<domain><name>x</domain>", r"\(domain_definition\):1: mismatched tag"),
    "not text": (b"\x01\x02", r"\(domain_definition\):1: not well-formed"),
    "an entity": ('<!DOCTYPE d [<!ENTITY a "b">]>' + GOOD.strip(), "type declaration is not accepted"),
    "a DTD": ('<!DOCTYPE d SYSTEM "file:///etc/hostname">' + GOOD.strip(), "document type declaration"),
    "another root": ("<network><name>x</name></network>", "root element of 'domain', not 'network'"),
    "no name": (GOOD.replace("<name>web2</name>", ""), "missing name information"),
    "a name with a slash": (GOOD.replace("web2<", "we/b<"), "name we/b cannot contain '/'"),
    "no memory": (GOOD.replace("<memory unit='MiB'>1024</memory>", ""), "Memory size must be specified"),
    "a bad unit": (GOOD.replace("'MiB'", "'MoB'"), "unknown suffix 'MoB'"),
    "a bad UUID": (GOOD.replace("</name>", "</name><uuid>123</uuid>"), "malformed uuid element"),
    "unknown pool": (GOOD.replace("'default'", "'gold'"), "vda: no pool is called 'gold'; known: default"),
    "a way out of the pool": (GOOD.replace("'web.qcow2'", "'../web.qcow2'"), "is no name of a volume; give"),
    "unknown format": (GOOD.replace("type='qcow2'", "type='vmdk'"), "'vmdk' is not known here; use raw or"),
    "no segment": (
        GOOD.replace("type='network'", "type='bridge'").replace("network='blue'", "bridge='br0'"),
        r"interface 0: bridge 'br0' is that of no segment; list it in segments\.NAME\.bridges, or use",
    ),
    "a name that is taken": (
        GOOD.replace("web2<", "web<").replace("</name>", f"</name><uuid>{TAKEN_UUID}</uuid>"),
        "domain 'web' already exists with uuid",
    ),
    "nested too deep": ("<domain>" * 100_000, "elements nested deeper than"),
    "too long": (b"<domain>" + b" " * (65 << 20) + b"</domain>", "Value too large"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["define", "create"])
def test_a_malformed_definition_is_refused_whole(gpio: Bench, command: str) -> None:
    documents = list(MALFORMED.items())
    for what, (text, words) in documents if command == "define" else documents[::5]:  # one parser for both
        told = gpio.refused(command, gpio.file(text))
        assert re.search(words, told), f"{what}: {told}"
        assert gpio.virsh("list", "--all", "--name") == "web", f"{what}: half of it is there"
    uuid = gpio.virsh("domuuid", "web")
    text = GOOD.replace("</name>", f"</name><uuid>{uuid}</uuid>")
    assert f"domain 'web' is already defined with uuid {uuid}" in gpio.refused(command, gpio.file(text))


# What can only be known at the start: libvirt, too, accepts these definitions.
IMPOSSIBLE = {
    "unknown segment": (GOOD.replace("'blue'", "'red'"), "no segment is called 'red'; known: blue"),
    "no such volume": (GOOD.replace("web.qcow2", "none.qcow2"), "none.qcow2 does not exist; create it"),
    "a file outside the pools": (
        GOOD.replace("type='volume'", "type='file'")
        .replace("pool='default' volume='web.qcow2'", "file='/etc/hostname'")
        .replace("type='qcow2'", "type='raw'"),
        "/etc/hostname lies outside the storage pools .*add its directory as a",
    ),
    "a backing file outside the pools": (
        GOOD.replace("web.qcow2", "leak.qcow2"),
        "backing file .*secret.raw of .*leak.qcow2 lies outside the storage pools",
    ),
    "no qcow2": (GOOD.replace("web.qcow2", "junk.qcow2"), "junk.qcow2 is not in qcow2 format"),
    "too much memory": (GOOD.replace(">1024<", ">65536<"), "has 1024 MiB of memory, 65536 are asked for"),
    "too many CPUs": (GOOD.replace(">1</vcpu>", ">64</vcpu>"), "metal-1 has 1 CPUs, 64 are asked for"),
    "a MAC that no NIC has": (
        GOOD.replace("<model", "<mac address='52:54:00:00:00:99'/><model"),
        "has a NIC with MAC 02:00:00:01:00:02, not 52:54:00:00:00:99",
    ),
}  # fmt: skip


def test_an_impossible_definition_is_refused_at_its_start(gpio: Bench) -> None:
    secret = gpio.agent.directory / "secret.raw"
    secret.write_bytes(bytes(1 << 20))
    gpio.volume("leak.qcow2", "-F", "raw", "-b", str(secret))
    (gpio.pool / "junk.qcow2").write_text("hello")
    before, edges = gpio.traces(), gpio.chassis.waveform()
    for what, (text, words) in IMPOSSIBLE.items():
        gpio.virsh("define", gpio.file(text))
        told = gpio.refused("start", "web2")
        assert re.search(words, told), f"{what}: {told}"
        assert gpio.status()["state"] == "free"
        gpio.virsh("undefine", "web2")
        assert gpio.traces() == before, f"{what}: the failed start left something"
    assert gpio.chassis.waveform() == edges, "a line moved"


def test_the_codes_are_libvirts_own(gpio: Bench) -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(gpio.agent.uri)
    try:
        for call, code in {
            lambda: connection.defineXML("<domain>"): libvirt.VIR_ERR_XML_DETAIL,
            lambda: connection.defineXML(MALFORMED["no memory"][0]): libvirt.VIR_ERR_XML_ERROR,
            lambda: connection.lookupByName("nobody"): libvirt.VIR_ERR_NO_DOMAIN,
            lambda: connection.lookupByName("web").destroy(): libvirt.VIR_ERR_OPERATION_INVALID,
            lambda: connection.defineXML(MALFORMED["unknown format"][0]): libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        }.items():
            with pytest.raises(libvirt.libvirtError) as caught:
                call()
            assert caught.value.get_error_code() == code, caught.value
    finally:
        connection.close()


def test_a_transient_domain_stays_transient(ipmi: Bench) -> None:
    ipmi.virsh("create", ipmi.file(GOOD))
    told = ipmi.refused("desc", "web2", "--config", "hello")
    assert "transient domains do not have any persistent config" in told
    ipmi.virsh("destroy", "web2")
    assert ipmi.virsh("list", "--all", "--name") == "web"


# ---- faults of the front panel


def released(bench: Bench) -> bool:
    """The button is not held, and every press of it was let go."""
    levels = [edge["level"] for edge in bench.chassis.waveform(BUTTON)]
    return bench.chassis.status()["lines"]["power_button"] == 0 and levels.count(1) == levels.count(0)


def test_a_button_whose_wire_came_off(gpio: Bench) -> None:
    before = gpio.traces()
    gpio.chassis.fault("button-dead")
    began = time.monotonic()
    told = gpio.refused("start", "web")
    assert time.monotonic() - began < 20, "the start outlived its deadline"
    assert "power-good did not come on host metal-1 within 2 s; check the wires of its power button" in told
    assert gpio.virsh("domstate", "web", "--reason") == "shut off (failed)"
    assert gpio.traces() == before, "the failed start left something"
    assert released(gpio), "the button was left pressed"
    gpio.chassis.clear()
    gpio.virsh("start", "web")
    assert gpio.virsh("domstate", "web") == "running"


def test_an_led_that_stays_dark(gpio: Bench) -> None:
    gpio.chassis.fault("led-stuck", 0)
    told = gpio.refused("start", "web")
    assert "power-good did not come" in told
    assert "its power LED" in told
    assert released(gpio), "the button was left pressed"
    # The button did work; once the LED tells so the host is not taken for a free one.
    gpio.chassis.clear()
    gpio.until(lambda: gpio.status()["power"] == "on", "the LED is seen")
    told = gpio.refused("start", "web")
    assert "metal-1 is switched on without a domain (nicagent power off metal-1)" in told


def test_an_led_that_stays_lit(gpio: Bench) -> None:
    gpio.virsh("start", "web")
    gpio.chassis.fault("led-stuck", 1)
    told = gpio.refused("destroy", "web")
    assert "power-good did not go on host metal-1 within 2 s; check the wires" in told
    assert "then destroy the domain again" in told
    assert gpio.virsh("domstate", "web") == "crashed"
    assert re.search("broken\tmetal-1\tfault: .*\tnicagent power off metal-1 clears it", gpio.doctor())
    done = gpio.nicagent("power", "on", "metal-1")
    assert done.returncode == 4
    assert "nicagent power off metal-1 clears it" in sentence(done.stderr)
    assert released(gpio), "the button was left pressed"
    gpio.chassis.clear()
    gpio.until_free()  # the LED goes dark, and the fault is over
    assert gpio.virsh("domstate", "web", "--reason") == "shut off (destroyed)"


# ---- a host that proves itself to its disks


OWN_KEY = "11111111-2222-3333-4444-555555555555"
KEY_XML = f"""<secret ephemeral='no' private='no'><uuid>{OWN_KEY}</uuid>
<usage type='iscsi'><target>metal-1</target></usage></secret>"""
KEYS = [dhchap.key_text(dhchap.Key(bytes([number]) * 32, None)) for number in (1, 2)]


def asked_for(bench: Bench) -> str | None:
    """The key that the running target asks its host for."""
    file = bench.agent.directory / "run/hosts/metal-1/nvmetcp.json"
    assert file.stat().st_mode & 0o777 == 0o600, "the target's configuration can be read by others"
    auth = json.loads(file.read_text())["subsystems"][0]["auth"]
    return None if auth is None else str(auth["key"])


def kept(bench: Bench) -> Path:
    return bench.agent.directory / "state/hosts/metal-1/nvmetcp.keys"


def test_a_key_is_there_and_whole_before_a_host_is_started_and_stays_for_its_run(gpio: Bench) -> None:
    gpio.down()
    keyed = gpio.config.replace('transport = "nvme-tcp"', 'transport = "nvme-tcp"\nsecret = "metal-1"')
    assert keyed != gpio.config
    gpio.agent.config.write_text(keyed)
    gpio.up()
    value = gpio.agent.directory / "value"
    before, edges = gpio.traces(), gpio.chassis.waveform()
    told = gpio.refused("start", "web")
    assert "there is no secret 'metal-1', which hosts.metal-1.storage.secret names; define it" in told
    gpio.virsh("secret-define", gpio.file(KEY_XML))
    assert f"secret '{OWN_KEY}' does not have a value" in gpio.refused("start", "web")
    value.write_text("DHHC-1:00:swordfish:")
    gpio.virsh("secret-set-value", OWN_KEY, "--file", str(value), "--plain")
    told = gpio.refused("start", "web")
    assert (
        "the value of secret iscsi:metal-1, which hosts.metal-1.storage.secret names, is no DH-HMAC" in told
    )
    assert "swordfish" not in told
    assert (gpio.status()["state"], gpio.status()["power"]) == ("free", "off")
    assert gpio.traces() == before, "a failed start left something"
    assert gpio.chassis.waveform() == edges, "a line moved for a start that could not be"

    value.write_text(KEYS[0])
    gpio.virsh("secret-set-value", OWN_KEY, "--file", str(value), "--plain")
    gpio.virsh("start", "web")
    assert asked_for(gpio) == KEYS[0]
    told = gpio.refused("secret-undefine", OWN_KEY)
    assert f"secret {OWN_KEY} is named by hosts.metal-1.storage.secret" in told

    value.write_text(KEYS[1])
    gpio.virsh("secret-set-value", OWN_KEY, "--file", str(value), "--plain")
    gpio.down()
    target = int((gpio.agent.directory / "run/hosts/metal-1/nvmetcp.pid").read_text().split()[0])
    for place in ("cmdline", "environ"):
        assert KEYS[0] not in Path(f"/proc/{target}/{place}").read_text(errors="replace")
    os.kill(target, signal.SIGKILL)
    (gpio.agent.directory / "run/hosts/metal-1/nvmetcp.json").unlink()  # as after a reboot of the board
    gpio.up()
    gpio.until(
        lambda: (gpio.agent.directory / "run/hosts/metal-1/nvmetcp.json").exists(), "its target is back"
    )
    assert asked_for(gpio) == KEYS[0], "the OS that runs there has the key that it was started with"
    assert kept(gpio).stat().st_mode & 0o777 == 0o600
    gpio.virsh("destroy", "web")
    assert not kept(gpio).exists()
    gpio.virsh("start", "web")
    assert asked_for(gpio) == KEYS[1], "a new key is for the next start"
    gpio.virsh("destroy", "web")
    logs = [gpio.agent.log, *(gpio.agent.directory / "state").rglob("*.log")]
    assert not [log for log in logs for key in KEYS if key in log.read_text(errors="replace")]

    gpio.down()
    gpio.agent.config.write_text(keyed.replace('secret = "metal-1"', 'secret = "fresh"'))
    gpio.up()
    gpio.virsh("secret-undefine", OWN_KEY)  # nobody names it any more
    gpio.virsh("start", "web")
    fresh = asked_for(gpio)
    assert fresh is not None and fresh.startswith("DHHC-1:") and fresh not in KEYS
    gpio.virsh("destroy", "web")
    gpio.virsh("start", "web")
    assert asked_for(gpio) != fresh, "a fresh key is for one run"


# ---- somebody asks for what is not there


def test_the_command_without_an_agent_or_with_a_wrong_name(gpio: Bench, tmp_path: Path) -> None:
    done = gpio.nicagent("power", "on", "metal-9")
    assert done.returncode == 1
    assert "no host is called 'metal-9'; known hosts: metal-1" in sentence(done.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "nicagent.cli", "hosts", "--socket", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 3
    assert "is the agent running? start it: nicagent serve" in sentence(done.stderr)
