"""The filters of ports in the kernel: `table bridge nicagent_filters`, there while a port has one of its own.

Beside the guard (`table bridge nicagent`), never in its place: a frame has to come through both, and what a
host sends through the guard first. Hooks look a port up by its device and jump to its rules. A port's
chains bear the digest of its rules in their names, so a listing of chains tells what there is, and a change
of one port's filter replaces its chains in one transaction and touches no other port. What is known of
connections is the port's and outlives a change of its rules.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nicagent.errors import NicagentError
from nicagent.filter_rules import Filter
from nicagent.filter_tree import expand, variables_of
from nicagent.filters_builtin import BUILT_IN
from nicagent.model import PortBinding
from nicagent.network.filter_nft import CLOSED, COUNTER, ENTRIES, SETS, Program, program
from nicagent.nft import Json, meta

TABLE = "nicagent_filters"
FLOWS_MAX = 32768  # connections of one port, of each kind: some 4 MiB

_T = {"family": "bridge", "table": TABLE}
log = logging.getLogger(__name__)

#: Where a port's rules are entered: entry, hook, priority, what names the port. The guard stands at -300,
#: and a frame that it drops is no longer there. What the agent itself sends, which is DHCP, is a frame but no
#: packet to a filter, as on libvirt's own hosts: its answers are no answers in the sense of a connection.
_HOOKS: tuple[tuple[str, str, int, str], ...] = (
    ("out", "prerouting", -290, "iifname"),
    ("out-packets", "prerouting", -280, "iifname"),
    ("in", "forward", -290, "oifname"),
    ("in", "output", -290, "oifname"),
    ("in-packets", "forward", -280, "oifname"),
)


# ── what a port's rules are ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Compiled:
    """A port's program, as it is told from others."""

    program: Program
    digest: str
    met: Mapping[str, Filter]  # what it was made from


class Programs:
    """The programs of ports, made again only when a filter has changed. `known`: the filters by name, which
    their owner changes in place."""

    def __init__(self, known: Mapping[str, Filter]) -> None:
        self._known = known
        self._made: dict[PortBinding, Compiled] = {}

    def of(self, binding: PortBinding) -> Compiled | None:
        """The port's program; None where the guard is all that its filter says. Raises what `expand` does."""
        name = binding.port.filter
        if name is None or name in BUILT_IN:
            return None
        made = self._made.get(binding)
        if made is None or any(self._known.get(name) is not each for name, each in made.met.items()):
            rules, met = expand(name, self._known, variables_of(binding))
            compiled = program(rules)
            made = self._made[binding] = Compiled(compiled, compiled.digest, met)
        return made

    def of_all(self, bindings: Iterable[PortBinding]) -> dict[str, Compiled]:
        """The programs of these ports by device, and no longer any other's. A port whose filter says nothing
        that can be done is closed: it must not stand open, nor stand in the way of others."""
        found: dict[str, Compiled] = {}
        kept: dict[PortBinding, Compiled] = {}
        for binding in bindings:
            try:
                made = self.of(binding)
            except NicagentError as e:
                log.error("port %s is closed: %s", binding.device, e)
                made = Compiled(CLOSED, CLOSED.digest, {})
            else:
                if made is not None:
                    kept[binding] = made
            if made is not None:
                found[binding.device] = made
        self._made = kept
        return found


# ── the transaction ─────────────────────────────────────────────────────────────────────────────────────


def _frame() -> list[Json]:
    """The commands that make the table without any port."""
    made: list[Json] = [
        {"add": {"table": {"family": "bridge", "name": TABLE}}},
        {"add": {"counter": {**_T, "name": COUNTER}}},
    ]
    made += [{"add": {"map": {**_T, "name": entry, "type": "ifname", "map": "verdict"}}} for entry in ENTRIES]
    for entry, hook, priority, key in _HOOKS:
        chain = f"ports-{entry}-{hook}"
        base = {"type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
        look_up = {"vmap": {"key": meta(key), "data": f"@{entry}"}}
        made += [
            {"add": {"chain": {**_T, "name": chain, **base}}},
            {"add": {"rule": {**_T, "chain": chain, "expr": [look_up]}}},
        ]
    return made


def _edition() -> str:
    """A chain without rules whose name tells one edition of the table from another."""
    return "edition-" + hashlib.sha256(json.dumps(_frame()).encode()).hexdigest()[:16]


def commands(chains: Iterable[str], wanted: Mapping[str, Compiled]) -> list[Json]:
    """The transaction that leads from the table with these chains (none: it is not there) to these ports by
    device. Pure."""
    there = set(chains)
    remove: list[Json] = [{"delete": {"table": {"family": "bridge", "name": TABLE}}}] if there else []
    if not wanted:
        return remove
    made: list[Json] = []
    if _edition() not in there:
        made += [*remove, *_frame(), {"add": {"chain": {**_T, "name": _edition()}}}]
        there = set()
    have = _ports(there)
    for device in sorted(have.keys() | wanted.keys()):
        old, new = have.get(device, {}), wanted.get(device)
        if new is None or set(old) != {new.digest}:
            made += _replace(device, [(digest, kinds) for digest, kinds in old.items()], new)
    return made


def _name(device: str, kind: str, digest: str) -> str:
    return f"{device}.{kind}.{digest}"  # neither a kind nor a digest has a dot in it


def _ports(chains: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Device → digest → kinds of its chains."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in chains:
        parts = name.rsplit(".", 2)
        if len(parts) == 3:
            device, kind, digest = parts
            found.setdefault(device, {}).setdefault(digest, []).append(kind)
    return found


def _replace(device: str, old: list[tuple[str, list[str]]], new: Compiled | None) -> list[Json]:
    """Old rules out, new rules in: for a moment that nobody sees, neither."""
    made: list[Json] = []
    had = {kind for _, kinds in old for kind in kinds}
    sets = new.program.sets if new is not None else set()
    for digest, kinds in old:
        made += [_entry("delete", device, kind, digest) for kind in ENTRIES if kind in kinds]
    if new is not None:
        made += [_set("add", device, name) for name in sorted(sets - had)]
        # A set is known by a chain of its name, so that listing chains tells of it.
        chains = {**{name: [] for name in sorted(sets)}, **new.program.chains}
        names = {kind: _name(device, kind, new.digest) for kind in chains}
        made += [{"add": {"chain": {**_T, "name": name}}} for name in names.values()]
        for kind, rules in chains.items():
            for rule in rules:
                body = {**_T, "chain": names[kind], "expr": [_own(each, device, names) for each in rule]}
                made.append({"add": {"rule": body}})
        made += [_entry("add", device, kind, new.digest) for kind in ENTRIES if kind in chains]
    gone = [_name(device, kind, digest) for digest, kinds in old for kind in kinds]
    made += [{"flush": {"chain": {**_T, "name": name}}} for name in gone]
    made += [{"delete": {"chain": {**_T, "name": name}}} for name in gone]
    return made + [_set("delete", device, name) for name in sorted((had & SETS.keys()) - sets)]


def _entry(verb: str, device: str, kind: str, digest: str) -> Json:
    elem = [device, {"jump": {"target": _name(device, kind, digest)}}]
    return {verb: {"element": {**_T, "name": kind, "elem": [elem]}}}


def _set(verb: str, device: str, name: str) -> Json:
    body: Json = {**_T, "name": f"{device}.{name}"}
    if verb == "add":
        body |= {"type": SETS[name], "flags": ["timeout"], "size": FLOWS_MAX}
    return {verb: {"set": body}}


def _own(part: Any, device: str, names: Mapping[str, str]) -> Any:
    """An expression with the port's own chains and sets in it."""
    if isinstance(part, dict):
        if "jump" in part:
            return {"jump": {"target": names[part["jump"]["target"]]}}
        return {key: _own(each, device, names) for key, each in part.items()}
    if isinstance(part, list):
        return [_own(each, device, names) for each in part]
    if isinstance(part, str) and part.startswith("@"):
        return f"@{device}.{part[1:]}"
    return part
