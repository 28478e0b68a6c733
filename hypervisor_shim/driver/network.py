"""Virtual networks, their ports and leases."""

from __future__ import annotations


class Networks:
    """Virtual networks, their ports and leases."""
