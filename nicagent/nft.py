"""nftables by libnftables' JSON API (libnftables-json(5)): one transaction a call, errors in plain words."""

from __future__ import annotations

from typing import Any

import nftables

from nicagent.errors import Kind, NicagentError
from nicagent.threads import in_thread

Json = dict[str, Any]

ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
COUNT: Json = {"counter": None}


def match(left: Json, right: object, op: str = "==") -> Json:
    """A rule's condition."""
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> Json:
    """A field of a packet's header."""
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> Json:
    """What the kernel knows of a packet beside its bytes: `iifname`, `oifname`, `nfproto`."""
    return {"meta": {"key": key}}


class Nft:
    """A libnftables context. It is not thread-safe: calls must not overlap, so its owner holds a lock."""

    def __init__(self) -> None:
        self._context: Any = None

    async def run(self, commands: list[Json], doing: str, hint: str) -> list[Json]:
        """Carry these commands out, all or none, and return what they list.

        Raises UNAVAILABLE with the kernel's word ("cannot <doing>: …"), and `hint` unless more is known.
        """
        return await in_thread(self._run_now, commands, doing, hint)

    def _run_now(self, commands: list[Json], doing: str, hint: str) -> list[Json]:
        if self._context is None:
            self._context = _open()
        status, output, error = self._context.json_cmd({"nftables": commands})
        if status != 0:
            raise _refused(doing, str(error), hint)
        found = output.get("nftables", []) if isinstance(output, dict) else []
        return list(found)


def _open() -> Any:
    try:
        context = nftables.Nftables()
    except OSError:
        raise NicagentError(
            Kind.UNAVAILABLE, "libnftables is missing", "install it: apt-get install libnftables1"
        ) from None
    context.set_json_output(True)
    return context


def _refused(doing: str, error: str, hint: str) -> NicagentError:
    words = error.strip().partition("\n")[0]
    words = words.partition("Error: ")[2] or words or "no reason given"
    words = words.removeprefix("cache initialization failed: ")
    if "not permitted" in words or "Permission denied" in words:
        hint = "run the agent as root or give it CAP_NET_ADMIN"
    return NicagentError(Kind.UNAVAILABLE, f"cannot {doing}: {words}", hint)
