"""`<graphics>` as libvirtd's test driver takes, refuses and gives it back, and ours beside it."""

from __future__ import annotations

from xml.etree import ElementTree

import libvirt

from tests.differential.pair import Pair

DOMAIN = """<domain type='test'><name>screen</name><memory>65536</memory><os><type>hvm</type></os>
<devices>{}</devices></domain>"""

#: What stands in the element, by its type: attributes, then `>` and what is inside.
CASES = {
    "vnc": """
        port='-1' autoport='yes' listen='127.0.0.1' | | autoport='no' | autoport='perhaps' | port='5901' |
        port='5901' autoport='no' | port='5901' autoport='yes' | port='-1' autoport='no' | port='abc' |
        port='70000' | port='0' | port='-5' | port='5901' websocket='-1' | port='5901' websocket='5700'
        listen='::1' | port='5901' websocket='x' | sharePolicy='ignore' | sharePolicy='x' |
        powerControl='yes' | powerControl='x' | keymap='de' | passwd='' | passwd='abc' |
        passwd='abcdefghijkl' | passwd='abc' passwdValidTo='2010-04-09T15:51:00' |
        passwdValidTo='2010-04-09T15:51:00' | passwdValidTo='tomorrow' | passwd='abc'
        passwdValidTo='tomorrow' | passwd='abc' passwdValidTo='2010-04-09T15:51:00Z' | passwd='abc'
        passwdValidTo='2010-13-39T15:51:00' | passwd='abc' connected='keep' | passwd='abc'
        connected='fail' | passwd='abc' connected='x' | connected='fail' | socket='/tmp/x' |
        socket='/tmp/x' port='5900' | listen='' | listen='no host' | passwd='a' connected='keep'
        powerControl='no' sharePolicy='ignore' keymap='de' listen='::1' port='5' | > <listen
        type='socket'/> | > <listen type='socket' socket='/tmp/y'/> | > <listen type='none'/> |
        port='5905' > <listen type='none'/> | > <listen type='network' network='default'/> | > <listen
        type='network'/> | > <listen type='address'/> | listen='a' > <listen type='address'/> | > <listen
        type='address' address='1.2.3.4'/> | > <listen type='x'/> | > <listen/> | listen='1.2.3.4' >
        <listen type='address' address='1.2.3.5'/> | listen='1.2.3.4' > <listen type='address'
        address='1.2.3.4'/> | listen='1.2.3.4' > <listen type='network' network='default'/> |
        listen='1.2.3.4' > <listen type='socket'/> | > <listen type='address' address='1.2.3.4'/><listen
        type='address' address='1.2.3.5'/>
    """,
    "spice": """
        | port='5900' tlsPort='5901' autoport='no' | autoport='yes' listen='127.0.0.1' | defaultMode='x' |
        port='5900' passwd='x' defaultMode='secure' > <channel name='main' mode='secure'/> | port='x' |
        tlsPort='x' | port='-1' | port='-1' tlsPort='-1' | port='0' | tlsPort='5' | > <listen
        type='none'/> | passwd='x' connected='disconnect'
    """,
    "rdp": """
        | autoport='yes' replaceUser='yes' multiUser='yes' | port='3389' | port='-1' | port='x' | port='0'
    """,
    "sdl": "display=':0' xauth='/x'",
    "egl-headless": "| > <gl rendernode='/dev/dri/x'/>",
    "dbus": "| p2p='yes'",
    "x": " ",
}


def documents() -> list[str]:
    found = ["<graphics/>", "<graphics type='vnc'/><graphics type='spice'/>"]
    for kind, cases in CASES.items():
        for case in cases.split("|"):
            attributes, _, inside = " ".join(case.split()).partition("> ")
            found.append(f"<graphics type='{kind}' {attributes}>{inside}</graphics>")
    return found


def taken(conn: libvirt.virConnect, document: str, flags: int) -> str:
    """What a server makes of it, or how it refuses it."""
    try:
        domain = conn.defineXML(DOMAIN.format(document))
    except libvirt.libvirtError as refused:
        return f"{refused.get_error_code()} {refused.get_error_domain()} {refused.get_error_message()}"
    devices = ElementTree.fromstring(domain.XMLDesc(flags)).iterfind("devices/graphics")
    shown = [ElementTree.tostring(each, encoding="unicode").split() for each in devices]
    domain.undefine()
    return str(shown)


def test_every_graphics_is_taken_as_libvirtd_takes_it(pair: Pair) -> None:
    theirs, ours = map(libvirt.open, pair.uris())
    wrong = []
    for flags in (0, libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE):
        for document in documents():
            expected, got = taken(theirs, document, flags), taken(ours, document, flags)
            if expected != got:
                wrong.append(f"{document}\n  libvirtd {expected}\n  ours     {got}")
    theirs.close()
    ours.close()
    assert not wrong, "\n".join(wrong)
