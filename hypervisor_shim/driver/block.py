"""The block layer under a domain: jobs, sizes, limits."""

from __future__ import annotations


class Block:
    """The block layer under a domain: jobs, sizes, limits."""
