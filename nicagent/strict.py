"""The base of every table of nicagent.toml, and of what a stranger's JSON is checked against."""

from __future__ import annotations

import msgspec


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table: unknown keys are refused."""
