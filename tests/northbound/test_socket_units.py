"""The shipped units: systemd's own tools find nothing wrong with them, and a real agent serves the sockets
that they have systemd open.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.harness import answers
from tests.rig import ONE_HOST

UNITS = Path(__file__).parents[2] / "images" / "agent"
SOCKETS = ("nicagent-libvirt.socket", "nicagent-libvirt-ro.socket")


def unit(name: str) -> configparser.SectionProxy:
    """The `[Socket]` of a shipped unit."""
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser["Socket"]


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not there: apt-get install systemd")
    return path


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for path in UNITS.glob("nicagent*.s*"):
        # The command that it starts is not installed on a machine that tests.
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/nicagent", sys.executable))
    done = subprocess.run(
        [analyze, "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=30, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(list(tmp_path.iterdir())) == 3


def test_a_real_agent_serves_the_sockets_of_the_units(tmp_path: Path) -> None:
    """Nobody runs until a client comes, who waits for the agent; each socket is what its unit names it."""
    activate = tool("systemd-socket-activate")
    (tmp_path / "nicagent.toml").write_text(ONE_HOST.format(tmp_path))
    places = [tmp_path / Path(unit(name)["ListenStream"]).name for name in SOCKETS]
    names = [unit(name)["FileDescriptorName"] for name in SOCKETS]
    argv = [activate, *(f"--listen={place}" for place in places), f"--fdname={':'.join(names)}"]
    argv += [f"--setenv={each}" for each in ("PYTHONPATH", "PATH") if each in os.environ]
    argv += [sys.executable, "-m", "nicagent.cli", "serve", "-c", str(tmp_path / "nicagent.toml")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def virsh(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "-q", "-c", f"nic+unix:///system?socket={place}", *command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    try:
        deadline = time.monotonic() + 20
        while not all(place.exists() for place in places):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        document = tmp_path / "web.xml"
        document.write_text(
            "<domain type='kvm'><name>web</name><memory unit='GiB'>1</memory><os><type>hvm</type></os>"
            "</domain>"
        )
        writing, reading = places
        defined = virsh(writing, "define", str(document))
        assert defined.returncode == 0, f"{defined.stderr}\n{(tmp_path / 'log').read_text()}"
        assert virsh(reading, "list", "--all", "--name").stdout.split() == ["web"]
        assert "read only access" in virsh(reading, "undefine", "web").stderr, "the ro socket is the ro one"
        assert not answers(tmp_path / "run/libvirt-sock"), "it listens beside systemd's socket"
    finally:
        process.terminate()
        process.wait(20)
    assert all(place.exists() for place in places), "the sockets are systemd's, and stay for the next agent"
