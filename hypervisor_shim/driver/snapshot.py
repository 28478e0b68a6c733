"""Snapshots of domains."""

from __future__ import annotations


class Snapshots:
    """Snapshots of domains."""
