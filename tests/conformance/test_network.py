"""What every network driver must do (nicagent/network/contract.py), seen from the hosts and from the wire.

A back end joins by its name in tests/network/runner.py; nothing here knows how it does its work.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from nicagent.filter_rules import Filter, Reference, Rule
from nicagent.network.contract import RESPONDER
from tests.network import netlab
from tests.network.netlab import HONEST, MARK, AgentError, Lab, arp, ether, udp, vlan
from tests.network.runner import BACKENDS

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not netlab.can_make_namespaces(), reason="may not make network namespaces"),
]


@pytest.fixture(params=sorted(BACKENDS))
def dark(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A lab in which nothing is started yet."""
    with netlab.lab(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def lab(dark: Lab) -> Lab:
    """A lab in which both hosts have their port on segment blue."""
    dark.open_all()
    return dark


# ── what a host gets ──


def test_hosts_get_their_addresses_and_reach_each_other(lab: Lab) -> None:
    one, two = lab.hosts
    for host in lab.hosts:
        lease = host.dhcp("-O", "mtu", "-O", "staticroutes")
        assert lease["ip"] == host.ipv4, "the one address of the binding"
        assert lease["mask"] == "24"
        assert lease["hostname"] == host.name
        assert lease["mtu"] == "1450", "the segment's MTU"
        assert lease["router"] == "", "a segment has no router unless told"
        assert lease["server"] == RESPONDER
    assert one.ping(two.ipv4) and two.ping(one.ipv4)
    assert one.ping(two.ipv4, 1, "-s", "1422", "-M", "do"), "frames of the segment's full MTU fit (1422 + 28)"


def test_a_host_renews_though_the_agent_has_no_route_to_it(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    agent.netns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")  # as hardened systems have it
    assert host.dhcp("-O", "staticroutes")["ip"] == host.ipv4
    wire = host.wire()
    request = netlab.dhcp_renewal(host.mac, host.ipv4, b"bind")
    wire.send(udp(host.mac, host.ipv4, "255.255.255.255", (68, 67), request))
    assert wire.hears(b"bind"), "a host that rebinds (by broadcast, from its address) got no answer"
    assert host.ping(RESPONDER, 1) is False, "the responder answers nothing but DHCP"


def test_an_address_moves_to_another_mac_at_once(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    assert host.dhcp()["ip"] == host.ipv4
    agent.withdraw(host.name)
    host.netns.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    agent.present("another", host.binding(mac="02:00:00:00:00:77"))
    assert host.dhcp()["ip"] == host.ipv4, "the lease of the former MAC still holds the address"


# ── what a host cannot do ──

ONE, TWO, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:99"
FORGED = {
    "MAC of another": udp(OTHER, "10.100.0.11", "10.100.0.255", (9, 9)),
    "MAC of the peer": udp(TWO, "10.100.0.11", "10.100.0.255", (9, 9)),
    "IPv4 of another": udp(ONE, "10.100.0.77", "10.100.0.255", (9, 9)),
    "IPv4 of nobody": udp(ONE, "0.0.0.0", "10.100.0.255", (9, 9)),
    "ARP with another's IPv4": arp(ONE, ONE, "10.100.0.12", "10.100.0.12"),
    "ARP reply with another's IPv4": arp(ONE, ONE, "10.100.0.12", "10.100.0.11", operation=2),
    "ARP with another's MAC": arp(ONE, OTHER, "10.100.0.11", "10.100.0.12"),
    "ARP probe with another's MAC": arp(ONE, OTHER, "0.0.0.0", "10.100.0.12"),
    "ARP of no Ethernet": arp(ONE, ONE, "10.100.0.11", "10.100.0.12", htype=6),
    "ARP for the responder": arp(ONE, ONE, "10.100.0.11", RESPONDER),
    "datagram to the responder": udp(ONE, "10.100.0.11", RESPONDER, (9, 9)),
    "DHCP request": udp(ONE, "0.0.0.0", "255.255.255.255", (68, 67)),
    "DHCP renewal": udp(ONE, "10.100.0.11", "255.255.255.255", (68, 67)),
    "DHCP offer": udp(ONE, "10.100.0.11", "255.255.255.255", (67, 68)),
    "DHCP offer from a strange port": udp(ONE, "10.100.0.11", "255.255.255.255", (1067, 68)),
    "DHCP offer of the responder": udp(ONE, RESPONDER, "255.255.255.255", (67, 68)),
    "IPv6 router advertisement": netlab.router_advertisement(ONE),
    "VLAN tag around good IPv4": vlan(udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9)), 5),
    "unknown EtherType": ether(ONE, 0x88B5, MARK),
}


def test_forged_frames_reach_nobody(lab: Lab) -> None:
    """Neither the host behind the other agent, nor a neighbour behind the same one, nor the underlay."""
    agent, peer = lab.agents
    with netlab.neighbour(agent) as third:
        agent.present(third.name, third.binding())
        sender = lab.hosts[0].wire()
        underlay = peer.netns.call(lambda: netlab.Wire("under"))
        listeners = {
            "the other host": lab.hosts[1].wire(),
            "a neighbour": third.wire(),
            "the underlay": underlay,
        }
        for name, frame in FORGED.items():
            sender.send(frame, udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9), HONEST))
            for who, wire in listeners.items():
                assert not wire.hears_before(MARK, HONEST), f"{who} hears: {name}"


def test_dhcp_stays_on_its_agent(lab: Lab) -> None:
    agent, peer = lab.agents
    with netlab.neighbour(agent) as third:
        agent.present(third.name, third.binding())
        wires = [peer.netns.call(lambda: netlab.Wire("under")), third.wire()]
        assert lab.hosts[0].dhcp("-B")["ip"] == lab.hosts[0].ipv4, "a client that wants broadcast answers"
        lab.hosts[0].wire().send(udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9), HONEST))
        assert not wires[0].hears_before(netlab.DHCP_COOKIE, HONEST), "a DHCP message left the agent"
        # It may hear the answers, which this client wants by broadcast: harmless, a client knows its own.
        asked = bytes.fromhex("350101")  # DHCPDISCOVER
        assert not wires[1].hears_before(asked, HONEST), "a host's DHCP request reached its neighbour"


def test_an_honest_host_may_probe_and_announce_its_address(lab: Lab) -> None:
    sender, receiver = lab.hosts[0].wire(), lab.hosts[1].wire()
    for sends in ("0.0.0.0", "10.100.0.11"):  # RFC 5227: probe, then announcement
        sender.send(arp(ONE, ONE, sends, "10.100.0.11"))
        assert receiver.hears(MARK), f"an ARP of RFC 5227 with sender {sends} does not arrive"


def test_a_port_is_held_to_its_own_filter_as_well(lab: Lab) -> None:
    agent, (host, other) = lab.agents[0], lab.hosts
    lab.address_all()
    refer = Reference("clean-traffic")
    no_ping = Rule("drop", "out", "icmp", (("dstipaddr", other.ipv4),))
    with pytest.raises(AgentError, match=r"not-found: referenced filter 'mine' is missing"):
        agent.present(host.name, host.binding(filter="mine"))
    assert host.ping(other.ipv4), "a request that was refused has changed something"
    agent.filter(Filter("mine", "id", entries=(refer, no_ping)))
    agent.present(host.name, host.binding(filter="mine"))
    assert not host.ping(other.ipv4, 1), "what the filter drops passes"
    assert agent.drops()["drop-filter"] > 0
    agent.filter(Filter("mine", "id", entries=(refer,)))
    assert host.ping(other.ipv4), "the filter allows it by now"
    asks_only = (Rule("accept", "out", "all"), Rule("drop", "inout", "all", priority=1000))
    agent.filter(Filter("mine", "id", entries=(refer, *asks_only)))
    assert host.ping(other.ipv4) and not other.ping(host.ipv4, 1), "only the host may begin"
    assert host.dhcp("-O", "mtu")["ip"] == host.ipv4, "a filter of packets cut the agent's DHCP off"
    lab.address_all()
    agent.filter(Filter("mine", "id", entries=(Rule("accept", "inout"),)))
    sender, receiver = host.wire(), other.wire()
    sender.send(udp(OTHER, "10.100.0.77", "10.100.0.255", (9, 9)))
    sender.send(udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9), HONEST))
    assert not receiver.hears_before(MARK, HONEST), "a filter opened what the guard keeps closed"
    agent.kill()
    agent.start()
    assert host.ping(other.ipv4), "the filter went with the agent"
    agent.withdraw(host.name)
    assert "nicagent" not in agent.netns.run("nft", "list", "tables"), "something of the tenant is left"


def test_a_port_is_never_open_without_its_guard(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    sender, receiver = host.wire(), lab.hosts[1].wire()
    ended = threading.Event()

    def blast() -> None:
        while not ended.wait(0.0005):
            with contextlib.suppress(OSError):  # the cable's other end is down
                sender.send(FORGED["IPv4 of another"])

    thread = threading.Thread(target=blast)
    thread.start()
    try:
        for _ in range(5):
            agent.withdraw(host.name)
            agent.present(host.name, host.binding())
    finally:
        ended.set()
        thread.join()
    # A cable whose other end just came up drops what is sent until the kernel has noticed.
    while "LOWER_UP" not in host.netns.run("ip", "-br", "link", "show", "eth0", "up"):
        time.sleep(0.01)
    sender.send(udp(ONE, "10.100.0.11", "10.100.0.255", (9, 9), HONEST))
    assert not receiver.hears_before(MARK, HONEST), (
        "a forged frame slipped through while a port opened or closed"
    )


def test_segments_hear_nothing_of_each_other(lab: Lab) -> None:
    one, two = lab.hosts
    lab.agents[1].present(two.name, two.binding(segment="red"))
    lab.address_all()
    receiver = two.wire()
    assert not one.ping(two.ipv4, 2)
    one.wire().send(udp(ONE, one.ipv4, "10.100.0.255", (9, 9)))
    assert not receiver.hears(MARK, 0.3), "a broadcast of blue arrived in red"


def test_segments_of_one_agent_are_apart_even_with_the_same_addresses(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    with netlab.neighbour(agent, "red", host.ipv4) as third:
        agent.present(third.name, third.binding())
        assert third.dhcp("-O", "mtu")["mtu"] == "1400", "red's own MTU, from red's own responder"
        assert host.dhcp("-O", "mtu")["mtu"] == "1450"
        receiver = third.wire()
        host.wire().send(udp(ONE, host.ipv4, "10.100.0.255", (9, 9)))
        assert not receiver.hears(MARK, 0.3)
        agent.withdraw(third.name)


def test_a_host_cannot_reach_the_agent(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    host.dhcp("-O", "staticroutes")
    server = agent.netns.popen("busybox", "nc", "-ll", "-p", "16509", "-e", "true", stdin=subprocess.DEVNULL)
    try:
        faces = [("192.0.2.1", 16509), (RESPONDER, 16509)]
        for _ in range(100):
            if netlab.reachable(lab.agents[1].netns, faces[:1]):
                break
        else:
            raise AssertionError("the listener is not reachable even on the underlay")
        host.netns.run("ip", "route", "replace", "default", "via", RESPONDER, "dev", "eth0", "onlink")
        assert netlab.reachable(host.netns, faces) == [], "a host reaches the agent's control faces"
        assert not host.ping("192.0.2.1", 1), "a host reaches the agent's underlay address"
    finally:
        server.kill()
        server.wait()


# ── over time ──


def _flood(host: netlab.Host, to: str, count: int) -> subprocess.Popen[str]:
    argv = ["ping", "-n", "-q", "-i", "0.002", "-c", str(count), "-W", "2", to]
    return host.netns.popen(*argv, stdout=subprocess.PIPE)


def _lost(flood: subprocess.Popen[str]) -> int:
    said = flood.communicate(timeout=60)[0]
    sent, received = (int(n) for n in re.findall(r"(\d+) (?:packets transmitted|received)", said))
    return sent - received


def test_traffic_goes_on_through_repetition_and_a_crash(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    assert one.ping(two.ipv4)
    flood = _flood(one, two.ipv4, 900)
    for _ in range(5):
        agent.present(one.name, one.binding())
    agent.kill()
    agent.start()
    agent.present(one.name, one.binding())
    agent.close()
    agent.start()
    assert _lost(flood) == 0, "packets were lost while the same port was presented again"
    assert agent.status(one.name)[0]["link"], "a new agent knows its ports"


def test_another_hosts_port_is_not_disturbed(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    with netlab.neighbour(agent) as third:
        assert one.ping(two.ipv4)
        flood = _flood(one, two.ipv4, 400)
        agent.present(third.name, third.binding())
        assert third.dhcp()["ip"] == "10.100.0.13"
        assert third.ping(two.ipv4) and third.ping(one.ipv4), "hosts of one agent share the segment"
        agent.withdraw(third.name)
        assert not third.ping(two.ipv4, 1)
        assert _lost(flood) == 0, "packets were lost while another port came and went"


def test_killed_anywhere_it_converges(dark: Lab) -> None:
    (agent, other), (one, two) = dark.agents, dark.hosts
    other.start()
    other.present(two.name, two.binding())
    dark.address_all()
    moments = random.Random(2)
    for turn in range(6):
        agent.start()
        if turn % 2:
            agent.send("withdraw", one.name)
        else:
            agent.send("present", one.name, [asdict(one.binding())])
        threading.Event().wait(moments.uniform(0, 0.12))
        agent.kill()
    agent.start()
    agent.present(one.name, one.binding())
    assert one.ping(two.ipv4)
    assert one.dhcp()["ip"] == one.ipv4
    agent.withdraw(one.name)
    assert agent.status(one.name) == []


def test_a_port_moves_to_another_segment(lab: Lab) -> None:
    (a, b), (one, two) = lab.agents, lab.hosts
    for agent, host in ((a, one), (b, two)):
        agent.present(host.name, host.binding(segment="red"))
        assert host.dhcp("-O", "mtu")["mtu"] == "1400"
    assert one.ping(two.ipv4)


def test_withdraw_closes_the_port_and_may_be_repeated(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    assert one.ping(two.ipv4)
    agent.withdraw(one.name)
    agent.withdraw(one.name)
    agent.withdraw("never-seen")
    assert agent.status(one.name) == []
    assert not one.ping(two.ipv4, 1)
    assert not two.ping(one.ipv4, 1)


def test_status_is_from_the_hosts_point_of_view(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    assert one.ping(two.ipv4)
    before = agent.status(one.name)[0]
    assert before["name"] == "port0" and before["link"] is True
    sender = one.wire()
    sender.send(*[udp(ONE, one.ipv4, "10.100.0.255", (9, 9), bytes(1000))] * 50)
    after = agent.status(one.name)[0]
    assert after["tx_packets"] - before["tx_packets"] >= 50, "what the host sends is its tx"
    assert after["tx_bytes"] - before["tx_bytes"] >= 50 * 1000
    assert after["rx_bytes"] - before["rx_bytes"] < 50 * 1000
    one.netns.run("ip", "link", "set", "eth0", "down")
    assert agent.status(one.name)[0]["link"] is False, "the cable is dead"


# ── errors ──


IMPOSSIBLE: list[tuple[dict[str, str], str, list[str]]] = [
    ({"segment": "green"}, "not-found", ["green", "blue, red"]),
    ({"device": "nic9"}, "not-found", ["nic9", "ip link"]),
    ({"mac": "01:00:5e:00:00:01"}, "invalid", ["01:00:5e:00:00:01"]),
    ({"mac": "02:00"}, "invalid", ["02:00"]),
    ({"ipv4": "10.101.0.11"}, "invalid", ["10.101.0.11", "10.100.0.0/24"]),
    ({"ipv4": "10.100.0.255"}, "invalid", ["10.100.0.255"]),
    ({"ipv4": "ten"}, "invalid", ["ten"]),
]


def test_what_cannot_be_is_refused_and_changes_nothing(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    lab.address_all()
    for changes, kind, words in IMPOSSIBLE:
        with pytest.raises(AgentError) as refused:
            agent.present(one.name, one.binding(**changes))
        assert refused.value.kind == kind, f"{changes}: {refused.value}"
        for word in words:
            assert word in str(refused.value), f"{changes}: the error does not name {word}"
        assert refused.value.hint, f"{changes}: the error does not say what to do next"
    assert one.ping(two.ipv4), "a refused request closed the port"


def test_a_device_or_an_address_belongs_to_one_host(lab: Lab) -> None:
    agent, host = lab.agents[0], lab.hosts[0]
    with pytest.raises(AgentError, match=r"exists: device nic0 .* taken by metal-1"):
        agent.present("metal-9", host.binding(mac=OTHER, ipv4="10.100.0.50"))
    with pytest.raises(AgentError, match=r"exists: .* taken"):
        agent.present(host.name, host.binding(), host.binding())
