"""Network filters: libvirtd's own driver of them beside this library's reference driver.

The test driver has none, so the peer is libvirtd with its `nwfilter:///system`, in a network namespace of its
own. It puts no rule anywhere as long as nothing is bound.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from hypervisor_shim.memory import MemoryDriver
from tests.differential.pair import LIKE_TEST, Pair
from tests.differential.versions import excuses
from tests.hypervisor_shim import libvirtd as peer
from tests.hypervisor_shim.serving import serving

DRIVER = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu" / "libvirt/connection-driver"
MODULE = DRIVER / "libvirt_driver_nwfilter.so"

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="libvirtd's nwfilter driver is not installed")


@dataclass(frozen=True)
class FilterPair(Pair):
    def uris(self) -> tuple[str, str]:
        return f"nwfilter+unix:///system?socket={self.theirs}", f"test+unix:///default?socket={self.ours}"


@pytest.fixture
def filters() -> Iterator[FilterPair]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    with (
        tempfile.TemporaryDirectory(prefix="lv-") as theirs,
        tempfile.TemporaryDirectory(prefix="nic-") as ours,
    ):
        drivers = Path(theirs) / "drivers"
        drivers.mkdir()
        (drivers / MODULE.name).symlink_to(MODULE)
        with (
            peer.libvirtd(Path(theirs)) as daemon,
            serving(MemoryDriver(identity=LIKE_TEST, uri="test:///default"), Path(ours)) as served,
        ):
            yield FilterPair(daemon.path, served.path)


MINE = """\
<filter name='mine' chain='ipv4' priority='-5'><uuid>33333333-2222-2222-2222-222222222222</uuid>
<filterref filter='base'><parameter name='A' value='b'/></filterref>
<rule action='accept' direction='out' priority='100'>
<ip srcipaddr='$IP' protocol='tcp' dstportstart='22'/></rule>
<rule action='drop' direction='inout'/>
<rule action='accept' direction='in' priority='500' statematch='false'>
<tcp dstportstart='80' comment='x y'/></rule>
<rule action='accept' direction='in'><mac srcmacaddr='$MAC' protocolid='arp'/></rule>
<rule action='return' direction='out'><arp match='no' arpsrcmacaddr='$MAC'/></rule></filter>
"""
BASE = """\
<filter name='base'><uuid>33333333-2222-2222-2222-222222222223</uuid>
<rule action='drop' direction='inout' priority='1000'><all/></rule></filter>
"""

SCRIPT = """\
nwfilter-list
nwfilter-define {mine}
nwfilter-define {base}
nwfilter-define {mine}
nwfilter-define /nonexistent
nwfilter-list
nwfilter-dumpxml base
nwfilter-dumpxml mine
nwfilter-dumpxml 33333333-2222-2222-2222-222222222222
nwfilter-dumpxml nope
nwfilter-dumpxml 33333333-2222-2222-2222-222222222229
nwfilter-binding-list
nwfilter-binding-dumpxml lo
nwfilter-binding-delete lo
nwfilter-undefine base
nwfilter-undefine base
nwfilter-undefine mine
nwfilter-list
"""


def test_the_virsh_script_reads_the_same_on_both(filters: FilterPair, tmp_path: Path) -> None:
    names = {}
    for name, text in (("mine", MINE), ("base", BASE)):
        path = tmp_path / f"{name}.xml"
        path.write_text(text)
        names[name] = str(path)
    wrong = filters.differences(SCRIPT.format(**names).splitlines())
    assert not wrong, "\n".join(wrong)


F = "<filter name='f'>%s</filter>"
DOCUMENTS = [
    "<filter/>",
    "<network/>",
    "<filter name='a b'><rule action='drop' direction='in'/></filter>",
    F % "<rule action='zz' direction='in'/>",
    F % "<rule action='drop' direction='zz'/>",
    F % "<rule/>",
    F % "<rule action='drop' direction='in'><foo/></rule>",
    F % "<rule action='drop' direction='in' priority='9999'><tcp srcipaddr='x'/></rule>",
    F % "<filterref filter='nobody'/>",
    F % "<filterref filter='f'/>",
    F % "<uuid>x</uuid>",
    "<filter name='f' chain='wrong'/>",
    "<filter name='f' chain='arp' priority='99999'/>",
    "<filter name='f' chain='arp-x'/>",
    "<filter name='f' chain='mac'/>",
    F % "<rule action='accept' direction='out'><ip dscp='1' srcipaddr='10.0.0.0' srcipmask='8'/></rule>",
    F % "<rule action='drop' direction='in'><icmp type='8' code='0' state='NEW'/><ip/></rule>",
    F % "<rule action='accept' direction='out'><udp srcportstart='68' dstportstart='67'/></rule>",
]


def test_documents_end_the_same(filters: FilterPair) -> None:
    theirs, ours = (libvirt.open(uri) for uri in filters.uris())
    excused = excuses("nwfilter")
    assert excused.keys() <= set(DOCUMENTS)
    for xml in DOCUMENTS:
        expected, got = outcome(theirs, xml), outcome(ours, xml)
        assert (expected == got) is (xml not in excused), f"{xml}: libvirtd {expected}, ours {got}"
        assert isinstance(expected, tuple) is isinstance(got, tuple), f"{xml}: only one refuses"


def outcome(connection: libvirt.virConnect, xml: str) -> object:
    try:
        made = connection.nwfilterDefineXML(xml)
    except libvirt.libvirtError as refused:
        return refused.get_error_code(), refused.get_error_message()
    shown = made.XMLDesc(0)
    made.undefine()
    return re.sub(r"<uuid>.*</uuid>", "<uuid/>", shown)
