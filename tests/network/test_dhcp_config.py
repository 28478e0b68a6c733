"""dnsmasq's configuration as a function of the ports: nothing in a name can add to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.config import Segment
from nicagent.errors import Kind, NicagentError
from nicagent.model import Port, PortBinding
from nicagent.network import dhcp, record
from nicagent.network.contract import hostname

BLUE = Segment(vni=100, cidr="10.100.0.0/22", range=("10.100.0.10", "10.100.0.99"), mtu=1450)


def _bound(name: str, number: int = 1) -> PortBinding:
    mac, ipv4 = f"02:00:00:00:00:{number:02x}", f"10.100.0.{number}"
    return PortBinding(Port("port0", "blue", mac, ipv4), f"nic{number}", mac, ipv4, name)


@given(st.text(max_size=200))
def test_a_domains_name_becomes_a_label_or_nothing(name: str) -> None:
    label = hostname(name)
    assert label == "" or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", label)
    text = dhcp.config_text(BLUE, "na-br100", 7, "nobody", [_bound(name)])
    assert text.count("\n") == dhcp.config_text(BLUE, "na-br100", 7, "nobody", [_bound("x")]).count("\n")


@pytest.mark.parametrize(
    ("name", "label"),
    [("metal-1", "metal-1"), ("my_vm", "my-vm"), ("a,b\nport=53", "a-b-port-53"), ("-x-", "x"), ("日本", "")],
)
def test_names_keep_what_dns_allows(name: str, label: str) -> None:
    assert hostname(name) == label


def test_the_configuration_says_what_the_segment_is() -> None:
    lines = dhcp.config_text(BLUE, "na-br100", 7, "nobody", [_bound("b", 2), _bound("a", 1)]).splitlines()
    assert "dhcp-range=10.100.0.0,static,255.255.252.0,12h" in lines
    assert "dhcp-option-force=option:mtu,1450" in lines
    assert "port=0" in lines, "no DNS"
    assert [line for line in lines if line.startswith("dhcp-host")] == [
        "dhcp-host=02:00:00:00:00:01,id:*,10.100.0.1,a",
        "dhcp-host=02:00:00:00:00:02,id:*,10.100.0.2,b",
    ]


def test_another_bridge_of_the_same_name_is_another_configuration() -> None:
    """dnsmasq's socket is bound to the device, which a bridge made anew is not."""
    texts = {dhcp.config_text(BLUE, "na-br100", index, "nobody", [_bound("a")]) for index in (7, 8)}
    assert len(texts) == 2


def test_the_record_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "network/ports.json"
    assert record.load(path) == record.Record()
    kept = record.Record({"metal-1": (_bound("a"),)}, {"nic1": record.Found(1500, True)})
    record.save(path, kept)
    assert record.load(path) == kept
    path.write_text("{")
    with pytest.raises(NicagentError, match=r"ports\.json") as refused:
        record.load(path)
    assert refused.value.kind is Kind.INTERNAL and refused.value.hint
