"""A domain that is off moves from one agent to another by stock virsh, and starts there: storage is shared.

No guest is booted: power-good is all that is waited for.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Agent, c_locale, domain_xml, lab_directory, make_agents

PATIENCE = 40.0  # seconds


@pytest.fixture
def agents() -> Iterator[tuple[Agent, Agent]]:
    """Both show the same directory as their pool `default`."""
    with tempfile.TemporaryDirectory(prefix="nicagent-move-") as home:
        first, second = make_agents(lab_directory(), Path(home))
        shared, own = f'path = "{first.directory}/pool"', f'path = "{second.directory}/pool"'
        second.config.write_text(second.config.read_text().replace(own, shared))
        first.start()
        second.start()
        try:
            yield first, second
        finally:
            for agent in (first, second):
                agent.virsh("destroy", "web", check=False)
                agent.stop()


def migrate(source: Agent, destination: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ["virsh", "-q", "-c", source.uri, "migrate", *words, "web", "--desturi", destination.uri]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=c_locale())


def test_a_domain_moves_with_its_disk_and_starts_elsewhere(agents: tuple[Agent, Agent]) -> None:
    source, destination = agents
    volume = source.directory / "pool/web.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", volume, "64M"], check=True)
    definition = source.directory / "web.xml"
    definition.write_text(domain_xml("web", volume.name, segment=None))
    source.virsh("define", str(definition))
    uuid = source.virsh("domuuid", "web")

    done = migrate(source, destination, "--live")
    assert "Operation not supported: a running domain is not moved" in done.stderr, done.stderr
    done = migrate(source, destination, "--offline", "--persistent", "--copy-storage-all")
    assert "cannot handle non-shared storage" in done.stderr, done.stderr

    done = migrate(source, destination, "--offline", "--persistent", "--undefinesource")
    assert done.returncode == 0, done.stderr
    assert "failed to get domain 'web'" in source.virsh("domuuid", "web", check=False)
    assert destination.virsh("domuuid", "web") == uuid
    deadline = time.monotonic() + PATIENCE
    while destination.virsh("domstate", "web") != "running":
        assert time.monotonic() < deadline, "it does not start at its new place"
        destination.virsh("start", "web", check=False)

    # Back again while its volume is out of the pool: refused, and nothing changes.
    destination.virsh("destroy", "web")
    volume.rename(volume.with_suffix(".away"))
    done = migrate(destination, source, "--offline", "--persistent", "--undefinesource")
    assert "disk vda" in done.stderr and "is not found here" in done.stderr, done.stderr
    assert destination.virsh("domstate", "web") == "shut off"
