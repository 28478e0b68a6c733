"""Who may send VXLAN to this agent: its peers. One small nftables table, there while a segment is up.

VXLAN has no sender but the outer IPv4 address (RFC 7348 §7), and the kernel takes its datagrams on any of the
machine's addresses. Without this, whoever reaches the machine's UDP port is on every segment.
"""

from __future__ import annotations

import hashlib
import json

from nicagent.config import Overlay
from nicagent.nft import COUNT, DROP, Json, field, match, meta

TABLE = "nicagent_overlay"

_T = {"family": "inet", "table": TABLE}


def rules(overlay: Overlay) -> list[Json]:
    """The commands that make the table."""
    # The agent itself is no peer: what it sends to itself never was in a tunnel.
    peers = sorted(set(overlay.peers) - {overlay.local})
    to_us = [match(meta("nfproto"), "ipv4"), match(field("udp", "dport"), overlay.port)]
    stranger = [match(field("ip", "saddr"), {"set": peers}, "!=")] if peers else []
    hook = {"type": "filter", "hook": "input", "prio": -10, "policy": "accept"}
    return [
        {"add": {"table": {"family": "inet", "name": TABLE}}},
        {"add": {"chain": {**_T, "name": "input", **hook}}},
        {
            "add": {
                "rule": {
                    **_T,
                    "chain": "input",
                    "expr": [*to_us, *stranger, COUNT, DROP],
                }
            }
        },
    ]


def edition(overlay: Overlay) -> str:
    """A chain without rules whose name tells these rules from others."""
    return "rules-" + hashlib.sha256(json.dumps(rules(overlay)).encode()).hexdigest()[:16]


def commands(have: list[Json], overlay: Overlay, *, wanted: bool) -> list[Json]:
    """The transaction that leads from what the kernel lists of the table to what is wanted. Pure."""
    remove: list[Json] = [{"delete": {"table": {"family": "inet", "name": TABLE}}}] if have else []
    if not wanted:
        return remove
    if any(item.get("chain", {}).get("name") == edition(overlay) for item in have):
        return []
    return [*remove, *rules(overlay), {"add": {"chain": {**_T, "name": edition(overlay)}}}]
