"""Who changed what: one line per call that changes state, and per one that was not allowed to.

Names and UUIDs of objects are told, documents and values never are: they may hold secrets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypervisor_shim.access import LOOKS, Right, needed
from hypervisor_shim.driver import Caller
from hypervisor_shim.errors import uuid_text
from hypervisor_shim.xdr import DomainRef, Record, Text

if TYPE_CHECKING:
    from hypervisor_shim.procedures import Procedure

_NAME_MAX = 128  # characters of one name in a line


@dataclass(frozen=True, slots=True)
class Audited:
    """A call that is over. `code` is libvirt's error code, 0 for success; `seconds` what it took."""

    caller: Caller
    api: str
    target: str  # the object, "" where the call names none
    code: int
    seconds: float

    def __str__(self) -> str:
        result = f"error {self.code}" if self.code else "ok"
        target = f" {self.target}" if self.target else ""
        return (
            f"{self.caller.identity} from {self.caller.peer}: {self.api}{target}: {result} "
            f"in {self.seconds * 1000:.0f} ms"
        )


Audit = Callable[[Audited], None]


def to_log(record: Audited) -> None:
    """The audit of a server that was given no other."""
    logging.getLogger("hypervisor_shim.audit").info("%s", record)


def is_audited(row: Procedure) -> bool:
    """Whether calls of `row` change state: those that only look do not."""
    return needed(row) is not Right.READ and row.api not in LOOKS and row.phase is row.phase.OPENED


def target(value: Any) -> str:
    """An object's reference, as calls and replies carry it, for a reader: its names and its UUID."""
    if not isinstance(value, tuple):
        return ""
    parts = []
    for member in value:
        if isinstance(member, tuple):
            parts.append(target(member))
        elif isinstance(member, bytes) and len(member) == 16:
            parts.append(uuid_text(member))
        elif isinstance(member, str):
            parts.append(json.dumps(member[:_NAME_MAX]))
    return " ".join(part for part in parts if part)


def finder(row: Procedure) -> Callable[[bytes, int, int], str]:
    """How to tell a call's object from its packet: the first argument, if that is a reference."""
    first = row.args.members[0] if row.args is not None and row.args.members else None
    if isinstance(first, DomainRef):
        assert row.args is not None
        second = row.args.members[1] if row.api in _NAMED_ANEW else None

        def domain(buf: bytes, pos: int, end: int) -> str:
            (uuid, name), behind = first.read(buf, pos, end)
            named = target((name.decode("utf-8", "replace"), uuid))
            new = None if second is None else second.read(buf, behind, end)[0]
            return named if new is None else f"{named} {target((new,))}"

        return domain
    if isinstance(first, Record) or (isinstance(first, Text) and row.api in _NAMED_BY_TEXT):

        def reference(buf: bytes, pos: int, end: int) -> str:
            value, _ = first.read(buf, pos, end)
            return target(value if isinstance(value, tuple) else (value,))

        return reference
    return lambda buf, pos, end: ""


#: Calls whose second argument is the name that the object is to have.
_NAMED_ANEW = frozenset({"virDomainRename"})
#: Calls whose first text is an object's name and not a document.
_NAMED_BY_TEXT = frozenset(
    f"virNodeDevice{verb}"
    for verb in ("Dettach", "DetachFlags", "ReAttach", "Reset", "Destroy", "Undefine", "Create")
)
