"""Node devices beside libvirtd's test driver, which has a computer and four fibre channel adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import libvirt
import pytest

from tests.differential.pair import Call, Pair
from tests.differential.versions import excuses

PORT = """<device>{parent}<capability type='scsi_host'><capability type='fc_host'>
<wwnn>2000000012341234</wwnn><wwpn>1000000012341234</wwpn></capability></capability></device>"""

SCRIPT = """\
nodedev-dumpxml computer
nodedev-dumpxml scsi_host1
nodedev-dumpxml scsi_host2
nodedev-dumpxml scsi_host11
nodedev-dumpxml nope
nodedev-list --cap zz
nodedev-info nope
nodedev-info computer
nodedev-create {xml}
nodedev-dumpxml scsi_host12
nodedev-destroy scsi_host12
nodedev-destroy scsi_host12
nodedev-create /nonexistent
nodedev-detach scsi_host1
nodedev-detach scsi_host1 --driver vfio
nodedev-reattach scsi_host1
nodedev-reset scsi_host1
nodedev-start scsi_host1
nodedev-define {xml}
nodedev-undefine scsi_host1
nodedev-autostart scsi_host1
nodedev-event --list
nodedev-list
"""

VIRSH_DIFFERS = {
    "nodedev-info computer": "the test driver knows of no autostart, ours tells that there is none"
}
EXIT_DIFFERS = {"nodedev-list"} & excuses("nodedev").keys()


def test_virsh_cannot_tell(pair: Pair, tmp_path: Path) -> None:
    xml = tmp_path / "port.xml"
    xml.write_text(PORT.format(parent="<parent>scsi_host1</parent>"))
    commands = [line.replace("{xml}", str(xml)) for line in SCRIPT.splitlines()]
    assert not (wrong := pair.differences(commands, VIRSH_DIFFERS, EXIT_DIFFERS)), "\n".join(wrong)


def create(parent: str, inner: str | None = None) -> Call:
    text = PORT.format(parent=parent) if inner is None else f"<device>{parent}{inner}</device>"
    return lambda conn: conn.nodeDeviceCreateXML(text).XMLDesc()


def _of_kind(kind: str, conn: libvirt.virConnect) -> object:
    return sorted(conn.listDevices(kind, 0))


def _by_flag(flag: int, conn: libvirt.virConnect) -> object:
    return sorted(each.name() for each in conn.listAllDevices(flag))


HOST, FC = "<capability type='scsi_host'>{}</capability>", "<capability type='fc_host'/>"
ON_1 = "<parent>scsi_host1</parent>"
CALLS: dict[str, Callable[[libvirt.virConnect], object]] = {
    "how many": lambda c: c.numOfDevices(None, 0),
    "all names": lambda c: sorted(c.listDevices(None, 0)),
    "all": lambda c: sorted(each.name() for each in c.listAllDevices()),
    **{
        f"of kind {kind}": partial(_of_kind, kind)
        for kind in ("system", "scsi_host", "fc_host", "vports", "pci", "bogus")
    },
    **{f"by flag {bit}": partial(_by_flag, 1 << bit) for bit in range(22)},
    "parents": lambda c: [c.nodeDeviceLookupByName(n).parent() for n in ("computer", "scsi_host11")],
    "capabilities": lambda c: c.nodeDeviceLookupByName("scsi_host1").listCaps(),
    "on a parent": create(ON_1),
    "on any": create(""),
    "made": lambda c: sorted(each.name() for each in c.listAllDevices()),
    "on no adapter": create("<parent>computer</parent>"),
    "on nothing": create("<parent>nope</parent>"),
    "no fibre channel": create(ON_1, HOST.format("")),
    "no names": create(ON_1, HOST.format(FC)),
    "mediated": create(ON_1, "<capability type='mdev'><type id='a'/></capability>"),
    "unheard of": create(ON_1, "<capability type='foo'/>"),
    "nothing": create("", ""),
    "another root": lambda c: c.nodeDeviceCreateXML("<dev/>"),
    "cut short": lambda c: c.nodeDeviceCreateXML("<dev"),
    "destroyed": lambda c: c.nodeDeviceLookupByName("scsi_host2").destroy(),
    "what is left": lambda c: sorted(each.name() for each in c.listAllDevices()),
}


def test_calls_get_libvirtds_answers(pair: Pair) -> None:
    wrong = pair.other_answers(CALLS, CALLS.keys() & excuses("nodedev").keys())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("which", [0, 1], ids=["libvirtd", "ours"])
def test_a_device_that_comes_and_goes_is_told(pair: Pair, which: int) -> None:
    libvirt.virEventRegisterDefaultImpl()
    conn, told = libvirt.open(pair.uris()[which]), []

    def note(conn: object, device: libvirt.virNodeDevice, event: int, detail: int, opaque: object) -> None:
        told.append((device.name(), event, detail))

    conn.nodeDeviceEventRegisterAny(None, libvirt.VIR_NODE_DEVICE_EVENT_ID_LIFECYCLE, note, None)
    conn.nodeDeviceCreateXML(PORT.format(parent=ON_1)).destroy()
    while len(told) < 2:
        libvirt.virEventRunDefaultImpl()
    assert told == [("scsi_host12", 0, 0), ("scsi_host12", 1, 0)]
    conn.close()
