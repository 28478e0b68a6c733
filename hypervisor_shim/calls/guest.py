"""Calls that reach the OS in a domain, its screen and its keyboard."""

from __future__ import annotations

from hypervisor_shim.procedures import Procedure

ROWS: list[Procedure] = []
