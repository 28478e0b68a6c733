"""Counters and tunables of domains: the same virsh script on libvirtd's test driver and on ours."""

from __future__ import annotations

from pathlib import Path

import libvirt

from tests.differential.pair import Pair

RICH = """\
<domain type='test'><name>rich</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa1</uuid>
<memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type arch='i686'>hvm</type></os><devices>
<disk type='file' device='disk'><source file='/guest/a.img'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/guest/b.img'/><target dev='vdb' bus='virtio'/></disk>
<interface type='network'><mac address='52:54:00:12:34:56'/><source network='default'/>
<target dev='testnet0'/></interface></devices></domain>
"""

SCRIPT = """\
define {xml}
dommemstat test
dommemstat rich
domblkstat rich vda
domblkinfo rich vda
domblkinfo rich /guest/a.img
domblkinfo rich --all
domblkerror rich
domifstat rich testnet0
vcpuinfo rich
vcpupin rich
emulatorpin rich
cpu-stats rich
domcontrol rich
vcpucount rich
start rich
domblkstat rich vda
domblkstat rich vdz
domblkstat rich
domblkinfo rich vdz
domblkinfo rich --all
domblkerror rich
domifstat rich testnet0
domifstat rich 52:54:00:12:34:56
domifstat rich nope
vcpuinfo rich
vcpupin rich
vcpupin rich 0 0-1
vcpupin rich
emulatorpin rich
emulatorpin rich 0-1
emulatorpin rich
cpu-stats rich
cpu-stats rich --total
domcontrol rich
domjobinfo rich
domjobabort rich
vcpucount rich
vcpucount rich --live
vcpucount rich --config --current
setvcpus rich 1 --live
setvcpus rich 1 --config
setvcpus rich 9 --config
setmem rich 300M --live
setmem rich 300M --config
setmem rich 900M --config
setmaxmem rich 600M --config
setmaxmem rich 600M --live
schedinfo rich
memtune rich
blkiotune rich
numatune rich
iothreadinfo rich
perf rich
domstats rich --state
destroy rich
setvcpus rich 1
setvcpus rich 4 --maximum --config
vcpucount rich
setmaxmem rich 700M
setmem rich 300M
dumpxml rich --inactive
"""

MADE_UP = "figures made up of the time of day"
DIFFERS = {
    "dommemstat test": MADE_UP,
    "domblkstat rich vda": MADE_UP,
    "domifstat rich testnet0": MADE_UP,
    "domifstat rich 52:54:00:12:34:56": MADE_UP,
    "cpu-stats rich": MADE_UP,
    "cpu-stats rich --total": MADE_UP,
}


def test_virsh_cannot_tell(pair: Pair, tmp_path: Path) -> None:
    xml = tmp_path / "rich.xml"
    xml.write_text(RICH)
    commands = [line.replace("{xml}", str(xml)) for line in SCRIPT.splitlines()]
    assert not (wrong := pair.differences(commands, DIFFERS)), "\n".join(wrong)


def test_figures_have_the_same_names(pair: Pair) -> None:
    """What is made up of the time has other values, and the same shape."""
    shapes = []
    for uri in pair.uris():
        conn = libvirt.open(uri)
        domain = conn.createXML(RICH)
        shapes.append(
            (
                set(conn.lookupByName("test").memoryStats()),
                len(domain.blockStats("vda")),
                len(domain.interfaceStats("testnet0")),
                [set(each) for each in domain.getCPUStats(False)],
                set(domain.getCPUStats(True)[0]),
                set(domain.diskErrors()),
                [len(each) for each in domain.vcpus()],
                set(domain.perfEvents()),
                set(domain.memoryParameters()),
                domain.schedulerType(),
            )
        )
        conn.close()
    theirs, ours = shapes
    assert theirs == ours
