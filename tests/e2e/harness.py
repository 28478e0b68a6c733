"""What the demo and the end-to-end tests drive an agent with: its process, stock virsh, a console session.

Everything here runs inside a lab (`nicagent emulate LAB.toml -- …`), which is found by NICAGENT_LAB.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = ROOT / ".cache/images/debian.qcow2"
ARTEFACTS = ROOT / ".cache/boot"
#: To a login prompt without KVM, on a machine that has other things to do: 60 on an idle one, 150 with four
#: times as much to do as processors.
BOOT_SECONDS = 420.0
LOGIN, PASSWORD = "debian", "debian"  # of the test image, see images/debian/README.md


@dataclass
class Agent:
    """One agent process in its network namespace."""

    name: str
    directory: Path
    config: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "run/libvirt-sock"

    @property
    def uri(self) -> str:
        return f"nic+unix:///system?socket={self.socket}"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    def beside(self, *argv: str | Path) -> list[str | Path]:
        """A command on the agent's own board: its loopback is nobody else's."""
        return ["ip", "netns", "exec", self.name, *argv]

    def launch(self) -> None:
        """Start it and do not wait."""
        argv = self.beside(sys.executable, "-m", "nicagent.cli", "serve", "-c", self.config)
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)

    def start(self, *, seconds: float = 60.0) -> float:
        """Start it; returns the seconds from exec until its libvirt socket answers."""
        began = time.monotonic()
        self.launch()
        assert self.process is not None
        deadline = began + seconds
        while not answers(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise AssertionError(f"agent {self.name} did not come up; its log ends:\n{tail}")
            time.sleep(0.005)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, as a crash does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(seconds)

    def virsh(self, *words: str, check: bool = True, seconds: float = 120.0) -> str:
        """One virsh command against this agent; its output."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=c_locale(),
        )
        if check and done.returncode != 0:
            raise AssertionError(f"virsh {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip() or done.stderr.strip()

    def refused(self, *words: str) -> str:
        """A virsh command that must fail; what virsh says."""
        argv = ["virsh", "-q", "-c", self.uri, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=c_locale())
        assert done.returncode != 0, f"virsh {' '.join(words)} was not refused: {done.stdout}"
        assert "Traceback" not in done.stderr
        return (done.stdout + done.stderr).strip()

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One `nicagent` command against this agent."""
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "nicagent.cli",
                *words,
                "--socket",
                str(self.directory / "run/nicagent.sock"),
            ],
            capture_output=True,
            text=True,
            timeout=200,
        )


def job_is_ready(shown: str) -> bool:
    """Whether `virsh blockjob --info` says that all is copied: "100 %", and "100.00 %" from libvirt 10 on."""
    return re.search(r"\b100(\.00)? %", shown) is not None


def c_locale() -> dict[str, str]:
    """The environment with untranslated messages."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def answers(path: Path) -> bool:
    """Whether somebody accepts on a unix socket."""
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@dataclass
class Console:
    """`virsh console` on a pseudo terminal, with what came out so far."""

    pid: int
    fd: int
    text: str = ""
    taken: int = 0

    @classmethod
    def open(cls, agent: Agent, domain: str) -> Console:
        pid, fd = pty.fork()
        if pid == 0:
            os.execvpe("virsh", ["virsh", "-q", "-c", agent.uri, "console", domain, "--force"], c_locale())
        return cls(pid, fd)

    def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until new output matches; what came before the match is taken with it."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.text[self.taken :])
            if found:
                self.taken += found.end()
                return found
            if time.monotonic() > deadline or not self._read(min(1.0, deadline - time.monotonic())):
                tail = self.text[-1500:]
                raise AssertionError(
                    f"the console did not show {pattern!r} in {seconds:g} s; it ends:\n{tail}"
                )

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, seconds))
        if ready:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: virsh has ended
                data = b""
            if not data:
                return False
            self.text += data.decode(errors="replace")
        return True

    def wake(self, pattern: str, seconds: float) -> None:
        """Press Enter until the other end shows its prompt: what is typed before virsh has the terminal in
        raw mode is lost, as it is for a person.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.send("")
            try:
                self.expect(pattern, 2.0)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def send(self, line: str) -> None:
        os.write(self.fd, line.encode() + b"\n")

    def login(self, seconds: float) -> None:
        """From the login prompt (awaited) to a shell."""
        self.expect(r"login: ", seconds)
        self.send(LOGIN)
        self.expect(r"assword: ", 30)
        self.send(PASSWORD)
        self.expect(r"\$ ", 60)
        # No line editing and no echo: what comes back is the commands' own output.
        self.send("bind 'set enable-bracketed-paste off'; stty -echo; PS1='$ '; echo re''ady")
        self.expect(r"ready\s+\$ ", 30)

    def run(self, command: str, seconds: float = 60) -> str:
        """A shell command's output in the guest."""
        mark = f"{time.monotonic_ns():x}"
        # The mark is split in what is typed, so that only the command's own output matches.
        self.send(f"{command}; echo {mark[:4]}''{mark[4:]} $?")
        found = self.expect(rf"([\s\S]*?){mark} (\d+)\s+\$ ", seconds)
        output = found[1].replace("\r", "").strip()
        if found[2] != "0":
            raise AssertionError(f"in the guest, {command!r} ended with {found[2]}: {output}")
        return output

    def close(self) -> None:
        """Hang up, as closing a terminal window does."""
        with contextlib.suppress(OSError):
            os.close(self.fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def lab_directory() -> Path:
    """Where the lab that we run in keeps its chassis."""
    return Path(os.environ["NICAGENT_LAB"])


def disk(agent_directory: Path, name: str) -> Path:
    """A tenant's disk: a qcow2 overlay on the base image, in the agent's pool."""
    pool = agent_directory / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    base = pool / "debian.qcow2"
    if not base.exists():
        # A pool's volumes are backed by the pool's own: a reflink or copy costs less than a wider allow list.
        subprocess.run(["cp", "--reflink=auto", BASE_IMAGE, base], check=True)
    path = pool / f"{name}.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, path.name],
        check=True,
        cwd=pool,
    )
    return path


def make_agents(lab: Path, directory: Path) -> tuple[Agent, Agent]:
    """The two agents of demo.toml, configured but not started."""
    first = configure("agent-1", directory, overlay("192.0.2.1", "192.0.2.2", 10) + _METAL_1.format(lab=lab))
    second = configure("agent-2", directory, overlay("192.0.2.2", "192.0.2.1", 20) + _METAL_2.format(lab=lab))
    return first, second


def wired_agent(lab: Path, directory: Path) -> Agent:
    """The agent of guest.toml, whose host has all that can be wired to one."""
    return configure(
        "agent-1", directory, overlay("127.0.0.1", "127.0.0.2", 10) + _WIRED_HOST.format(lab=lab)
    )


def bench_agent(lab: Path, directory: Path) -> Agent:
    """The agent of bench.toml: one host a transport, and one that boots its own disk."""
    hosts = ""
    for name, transport in (("by-network", "nvme-tcp"), ("by-virtio", "virtio"), ("local", "virtio")):
        hosts += _BENCH_HOST.format(lab=lab, name=name, transport=transport)
    hosts += """
[hosts.by-network.provision]
device = "prov0"
mac = "02:00:00:01:00:01"
"""
    return configure("agent-1", directory, hosts)


def configure(name: str, directory: Path, body: str) -> Agent:
    """An agent whose config is the usual head and `body`; not started."""
    home = directory / name
    (home / "pool").mkdir(parents=True, exist_ok=True)
    config = home / "nicagent.toml"
    head = f"""
[agent]
name = "{name}"
state_dir = "{home}/state"
run_dir = "{home}/run"
artefacts = "{ARTEFACTS}"

[pools.default]
path = "{home}/pool"
"""
    config.write_text(head + body)
    return Agent(name, home, config)


def overlay(local: str, peer: str, first: int) -> str:
    """Segment blue, with this agent's own ten addresses of it."""
    return f"""
[overlay]
local = "{local}"
peers = ["{peer}"]

[segments.blue]
vni = 100
cidr = "10.100.0.0/24"
range = ["10.100.0.{first}", "10.100.0.{first + 9}"]
bridges = ["tap*"]
"""


_BENCH_HOST = """
[hosts.{name}]
memory_mib = 1024
[hosts.{name}.power]
driver = "gpio"
pins = "socket:{lab}/{name}/lines.sock"
[hosts.{name}.storage]
transport = "{transport}"
slot = "{lab}/{name}/slot"
[hosts.{name}.console]
path = "{lab}/{name}/console.sock"
"""

_WIRED_HOST = """
[hosts.metal]
memory_mib = 1024
[hosts.metal.power]
driver = "ipmi"
address = "127.0.0.1"
user = "admin"
password_file = "{lab}/metal/bmc.password"
[hosts.metal.storage]
transport = "virtio"
slot = "{lab}/metal/slot"
[[hosts.metal.nics]]
device = "port0"
mac = "02:00:00:02:00:02"
[hosts.metal.console]
path = "{lab}/metal/console.sock"
[hosts.metal.guest_agent]
path = "{lab}/metal/guest.sock"
[hosts.metal.screen]
path = "{lab}/metal/capture.sock"
rfb = "{lab}/metal/vnc.sock"
[hosts.metal.keyboard]
path = "{lab}/metal/keyboard.sock"
"""

_METAL_1 = """
[hosts.metal-1]
memory_mib = 1024
[hosts.metal-1.power]
driver = "gpio"
pins = "socket:{lab}/metal-1/lines.sock"
[hosts.metal-1.storage]
transport = "nvme-tcp"
[hosts.metal-1.provision]
device = "prov0"
mac = "02:00:00:01:00:01"
[[hosts.metal-1.nics]]
device = "port0"
mac = "02:00:00:01:00:02"
[hosts.metal-1.console]
path = "{lab}/metal-1/console.sock"
"""

_METAL_2 = """
[hosts.metal-2]
memory_mib = 1024
[hosts.metal-2.power]
driver = "ipmi"
address = "127.0.0.1"
user = "admin"
password_file = "{lab}/metal-2/bmc.password"
[hosts.metal-2.storage]
transport = "virtio"
slot = "{lab}/metal-2/slot"
[[hosts.metal-2.nics]]
device = "port0"
mac = "02:00:00:02:00:02"
[hosts.metal-2.console]
path = "{lab}/metal-2/console.sock"
"""


def domain_xml(
    name: str, volume: str | None, *, memory_mib: int = 1024, host: str = "", segment: str | None = "blue"
) -> str:
    """The definition a cloud would send; only `host` (which machine) is a word of ours."""
    pin = f"<nic:domain xmlns:nic='urn:nicagent:domain:1'><nic:host>{host}</nic:host></nic:domain>"
    disk = f"""
    <disk type='volume' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source pool='default' volume='{volume}'/>
      <target dev='vda' bus='virtio'/>
    </disk>"""
    interface = f"""
    <interface type='network'>
      <source network='{segment}'/>
      <model type='virtio'/>
    </interface>"""
    return f"""
<domain type='kvm'>
  <name>{name}</name>
  {f"<metadata>{pin}</metadata>" if host else ""}
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <features><acpi/></features>
  <devices>{disk if volume else ""}{interface if segment else ""}
    <console type='pty'/>
  </devices>
</domain>
"""


@contextlib.contextmanager
def events(agent: Agent, log: Path) -> Iterator[Path]:
    """`virsh event` in the background; its lines in `log`."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["stdbuf", "-oL", "virsh", "-q", "-c", agent.uri, "event", "--loop", "--all", "--timestamp"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=c_locale(),
        )
        try:
            yield log
        finally:
            process.terminate()
            process.wait(10)


@dataclass
class Figures:
    """What the demo tells at its end, of one server."""

    name: str
    power_path: str
    transport: str = ""
    asked: float = 0.0  # Unix seconds
    pgood: float = 0.0  # seconds after that
    first_read: float | None = None
    login: float = 0.0
    read_bytes: int | None = None
    pings: list[float] = field(default_factory=list)  # milliseconds
