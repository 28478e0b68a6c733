"""Devices of the host as the connection knows them."""

from __future__ import annotations


class NodeDevices:
    """Devices of the host as the connection knows them."""
