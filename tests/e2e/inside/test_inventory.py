"""What stock virsh is shown of the hosts behind a live agent, of its secrets, and what it is refused.

No guest is booted: what a real stage-1 tells of its host is seen in test_survival.py.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.e2e.harness import Agent, lab_directory, make_agents

DECLARED = """
[hosts.metal-2.inventory.system]
manufacturer = "Dell Inc."
product = "PowerEdge R650"
serial = "CN7SR3"
uuid = "4c4c4544-0043-4e10-8037-b7c04f4a3332"
[hosts.metal-2.inventory.firmware]
kind = "efi"
vendor = "Dell Inc."
date = "07/12/2023"
[hosts.metal-2.inventory.cpu]
vendor = "Intel"
sockets = 2
cores = 4
threads = 2
features = ["vmx"]
[[hosts.metal-2.inventory.pci]]
address = "0000:3a:00.0"
vendor_id = "0x8086"
product_id = "0x347a"
class_code = "0x060400"
[[hosts.metal-2.inventory.pci]]
address = "0000:3b:00.0"
vendor_id = "0x8086"
vendor = "Intel Corporation"
product_id = "0x1592"
product = "E810-C"
class_code = "0x020000"
parent = "0000:3a:00.0"
driver = "ice"
sriov_total = 64
functions = ["0000:3b:01.0"]
[[hosts.metal-2.inventory.pci]]
address = "0000:65:00.0"
vendor_id = "0x10de"
product_id = "0x20b5"
class_code = "0x030200"
mdev_types = [{id = "nvidia-1053", name = "GRID A100D-1-10C", available = 7}]
[[hosts.metal-2.inventory.pci]]
address = "0000:01:00.0"
vendor_id = "0x144d"
product_id = "0xa80a"
class_code = "0x010802"
[[hosts.metal-2.inventory.nics]]
mac = "02:00:00:02:00:02"
name = "ens1f0"
pci = "0000:3b:00.0"
speed_mbit = 25000
[[hosts.metal-2.inventory.disks]]
name = "nvme0n1"
pci = "0000:01:00.0"
bus = "nvme"
model = "PM9A3"
serial = "S64GNE0"
size_bytes = 1920383410176
"""
UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
SECRET = f"""<secret ephemeral='no' private='no'><uuid>{UUID}</uuid><description>the array</description>
<usage type='iscsi'><target>iqn.2026-01.example:array</target></usage></secret>"""
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="nicagent-inventory-") as home:
        _, agent = make_agents(lab_directory(), Path(home))
        text = agent.config.read_text().replace(
            "[hosts.metal-2]\n", '[hosts.metal-2]\ncpus = 16\ncpu_model = "Icelake-Server"\n'
        )
        agent.config.write_text(text + DECLARED)
        agent.start()
        try:
            yield agent
        finally:
            agent.stop()


# ---- the node


def test_the_node_is_the_host(agent: Agent) -> None:
    info = dict(re.findall(r"^(.+?):\s+(.+)$", agent.virsh("nodeinfo"), re.MULTILINE))
    assert (info["CPU(s)"], info["CPU socket(s)"]) == ("16", "2")
    assert (info["Core(s) per socket"], info["Thread(s) per core"], info["NUMA cell(s)"]) == ("4", "2", "1")
    assert "CPU map:        yyyyyyyyyyyyyyyy" in agent.virsh("nodecpumap")
    assert agent.virsh("maxvcpus") == "16"
    assert agent.virsh("freecell", "0") == "0: 1048576 KiB", "a free host's memory may be placed"
    assert re.findall(r"(\w+)\s*:\s+(\d+) KiB", agent.virsh("nodememstats")) == [
        ("total", "1048576"),
        ("free", "1048576"),
    ], "buffers and caches are the host's own: unknown is absent"


def test_the_capabilities_are_those_of_the_host(agent: Agent) -> None:
    root = ElementTree.fromstring(agent.virsh("capabilities"))
    assert root.findtext("host/cpu/model") == "Icelake-Server"
    assert root.findtext("host/secmodel/model") == "none"
    assert [len(cell.findall("cpus/cpu")) for cell in root.iter("cell")] == [16]
    domain = ElementTree.fromstring(agent.virsh("domcapabilities"))
    assert domain.findtext("os/enum[@name='firmware']/value") == "efi"
    assert "no host here" in agent.refused("domcapabilities", "--arch", "s390x")


def test_the_firmware_tables_are_the_hosts(agent: Agent) -> None:
    root = ElementTree.fromstring(agent.virsh("sysinfo"))
    assert root.findtext("system/entry[@name='serial']") == "CN7SR3"
    assert root.findtext("bios/entry[@name='date']") == "07/12/2023"
    assert root.find("baseBoard") is None, "nobody told of a board"


def test_cpu_models_are_those_that_are_declared(agent: Agent, tmp_path: Path) -> None:
    assert agent.virsh("cpu-models", "x86_64") == "Icelake-Server"
    cpu = tmp_path / "cpu.xml"
    for inner, said in (
        ("<model>Icelake-Server</model><vendor>Intel</vendor><feature name='vmx'/>", "identical"),
        ("<model>Icelake-Server</model>", "superset"),
    ):
        cpu.write_text(f"<cpu><arch>x86_64</arch>{inner}</cpu>")
        assert said in agent.virsh("cpu-compare", str(cpu))
        assert said in agent.virsh("hypervisor-cpu-compare", str(cpu))
        assert "Icelake-Server" in agent.virsh("cpu-baseline", str(cpu))
    cpu.write_text("<cpu><arch>x86_64</arch><model>Penryn</model></cpu>")
    assert "incompatible" in agent.refused("cpu-compare", str(cpu))
    assert "the CPU is incompatible with host CPU: " in agent.refused("cpu-compare", str(cpu), "--error")


@pytest.mark.parametrize(
    ("command", "why"),
    {
        "nodecpustats": "operating system of a physical host",
        "freepages 0 2048": "operating system of a physical host",
        "allocpages 2048 1": "operating system of a physical host",
        "node-memory-tune": "operating system of a physical host",
        "nodesuspend mem 60": "stays up for its hosts",
        "nodesevinfo": "confidential",
    }.items(),
)
def test_what_nobody_here_can_know_or_do_is_refused(agent: Agent, command: str, why: str) -> None:
    said = agent.refused(*command.split())
    assert "Operation not supported: " in said and why in said


# ---- devices


def test_the_tree_of_devices(agent: Agent) -> None:
    lines = [line.lstrip(" |+-") for line in agent.virsh("nodedev-list", "--tree").splitlines()]
    assert [line for line in lines if line] == [
        "computer",
        "pci_0000_01_00_0",
        "block_nvme0n1_S64GNE0",
        "pci_0000_3a_00_0",
        "pci_0000_3b_00_0",
        "net_ens1f0_02_00_00_02_00_02",
        "pci_0000_65_00_0",
    ]


@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "system": "computer",
        "net": "net_ens1f0_02_00_00_02_00_02",
        "storage": "block_nvme0n1_S64GNE0",
        "mdev_types": "pci_0000_65_00_0",
        "pci": "pci_0000_01_00_0 pci_0000_3a_00_0 pci_0000_3b_00_0 pci_0000_65_00_0",
        "scsi_host": "",
    }.items(),
)
def test_devices_are_found_by_what_they_can(agent: Agent, kind: str, names: str) -> None:
    assert agent.virsh("nodedev-list", "--cap", kind).split() == names.split()


def test_a_device_tells_what_is_known_of_it(agent: Agent) -> None:
    nic = ElementTree.fromstring(agent.virsh("nodedev-dumpxml", "pci_0000_3b_00_0"))
    assert nic.findtext("capability/product") == "E810-C" and nic.findtext("driver/name") == "ice"
    functions = nic.find("capability/capability[@type='virt_functions']")
    assert functions is not None and functions.get("maxCount") == "64" and len(functions) == 1
    disk = ElementTree.fromstring(agent.virsh("nodedev-dumpxml", "block_nvme0n1_S64GNE0"))
    assert disk.findtext("capability/size") == "1920383410176"
    assert "Parent:         pci_0000_3a_00_0" in agent.virsh("nodedev-info", "pci_0000_3b_00_0")
    assert "Node device not found" in agent.refused("nodedev-dumpxml", "pci_0000_ff_00_0")


@pytest.mark.parametrize(
    "command", ["detach", "reattach", "reset", "destroy", "undefine", "start", "autostart"]
)
def test_devices_stay_where_they_are_plugged(agent: Agent, command: str) -> None:
    assert "Operation not supported: " in agent.refused(f"nodedev-{command}", "pci_0000_3b_00_0")


# ---- secrets


def test_a_secret_is_kept_and_seen_by_nobody(agent: Agent, tmp_path: Path) -> None:
    xml, value = tmp_path / "secret.xml", tmp_path / "value"
    xml.write_text(SECRET)
    value.write_text(KEY)
    agent.virsh("secret-define", str(xml))
    assert "does not have a value" in agent.refused("secret-get-value", UUID)
    agent.virsh("secret-set-value", UUID, "--file", str(value), "--plain")
    agent.kill()
    agent.start()
    assert agent.virsh("secret-get-value", UUID, "--plain") == KEY, "what was acknowledged survives a crash"
    assert agent.virsh("secret-list").split() == [UUID, "iscsi", "iqn.2026-01.example:array"]
    assert KEY not in agent.virsh("secret-dumpxml", UUID)
    log = agent.log.read_text()
    assert f"secret {UUID} was given a value by" in log and KEY not in log
    for each in (agent.directory / "state").glob("nicagent.db*"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, f"{each.name} can be read by others"

    xml.write_text(SECRET.replace("private='no'", "private='yes'"))
    agent.virsh("secret-define", str(xml))
    assert "Invalid secret: secret is private" in agent.refused("secret-get-value", UUID)
    xml.write_text(SECRET)
    assert "cannot change private flag" in agent.refused("secret-define", str(xml))
    agent.virsh("secret-undefine", UUID)
    assert "Secret not found" in agent.refused("secret-dumpxml", UUID)


# ---- a host that has told nothing yet


def test_what_is_wired_is_known_without_a_word_from_the_host() -> None:
    with tempfile.TemporaryDirectory(prefix="nicagent-untold-") as home:
        agent, _ = make_agents(lab_directory(), Path(home))
        agent.start()
        try:
            names = ["computer", "net_nic0_02_00_00_01_00_02", "net_provision_02_00_00_01_00_01"]
            assert agent.virsh("nodedev-list").split() == names
            assert "are not known" in agent.refused("sysinfo")
            assert "metal-1 is not declared" in agent.refused("cpu-models", "x86_64")
        finally:
            agent.stop()
