"""Snapshots, copies, commits, limits and their refusals by stock virsh, on hosts without an OS: what an
operator is answered, and what a SIGKILL of the agent leaves. test_hotplug.py has the same under a running OS.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Agent, domain_xml, job_is_ready, lab_directory, make_agents

NAME = "web"
BOTH = pytest.mark.parametrize("host", [0, 1], ids=["nvme-tcp", "virtio"])
FIRST = pytest.mark.parametrize("host", [0], ids=["nvme-tcp"])


@dataclass
class Bench:
    """A started domain with one disk."""

    agent: Agent

    @property
    def pool(self) -> Path:
        return self.agent.directory / "pool"

    def virsh(self, *words: str) -> str:
        return self.agent.virsh(*words)

    def refused(self, *words: str) -> str:
        return self.agent.refused(*words)

    def disk(self, *which: str) -> str:
        """The file of vda, in the run or (--inactive) in the definition."""
        return str(self.pool / self.virsh("domblklist", NAME, *which).split()[1])  # a volume goes by its name

    def define_sibling(self, name: str) -> None:
        """Another domain, whose disk stands on the same image."""
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "root.qcow2", "-F", "qcow2"]
        subprocess.run([*argv, f"{name}.qcow2"], cwd=self.pool, check=True)
        definition = self.agent.directory / f"{name}.xml"
        definition.write_text(domain_xml(name, f"{name}.qcow2", segment=None))
        self.virsh("define", str(definition))

    def chain(self) -> list[str]:
        """The files of vda's run, the written one first."""
        shown = subprocess.run(
            ["qemu-img", "info", "-U", "--backing-chain", self.disk()],
            capture_output=True,
            text=True,
            check=True,
        )
        return [Path(line.split()[1]).name for line in shown.stdout.splitlines() if line.startswith("image:")]


@pytest.fixture(scope="module")
def agents() -> Iterator[tuple[Agent, Agent]]:
    with tempfile.TemporaryDirectory(prefix="nicagent-live-") as home:
        pair = make_agents(lab_directory(), Path(home))
        for agent in pair:
            agent.start()
        try:
            yield pair
        finally:
            for agent in pair:
                agent.stop()


@pytest.fixture
def bench(agents: tuple[Agent, Agent], host: int) -> Iterator[Bench]:
    agent = agents[host]
    bench = Bench(agent)
    for old in bench.pool.iterdir():
        old.unlink()
    image = bench.pool / "root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "32M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 0 8M", image], check=True, stdout=subprocess.DEVNULL)
    definition = agent.directory / "web.xml"
    definition.write_text(domain_xml(NAME, image.name))
    bench.virsh("define", str(definition))
    deadline = time.monotonic() + 30
    while "error" in agent.virsh("start", NAME, check=False):
        assert time.monotonic() < deadline, "the domain did not start in 30 s"
        time.sleep(0.2)
    try:
        yield bench
    finally:
        agent.virsh("destroy", NAME, check=False)
        agent.virsh("undefine", NAME, "--snapshots-metadata", check=False)


@BOTH
def test_snapshots_are_layers_and_layers_are_brought_together(bench: Bench) -> None:
    bench.virsh("snapshot-create-as", NAME, "one", "--disk-only", "--atomic")
    bench.virsh("snapshot-create-as", NAME, "two", "--disk-only")
    assert bench.chain() == ["root.two", "root.one", "root.qcow2"]
    assert bench.disk("--inactive") == bench.disk(), "the next start would use another file"
    tree = bench.virsh("snapshot-list", NAME, "--tree").split()
    assert [word for word in tree if word in ("one", "two")] == ["one", "two"]
    assert "cannot be kept" in bench.refused("snapshot-create-as", NAME, "three")
    assert "not supported yet" in bench.refused("snapshot-delete", NAME, "two")
    bench.agent.kill()
    bench.agent.start()
    assert bench.virsh("snapshot-current", NAME, "--name") == "two", "the snapshots did not survive the agent"
    assert bench.virsh("list", "--with-snapshot", "--name") == NAME
    bench.define_sibling("other")
    told = bench.refused("blockcommit", NAME, "vda", "--top", "vda[1]", "--shallow", "--wait")
    assert "would break disk vda of domain other" in told, "another tenant's disk would have been broken"
    bench.virsh("undefine", "other")
    bench.virsh("blockcommit", NAME, "vda", "--top", "vda[1]", "--shallow", "--wait")
    assert bench.chain() == ["root.two", "root.qcow2"]
    bench.virsh("blockpull", NAME, "vda", "--wait")
    assert bench.chain() == ["root.two"]
    bench.virsh("snapshot-create-as", NAME, "again", "--disk-only", "--no-metadata", "--diskspec", "vda")
    bench.virsh("blockcommit", NAME, "vda", "--active", "--wait", "--pivot")
    assert bench.chain() == ["root.two"]
    subprocess.run(["qemu-io", "-U", "-r", "-c", "read -P 7 0 8M", bench.disk()], check=True)
    bench.virsh("destroy", NAME)
    assert "with 2 snapshots" in bench.refused("undefine", NAME)
    bench.virsh("snapshot-delete", NAME, "one", "--metadata", "--children")
    assert bench.virsh("snapshot-list", NAME, "--name") == ""


@FIRST
def test_a_domain_that_is_off_goes_back(bench: Bench) -> None:
    bench.virsh("snapshot-create-as", NAME, "before", "--disk-only")
    assert "running server" in bench.refused("snapshot-revert", NAME, "before")
    bench.virsh("destroy", NAME)
    bench.virsh("snapshot-revert", NAME, "before")
    bench.virsh("start", NAME)
    written, below = bench.chain()
    assert below == "root.qcow2" and written.startswith("root.before-")


@FIRST
def test_a_copy_survives_the_agent_and_a_pivot_is_whole_whenever_it_dies(bench: Bench) -> None:
    first = bench.disk()
    copy = str(bench.pool / "copy.qcow2")
    slow = ("--bytes", "--bandwidth", "100000", "--transient-job")
    bench.virsh("blockcopy", NAME, "vda", copy, "--format", "qcow2", *slow)
    bench.agent.kill()
    bench.agent.start()
    assert "100000 bytes/s" in bench.virsh("blockjob", NAME, "vda", "--info"), "the job is not seen again"
    mirror = f"<mirror type='file' file='{copy}' format='qcow2' job='copy'"
    assert f"{mirror}>" in bench.virsh("dumpxml", NAME), "the document does not show where the copy goes"
    assert "<mirror" not in bench.virsh("dumpxml", NAME, "--inactive")
    assert "active block job" in bench.refused("snapshot-create-as", NAME, "busy", "--disk-only")
    assert "not ready" in bench.refused("blockjob", NAME, "vda", "--pivot")
    bench.virsh("blockjob", NAME, "vda", "--bandwidth", "0")
    deadline = time.monotonic() + 30
    while not job_is_ready(bench.virsh("blockjob", NAME, "vda", "--info")):
        assert time.monotonic() < deadline, "the copy is not ready after 30 s"
        time.sleep(0.1)
    assert f"{mirror} ready='yes'>" in bench.virsh("dumpxml", NAME), "what blockjob says, the document says"
    asking = threading.Thread(
        target=lambda: bench.agent.virsh("blockjob", NAME, "vda", "--pivot", check=False, seconds=20)
    )
    asking.start()
    time.sleep(0.12)  # somewhere in the middle: any moment must do
    bench.agent.kill()
    asking.join()
    bench.agent.start()
    now = bench.disk()
    assert now in (first, copy), f"the disk is neither of the two: {now}"
    subprocess.run(
        ["qemu-io", "-U", "-r", "-c", "read -P 7 0 8M", now], check=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while bench.virsh("blockjob", NAME, "vda", "--info"):
        if now == first:
            bench.agent.virsh("blockjob", NAME, "vda", "--abort", check=False)
        assert time.monotonic() < deadline, "the job is still there"
        time.sleep(0.1)
    bench.virsh("blkdeviotune", NAME, "vda", "--total-iops-sec", "500", "--live", "--config")
    assert "total_iops_sec : 500" in bench.virsh("blkdeviotune", NAME, "vda", "--config")
    assert "<total_iops_sec>500<" in bench.virsh("dumpxml", NAME)


@pytest.mark.parametrize("host", [1], ids=["virtio"])
def test_what_a_slot_cannot_is_refused_in_a_sentence(bench: Bench) -> None:
    extra = bench.pool / "extra.raw"
    with extra.open("wb") as file:
        file.truncate(1 << 20)
    assert "power-on only" in bench.refused("attach-disk", NAME, str(extra), "vdb", "--live")
    assert "power-on" in bench.refused("blockresize", NAME, "vda", "64M")
    bench.virsh("attach-disk", NAME, str(extra), "vdb", "--subdriver", "raw", "--config")
    assert "vdb" in bench.virsh("domblklist", NAME, "--inactive")
