"""Devices that come and go while a domain runs or waits."""

from __future__ import annotations


class Devices:
    """Devices that come and go while a domain runs or waits."""
