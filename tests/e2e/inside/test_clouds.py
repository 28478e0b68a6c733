"""Whole clouds at a live agent whose host has all that can be wired to one: nova, and what kvmagent calls.

Everything is real but the outside world; no guest OS is booted. docs/clouds.md says what is shown here.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from images.clients import NOVA_PYTHON, has_nova
from tests.clients.documents import CLOUDS
from tests.clients.programs import environment, eventually, run
from tests.e2e.harness import ROOT, Agent, lab_directory, wired_agent

NOVA_WHOLE = ROOT / "tests" / "clients" / "nova_whole.py"
LOOK = ROOT / "tests" / "clients" / "vnc_look.py"
BOARD = "192.0.2.1"  # an address of the agent's board that desks reach
NIC = "02:00:00:02:00:02"  # see guest.toml
ADDRESS = "10.100.0.10"  # of the segment's range
CONFIG = """
[graphics]
allow = ["127.0.0.1", "0.0.0.0"]
"""
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cloud-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def agent(home: Path) -> Iterator[Agent]:
    agent = wired_agent(lab_directory(), home)
    text = agent.config.read_text().replace('["tap*"]', '["tap*", "br_zsn0_100"]')
    agent.config.write_text(text + CONFIG)
    subprocess.run(agent.beside("ip", "address", "replace", f"{BOARD}/32", "dev", "lo"), check=True)
    agent.start()
    eventually(lambda: "unknown" not in agent.cli("hosts").stdout, 20, "its power being read")
    try:
        yield agent
    finally:
        for name in agent.virsh("list", "--name").split():
            agent.virsh("destroy", name, check=False)
        agent.stop()


def volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return path


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1 << 20))
    return path


def test_kvmagents_calls_start_use_reboot_and_stop_a_server(agent: Agent, home: Path) -> None:
    """In the order of ZStack's vm_plugin.py, with its own document but for this host's size and NIC."""
    storage = agent.directory / "pool" / "zstack_ps"
    root, data = (
        volume(storage / "rootVolumes/vol-5c9a/5c9a.qcow2"),
        volume(storage / "dataVolumes/7e9b.qcow2"),
    )
    conn = libvirt.open(agent.uri.replace("nic+", "qemu+"))
    vm = conn.defineXML(zstack_document(root))
    vm.createWithFlags(0)
    assert vm.info()[0] == libvirt.VIR_DOMAIN_RUNNING
    live = ElementTree.fromstring(vm.XMLDesc(0))

    # _wait_for_vm_running: the port of its console is listened at; harden_console guards it by internalId
    port = live.find("devices/graphics").get("port", "")
    assert re.search(rf"0\.0\.0\.0:{port} ", run(agent.beside("ss", "-Hltn"), home))
    assert run(agent.beside("/usr/bin/python3", LOOK, BOARD, port, "hidden"), home).startswith("sees")
    assert live.findtext("metadata/{http://zstack.org}zstack/{http://zstack.org}internalId") == "12"

    # what it looks for is found by the names that it gave
    assert disk_of(vm, "5c9a8d5e7f4b4f0e8a4d1a2b3c4d5e6f") == "vda"
    assert vm.interfaceStats("vnic12.0")[0] == vm.interfaceStats("port0")[0] == vm.interfaceStats(NIC)[0]
    agent.virsh("domif-setlink", vm.name(), "vnic12.0", "down")
    agent.virsh("domif-setlink", vm.name(), "vnic12.0", "up")
    assert vm.blockInfo("vda")[0] == 64 << 20
    stream = conn.newStream()
    assert vm.screenshot(stream, 0).startswith("image/") and stream.recv(16)
    stream.abort()

    # volumes, a snapshot, the port come and go
    attached = f"""<disk type="file" device="disk">
        <driver name="qemu" type="qcow2" cache="none" discard="unmap"/>
        <source file="{data}"/><target dev="vdb" bus="virtio"/>
        <serial>7e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial></disk>"""
    vm.attachDeviceFlags(attached, LIVE)
    assert disk_of(vm, "7e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f") == "vdb"
    vm.detachDeviceFlags(attached, LIVE)
    eventually(lambda: disk_of(vm, "7e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f") is None, 10, "the volume gone")
    drive = """<disk type="file" device="cdrom"><driver name="qemu" type="raw"/>{}
        <target dev="hdc" bus="sata"/><readonly/></disk>"""
    iso = f'<source file="{image(storage / "imagecache/tools.iso")}"/>'
    vm.updateDeviceFlags(drive.format(iso), LIVE)
    assert "tools.iso" in agent.virsh("domblklist", vm.name())
    vm.updateDeviceFlags(drive.format(""), LIVE | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)
    eventually(lambda: "tools.iso" not in vm.XMLDesc(0), 10, "the medium gone")
    assert disk_of(vm, "8e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f") == "hdc", "the drive stays, with its name"
    vm.snapshotCreateXML(
        f"""<domainsnapshot><disks><disk name="vda" snapshot="external" type="file">
        <source file="{root.parent}/new.qcow2"/><driver type="qcow2"/></disk></disks></domainsnapshot>""",
        SNAPSHOT,
    )
    assert f"{root.parent}/new.qcow2" in vm.XMLDesc(0)
    nic = ElementTree.tostring(next(live.iter("interface"))).decode()
    vm.detachDeviceFlags(nic, LIVE)
    eventually(lambda: NIC not in vm.XMLDesc(0), 10, "the port gone")
    vm.attachDeviceFlags(nic, LIVE)
    assert "vnic12.0" in vm.XMLDesc(0)

    # what a server cannot do is a sentence, and it goes on
    for call, why in (
        (vm.suspend, "the processors of a physical server cannot be stopped from outside"),
        (lambda: vm.setVcpusFlags(2, LIVE), r"requested cpu amount exceeds maximum \(2 > 1\)"),
        (lambda: vm.setMemoryFlags(256 << 10, LIVE), "a running physical server keeps its memory"),
    ):
        with pytest.raises(libvirt.libvirtError, match=why):
            call()
    assert vm.info()[0] == libvirt.VIR_DOMAIN_RUNNING

    # reboot: kvmagent stops the domain, takes it away, and defines what was its live document
    shown = vm.XMLDesc(0)
    vm.destroy()
    vm.undefineFlags(UNDEFINE)
    with pytest.raises(libvirt.libvirtError) as gone:
        conn.lookupByName(vm.name())
    assert gone.value.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
    vm = conn.defineXML(shown)
    vm.createWithFlags(0)
    assert disk_of(vm, "5c9a8d5e7f4b4f0e8a4d1a2b3c4d5e6f") == "vda" and "vnic12.0" in vm.XMLDesc(0)
    vm.destroy()
    vm.undefineFlags(UNDEFINE)
    conn.close()


def zstack_document(root: Path) -> str:
    """kvmagent's, of a server of one processor and 512 MiB with one disk and one NIC."""
    document = ElementTree.fromstring(CLOUDS["zstack"].xml)
    devices = document.find("devices")
    system, shared, _ = devices.findall("disk")
    devices.remove(shared)
    system.find("source").set("file", str(root))
    devices.find("interface/mac").set("address", NIC)
    devices.find("interface/filterref/parameter").set("value", ADDRESS)
    document.find("vcpu").set("current", "1")
    document.find("cpu/numa/cell").set("memory", str(512 << 10))
    document.find("currentMemory").text = str(512 << 10)
    return ElementTree.tostring(document).decode()


def disk_of(vm: Any, serial: str) -> str | None:
    """How kvmagent finds a volume."""
    disks = ElementTree.fromstring(vm.XMLDesc(0)).iterfind("devices/disk")
    return next((d.find("target").get("dev") for d in disks if d.findtext("serial") == serial), None)


@pytest.mark.skipif(not has_nova(), reason="python3 -m images.clients nova installs it")
@pytest.mark.timeout(300)
def test_a_whole_nova_works_a_server_and_shows_its_screen(agent: Agent, home: Path) -> None:
    """With nova.conf and policy.yaml as docs/clouds.md has them. Each step: the API's answer, how nova's own
    action ended, the server's status then."""
    page = (ROOT / "docs" / "clouds.md").read_text()
    for name, kind in (("nova.conf", "ini"), ("policy.yaml", "yaml")):
        (home / name).write_text(page.partition(f"```{kind}\n")[2].partition("```")[0])
    argv: list[str | Path] = [NOVA_PYTHON, NOVA_WHOLE, agent.uri.replace("nic+", "qemu+"), home / "nova.conf"]
    argv += [home / "policy.yaml", agent.directory / "pool", image(home / "image"), NIC]
    with (
        (home / "log").open("w+") as log,
        subprocess.Popen(
            agent.beside(*argv),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(home),
        ) as nova,
    ):  # fmt: skip
        assert nova.stdin is not None and nova.stdout is not None
        try:
            first = nova.stdout.readline()
            assert first, f"nova failed:\n{(home / 'log').read_text()[-3000:]}"
            host, port = json.loads(first)["console"]
            nova.stdin.write(run(agent.beside("/usr/bin/python3", LOOK, host, str(port)), home) + "\n")
            nova.stdin.flush()
            rest = nova.stdout.read()
            assert rest, f"nova failed:\n{(home / 'log').read_text()[-3000:]}"
        finally:
            nova.kill()
    said = json.loads(rest.splitlines()[-1])
    assert said.pop("looked").startswith("sees ")
    done, refused = [202, "Success", "ACTIVE"], [202, "Error", "ACTIVE"]
    assert said == {
        "hypervisor": ["QEMU", "up"],
        "built": 1,  # running
        "console log": [404, "none", "ACTIVE"],
        "crash dump": done,
        "pause": refused,
        "suspend": [202, "Error", "ERROR"],  # nova knows no answer of libvirt's after which it goes on
        "set state": [202, "none", "ACTIVE"],
        "pause by policy": [403, "none", "ACTIVE"],
        "suspend by policy": [403, "none", "ACTIVE"],
        "reboot soft": done,
        "reboot hard": done,
        "stop": [202, "Success", "SHUTOFF"],
        "start": done,
        "resize": refused,
        "live migration": refused,
        "attach volume": done,
        "detach volume": done,
        "detach port": done,
        "nics without it": [],
        "attach port": [200, "Success", "ACTIVE"],
        "nics": [NIC],
        "snapshot": done,
        "shelve": [202, "Success", "SHELVED_OFFLOADED"],
        "unshelve": done,
        "rescue": [200, "Success", "RESCUE"],
        "unrescue": done,
        "rebuild": done,
    }
