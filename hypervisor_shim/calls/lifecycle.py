"""Calls on a domain's life beyond start and stop: suspend, save, rename."""

from __future__ import annotations

from hypervisor_shim.procedures import Procedure

ROWS: list[Procedure] = []
