"""Pools and volumes of a live agent, by stock virsh: what is acknowledged survives a SIGKILL, what is not
leaves no trace, and nothing is changed under a host that runs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Agent, domain_xml, lab_directory, make_agents
from tests.hypervisor_shim.serving import RawClient, number, text

MIB = 1 << 20
PATIENCE = 20.0  # seconds for what takes one
DOWNLOAD = 209


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    # Not in /tmp's tmpfs, if it is one: punched holes and syncs are to be a real file system's.
    with tempfile.TemporaryDirectory(prefix="nicagent-pools-", dir="/var/tmp") as home:
        agent, _ = make_agents(lab_directory(), Path(home))
        agent.config.write_text(agent.config.read_text() + f'\n[libvirt]\npool_roots = ["{home}"]\n')
        agent.start()
        try:
            yield agent
        finally:
            agent.stop()


@pytest.fixture(scope="module")
def more(agent: Agent) -> Path:
    """A client's own pool; its directory."""
    place = agent.directory / "more"
    agent.virsh("pool-define-as", "more", "dir", "--target", str(place))
    agent.virsh("pool-build", "more")
    agent.virsh("pool-start", "more")
    agent.virsh("pool-autostart", "more")
    return place


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def virsh_running(agent: Agent, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["virsh", "-q", "-c", agent.uri, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def unfinished(place: Path) -> list[Path]:
    return list(place.glob(".*"))


def test_a_volumes_life(agent: Agent, more: Path, tmp_path: Path) -> None:
    content, back = tmp_path / "content", tmp_path / "back"
    content.write_bytes(os.urandom(16 * MIB))
    agent.virsh("vol-create-as", "more", "disk", "16M")
    agent.virsh("vol-upload", "disk", str(content), "more")
    agent.virsh("vol-clone", "disk", "copy", "more")
    agent.virsh("vol-create-as", "default", "over.qcow2", "16M", "--format", "qcow2", "--backing-vol",
                str(more / "disk"), "--backing-vol-format", "raw")  # fmt: skip
    agent.virsh("vol-resize", "over.qcow2", "32M", "default")
    assert "backing file of over.qcow2" in agent.refused("vol-delete", "disk", "more")
    agent.virsh("vol-delete", "over.qcow2", "default")
    agent.virsh("vol-download", "copy", str(back), "more")
    assert back.read_bytes() == content.read_bytes()
    agent.virsh("vol-wipe", "copy", "more")
    agent.virsh("vol-download", "copy", str(back), "more")
    assert back.read_bytes() == bytes(16 * MIB)
    agent.virsh("vol-delete", "copy", "more")
    assert agent.virsh("vol-list", "more").split() == ["disk", str(more / "disk")]
    assert "[pools.default]" in agent.refused("pool-destroy", "default")
    agent.virsh("vol-delete", "disk", "more")


def test_a_sigkill_amid_an_upload_leaves_the_volume_as_it_was(
    agent: Agent, more: Path, tmp_path: Path
) -> None:
    agent.virsh("vol-create-as", "more", "kept", "8M")
    before = tmp_path / "before"
    before.write_bytes(b"before" * MIB)
    agent.virsh("vol-upload", "kept", str(before), "more")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with virsh_running(agent, "vol-upload", "kept", str(fifo), "more"), fifo.open("wb") as sink:
        sink.write(b"after!" * MIB)
        sink.flush()
        until(
            lambda: any(path.stat().st_size >= MIB for path in unfinished(more)), "the upload is on its way"
        )
        agent.kill()
    agent.start()
    until(lambda: not unfinished(more), "the half is cleared away")
    assert (more / "kept").read_bytes().startswith(b"before" * MIB)
    assert "more" in agent.virsh("pool-list", "--persistent", "--autostart"), (
        "the pool is as it was, and active"
    )
    agent.virsh("vol-upload", "kept", str(before), "more")  # nothing holds it any more
    agent.virsh("vol-delete", "kept", "more")


def test_a_sigkill_amid_a_clone_leaves_no_half_of_it(agent: Agent, more: Path) -> None:
    agent.virsh("vol-create-as", "more", "large", "192M")
    with (more / "large").open("r+b") as file:
        block = os.urandom(16 * MIB)
        for _ in range(12):
            file.write(block)
    with virsh_running(agent, "vol-clone", "large", "half", "more"):
        until(lambda: any(path.stat().st_blocks > 0 for path in unfinished(more)), "the clone is on its way")
        agent.kill()
    assert not (more / "half").exists(), "killed too late to prove anything"
    agent.start()
    until(lambda: not unfinished(more), "the half is cleared away")
    assert agent.virsh("vol-list", "more").split() == ["large", str(more / "large")]


def test_a_reader_that_stops_costs_a_bounded_number_of_bytes(agent: Agent, more: Path) -> None:
    assert (more / "large").stat().st_size == 192 * MIB

    def resident() -> int:
        assert agent.process is not None
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    before = resident()
    with RawClient(agent.socket) as client:
        client.open()
        volume = text("more") + text("large") + text(str(more / "large"))
        client.send(DOWNLOAD, volume + bytes(16) + number(0))
        time.sleep(1.5)  # what would be read ahead without a bound would be all of it by now
        assert resident() - before < 24 * MIB
        assert agent.virsh("pool-info", "more"), "others are served meanwhile"


def test_a_clients_pool_gives_hosts_their_disks(agent: Agent, more: Path, tmp_path: Path) -> None:
    agent.virsh("vol-create-as", "more", "root", "64M", "--format", "qcow2")
    document = tmp_path / "web.xml"
    document.write_text(domain_xml("web", "root").replace("pool='default'", "pool='more'"))
    agent.virsh("define", str(document))
    agent.virsh("start", "web")
    try:
        for words in (("vol-delete",), ("vol-resize", "--capacity", "128M"), ("vol-wipe",)):
            sentence = agent.refused(words[0], "root", "--pool", "more", *words[1:])
            assert "in use by the running domain web" in sentence, sentence
        assert "in use by the running domain web" in agent.refused("pool-destroy", "more")
    finally:
        agent.virsh("destroy", "web")
    agent.virsh("vol-delete", "root", "more")
