"""The machine behind the connection beside libvirtd's test driver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import libvirt

from tests.differential.pair import Pair
from tests.differential.versions import excuses

SCRIPT = """\
nodeinfo
nodecpumap
nodecpumap --pretty
nodecpustats
nodecpustats 0
nodecpustats --percent
nodememstats
freecell
freecell --all
freecell 0
freecell 1
freecell 5
freepages 0 2048
allocpages 2048 1
maxvcpus
maxvcpus --type test
sysinfo
cpu-models aarch64
cpu-models zz
cpu-models x86_64
node-memory-tune
nodesuspend mem 60
nodesevinfo
capabilities
domcapabilities
"""

VIRSH_DIFFERS = {
    "freepages 0 2048": "the test driver does not say why it fails",
    "cpu-models x86_64": "libvirt's own list of models is not ours",
    "capabilities": "the test driver makes up caches, pages and cells",
    "freecell --all": "the cells are those of the capabilities, of which ours has none",
}
EXIT_DIFFERS = {"freecell --all", *excuses("node")}


def test_virsh_cannot_tell(pair: Pair) -> None:
    wrong = pair.differences(SCRIPT.splitlines(), VIRSH_DIFFERS, EXIT_DIFFERS)
    assert not wrong, "\n".join(wrong)


def cpu(model: str, features: str = "") -> str:
    return f"<cpu><arch>x86_64</arch><model>{model}</model>{features}</cpu>"


def feature(*names: str) -> str:
    return "".join(f"<feature name='{name}'/>" for name in names)


BASELINES: dict[str, list[str]] = {
    "the same": [cpu("qemu64"), cpu("qemu64")],
    "common features": [cpu("Penryn", feature("vmx", "xtpr")), cpu("Penryn", feature("vmx"))],
    "with a vendor": [cpu("Penryn", "<vendor>Intel</vendor><topology sockets='1' cores='2' threads='1'/>")],
    "no architecture": ["<cpu><model>Penryn</model></cpu>"],
    "no model": ["<cpu><arch>x86_64</arch></cpu>"],
    "empty": ["<cpu/>"],
    "none": [],
    "another root": ["<x/>"],
    "cut short": ["<cpu"],
    "a feature twice": [cpu("Penryn", feature("vmx", "vmx"))],
    "a nameless feature": [cpu("Penryn", "<feature/>")],
}


def _baseline(cpus: list[str], conn: libvirt.virConnect) -> object:
    return conn.baselineCPU(cpus, 0)


CALLS: dict[str, Callable[[libvirt.virConnect], object]] = {
    **{f"baseline: {name}": partial(_baseline, cpus) for name, cpus in BASELINES.items()},
    "the second cell": lambda c: c.getCellsFreeMemory(1, 4),
    "a cell too far": lambda c: c.getCellsFreeMemory(7, 4),
    "no cells": lambda c: c.getCellsFreeMemory(0, 0),
    "a negative cell": lambda c: c.getCellsFreeMemory(-1, 2),
    "a negative CPU": lambda c: c.getCPUStats(-5, 0),
    "free memory": lambda c: c.getFreeMemory(),
    "the map of CPUs": lambda c: c.getCPUMap(0),
    "comparison": lambda c: c.compareCPU(cpu("qemu64"), 0),
    "comparison for a hypervisor": lambda c: c.compareHypervisorCPU(None, None, None, None, "<cpu/>", 0),
    "baseline for a hypervisor": lambda c: c.baselineHypervisorCPU(None, None, None, None, [cpu("a")], 0),
    "memory parameters": lambda c: c.getMemoryParameters(),
    "SEV": lambda c: c.getSEVInfo(),
}


def test_calls_get_libvirtds_answers(pair: Pair) -> None:
    wrong = pair.other_answers(CALLS)
    assert not wrong, "\n".join(wrong)
