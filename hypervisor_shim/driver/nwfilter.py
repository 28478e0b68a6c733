"""Network filters and their bindings."""

from __future__ import annotations


class NwFilters:
    """Network filters and their bindings."""
