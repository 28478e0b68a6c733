"""Counters of domains: disks, interfaces, memory, CPUs, jobs."""

from __future__ import annotations


class Statistics:
    """Counters of domains: disks, interfaces, memory, CPUs, jobs."""
