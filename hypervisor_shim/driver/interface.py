"""The host's own network interfaces."""

from __future__ import annotations


class Interfaces:
    """The host's own network interfaces."""
