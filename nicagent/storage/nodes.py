"""What the block engine must have open for a disk: nodes, bottom-up, named after all that made them.

A node's name tells path, inode, format, access and place in the chain, so "is it as asked?" is a comparison
of names. Limits are not part of it: they belong to a group that a node refers to, and change in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nicagent.model import Disk, Limits, VolumeFormat
from nicagent.storage import volume
from nicagent.storage.volume import Layer


@dataclass(frozen=True)
class Node:
    """One blockdev-add: its name and its arguments."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What must be in the engine for one disk: nodes bottom-up, the last one exported as `target`."""

    disk: Disk
    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...]

    @property
    def top(self) -> str:
        """The node that is exported, while no job has put its own above it."""
        return self.nodes[-1].name

    def layer(self, path: str) -> str | None:
        """The node of a file of the chain; None when it is not part of it."""
        real = Path(path).resolve()
        found = next((depth for depth, layer in enumerate(self.layers) if layer.path == real), None)
        return None if found is None else self.at(found)

    def at(self, depth: int) -> str:
        """The node of a layer, 0 the one that is written."""
        return f"{self.nodes[0].name.rpartition('-')[0]}-{depth:02}a"


def plan_of(disk: Disk, pools: Sequence[Path]) -> Plan:
    """Nodes for a disk. Raises what `volume.resolve` raises."""
    layers = volume.resolve(Path(disk.path), disk.format, pools)
    facts = repr((disk.target, disk.readonly, layers)).encode()
    # At most 31 characters, the first a letter (QEMU's limit on node names).
    stem = "d" + hashlib.sha256(facts).hexdigest()[:20]
    nodes: list[Node] = []
    for depth in reversed(range(len(layers))):
        below = nodes[-1].name if nodes else None
        nodes += _layer_nodes(stem, depth, layers[depth], below, disk.readonly or depth > 0)
    if disk.limits is not None:
        # Sorted by name it comes before those below it, as all do.
        slow = {"driver": "throttle", "throttle-group": group_of(disk.target), "file": nodes[-1].name}
        name = f"{stem}--t"
        nodes.append(Node(name, {"node-name": name, **slow}))
    return Plan(disk, layers, tuple(nodes))


def _layer_nodes(stem: str, depth: int, layer: Layer, below: str | None, readonly: bool) -> list[Node]:
    common = {"read-only": readonly, "discard": "unmap"}
    # A file below a layer that is only read may be written by a job that commits into it, and by nobody else.
    access = {"auto-read-only": True, "discard": "unmap"} if depth else common
    # Sorted by name, every node comes before those that it stands on.
    top, guard, file = (f"{stem}-{depth:02}{letter}" for letter in "abc")
    nodes = [(file, {"driver": "file", "filename": str(layer.path), "locking": "on", **access})]
    if layer.format is VolumeFormat.QCOW2:
        # Explicit, also when there is none: the header's own word about its backing file is not followed.
        nodes.append((top, {"driver": "qcow2", "file": file, "backing": below, **common}))
    elif depth:
        nodes.append((top, {"driver": "raw", "file": file, **common}))
    else:
        # An NBD export lets others write to its node, and only a format keeps them out, which raw is not.
        # blkdebug with no rules passes requests through, and can be told what not to share.
        unshared = {"unshare-child-perms": ["write", "resize"]}
        nodes.append((guard, {"driver": "blkdebug", "image": file, **unshared, **common}))
        nodes.append((top, {"driver": "raw", "file": guard, **common}))
    return [Node(name, {"node-name": name, **options}) for name, options in nodes]


# ---- limits --------------------------------------------------------------------------------------

_WAYS = ("total", "read", "write")


def group_of(target: str) -> str:
    """The object that holds a disk's limits."""
    return f"limits-{target}"


def limits_of(limits: Limits) -> Mapping[str, int]:
    """The limits in the engine's words (qapi: ThrottleLimits)."""
    given = asdict(limits)
    found = {"iops-size": given["size_iops_sec"]}
    for unit, name in (("bytes", "bps"), ("iops", "iops")):
        for way in _WAYS:
            found[f"{name}-{way}"] = given[f"{way}_{unit}_sec"]
            found[f"{name}-{way}-max"] = given[f"{way}_{unit}_sec_max"]
            # The engine's own default is one second; nothing means that.
            found[f"{name}-{way}-max-length"] = given[f"{way}_{unit}_sec_max_length"] or 1
    return found
