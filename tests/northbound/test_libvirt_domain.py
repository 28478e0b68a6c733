"""Between libvirt's words and ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor_shim.xml.domain import parse_domain
from nicagent.config import Segment
from nicagent.errors import NicagentError
from nicagent.northbound.libvirt_domain import bridges_of, missed, to_domain
from tests.clients.documents import CLOUDS

PIN = (
    "<metadata><{0}domain xmlns{1}='urn:nicagent:domain:1'><{0}host>metal-2</{0}host>"
    "<{0}tenant> blue </{0}tenant></{0}domain></metadata>"
)
ON_BRIDGE = """<domain type='kvm'><name>a</name><memory>1024</memory><os><type>hvm</type></os><devices>
<interface type='bridge'><mac address='02:00:00:00:00:01'/><source bridge='{}'/>
<virtualport type='openvswitch'><parameters interfaceid='1c9d1b2e-9d8b-4a53-9a43-4a5c6e0a0002'/></virtualport>
</interface></devices></domain>"""


@pytest.mark.parametrize(("prefix", "declared"), [("nic:", ":nic"), ("x:", ":x"), ("", "")])
def test_metadata_tells_a_domains_host_and_tenant_whatever_the_clients_prefix(
    prefix: str, declared: str
) -> None:
    text = "<domain type='kvm'><name>a</name><memory>1024</memory><os><type>hvm</type></os>{}</domain>"
    definition = parse_domain(text.format(PIN.format(prefix, declared)))
    made, plain = to_domain(definition, {}), to_domain(parse_domain(text.format("")), {})
    assert (made.host, made.tenant) == ("metal-2", "blue")
    assert (plain.host, plain.tenant) == (None, None)


@pytest.mark.parametrize(
    ("bridge", "segment"), [("na-br100", "blue"), ("br-int", "blue"), ("brvx-200", "green")]
)
def test_a_bridge_that_a_cloud_names_is_a_segment(bridge: str, segment: str) -> None:
    bridges = bridges_of(
        {
            "blue": Segment(vni=100, cidr="10.1.0.0/24", range=("10.1.0.2", "10.1.0.9"), bridges=("br-int",)),
            "green": Segment(
                vni=7, cidr="10.2.0.0/24", range=("10.2.0.2", "10.2.0.9"), bridges=("brvx-200",)
            ),
        }
    )
    (port,) = to_domain(parse_domain(ON_BRIDGE.format(bridge)), {}, bridges).ports
    assert port.segment == segment


def test_a_tap_of_a_cloud_that_names_no_bridge_may_be_a_segments() -> None:
    text = ON_BRIDGE.replace("'bridge'", "'ethernet'").replace("<source bridge='{}'/>", "<target dev='{}'/>")
    (port,) = to_domain(parse_domain(text.format("tap1c9d1b2e-9d")), {}, {"tap*": "blue"}).ports
    assert port.segment == "blue"


def test_a_bridge_of_no_segment_is_refused_with_where_to_list_it() -> None:
    with pytest.raises(NicagentError, match=r"bridge 'br0' is that of no segment.*segments\.NAME\.bridges"):
        to_domain(parse_domain(ON_BRIDGE.format("br0")), {}, {"na-br100": "blue"})


@pytest.mark.parametrize(
    ("cloud", "disks", "vcpus"),
    [
        ("nova-local", ["vda"], 1),
        ("zstack", ["vda", "sdb"], 2),
        ("cloudstack", ["vda"], 2),
        ("opennebula", ["vda", "hda"], 2),
        ("terraform", ["vda"], 2),
    ],
)
def test_what_a_cloud_writes_is_a_server(cloud: str, disks: list[str], vcpus: int) -> None:
    """An empty CD drive is no disk; processors that could be plugged into a VM are none of a server's."""
    domain = to_domain(parse_domain(CLOUDS[cloud].xml), {"default": Path("/pool")}, {"*": "blue"})
    assert [disk.target for disk in domain.disks] == disks
    assert domain.vcpus == vcpus
    assert domain.ports and domain.display is not None


@pytest.mark.parametrize(
    ("cloud", "why"),
    [
        ("nova", "disk vda: type 'network' without a file, block device or volume cannot be exported"),
        ("zstack-desktop", "disk fda: device 'floppy' has no place on metal"),
        ("vdsm", "graphics: screens are shown at addresses, not at the address of a network"),
    ],
)
def test_what_a_cloud_writes_and_no_server_has_is_named(cloud: str, why: str) -> None:
    with pytest.raises(NicagentError, match=why):
        to_domain(parse_domain(CLOUDS[cloud].xml), {"default": Path("/pool")}, {"*": "blue"})


def test_devices_that_an_os_would_look_for_are_named_and_others_are_not() -> None:
    """They are kept, since clouds write them; who misses one is told where to look for the reason."""
    known = "<video><model type='none'/></video><memballoon model='virtio'/><input type='tablet' bus='usb'/>"
    shared = "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>"
    xml = DOMAIN_WITH.format(known + shared + "<watchdog model='itco' action='reset'/>")
    (said,) = missed(parse_domain(xml))
    assert said.endswith("nothing that a server is given: filesystem, watchdog")
    assert missed(parse_domain(DOMAIN_WITH.format(known))) == []


DOMAIN_WITH = """<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory><os><type>hvm</type></os>
<devices>{}</devices></domain>"""
