"""The iPXE script, DHCP configuration and guard of a link, as the texts they are."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.errors import NicagentError
from nicagent.provision import guard
from nicagent.provision.contract import BootChoice, ProvisionLink
from nicagent.provision.dhcp import config_text
from nicagent.provision.script import render

LINK = ProvisionLink(
    host="metal-1",
    device="tap7",
    mac="52:54:00:00:00:01",
    agent_address="172.31.0.1/30",
    host_address="172.31.0.2",
)
CHOICE = BootChoice(
    link=LINK,
    kind="nvme-tcp",
    nqn="nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
    hostnqn="nqn.2014-08.org.nvmexpress:uuid:aaaaaaaa-2222-3333-4444-555555555555",
    hostid="aaaaaaaa-2222-3333-4444-555555555555",
    traddr="172.31.0.1",
)


def test_a_network_disk_boots_stage1_with_all_it_must_know() -> None:
    text = render(LINK, CHOICE)
    assert text.startswith("#!ipxe\n")
    for word in (
        "initrd=stage1.img",
        "nicagent.mac=52:54:00:00:00:01",
        "nicagent.ip=172.31.0.2/30",
        "nicagent.traddr=172.31.0.1",
        "nicagent.trsvcid=4420",
        f"nicagent.nqn={CHOICE.nqn}",
        f"nicagent.hostnqn={CHOICE.hostnqn}",
        f"nicagent.hostid={CHOICE.hostid}",
    ):
        assert word in text.split(), f"{word} is missing"
    assert "|| goto again" in text, "a failed download must lead to another try, not to a prompt"


@pytest.mark.parametrize("choice", [None, msgspec.structs.replace(CHOICE, kind="none")])
def test_nothing_to_boot(choice: BootChoice | None) -> None:
    text = render(LINK, choice)
    assert text.endswith("exit\n") and "kernel" not in text and "shell" not in text


def test_before_the_agent_knows_the_host_asks_again() -> None:
    text = render(LINK, None, known=False)
    assert "chain --replace --autofree http://172.31.0.1:8080/boot/metal-1.ipxe || goto ask" in text
    assert "exit" not in text, "the host would go on to its own disk because the agent was restarting"


@given(st.text(max_size=30))
def test_no_value_breaks_out_of_the_kernel_command_line(nqn: str) -> None:
    try:
        text = render(LINK, msgspec.structs.replace(CHOICE, nqn=nqn))
    except NicagentError:
        return
    assert f"nicagent.nqn={nqn}" in text.split()
    assert text.count("\n") == render(LINK, CHOICE).count("\n")
    assert "$" not in text


def test_dhcp_knows_one_host_and_offers_no_way_out() -> None:
    lines = config_text(LINK, index=3, user="root", tftp_root=None).splitlines()
    assert "port=0" in lines, "a DNS server is running"
    assert "interface=tap7" in lines and "bind-interfaces" in lines
    assert [line for line in lines if line.startswith("dhcp-host=")] == [
        "dhcp-host=52:54:00:00:00:01,id:*,172.31.0.2"
    ]
    assert "dhcp-ignore=tag:!known" in lines
    assert "dhcp-option=option:router" in lines, (
        "an empty router option is what keeps dnsmasq from adding itself"
    )
    assert "dhcp-boot=tag:ipxe,http://172.31.0.1:8080/boot/metal-1.ipxe" in lines
    assert "group=" in lines, "setgroups(2) is denied where only root is mapped"


def test_names_of_guards_differ_whenever_hosts_do() -> None:
    names = {guard.table_name(host) for host in ("a-b", "a_b", "a.b", "ab")}
    assert len(names) == 4
