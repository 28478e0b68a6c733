"""Networks and their events: the same script against libvirtd's test driver and against this library."""

from __future__ import annotations

import re
from pathlib import Path

import libvirt
import pytest

from tests.differential.pair import Pair

UUID = "11111111-1111-1111-1111-111111111111"
SEGMENT = f"""\
<network><name>blue</name><uuid>{UUID}</uuid>
<metadata><nic:segment xmlns:nic="urn:nicagent:segment:1"><nic:vni>100</nic:vni></nic:segment></metadata>
<mtu size='1450'/><bridge name='br7'/><domain name='x.example'/><unknown/>
<ip address='10.1.0.1' netmask='255.255.255.0'><dhcp><range start='10.1.0.10' end='10.1.0.99'/>
<host mac='52:54:00:00:00:01' name='a' ip='10.1.0.5'/></dhcp></ip></network>
"""

SCRIPT = """\
net-list --all
net-info default
net-dumpxml default
net-define {xml}
net-define /nonexistent
net-list --all
net-list --inactive
net-list --all --name
net-list --all --uuid
net-info blue
net-dumpxml blue
net-start blue
net-start blue
net-start nobody
net-name {uuid}
net-uuid blue
net-uuid nobody
net-name 99999999-1111-1111-1111-111111111111
net-info nobody
net-autostart blue
net-list --autostart
net-list --no-autostart
net-autostart blue --disable
net-update blue add ip-dhcp-host <host/> --live
net-update blue add ip-dhcp-host {host} --live
net-update blue add ip-dhcp-host {host} --live
net-update blue delete ip-dhcp-host {host} --live
net-update blue delete ip-dhcp-host {host} --live
net-update blue add ip-dhcp-host {host} --config
net-update blue add bridge <bridge/> --config
net-dumpxml blue
net-port-list blue
net-destroy blue
net-undefine blue
net-undefine blue
net-create {xml}
net-list --transient
net-list --persistent
net-info blue
net-undefine blue
net-destroy blue
net-list --all
net-event --list
net-define {interface}
iface-list --all
iface-dumpxml eth1
iface-name aa:bb:cc:dd:ee:ff
iface-mac eth1
iface-name 00:00:00:00:00:01
iface-dumpxml nobody
iface-start eth1
iface-destroy eth1
iface-destroy eth1
iface-list --all
iface-list --inactive
iface-start eth1
iface-define {interface}
iface-dumpxml br0
iface-list --all
iface-begin
iface-begin
iface-undefine eth1
iface-list --all
iface-rollback
iface-rollback
iface-commit
"""

INTERFACE = """\
<interface type='bridge' name='br0'><start mode='onboot'/><mtu size='1500'/><protocol family='ipv4'>
<dhcp peerdns='no'/></protocol><bridge stp='off' delay='0.01'><interface type='ethernet' name='eth0'>
<mac address='ab:bb:cc:dd:ee:ff'/></interface></bridge></interface>
"""


def test_the_virsh_script_reads_the_same_on_both(pair: Pair, tmp_path: Path) -> None:
    names = {"uuid": UUID}
    for name, text in (
        ("xml", SEGMENT),
        ("interface", INTERFACE),
        ("host", "<host mac='52:54:00:00:00:02' ip='10.1.0.6'/>"),
    ):
        path = tmp_path / f"{name}.xml"
        path.write_text(text)
        names[name] = str(path)
    script = SCRIPT.format(**names).splitlines()
    wrong = pair.differences(script)
    assert not wrong, "\n".join(wrong)


NAMED = "<network><name>n</name>%s</network>"

#: Documents that libvirt takes, and what it makes of each is the question.
GOOD = [
    NAMED % "",
    NAMED % "<ip address='10.2.0.1' prefix='24'><dhcp/></ip>",
    NAMED % "<forward mode='nat'/><ip address='10.4.0.1' netmask='255.255.0.0'/>",
    NAMED % "<forward mode='bridge'/><bridge name='br0'/>",
    NAMED % "<forward dev='eth0' mode='route'/><port isolated='yes'/><ip address='10.4.0.1'/>",
    NAMED % "<forward mode='open'/><ip address='10.4.0.1' prefix='8'/><bridge stp='off' delay='4'/>",
    NAMED % "<bridge name='b9'/><mac address='52:54:00:aa:bb:cc'/>",
    NAMED % "<ip family='ipv6' address='2001:db8::1' prefix='64'/>",
    NAMED % "<bandwidth><inbound average='100' peak='200' burst='10'/></bandwidth>",
    NAMED % "<dns><host ip='10.1.1.1'><hostname>a</hostname></host></dns><foo/>",
    NAMED % "<virtualport type='openvswitch'/><portgroup name='a' default='yes'/>",
    "<network connections='3' ipv6='yes' trustGuestRxFilters='yes'><name>n</name></network>",
    SEGMENT,
]

#: Documents that libvirt refuses, and how is the question.
BAD = [
    "<network/>",
    "<network",
    "<networkport/>",
    NAMED % "<uuid>x</uuid>",
    "<network><name>a/b</name></network>",
    "<network><name>default</name><uuid>11111111-1111-1111-1111-111111111115</uuid></network>",
    "<network><name>zz</name><uuid>dd8fe884-6c02-601e-7551-cca97df1c5df</uuid></network>",
    NAMED % "<mac address='x'/>",
    NAMED % "<mtu size='x'/>",
    NAMED % "<forward mode='zz'/>",
    NAMED % "<ip address='x'/>",
    NAMED % "<ip netmask='255.255.255.0'/>",
    NAMED % "<ip address='10.2.0.1' prefix='24'><dhcp><range start='10.3.0.1' end='10.3.0.9'/></dhcp></ip>",
    NAMED % "<ip address='10.2.0.1' prefix='24'><dhcp><range start='10.2.0.9' end='10.2.0.1'/></dhcp></ip>",
    NAMED % "<ip address='10.2.0.1' prefix='24'><dhcp><host ip='10.2.0.5'/></dhcp></ip>",
]


def outcome(connection: libvirt.virConnect, xml: str) -> object:
    """The document that comes back, or code and message of the refusal."""
    try:
        network = connection.networkDefineXML(xml)
    except libvirt.libvirtError as refused:
        words = refused.get_error_message()
        # libxml2's words for what is not well-formed are its own
        return refused.get_error_code(), "" if refused.get_error_code() == 35 else words
    made = network.XMLDesc()
    network.undefine()
    return re.sub(r"<uuid>.*</uuid>", "<uuid/>", made)


@pytest.mark.parametrize("documents", [GOOD, BAD], ids=["taken", "refused"])
def test_documents_come_back_as_libvirt_writes_them(pair: Pair, documents: list[str]) -> None:
    theirs, ours = (libvirt.open(uri) for uri in pair.uris())
    for xml in documents:
        assert outcome(ours, xml) == outcome(theirs, xml), xml


#: (command, section, index, xml, flags) in order, on the network `default`.
HOST = "<host mac='52:54:00:00:00:0%s' ip='192.168.122.%s'/>"
UPDATES = [
    (3, 4, -1, HOST % (2, 6), 0),
    (3, 4, -1, HOST % (2, 6), 0),
    (1, 4, -1, HOST % (2, 7), 0),
    (1, 4, -1, HOST % ("a", 7), 0),
    (2, 4, -1, HOST % (2, 6), 0),
    (4, 4, -1, HOST % (3, 8), 0),
    (3, 5, -1, "<range start='192.168.122.2' end='192.168.122.3'/>", 0),
    (2, 5, -1, "<range start='192.168.122.2' end='192.168.122.254'/>", 0),
    (3, 1, -1, "<bridge/>", 0),
    (1, 2, -1, "<domain name='x'/>", 0),
    (3, 6, -1, "<forward/>", 0),
    (3, 9, -1, "<portgroup name='a'/>", 0),
    (3, 10, -1, "<host ip='1.1.1.1'><hostname>q</hostname></host>", 0),
    (7, 4, -1, HOST % (4, 9), 0),
    (3, 99, -1, HOST % (4, 9), 0),
    (3, 0, -1, HOST % (4, 9), 0),
    (3, 4, 7, HOST % (4, 9), 0),
    (3, 4, -1, HOST % (5, 10), 1),
    (3, 4, -1, HOST % (6, 11), 2),
    (3, 4, -1, HOST % (7, 12), 3),
]


def test_updates_end_the_same(pair: Pair) -> None:
    theirs, ours = (libvirt.open(uri).networkLookupByName("default") for uri in pair.uris())
    for update in UPDATES:
        ends = []
        for network in (theirs, ours):
            try:
                ends.append((network.update(*update), network.XMLDesc()))
            except libvirt.libvirtError as refused:
                ends.append((refused.get_error_code(), refused.get_error_message()))
        assert ends[1] == ends[0], update
