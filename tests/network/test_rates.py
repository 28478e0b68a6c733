"""Rates of ports, as TCP through real devices meets them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent.model import PortBinding, Rate
from tests.network import netlab
from tests.network.netlab import Host, Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not netlab.can_make_namespaces(), reason="may not make network namespaces"),
]
MB = 1_000_000
SECONDS = 0.6  # that a measurement takes
FAST = 40 * MB  # bytes a second that any machine's cables carry


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with netlab.lab(tmp_path) as made:
        made.open_all()
        made.address_all()
        yield made


def limited(host: Host, inbound: Rate | None = None, outbound: Rate | None = None) -> PortBinding:
    binding = host.binding()
    return replace(binding, port=replace(binding.port, inbound=inbound, outbound=outbound))


def rate(source: Host, sink: Host, begin: float = 0.2, seconds: float = SECONDS) -> float:
    """Bytes a second that one TCP connection brings from host to host, from `begin` seconds on."""
    with sink.netns.call(lambda: socket.create_server((sink.ipv4, 0))) as server:
        place = server.getsockname()

        def send() -> None:
            sender = source.netns.call(lambda: socket.create_connection(place, timeout=5))
            with sender, contextlib.suppress(OSError):  # the other end has seen enough
                while True:
                    sender.sendall(bytes(1 << 16))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        taker, _ = server.accept()
        with taker:
            taker.settimeout(5)
            start, total = time.monotonic() + begin, 0
            while (now := time.monotonic()) < start + seconds:
                count = len(taker.recv(1 << 20))
                total += count if now >= start else 0
        thread.join(10)
        return total / seconds


def free(source: Host, sink: Host) -> bool:
    """Whether it goes as fast as cables carry. A busy machine may stall one connection, for which nothing
    here is to blame; three only if something is."""
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            if rate(source, sink, seconds=0.3) > FAST:
                return True
    return False


def shaping(agent: netlab.Agent) -> str:
    """All that says how fast the port goes."""
    words = ("show", "dev", "nic0", "ingress")
    return agent.netns.run("tc", "qdisc", "show") + agent.netns.run("tc", "filter", *words)


def test_each_direction_is_held_to_its_own_rate(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    assert free(one, two) and free(two, one), "nothing is limited yet"
    agent.present(one.name, limited(one, inbound=Rate(4 * MB), outbound=Rate(2 * MB)))
    received, sent = rate(two, one), rate(one, two)
    assert 3.2 * MB < received < 4.6 * MB, f"what it receives: {received / MB:.2f} MB/s instead of 4"
    assert 1.6 * MB < sent < 2.3 * MB, f"what it sends: {sent / MB:.2f} MB/s instead of 2"
    agent.present(one.name, limited(one, inbound=Rate(8 * MB)))
    received = rate(two, one)
    assert 6.4 * MB < received < 9.2 * MB, f"after the change: {received / MB:.2f} MB/s instead of 8"
    assert free(one, two), "what it sends is free again"
    agent.present(one.name, one.binding())
    assert free(two, one), "and so is what it receives"


def test_a_burst_goes_at_the_peak_and_then_no_more(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    agent.present(one.name, limited(one, inbound=Rate(1 * MB, peak=20 * MB, burst=5 * MB)))
    early = rate(two, one, begin=0.0, seconds=0.2)
    assert early > 8 * MB, f"{early / MB:.2f} MB/s are not the peak of 20"
    late = rate(two, one, begin=0.4)
    assert late < 1.5 * MB, f"{late / MB:.2f} MB/s are more than the average of 1: the burst was had"


def test_rates_outlive_the_agent_and_repetition_and_go_with_the_port(lab: Lab) -> None:
    (agent, _), (one, two) = lab.agents, lab.hosts
    slow = limited(one, inbound=Rate(2 * MB), outbound=Rate(2 * MB))
    agent.present(one.name, slow)
    before = shaping(agent)
    agent.kill()
    agent.start()
    agent.present(one.name, slow)
    assert shaping(agent) == before, "presenting it again adds nothing"
    assert rate(one, two) < 2.5 * MB > rate(two, one)
    agent.withdraw(one.name)
    left = agent.netns.run("tc", "qdisc", "show")
    assert "htb" not in left and "ingress" not in left, left
    assert "na-rl" not in agent.netns.run("ip", "-br", "link")


def test_guards_see_what_is_held_back_as_well(lab: Lab) -> None:
    """What a limited host forges comes by the guard as if there were no rate."""
    (agent, _), (one, two) = lab.agents, lab.hosts
    agent.present(one.name, limited(one, outbound=Rate(2 * MB)))
    forged = netlab.udp("02:00:00:00:00:99", one.ipv4, two.ipv4, (1, 2), to=two.mac)
    wire, ear = one.wire(), two.wire()
    wire.send(forged)
    honest = netlab.udp(one.mac, one.ipv4, two.ipv4, (1, 2), payload=netlab.HONEST, to=two.mac)
    wire.send(honest)
    assert not ear.hears_before(netlab.MARK, netlab.HONEST)
    assert agent.drops()["drop-mac"] >= 1
    wire.close()
    ear.close()


def test_a_device_that_went_leaves_no_shaper_behind(lab: Lab) -> None:
    (agent, _), (one, _) = lab.agents, lab.hosts
    agent.present(one.name, limited(one, outbound=Rate(2 * MB)))
    agent.netns.run("ip", "link", "del", "nic0")
    agent.withdraw(one.name)
    assert "na-rl" not in agent.netns.run("ip", "-br", "link")
