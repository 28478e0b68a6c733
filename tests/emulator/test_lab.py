"""A lab: a world of its own that works as root and as anybody, with no network, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.anybody import opened

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
LAB = """
run_dir = "RUN_DIR"
netns = ["lab-a", "lab-b"]
[[cables]]
mtu = 1600
ends = [
  {device = "up0", netns = "lab-a", addresses = ["10.99.0.1/24"]},
  {device = "up0", netns = "lab-b", addresses = ["10.99.0.2/24"]},
]
[[chassis]]
name = "metal-1"
memory_mib = 64
firmware = "bios"
nics = [{mac = "52:54:00:00:00:01", tap = "prov0", netns = "lab-a"}]
[[chassis]]
name = "metal-2"
memory_mib = 64
firmware = "bios"
nics = [{mac = "52:54:00:00:00:02", tap = "prov0", netns = "lab-b"}]
[chassis.bmc]
address = "10.99.0.2"
netns = "lab-b"
"""
RUN = """
import sys
from pathlib import Path
from nicagent.emulator.lab import run_lab
from nicagent.errors import NicagentError
try:
    sys.exit(run_lab(Path(sys.argv[1]), sys.argv[2:] or None))
except NicagentError as error:
    print(error)
    sys.exit(99)
"""
# What an agent would do: press the button of its host and see power good and the NIC's link.
PRESS = f"""
ip netns exec lab-a {sys.executable} - <<'END'
import os
from gpiozero import DigitalInputDevice, DigitalOutputDevice
from nicagent.power.pins_socket import SocketFactory
factory = SocketFactory(os.environ["NICAGENT_LAB"] + "/metal-1/lines.sock")
led = DigitalInputDevice(24, pull_up=None, active_state=True, pin_factory=factory)
button = DigitalOutputDevice(23, initial_value=None, pin_factory=factory)
button.blink(on_time=0.1, n=1, background=False)
assert led.wait_for_active(20), "no power good"
print("power good")
END
ip -n lab-a link show prov0
"""


@pytest.fixture
def lab() -> Iterator[Path]:
    """A lab file that anybody may read, and a run directory that anybody may use.

    Not in pytest's own directory: each start of pytest closes that to other users.
    """
    with tempfile.TemporaryDirectory(prefix="lab-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        run_dir = directory / "run"
        run_dir.mkdir()
        os.chown(run_dir, NOBODY, NOBODY)
        path = directory / "lab.toml"
        path.write_text(LAB.replace("RUN_DIR", str(run_dir)))
        yield path


def as_anybody(directory: Path, *, run: bool = True, tun_mode: str = "666") -> list[str]:
    """A prefix that drops to an ordinary user, where /dev/net/tun has `tun_mode` (666 is what udev makes it).

    `run` False: that user cannot add a directory to /run, and no root ever made /run/netns.
    """
    script = directory / "anybody.sh"
    lines = [
        "set -e",
        f"mkdir {directory}/dev; mount -t tmpfs -o mode=755 tmpfs {directory}/dev",
        f"mknod -m {tun_mode} {directory}/dev/tun c 10 200; mount --bind {directory}/dev/tun /dev/net/tun",
        opened(),
        "" if run else "mount -t tmpfs -o mode=755 tmpfs /run; mkdir /run/kept; ln -s kept /run/link",
        f'exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups env HOME=/ "$@"',
    ]
    script.write_text("\n".join(lines))
    return ["unshare", "--mount", "sh", str(script)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def emulate(lab: Path, *command: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, sys.executable, "-c", RUN, str(lab), *command]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, cwd="/", env=environment(), check=False
    )


def left_over(lab: Path) -> list[str]:
    """Processes of this lab that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(lab.parent / "run") in words:
            found.append(words.replace("\0", " "))
    return found


def named_namespaces() -> set[str]:
    try:
        return {path.name for path in Path("/run/netns").iterdir()}
    except FileNotFoundError:
        return set()


def test_wires_power_and_a_clean_end(lab: Path) -> None:
    script = PRESS + "ip netns exec lab-a ping -c 1 -W 2 10.99.0.2; ip -n lab-a link show up0; exit 7"
    done = emulate(lab, "sh", "-c", script)
    assert done.returncode == 7, f"not the command's exit status; it said {done.stdout} {done.stderr}"
    assert "power good" in done.stdout
    assert re.search(r"prov0: <[^>]*LOWER_UP", done.stdout), "the NIC of a running host has link"
    assert "1 received" in done.stdout and "mtu 1600" in done.stdout
    assert not {"lab-a", "lab-b"} & named_namespaces(), "the lab's namespaces are its own"
    assert left_over(lab) == []
    edges = [json.loads(line) for line in (lab.parent / "run/metal-1/lines.log").read_text().splitlines()]
    assert [(e["line"], e["level"]) for e in edges][:1] == [(23, 1)], "the waveform survives on disk"
    assert {e["line"] for e in edges} == {23, 24}


@pytest.mark.parametrize("run", [True, False], ids=["run-netns-there", "run-untouchable"])
def test_as_an_ordinary_user(lab: Path, run: bool) -> None:
    script = PRESS + "ls /run; test $(id -u) = 0 && ip netns exec lab-b true && exit 3"
    done = emulate(lab, "sh", "-c", script, prefix=as_anybody(lab.parent, run=run))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "power good" in done.stdout
    if not run:
        assert "kept" in done.stdout and "link" in done.stdout, "what was in /run is still there"
    assert left_over(lab) == []


def test_without_any_network(lab: Path) -> None:
    done = emulate(lab, "sh", "-c", PRESS, prefix=["unshare", "--net"])
    assert done.returncode == 0 and "power good" in done.stdout, done.stdout + done.stderr


def test_a_bmc_is_reachable_from_the_other_end_of_a_cable(lab: Path) -> None:
    script = (
        "ip netns exec lab-a ipmitool -I lanplus -C 3 -H 10.99.0.2 -U admin"
        ' -f "$NICAGENT_LAB/metal-2/bmc.password" chassis power status'
    )
    done = emulate(lab, "sh", "-c", script)
    assert done.stdout.strip() == "Chassis Power is off", done.stderr


def test_orphans_are_reaped_and_end_with_the_lab(lab: Path) -> None:
    """An agent's daemons outlive the agent inside a lab, but not the lab."""
    run_dir = lab.parent / "run"
    script = f"(setsid tail -f /dev/null {run_dir}/lab.json & sleep 0 &); sleep 0.3; ps ax -o stat,args"
    done = emulate(lab, "sh", "-c", script)
    assert "tail -f" in done.stdout
    assert not re.search(r"^Z", done.stdout, re.MULTILINE), f"a zombie:\n{done.stdout}"
    assert left_over(lab) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_signals_end_it_all(lab: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", RUN, str(lab)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "lab is up" in said and "metal-1, metal-2" in said
        assert (lab.parent / "run/metal-2/control.sock").is_socket()
        process.send_signal(number)
        code = process.wait(30)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    end = time.monotonic() + 10
    while left_over(lab) and time.monotonic() < end:
        time.sleep(0.05)
    assert left_over(lab) == []


def test_a_command_ended_by_a_signal(lab: Path) -> None:
    assert emulate(lab, "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_errors_come_back_as_sentences(lab: Path) -> None:
    done = emulate(lab, "no-such-program")
    assert done.returncode == 99
    assert done.stdout == "the program 'no-such-program' is missing; install it or put it on PATH\n"
    lab.write_text(lab.read_text().replace('"10.99.0.2"\nnetns', '"10.99.0.77"\nnetns'))
    done = emulate(lab, "true")
    assert "the BMC of metal-2 cannot listen on 10.99.0.77:623" in done.stdout, done.stdout + done.stderr


def test_where_tap_devices_are_forbidden_it_says_so(lab: Path) -> None:
    done = emulate(lab, "true", prefix=as_anybody(lab.parent, tun_mode="600"))
    assert done.returncode == 99 and "chmod 0666 /dev/net/tun" in done.stdout, done.stdout + done.stderr
