"""How fast an interface may go: virsh domiftune and `<bandwidth>`, as libvirtd takes them."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

from tests.differential.pair import Pair

NIC = "52:54:00:00:00:01"

#: Run in this order on one server. {xml} is the path of DOMAIN.
SCRIPT = f"""\
define {{xml}}
start d
domiftune d {NIC}
domiftune d {NIC} --inbound 100,200,300
domiftune d {NIC}
domiftune d {NIC} --config
domiftune d {NIC} --outbound 50 --config
domiftune d {NIC} --config
domiftune d {NIC} --outbound 50,0,7 --live
domiftune d {NIC} --live
domiftune d {NIC} --inbound 0
domiftune d {NIC}
domiftune d {NIC} --inbound 10,5
domiftune d {NIC} --current
domiftune d {NIC} --inbound ,5
domiftune d {NIC} --inbound 99999999999
domiftune d nope
domiftune d nope --inbound 1
domiftune d {NIC} --live --config
dumpxml d --xpath //interface
dumpxml d --xpath //interface --inactive
"""

#: What stands in an interface of a definition.
DOCUMENTS = (
    "<bandwidth/>",
    "<bandwidth><inbound average='100'/></bandwidth>",
    "<bandwidth><inbound average='10' peak='6' burst='7'/><outbound average='3'/></bandwidth>",
    "<bandwidth><inbound average='5' floor='3'/></bandwidth>",
    "<bandwidth><inbound floor='3'/></bandwidth>",
    "<bandwidth><inbound average='x'/></bandwidth>",
    "<bandwidth><inbound average='-1'/></bandwidth>",
    "<bandwidth><inbound average='5' burst='x'/></bandwidth>",
    "<bandwidth><inbound peak='5'/></bandwidth>",
    "<bandwidth><inbound/></bandwidth>",
    "<bandwidth><outbound average='5' floor='3'/></bandwidth>",
    "<bandwidth><inbound average='5'/><inbound average='6'/></bandwidth>",
)
DOMAIN = """<domain type='test'><name>d</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
<memory>65536</memory><os><type>hvm</type></os><devices><interface type='network'>
<mac address='52:54:00:00:00:01'/><source network='default'/>{}</interface></devices></domain>"""


#: Words that differ, and why; the exit code never does.
DIFFERS = {
    f"domiftune d {NIC} --live --config": "its QEMU driver asks for them first, too",
    "dumpxml d --xpath //interface": "addresses of devices, and names of taps, are no part of metal",
    "dumpxml d --xpath //interface --inactive": "likewise",
}


def test_domiftune_says_and_does_the_same(pair: Pair, tmp_path: Path) -> None:
    xml = tmp_path / "d.xml"
    xml.write_text(DOMAIN.format(""))
    wrong = pair.differences(SCRIPT.format(xml=xml).splitlines(), DIFFERS)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_taken_or_refused_alike(pair: Pair, document: str) -> None:
    said = []
    for uri in pair.uris():
        with libvirt.open(uri) as conn:
            try:
                domain = conn.defineXML(DOMAIN.format(document))
            except libvirt.libvirtError as e:
                said.append((e.get_error_code(), e.get_error_message()))
            else:
                said.append((0, str(sorted(domain.interfaceParameters("52:54:00:00:00:01").items()))))
    assert said[0] == said[1], "libvirtd's answer, and ours"
