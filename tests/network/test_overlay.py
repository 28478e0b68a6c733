"""The bridge back end: what it makes in the kernel, what it leaves, and what it says of failures."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nicagent.network.contract import RESPONDER
from tests.anybody import as_user
from tests.network import netlab
from tests.network.netlab import HONEST, MARK, AgentError, Lab, arp, udp

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not netlab.can_make_namespaces(), reason="may not make network namespaces"),
]
ONE, TWO, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:99"


@pytest.fixture
def dark(tmp_path: Path) -> Iterator[Lab]:
    with netlab.lab(tmp_path) as made:
        yield made


@pytest.fixture
def lab(dark: Lab) -> Lab:
    dark.open_all()
    return dark


def _facts(agent: netlab.Agent) -> dict[str, Any]:
    """Everything that the driver may touch: devices, addresses, routes, guards, sockets, files."""
    links = agent.netns.json("ip", "-j", "-d", "link")
    for link in links:
        link.pop("qdisc")  # a veth that was up once has another when down again
    return {
        "links": links,
        "addresses": agent.netns.run("ip", "-4", "-br", "addr"),
        "routes": agent.netns.run("ip", "route", "show", "table", "all", "type", "unicast"),
        "guards": agent.netns.run("nft", "list", "ruleset"),
        "sockets": agent.netns.run("ss", "-Hlnup"),
        "files": [path for path in agent.run_dir.rglob("*") if path.is_file()],
    }


def test_withdraw_leaves_nothing(dark: Lab) -> None:
    agent, host = dark.agents[0], dark.hosts[0]
    before = _facts(agent)
    agent.start()
    for segment in ("blue", "red"):
        agent.present(host.name, host.binding(segment=segment))
        assert _facts(agent)["guards"], "an open port has a guard"
    agent.withdraw(host.name)
    assert _facts(agent) == before
    agent.close()


def test_a_device_is_left_as_it_was_found(dark: Lab) -> None:
    agent, host = dark.agents[0], dark.hosts[0]
    agent.netns.run("ip", "link", "set", "nic0", "mtu", "1300", "up")
    agent.start()
    agent.present(host.name, host.binding())
    assert agent.netns.json("ip", "-j", "link", "show", "nic0")[0]["mtu"] == 1450
    agent.kill()  # the former state is known to the next agent too
    agent.start()
    agent.withdraw(host.name)
    link = agent.netns.json("ip", "-j", "link", "show", "nic0")[0]
    assert link["mtu"] == 1300 and "UP" in link["flags"] and "master" not in link


def test_devices_of_ours_have_no_address_but_the_responders(lab: Lab) -> None:
    agent = lab.agents[0]
    have = {
        link["ifname"]: [a["local"] for a in link["addr_info"]]
        for link in agent.netns.json("ip", "-j", "addr")
        if link["ifname"] not in ("lo", "under")
    }
    assert have == {"nic0": [], "na-vx100": [], "na-br100": [RESPONDER]}
    assert "10.100" not in agent.netns.run("ip", "route", "show", "table", "all")


DROPPED = {
    "drop-mac": udp(OTHER, "10.100.0.11", "10.100.0.255", (9, 9)),
    "drop-arp": arp(ONE, ONE, "10.100.0.12", "10.100.0.12"),
    "drop-dhcp": udp(ONE, "10.100.0.11", "255.255.255.255", (67, 68)),
    "drop-ipv4": udp(ONE, "10.100.0.77", "10.100.0.255", (9, 9)),
    "drop-ipv6": netlab.router_advertisement(ONE),
    "drop-other": netlab.ether(ONE, 0x88B5, MARK),
}


def test_each_drop_is_counted_under_its_reason(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    wire = host.wire()
    for counter, frame in DROPPED.items():
        before = agent.drops()[counter]
        wire.send(*[frame] * 20)
        assert agent.drops()[counter] >= before + 20, f"{counter} did not count 20 frames"
    agent.present(host.name, host.binding(ipv4="10.100.0.50"))
    assert agent.drops()["drop-mac"] >= 20, "a change of one port forgets what was counted"


@pytest.mark.parametrize(
    ("name", "dropped", "passes"),
    [("no-ip-multicast", "224.0.0.251", "10.100.0.255"), ("no-mac-broadcast", "10.100.0.255", "224.0.0.251")],
)
def test_a_ports_own_filter_drops_what_the_guard_lets_pass(
    lab: Lab, name: str, dropped: str, passes: str
) -> None:
    agent, (one, two) = lab.agents[0], lab.hosts
    group = "01:00:5e:00:00:fb"
    to = {"224.0.0.251": group, "10.100.0.255": "ff:ff:ff:ff:ff:ff"}
    sender, receiver = one.wire(), two.wire()
    binding = one.binding()
    agent.present(one.name, replace(binding, port=replace(binding.port, filter=name)))
    sender.send(
        udp(ONE, one.ipv4, dropped, (9, 9), to=to[dropped]),
        udp(ONE, one.ipv4, passes, (9, 9), HONEST, to=to[passes]),
    )
    assert not receiver.hears_before(MARK, HONEST), f"{name} lets pass what is for {dropped}"
    assert agent.drops()["drop-filter"] == 1
    assert one.dhcp()["ip"] == one.ipv4, "a lease is asked for by broadcast all the same"
    agent.present(one.name, binding)
    sender.send(udp(ONE, one.ipv4, dropped, (9, 9), to=to[dropped]))
    assert receiver.hears(MARK), "without the filter it passes"


def test_nothing_of_dhcp_and_of_the_responder_comes_out_of_a_tunnel(lab: Lab) -> None:
    """The other agent might be of another make: the guard here does not rely on the guard there."""
    (agent, peer), (one, _) = lab.agents, lab.hosts
    tunnel, receiver = peer.netns.call(lambda: netlab.Wire("na-vx100")), one.wire()
    good = udp(TWO, "10.100.0.12", "10.100.0.255", (9, 9), HONEST)
    for name, frame in {
        "DHCP offer": udp(TWO, "10.100.0.12", "255.255.255.255", (67, 68)),
        "DHCP request": udp(TWO, "0.0.0.0", "255.255.255.255", (68, 67)),
        "datagram of the responder": udp(TWO, RESPONDER, "255.255.255.255", (9, 9)),
        "ARP of the responder": arp(TWO, TWO, RESPONDER, "10.100.0.11", operation=2),
        "router advertisement": netlab.router_advertisement(TWO),
    }.items():
        before = agent.drops()["drop-tunnel"]
        tunnel.send(frame, good)
        assert not receiver.hears_before(MARK, HONEST), f"a tunnel delivers: {name}"
        assert agent.drops()["drop-tunnel"] == before + 1, f"not counted: {name}"


def test_a_frame_from_afar_with_a_hosts_mac_does_not_draw_its_traffic_away(lab: Lab) -> None:
    (agent, peer), (one, _) = lab.agents, lab.hosts
    with netlab.neighbour(agent) as third:
        agent.present(third.name, third.binding())
        tunnel, receiver = peer.netns.call(lambda: netlab.Wire("na-vx100")), one.wire()
        tunnel.send(udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9), HONEST))
        third.wire().send(udp(OTHER, third.ipv4, one.ipv4, (9, 9), to=ONE))
        assert receiver.hears(MARK), "a forged frame moved the host's MAC to the tunnel"


def vxlan(vni: int, frame: bytes) -> bytes:
    """A frame as a VTEP wraps it (RFC 7348 §5)."""
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def test_only_peers_are_on_the_overlay(lab: Lab) -> None:
    """Whoever else reaches the agent's UDP port is on no segment, at whichever of the agent's addresses."""
    agent, peer = lab.agents[0], lab.agents[1]
    agent.netns.run("ip", "addr", "add", "198.51.100.1/24", "dev", "under")
    for address in ("192.0.2.66/24", "198.51.100.66/24"):
        peer.netns.run("ip", "addr", "add", address, "dev", "under")

    def send(source: str, to: str, mark: bytes) -> None:
        inner = udp(TWO, "10.100.0.12", "10.100.0.255", (9, 9), mark)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(vxlan(100, inner), (to, 4789))

    receiver = lab.hosts[0].wire()
    for source, to in (("192.0.2.66", "192.0.2.1"), ("198.51.100.66", "198.51.100.1")):
        peer.netns.call(lambda source=source, to=to: send(source, to, MARK))  # type: ignore[misc]
    peer.netns.call(lambda: send("192.0.2.2", "192.0.2.1", HONEST))
    assert not receiver.hears_before(MARK, HONEST), "a stranger on the underlay reached a host"


def test_the_agent_does_not_hear_the_overlay(lab: Lab) -> None:
    """A datagram addressed to the bridge's own MAC, from afar, for an address of the agent."""
    agent, peer = lab.agents[0], lab.agents[1]
    agent.netns.run("sysctl", "-qw", "net.ipv4.conf.all.accept_local=1")
    bridge = agent.netns.json("ip", "-j", "link", "show", "na-br100")[0]["address"]
    before = _udp_no_port(agent)
    tunnel = peer.netns.call(lambda: netlab.Wire("na-vx100"))
    host = lab.hosts[0].wire()
    tunnel.send(udp(TWO, "10.100.0.12", "192.0.2.1", (9, 9), to=bridge))
    host.send(udp(ONE, "10.100.0.11", "192.0.2.1", (9, 9), to=bridge))
    assert _udp_no_port(agent) == before, "a frame from a segment reached the agent's own stack"


def _udp_no_port(agent: netlab.Agent) -> str:
    """UDP datagrams that came up the stack to a port where nobody listens."""
    return agent.netns.run("nstat", "-asz", "UdpNoPorts")


def test_a_stranger_on_the_bridge_reaches_nobody(lab: Lab) -> None:
    agent = lab.agents[0]
    stranger = netlab.Netns()
    try:
        agent.netns.cable("odd", stranger, "eth0", OTHER)
        stranger.run("ip", "link", "set", "eth0", "up")
        agent.netns.run("ip", "link", "set", "odd", "master", "na-br100", "up")
        receivers = [host.wire() for host in lab.hosts]
        stranger.call(lambda: netlab.Wire("eth0")).send(udp(OTHER, "10.100.0.66", "10.100.0.255", (9, 9)))
        assert not any(receiver.hears(MARK, 0.2) for receiver in receivers)
        agent.present(lab.hosts[0].name, lab.hosts[0].binding())
        assert "master" not in agent.netns.json("ip", "-j", "link", "show", "odd")[0]
    finally:
        stranger.close()


def test_what_somebody_broke_is_mended_by_presenting_again(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    agent.netns.run("nft", "flush", "ruleset")
    agent.netns.run("ip", "link", "set", "nic0", "nomaster")
    agent.netns.run("ip", "link", "del", "na-vx100")
    agent.present(one.name, one.binding())
    assert one.ping(two.ipv4)
    one.wire().send(DROPPED["drop-mac"])
    assert agent.drops()["drop-mac"] >= 1
    agent.netns.run("ip", "link", "del", "na-br100")  # under dnsmasq's feet
    agent.present(one.name, one.binding())
    assert one.dhcp()["ip"] == one.ipv4


def test_dnsmasq_is_found_again_and_replaced_when_it_is_gone(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    pidfile = agent.run_dir / "network/dhcp-100.pid"
    first = pidfile.read_text()
    agent.kill()
    agent.start()
    agent.present(host.name, host.binding())
    assert pidfile.read_text() == first, "a new agent keeps the running dnsmasq"
    os.kill(int(first.split()[0]), signal.SIGKILL)
    agent.present(host.name, host.binding())
    assert pidfile.read_text() != first
    assert host.dhcp()["ip"] == host.ipv4
    pidfile.unlink()  # as if the agent had died between starting it and recording it
    agent.present(host.name, host.binding())
    assert len(agent.netns.run("ss", "-Hlnu", "sport", "=", ":67").splitlines()) == 1, "two DHCP servers"


def test_peers_follow_the_configuration(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()

    def flood_list() -> set[str]:
        entries = agent.netns.json("bridge", "-j", "fdb", "show", "dev", "na-vx100")
        return {entry["dst"] for entry in entries if "dst" in entry}

    assert flood_list() == {"192.0.2.2"}
    agent.close()
    agent.overlay = msgspec.structs.replace(agent.overlay, peers=("192.0.2.2", "192.0.2.3", "192.0.2.1"))
    agent.start()
    agent.present(one.name, one.binding())
    assert flood_list() == {"192.0.2.2", "192.0.2.3"}, "the agent itself is no peer"
    agent.close()
    agent.overlay = msgspec.structs.replace(agent.overlay, peers=("192.0.2.2",), port=4790)
    agent.start()
    agent.present(one.name, one.binding())
    assert flood_list() == {"192.0.2.2"}
    assert not one.ping(two.ipv4, 1), "another UDP port is another overlay"
    table = agent.netns.run("nft", "list", "table", "inet", "nicagent_overlay")
    assert "udp dport 4790 ip saddr != 192.0.2.2" in table, table


# ── errors ──


def test_an_underlay_that_is_missing_or_too_small_is_named(dark: Lab) -> None:
    agent, host = dark.agents[0], dark.hosts[0]
    before = _facts(agent)
    agent.start()
    agent.netns.run("ip", "link", "set", "under", "mtu", "1400")
    with pytest.raises(AgentError, match=r"invalid: VNI 100 .* 1450, .* under's 1400; .* 1350"):
        agent.present(host.name, host.binding())
    agent.netns.run("ip", "link", "set", "under", "mtu", "1500")
    agent.close()
    agent.overlay = msgspec.structs.replace(agent.overlay, local="192.0.2.77")
    agent.start()
    with pytest.raises(AgentError, match=r"not-found: the underlay address 192\.0\.2\.77 is not on this"):
        agent.present(host.name, host.binding())
    agent.close()
    agent.overlay = msgspec.structs.replace(agent.overlay, local="192.0.2.1", device="wan9")
    agent.start()
    with pytest.raises(AgentError, match=r"not-found: the underlay device wan9 is not on this machine"):
        agent.present(host.name, host.binding())
    assert _facts(agent) == before, "a failed request left something behind"


def test_an_underlay_in_trouble_hinders_no_other_segment_and_no_withdrawal(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    with netlab.neighbour(agent, "red") as third:
        agent.netns.run("ip", "link", "set", "under", "mtu", "1480")  # enough for red, too small for blue
        agent.present(third.name, third.binding())
        assert third.dhcp()["ip"] == third.ipv4
        with pytest.raises(AgentError, match=r"invalid: VNI 100 .* does not fit"):
            agent.present(host.name, host.binding())
        agent.netns.run("ip", "addr", "flush", "dev", "under")
        agent.withdraw(third.name)
        assert "na-br200" not in agent.netns.run("ip", "-br", "link"), "the segment without ports stayed"
        assert agent.status(host.name)[0]["link"], "the other host's port was closed"
        assert host.dhcp()["ip"] == host.ipv4
        agent.withdraw(host.name)
    assert "na-" not in agent.netns.run("ip", "-br", "link")
    assert agent.netns.run("nft", "list", "ruleset") == ""


def test_what_is_kept_of_ports_is_the_agents_alone(lab: Lab) -> None:
    folder = lab.agents[0].run_dir / "network"
    for path in (folder, folder / "ports.json", folder / "dhcp-100.conf", folder / "dhcp-100.log"):
        assert path.stat().st_mode & 0o077 == 0, f"others may read {path}"


def test_a_withdrawn_neighbours_lease_is_forgotten(lab: Lab) -> None:
    agent = lab.agents[0]
    with netlab.neighbour(agent) as third:
        agent.present(third.name, third.binding())
        config = agent.run_dir / "network/dhcp-100.conf"
        assert third.mac in config.read_text()
        agent.withdraw(third.name)
        assert third.mac not in config.read_text(), "something of the tenant is left"


def test_a_device_that_belongs_to_another_bridge_is_refused(dark: Lab) -> None:
    agent, host = dark.agents[0], dark.hosts[0]
    agent.netns.run("ip", "link", "add", "br-lan", "type", "bridge")
    agent.netns.run("ip", "link", "set", "nic0", "master", "br-lan")
    agent.start()
    with pytest.raises(
        AgentError, match=r"unavailable: the network device nic0 .* belongs to br-lan; take it"
    ):
        agent.present(host.name, host.binding())


def test_a_vni_that_somebody_else_uses_is_named_and_rolled_back(dark: Lab) -> None:
    agent, host = dark.agents[0], dark.hosts[0]
    agent.netns.run(
        *["ip", "link", "add", "vx", "type", "vxlan", "id", "100", "local", "192.0.2.1", "dstport", "4789"]
    )
    before = _facts(agent)
    agent.start()
    with pytest.raises(AgentError, match=r"unavailable: cannot make the VXLAN device na-vx100: .*VNI"):
        agent.present(host.name, host.binding())
    assert _facts(agent) == before, "a failed request left something behind"


def test_a_port_that_vanished_does_not_hinder_others(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    agent.netns.run("ip", "link", "del", "nic0")
    assert agent.status(host.name)[0] == {
        "name": "port0", "device": "nic0", "link": False,
        "rx_bytes": None, "rx_packets": None, "tx_bytes": None, "tx_packets": None,
    }  # fmt: skip
    with netlab.neighbour(agent) as third:
        agent.present(third.name, third.binding())
        assert third.dhcp()["ip"] == third.ipv4
        agent.withdraw(host.name)
        agent.withdraw(third.name)


UNPRIVILEGED = 12345


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of the ordinary user's; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, UNPRIVILEGED, UNPRIVILEGED)
        yield Path(name)


def _really_root() -> bool:
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


@pytest.mark.skipif(not _really_root(), reason="only root can become somebody else")
def test_without_privileges_it_says_so_at_once(dark: Lab) -> None:
    script = (
        "import asyncio, pathlib; from nicagent import config; from nicagent.network.overlay import *\n"
        "driver = OverlayNetwork(config.Overlay(local='192.0.2.1'), {}, pathlib.Path('/nonexistent'))\n"
        "try: asyncio.run(driver.start())\n"
        "except NicagentError as e: print(e.kind, e)\n"
    )
    said = dark.agents[0].netns.run(*as_user(UNPRIVILEGED, sys.executable, "-c", script))
    assert said.startswith("unavailable cannot read the guards of the ports: Operation not permitted"), said
    assert "run the agent as root or give it CAP_NET_ADMIN" in said


@pytest.mark.skipif(not _really_root(), reason="only root can become somebody else")
def test_an_ordinary_user_can_have_it_all_in_a_user_namespace(theirs: Path) -> None:
    done = subprocess.run(
        as_user(
            UNPRIVILEGED, "unshare", "-Urnm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            f"--basetemp={theirs}/pytest", "tests/conformance/test_network.py",
            "-k", "get_their_addresses or forged or killed_anywhere",
        ),
        cwd=netlab.ROOT, env=os.environ | {"HOME": str(theirs), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout, done.stdout
