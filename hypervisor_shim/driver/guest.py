"""What only the OS in a domain or its screen and keyboard can tell or do."""

from __future__ import annotations


class Guest:
    """What only the OS in a domain or its screen and keyboard can tell or do."""
