"""Storage pools and the volumes in them."""

from __future__ import annotations


class Storage:
    """Storage pools and the volumes in them."""
