"""Moving a domain to another agent."""

from __future__ import annotations


class Migration:
    """Moving a domain to another agent."""
