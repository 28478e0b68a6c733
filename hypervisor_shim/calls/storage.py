"""Storage pools and volumes."""

from __future__ import annotations

from hypervisor_shim.procedures import Procedure

ROWS: list[Procedure] = []
