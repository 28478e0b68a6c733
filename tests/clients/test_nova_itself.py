"""nova itself, from PyPI and unmodified: its Host and Guest classes at a server.

Slow, for nova's hundred packages take minutes to install: `make campaign`, not CI. What CI has is the same
calls by libvirt-python, in test_nova.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from images.clients import HOME
from images.steps import Failure, make, run
from tests.clients.documents import CLOUDS
from tests.hypervisor_shim.serving import Served

VENV = HOME / "nova"
PACKAGES = ("nova==34.0.0", "libvirt-python==9.0.0")
SCRIPT = Path(__file__).with_name("nova_itself.py")


def _python() -> Path:
    """An interpreter that has nova, made when it is missing."""

    def build() -> None:
        run([sys.executable, "-m", "venv", "--clear", VENV], log="nova-venv", doing="make nova's .venv")
        command = [VENV / "bin" / "pip", "install", "--disable-pip-version-check", *PACKAGES]
        run(command, log="nova-pip", doing="install nova", needs="PyPI")

    make("installing nova", [VENV / "bin" / "pip"], HOME / "nova.stamp", " ".join(PACKAGES), build)
    return VENV / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_novas_own_classes_drive_a_server(agent: Served, home: Path) -> None:
    try:
        python = _python()
    except Failure as failure:
        pytest.skip(str(failure))
    document = home / "instance.xml"
    document.write_text(CLOUDS["nova"].xml)
    done = subprocess.run(
        [python, SCRIPT, agent.uri, document], cwd=home, env={}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    failed = {what: answer for what, answer in said.items() if isinstance(answer, dict)}
    assert not failed, f"nova fails: {failed}"
    assert said["versions"] is True and said["machine"] == "metal"
    assert said["power"] == 1 and "instance-000004d2" in said["running"]
    assert said["disks"] == ["vda", "vdb"] and said["interfaces"] == ["tap1c9d1b2e-9d"]
    assert said["attached"] == "volume-2" and said["detached"] is True
    assert "instance-000004d2" not in said["left"]
