"""The commands of docs/clouds.md at a live agent: virt-install, virt-xml, virt-clone, the exporter, virt-top.

As in test_errors.py everything is real but the outside world, and no guest OS is booted.
"""

from __future__ import annotations

import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.clients import GO_PROGRAM
from tests.clients.programs import eventually, program, run, running
from tests.e2e.harness import Agent, lab_directory, make_agents

NIC = "02:00:00:02:00:02"  # of metal-2, see demo.toml


def metrics() -> str:
    """What the exporter shows; empty while it does not listen yet. The lab's loopback is its own."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:9177/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def agent() -> Iterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="live-", ignore_cleanup_errors=True) as name:
        _, agent = make_agents(lab_directory(), Path(name))
        agent.start()
        try:
            yield agent
        finally:
            agent.stop()


def test_a_server_is_installed_watched_edited_cloned_and_removed(agent: Agent, home: Path) -> None:
    uri = agent.uri.replace("nic+", "qemu+")
    install = [program("virt-install"), "--connect", uri, "--name", "web", "--memory", "512", "--vcpus", "1"]
    install += ["--import", "--disk", "size=1,pool=default", "--osinfo", "debian11"]
    install += ["--network", f"network=blue,mac={NIC}", "--graphics", "none", "--noautoconsole"]
    run(install, home)
    assert re.search(r"^ *\d+ +web +running$", agent.virsh("list"), re.M)
    assert "web.qcow2" in agent.virsh("vol-list", "default")
    assert agent.virsh("domiflist", "web").split() == ["port0", "network", "blue", "virtio", NIC]

    shown = run([program("virt-top"), "-c", agent.uri, "--script", "--stream", "-n", "2", "-d", "0.2"], home)
    assert re.search(r"^ +\d+ R .* web$", shown, re.M), shown

    exporter = [program("prometheus-libvirt-exporter"), f"--libvirt.uri={agent.uri}-ro"]
    with running([*exporter, "--web.listen-address=127.0.0.1:9177"], home):
        eventually(lambda: "libvirt_up 1" in metrics(), 15, "a scrape without an error")

    agent.virsh("destroy", "web")
    run([program("virt-xml"), "--connect", uri, "web", "--edit", "--metadata", "title=Front end"], home)
    assert agent.virsh("desc", "web", "--title") == "Front end"
    clone = [program("virt-clone"), "--connect", uri, "--original", "web", "--name", "web-2", "--auto-clone"]
    run([*clone, "--mac", NIC, "--check", "mac_in_use=off"], home)
    assert "web-2.qcow2" in agent.virsh("domblklist", "web-2")
    assert "no host" not in agent.virsh("dominfo", "web-2")
    agent.virsh("attach-interface", "web-2", "network", "blue", "--mac", "52:54:00:00:00:01", "--config")
    assert "no host here could run it: metal-2 has 1 NICs for 2" in agent.virsh("dominfo", "web-2")
    agent.virsh("detach-interface", "web-2", "network", "--mac", "52:54:00:00:00:01", "--config")
    agent.virsh("start", "web-2")
    agent.virsh("destroy", "web-2")
    for name in ("web", "web-2"):
        agent.virsh("undefine", name, "--remove-all-storage")
    assert agent.virsh("list", "--all") == "" and ".qcow2" not in agent.virsh("vol-list", "default")


@pytest.mark.skipif(not GO_PROGRAM.exists(), reason="python3 -m images.clients go builds it")
def test_what_terraforms_provider_calls_is_served_through_its_own_library(agent: Agent, home: Path) -> None:
    said = run([GO_PROGRAM, agent.directory / "run/libvirt-sock", "default", "blue"], home)
    assert said.splitlines()[-1] == "leave", said
