"""The machine behind the connection: counters, memory, CPU models, firmware tables."""

from __future__ import annotations


class Node:
    """The machine behind the connection: counters, memory, CPU models, firmware tables."""
