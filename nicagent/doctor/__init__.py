"""What is wired, what answers, what is missing, and how to mend it.

Looks and asks, and changes nothing: no line is claimed, no BMC is logged in to, no port stays bound. Works
beside a running agent as well as before the first start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nicagent import client
from nicagent.config import Config, GpioPower, Host
from nicagent.doctor import machine, network, wiring
from nicagent.doctor.check import Check
from nicagent.errors import Kind, NicagentError
from nicagent.model import Transport

__all__ = ["Check", "examine"]

AGENT_SECONDS = 5.0


def examine(config: Config, host: str | None, socket: Path) -> list[Check]:
    """Every check that this config gives reason for; only one host's and the agent's own with `host`.

    Takes about `wiring.BMC_SECONDS` where a BMC is silent, whatever the number of hosts. Raises NOT_FOUND for
    a host that is not in the config.
    """
    if host is not None and host not in config.hosts:
        known = ", ".join(config.hosts)
        raise NicagentError(Kind.NOT_FOUND, f"no host is called {host!r}", f"known hosts: {known}")
    hosts = {name: each for name, each in config.hosts.items() if host in (None, name)}
    agent = _ask_agent(socket)
    running = isinstance(agent, list)
    groups: list[Callable[[], Iterator[Check]]] = [
        lambda: machine.tools(config),
        lambda: machine.privileges(config),
        lambda: machine.places(config),
        lambda: machine.pools(config),
        lambda: network.overlay(config, running),
        lambda: network.libvirt(config, running),
        *(_of_host(name, each, config, running) for name, each in hosts.items()),
    ]
    with ThreadPoolExecutor(max_workers=16) as threads:
        found = [check for group in threads.map(lambda group: list(group()), groups) for check in group]
    return [*found, *_agent_says(agent, hosts, socket)]


def _of_host(name: str, host: Host, config: Config, running: bool) -> Callable[[], Iterator[Check]]:
    def checks() -> Iterator[Check]:
        if isinstance(host.power, GpioPower):
            yield wiring.gpio(f"{name} power", host.power.pins)
        else:
            yield wiring.password(f"{name} BMC password", Path(host.power.password_file))
            yield wiring.bmc(f"{name} BMC", host.power)
        if host.storage.transport is Transport.VIRTIO:
            yield machine.place(f"{name} slot", Path(host.storage.slot), f"hosts.{name}.storage.slot")
        for nic in host.nics:
            yield network.netdev(f"{name} NIC", nic.device)
        if host.provision is not None:
            yield network.netdev(f"{name} provision link", host.provision.device)
            yield from network.link_ports(name, host, config, running)
        for what, path in _wires(host):
            yield wiring.wire(f"{name} {what}", Path(path))

    return checks


def _wires(host: Host) -> Iterator[tuple[str, str]]:
    """What else is plugged into the host: a name for it, and its tty or socket."""
    if host.console is not None:
        yield "console", host.console.path
    if host.guest_agent is not None:
        yield "guest agent", host.guest_agent.path
    if host.screen is not None:
        yield "screen", host.screen.path
        if host.screen.rfb:
            yield "screen, live", host.screen.rfb
    if host.keyboard is not None:
        yield "keyboard", host.keyboard.path


def _ask_agent(path: Path) -> list[dict[str, Any]] | NicagentError:
    try:
        answer = client.call(path, "GET", "/v1/hosts", seconds=AGENT_SECONDS)
    except NicagentError as e:
        return e
    return list(answer)


def _agent_says(
    agent: Sequence[Mapping[str, Any]] | NicagentError, hosts: Mapping[str, Host], path: Path
) -> Iterator[Check]:
    if isinstance(agent, NicagentError):
        yield Check("warning", "agent", agent.message, agent.hint)
        return
    yield Check("ok", "agent", f"answers at {path}")
    told = {status["name"]: status for status in agent}
    for name in hosts:
        status = told.get(name)
        if status is None:
            yield Check(
                "broken", name, "the running agent does not know it", "restart the agent with this config"
            )
        elif status["state"] == "fault":
            yield Check("broken", name, f"fault: {status['reason']}", f"nicagent power off {name} clears it")
        elif status["power"] == "unknown":
            why = f": {status['trouble']}" if status.get("trouble") else ""
            mend = "mend what is told of its power above" if not why else "mend that; the agent keeps trying"
            yield Check("broken", name, f"its power cannot be read{why}", mend)
        else:
            yield Check("ok", name, f"power {status['power']}, {status['state']}")
