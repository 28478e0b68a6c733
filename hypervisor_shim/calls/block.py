"""Block jobs, sizes and limits of a domain's disks."""

from __future__ import annotations

from hypervisor_shim.procedures import Procedure

ROWS: list[Procedure] = []
