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
from typing import Any

import nftables

from nicagent.errors import Kind, NicagentError
from nicagent.provision.contract import DISCOVERY_PORT, HTTP_PORT, NVME_PORT, ProvisionLink
from nicagent.threads import in_thread

_Json = dict[str, Any]
_PREFIX = "nicagent_provision_"


def table_name(host: str) -> str:
    """A table's name for a host; a hash tells apart what nftables' identifiers cannot."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", host)
    return _PREFIX + (plain if plain == host else f"{plain}_{hashlib.sha256(host.encode()).hexdigest()[:6]}")


def rules(link: ProvisionLink, nvme_ports: Iterable[int] = ()) -> list[_Json]:
    """The transaction that puts the guard up, whatever was there before (libnftables-json(5))."""
    table = {"family": "inet", "table": table_name(link.host)}
    agent = str(IPv4Interface(link.agent_address).ip)
    ports = sorted({HTTP_PORT, NVME_PORT, DISCOVERY_PORT, *nvme_ports})
    arrival: _Json = {"meta": {"key": "iifname"}}
    from_link = _match(arrival, link.device)
    to_link = _match({"meta": {"key": "oifname"}}, link.device)
    drop: list[_Json] = [{"counter": None}, {"drop": None}]
    accept: _Json = {"accept": None}
    foreign = _match({"payload": {"protocol": "ether", "field": "saddr"}}, link.mac, "!=")
    client = [_match(_udp("sport"), 68), _match(_udp("dport"), 67)]
    tftp = [_match(_ip("saddr"), link.host_address), _match(_ip("daddr"), agent), _match(_udp("dport"), 69)]
    services = [
        _match(_ip("saddr"), link.host_address),
        _match(_ip("daddr"), agent),
        _match({"payload": {"protocol": "tcp", "field": "dport"}}, {"set": ports}),
    ]
    chains: dict[str, list[list[_Json]]] = {
        "input": [
            [from_link, foreign, *drop],
            [from_link, *client, accept],
            [
                from_link,
                _match({"payload": {"protocol": "icmpv6", "field": "type"}}, "nd-router-solicit"),
                accept,
            ],
            [from_link, *tftp, accept],
            [from_link, *services, accept],
            [from_link, *drop],
            # The agent talks to itself over lo, which nothing from outside can come in by.
            [_match(arrival, {"set": [link.device, "lo"]}, "!="), _match(_ip("daddr"), agent), *drop],
        ],
        "forward": [[from_link, *drop], [to_link, *drop]],
    }
    made = [*removal(link.host), {"add": {"table": {"family": "inet", "name": table["table"]}}}]
    for chain, lines in chains.items():
        hook = {"type": "filter", "hook": chain, "prio": -10, "policy": "accept"}
        made.append({"add": {"chain": {**table, "name": chain, **hook}}})
        made += [{"add": {"rule": {**table, "chain": chain, "expr": line}}} for line in lines]
    return made


def removal(host: str) -> list[_Json]:
    """Takes the guard of a host away; adding first makes the deletion of an absent table no error."""
    table = {"table": {"family": "inet", "name": table_name(host)}}
    return [{"add": table}, {"delete": table}]


async def apply(commands: list[_Json], host: str) -> None:
    """Hand a transaction to the kernel. Raises UNAVAILABLE with the kernel's word."""
    await in_thread(_apply_now, commands, host)


def _apply_now(commands: list[_Json], host: str) -> None:
    try:
        nft = nftables.Nftables()
    except OSError:
        raise NicagentError(
            Kind.UNAVAILABLE, "libnftables is missing", "install it: apt-get install libnftables1"
        ) from None
    status, _, error = nft.json_cmd({"nftables": commands})
    if status != 0:
        words = str(error).strip().partition("\n")[0] or "no reason given"
        hint = (
            "run the agent as root or give it CAP_NET_ADMIN"
            if "not permitted" in words
            else "see nft list ruleset"
        )
        raise NicagentError(Kind.UNAVAILABLE, f"cannot guard the provision link of {host}: {words}", hint)


def _match(left: _Json, right: object, op: str = "==") -> _Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _ip(field: str) -> _Json:
    return {"payload": {"protocol": "ip", "field": field}}


def _udp(field: str) -> _Json:
    return {"payload": {"protocol": "udp", "field": field}}
