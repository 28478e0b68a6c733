"""Secrets: keys that definitions name and never hold."""

from __future__ import annotations


class Secrets:
    """Secrets: keys that definitions name and never hold."""
