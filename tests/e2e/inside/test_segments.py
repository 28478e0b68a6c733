"""Segments, filters and interfaces through stock virsh, on a live agent: what is acknowledged survives a
SIGKILL, and what libvirt is told is what the kernel says. No guest OS is booted: power-good is enough.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as etree

import libvirt
import pytest

from nicagent.emulator.control import ChassisControl
from tests.e2e.harness import Agent, configure, domain_xml, lab_directory, overlay

MAC = "02:00:00:02:00:02"  # of metal-2's NIC, in demo.toml
UUID = "11111111-1111-1111-1111-111111111111"
GREEN = f"""\
<network>
  <name>green</name>
  <uuid>{UUID}</uuid>
  <metadata>
    <nic:segment xmlns:nic="urn:nicagent:segment:1"><nic:vni>200</nic:vni></nic:segment>
  </metadata>
  <mtu size='1400'/>
  <ip address='10.2.0.1' netmask='255.255.255.0'>
    <dhcp><range start='10.2.0.10' end='10.2.0.99'/></dhcp>
  </ip>
</network>
"""
FILTER = "<filter name='mine'><rule action='drop' direction='out'>%s</rule></filter>"
OPEN_VNI = "<network><name>lime</name><ip address='10.3.0.1' prefix='24'/></network>"
HOST = """
[hosts.metal-2]
memory_mib = 1024
pgood_seconds = 5.0
[hosts.metal-2.power]
driver = "ipmi"
address = "127.0.0.1"
user = "admin"
poll_seconds = 1.0
password_file = "{lab}/metal-2/bmc.password"
[hosts.metal-2.storage]
transport = "virtio"
slot = "{lab}/metal-2/slot"
[[hosts.metal-2.nics]]
device = "port0"
mac = "02:00:00:02:00:02"
"""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    lab = lab_directory()
    with tempfile.TemporaryDirectory(prefix="nicagent-segments-") as home:
        body = overlay("192.0.2.2", "192.0.2.1", 20) + HOST.format(lab=lab)
        made = configure("agent-2", Path(home), body)
        made.start()
        try:
            yield made
        finally:
            made.stop()
            ChassisControl.of(lab, "metal-2").clear()


def file(agent: Agent, text: str) -> str:
    path = agent.directory / "document.xml"
    path.write_text(text)
    return str(path)


def inside(agent: Agent, *argv: str) -> str:
    return subprocess.run(agent.beside(*argv), capture_output=True, text=True, check=True).stdout


def test_a_network_that_a_client_defines_outlives_a_sigkill(agent: Agent) -> None:
    log = agent.directory / "events"
    with log.open("wb") as sink:
        events = subprocess.Popen(
            ["stdbuf", "-oL", "virsh", "-q", "-c", agent.uri, "net-event", "--loop", "--event", "lifecycle"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
        )
    try:
        time.sleep(0.5)  # virsh has no way to say that it listens
        agent.virsh("net-define", file(agent, GREEN))
        agent.virsh("net-start", "green")
        agent.virsh("net-autostart", "green")
    finally:
        events.terminate()
        events.wait(10)
    assert "Defined" in log.read_text() and "Started" in log.read_text()
    before = agent.virsh("net-dumpxml", "green"), agent.virsh("net-uuid", "blue")
    assert "<nic:vni>200</nic:vni>" in before[0] and "name='na-br200'" in before[0]

    agent.kill()
    agent.start()
    assert (agent.virsh("net-dumpxml", "green"), agent.virsh("net-uuid", "blue")) == before
    listed = agent.virsh("net-list", "--all")
    assert re.search(r"blue\s+active\s+yes\s+yes", listed) and re.search(
        r"green\s+active\s+yes\s+yes", listed
    )


def test_what_cannot_be_true_is_refused_with_libvirts_code(agent: Agent) -> None:
    assert "cannot be stopped" in agent.refused("net-destroy", "blue")
    assert "cannot be undefined" in agent.refused("net-undefine", "blue")
    clash = GREEN.replace("green", "red").replace(UUID, UUID[:-1] + "2")
    assert "VNI 200 is that of network 'green'" in agent.refused("net-define", file(agent, clash))
    nat = "<network><name>n</name><forward mode='nat'/><ip address='10.9.0.1' prefix='24'/></network>"
    assert "cannot be true of a segment" in agent.refused("net-define", file(agent, nat))
    connection = libvirt.open(agent.uri)
    for code, call in (
        (43, lambda: connection.networkLookupByName("nobody")),
        (67, lambda: connection.networkDefineXML(nat)),
        (84, lambda: connection.interfaceLookupByName("lo").destroy(0)),
        (84, lambda: connection.nwfilterLookupByName("clean-traffic").undefine()),
        (67, lambda: connection.nwfilterDefineXML("<filter name='clean-traffic'/>")),
        (67, lambda: connection.nwfilterDefineXML(FILTER % "<tcp connlimit-above='3'/>")),
        (9, lambda: connection.nwfilterDefineXML("<filter name='a'><filterref filter='a'/></filter>")),
    ):
        with pytest.raises(libvirt.libvirtError) as caught:
            call()
        assert caught.value.get_error_code() == code, caught.value
    connection.close()


def test_a_network_without_a_vni_gets_one_and_can_be_transient(agent: Agent) -> None:
    agent.virsh("net-create", file(agent, OPEN_VNI))
    shown = agent.virsh("net-dumpxml", "lime")
    assert "<nic:vni>100000</nic:vni>" in shown and "name='na-br100000'" in shown
    assert re.search(r"lime\s+active\s+no\s+no", agent.virsh("net-list", "--transient"))
    agent.virsh("net-destroy", "lime")
    assert "lime" not in agent.virsh("net-list", "--all")


def test_a_domain_that_names_what_is_not_there_is_told_so(agent: Agent) -> None:
    connection = libvirt.open(agent.uri)
    domain = connection.defineXML(domain_xml("lost", None, segment="nowhere"))
    with pytest.raises(libvirt.libvirtError) as caught:
        domain.create()
    assert caught.value.get_error_code() == 43, caught.value
    domain.undefine()
    xml = domain_xml("filtered", None, segment="green")
    for name, code in (("nobodys", 62), ("allow-ipv6", 67)):
        with pytest.raises(libvirt.libvirtError) as caught:
            connection.defineXML(xml.replace("</interface>", f"<filterref filter='{name}'/></interface>"))
        assert caught.value.get_error_code() == code, caught.value
    connection.close()


def test_a_domains_port_lease_and_guard_are_what_the_kernel_says(agent: Agent) -> None:
    fixed = f"<host mac='{MAC}' ip='10.2.0.5'/>"
    agent.virsh("net-update", "green", "add", "ip-dhcp-host", fixed, "--live", "--config")
    guarded = "<filterref filter='no-ip-multicast'/></interface>"
    xml = domain_xml("web", None, host="metal-2", segment="green").replace("</interface>", guarded)
    agent.virsh("define", file(agent, xml))
    agent.virsh("start", "web")

    lease = agent.virsh("net-dhcp-leases", "green")
    assert MAC in lease and "10.2.0.5/24" in lease, f"the fixed address is not its lease: {lease}"
    port = agent.virsh("net-port-list", "green", "--uuid").strip()
    shown = agent.virsh("net-port-dumpxml", "green", port)
    assert MAC in shown and "<name>web</name>" in shown and "bridge='na-br200'" in shown
    assert re.search(r"port0\s+no-ip-multicast", agent.virsh("nwfilter-binding-list"))
    assert "value='10.2.0.5'" in agent.virsh("nwfilter-binding-dumpxml", "port0")
    assert "na-br200" in agent.virsh("iface-list") and "port0" in agent.virsh("iface-dumpxml", "na-br200")

    links = {link["ifname"]: link for link in json.loads(inside(agent, "ip", "-j", "link"))}
    assert links["port0"]["master"] == "na-br200" and links["na-br200"]["mtu"] == 1400
    assert "in use by domain web on metal-2" in agent.refused("net-destroy", "green")

    counted = agent.directory / "counters"
    counted.write_text(inside(agent, "nft", "list", "table", "bridge", "nicagent"))
    assert MAC in counted.read_text() and "10.2.0.5" in counted.read_text()

    agent.virsh("destroy", "web")
    assert agent.virsh("net-dhcp-leases", "green").count(MAC) == 0
    agent.virsh("undefine", "web")
    agent.virsh("net-destroy", "green")
    agent.virsh("net-undefine", "green")
    assert "green" not in agent.virsh("net-list", "--all")


def test_the_filters_that_the_guard_does_are_listed_and_shown(agent: Agent) -> None:
    listed = agent.virsh("nwfilter-list")
    for name in ("clean-traffic", "no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "allow-dhcp"):
        assert name in listed
        assert f"<filter name='{name}'" in agent.virsh("nwfilter-dumpxml", name)


VDSM = """\
<filter name='vdsm-no-mac-spoofing' chain='root'>
  <uuid>11111111-1111-1111-1111-11111111111f</uuid>
  <filterref filter='no-mac-spoofing'/><filterref filter='no-arp-mac-spoofing'/>%s
</filter>
"""


def test_a_filter_of_a_clients_own_holds_the_port_and_follows_its_definition(agent: Agent) -> None:
    def rules() -> str:
        return inside(agent, "nft", "list", "table", "bridge", "nicagent_filters")

    value = "<parameter name='TO' value='10.9.9.9'/>"
    guarded = f"<filterref filter='vdsm-no-mac-spoofing'>{value}</filterref></interface>"
    agent.virsh("nwfilter-define", file(agent, VDSM % ""))
    xml = domain_xml("held", None, host="metal-2", segment="blue").replace("</interface>", guarded)
    agent.virsh("define", file(agent, xml))
    agent.virsh("start", "held")
    assert MAC in rules() and "10.9.9.9" not in rules()
    assert "value='10.9.9.9'" in agent.virsh("nwfilter-binding-dumpxml", "port0")
    assert "nwfilter is in use" in agent.refused("nwfilter-undefine", "vdsm-no-mac-spoofing")

    more = "<rule action='drop' direction='out'><tcp dstipaddr='$%s'/></rule>"
    assert "no value for OTHER" in agent.refused("nwfilter-define", file(agent, VDSM % (more % "OTHER")))
    assert "OTHER" not in agent.virsh("nwfilter-dumpxml", "vdsm-no-mac-spoofing")
    agent.virsh("nwfilter-define", file(agent, VDSM % (more % "TO")))
    assert "10.9.9.9" in rules(), "a filter was replaced, and its port does as before"

    live = etree.fromstring(agent.virsh("dumpxml", "held")).find("devices/interface")
    assert live is not None
    filterref = live.find("filterref")
    assert filterref is not None
    filterref.set("filter", "clean-traffic")
    device = file(agent, etree.tostring(live, "unicode"))
    agent.virsh("update-device", "held", device, "--live")
    assert "nicagent_filters" not in inside(agent, "nft", "list", "tables"), "the guard does clean-traffic"
    filterref.set("filter", "vdsm-no-mac-spoofing")
    agent.virsh("update-device", "held", file(agent, etree.tostring(live, "unicode")), "--live")

    agent.kill()
    agent.start()
    assert "10.9.9.9" in rules() and "$TO" in agent.virsh("nwfilter-dumpxml", "vdsm-no-mac-spoofing")
    agent.virsh("destroy", "held")
    assert "nicagent_filters" not in inside(agent, "nft", "list", "tables"), "something of the tenant is left"
    agent.virsh("undefine", "held")
    agent.virsh("nwfilter-undefine", "vdsm-no-mac-spoofing")
    assert "vdsm" not in agent.virsh("nwfilter-list")
