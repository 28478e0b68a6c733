"""What a host may reach on its provision link: DHCP, its boot files, its disks.

Nothing else of the agent and nothing behind it. And nobody else reaches the agent's address of the link:
Linux takes a packet for any of its addresses from any of its networks (the weak host model, RFC 1122
§3.3.4.2), so without a rule a neighbour on the management network would find the disks. One nftables table a
link, replaced in one transaction.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from ipaddress import IPv4Interface

from nicagent.nft import ACCEPT, COUNT, DROP, Json, Nft, field, match, meta
from nicagent.provision.contract import HTTP_PORT, NVME_PORT, ProvisionLink

_PREFIX = "nicagent_provision_"


def table_name(host: str) -> str:
    """A table's name for a host; a hash tells apart what nftables' identifiers cannot."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", host)
    return _PREFIX + (plain if plain == host else f"{plain}_{hashlib.sha256(host.encode()).hexdigest()[:6]}")


def rules(link: ProvisionLink, nvme_ports: Iterable[int] = ()) -> list[Json]:
    """The transaction that puts the guard up, whatever was there before (libnftables-json(5))."""
    table = {"family": "inet", "table": table_name(link.host)}
    agent = str(IPv4Interface(link.agent_address).ip)
    ports = sorted({HTTP_PORT, NVME_PORT, link.discovery_port, *nvme_ports})
    arrival = meta("iifname")
    from_link = match(arrival, link.device)
    to_link = match(meta("oifname"), link.device)
    drop = [COUNT, DROP]
    foreign = match(field("ether", "saddr"), link.mac, "!=")
    client = [match(field("udp", "sport"), 68), match(field("udp", "dport"), 67)]
    to_agent = [match(field("ip", "saddr"), link.host_address), match(field("ip", "daddr"), agent)]
    tftp = [*to_agent, match(field("udp", "dport"), 69)]
    services = [*to_agent, match(field("tcp", "dport"), {"set": ports})]
    chains: dict[str, list[list[Json]]] = {
        "input": [
            [from_link, foreign, *drop],
            [from_link, *client, ACCEPT],
            [from_link, match(field("icmpv6", "type"), "nd-router-solicit"), ACCEPT],
            [from_link, *tftp, ACCEPT],
            [from_link, *services, ACCEPT],
            [from_link, *drop],
            # The agent talks to itself over lo, which nothing from outside can come in by.
            [match(arrival, {"set": [link.device, "lo"]}, "!="), match(field("ip", "daddr"), agent), *drop],
        ],
        "forward": [[from_link, *drop], [to_link, *drop]],
    }
    made = [*removal(link.host), {"add": {"table": {"family": "inet", "name": table["table"]}}}]
    for chain, lines in chains.items():
        hook = {"type": "filter", "hook": chain, "prio": -10, "policy": "accept"}
        made.append({"add": {"chain": {**table, "name": chain, **hook}}})
        made += [{"add": {"rule": {**table, "chain": chain, "expr": line}}} for line in lines]
    return made


def removal(host: str) -> list[Json]:
    """Takes the guard of a host away; adding first makes the deletion of an absent table no error."""
    table = {"table": {"family": "inet", "name": table_name(host)}}
    return [{"add": table}, {"delete": table}]


async def apply(commands: list[Json], host: str) -> None:
    """Hand a transaction to the kernel. Raises UNAVAILABLE with the kernel's word."""
    # A context of its own: links are guarded side by side.
    await Nft().run(commands, f"guard the provision link of {host}", "see nft list ruleset")
