"""The log of what touches a host's power: every edge and every command, with its cause, before it happens.

Written to the logger `nicagent.power`; each record carries `host`, `line`, `level` and `cause` as fields of
its own, so that "who switched my server on" is one query. For a BMC, `line` is "ipmi" and `level` the
command.
"""

from __future__ import annotations

import logging

from nicagent.model import Cause

log = logging.getLogger("nicagent.power")


def announce(host: str, line: str, level: int | str, cause: Cause, what: str) -> None:
    """Say that `line` is about to go to `level`. `what` is the same in words: "asserted", "power off"."""
    log.info(
        "%s: %s %s: %s",
        host,
        line,
        what,
        cause,
        extra={"host": host, "line": line, "level": level, "cause": str(cause)},
    )
