"""nova itself, from PyPI and unmodified: its Host and Guest classes at a server.

Slow, for nova's hundred packages take minutes to install: `make campaign`, not CI. What CI has is the same
calls by libvirt-python, in test_nova.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from images.clients import NOVA_PYTHON, install_nova
from images.steps import Failure
from tests.clients.documents import CLOUDS
from tests.hypervisor_shim.serving import Served

SCRIPT = Path(__file__).with_name("nova_itself.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_novas_own_classes_drive_a_server(agent: Served, home: Path) -> None:
    try:
        install_nova()
    except Failure as failure:
        pytest.skip(str(failure))
    document = home / "instance.xml"
    document.write_text(CLOUDS["nova"].xml)
    done = subprocess.run(
        [NOVA_PYTHON, SCRIPT, agent.uri, document],
        cwd=home,
        env={},
        capture_output=True,
        text=True,
        timeout=120,
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
