"""A `<network>` becomes a segment, or is refused with a sentence; what comes back is true of the agent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hypervisor_shim.xml.network import format_network, parse_network
from nicagent.errors import Kind, NicagentError
from nicagent.northbound.segment_xml import to_definition, to_network
from nicagent.segments import Definition, Record

UUID = "11111111-1111-1111-1111-111111111111"
SEGMENT = f"""\
<network>
  <name>green</name>
  <uuid>{UUID}</uuid>
  <metadata>
    <nic:segment xmlns:nic="urn:nicagent:segment:1">
      <nic:vni>200</nic:vni>
    </nic:segment>
  </metadata>
  <bridge name='na-br200' stp='off' delay='0'/>
  <mtu size='1400'/>
  <ip address='10.2.0.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='10.2.0.10' end='10.2.0.99'/>
      <host mac='52:54:00:00:00:01' ip='10.2.0.5'/>
    </dhcp>
  </ip>
</network>
"""


def read(xml: str) -> Definition:
    return to_definition(parse_network(xml))


def shown(definition: Definition) -> str:
    return format_network(to_network(Record(UUID, definition.name, definition), definition))


def test_a_network_is_a_segment_and_comes_back_as_it_was() -> None:
    definition = read(SEGMENT)
    assert replace(definition, xml="") == Definition(
        name="green",
        cidr="10.2.0.0/24",
        range=("10.2.0.10", "10.2.0.99"),
        vni=200,
        mtu=1400,
        reserved=("10.2.0.1",),
        fixed={"52:54:00:00:00:01": "10.2.0.5"},
    )
    assert shown(definition) == SEGMENT
    assert shown(read(shown(definition))) == SEGMENT


def test_what_is_left_open_is_filled_in_truly() -> None:
    definition = read("<network><name>n</name><ip address='10.2.0.1' prefix='24'/></network>")
    assert (definition.vni, definition.range) == (None, ("10.2.0.1", "10.2.0.254"))
    told = shown(replace(definition, vni=100_000))
    assert "<nic:vni>100000</nic:vni>" in told and "<mtu size='1450'/>" in told
    assert "<bridge name='na-br100000' stp='off' delay='0'/>" in told
    assert "<range start='10.2.0.1' end='10.2.0.254'/>" in told


def test_a_segment_of_the_config_is_told_in_libvirts_words() -> None:
    told = shown(Definition("blue", "10.100.0.0/24", ("10.100.0.10", "10.100.0.19"), vni=100))
    assert "<ip address='10.100.0.0' netmask='255.255.255.0'>" in told, "the agent has no address in it"
    assert "<nic:vni>100</nic:vni>" in told


IP = "<ip address='10.2.0.1' prefix='24'/>"


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (f"<forward mode='nat'/>{IP}", "forward mode 'nat' cannot be true of a segment"),
        (f"<forward mode='bridge'/><bridge name='br0'/>{IP}", "forward mode 'bridge'"),
        (f"<bridge name='virbr0'/>{IP}", "leave the bridge's name out"),
        (f"<domain name='x.example'/>{IP}", "serves no DNS"),
        (f"<dns><txt name='a' value='b'/></dns>{IP}", "serves no DNS"),
        (f"<mac address='52:54:00:00:00:01'/>{IP}", "follows from its VNI"),
        (f"<mtu size='9999'/>{IP}", "an MTU of 9999 bytes"),
        (f"<description>{'x' * 300_000}</description>{IP}", "characters"),
        ("", "exactly one IPv4 network"),
        (f"{IP}<ip family='ipv6' address='2001:db8::1' prefix='64'/>", "exactly one IPv4 network"),
        ("<ip address='10.2.0.1' prefix='31'/>", "prefix length 31"),
        (
            "<ip address='10.2.0.1' prefix='24'><dhcp><range start='10.2.0.9' end='10.2.0.10'/>"
            "<range start='10.2.0.20' end='10.2.0.30'/></dhcp></ip>",
            "2 DHCP ranges",
        ),
        (
            "<ip address='10.2.0.1' prefix='24'><dhcp><host mac='52:54:00:00:00:01' name='a' ip='10.2.0.5'/>"
            "</dhcp></ip>",
            "its domain's",
        ),
    ],
)
def test_what_cannot_be_true_is_refused_with_a_reason(inner: str, words: str) -> None:
    with pytest.raises(NicagentError) as caught:
        read(f"<network><name>n</name>{inner}</network>")
    assert caught.value.kind is Kind.UNSUPPORTED and words in str(caught.value)


def test_a_name_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(NicagentError, match="cannot be shown"):
        read(f"<network><name>a\nb</name>{IP}</network>")


@pytest.mark.parametrize("vni", ["0", "16777216", "x", "-1", "", "１"])
def test_a_vni_that_is_none_is_told(vni: str) -> None:
    with pytest.raises(NicagentError) as caught:
        read(SEGMENT.replace(">200<", f">{vni}<"))
    assert caught.value.kind is Kind.INVALID and "names no VNI" in str(caught.value)
