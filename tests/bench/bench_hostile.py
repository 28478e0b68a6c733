"""A good client's latency beside a thousand slow-loris clients, against its own without them.

The server and the crowd are processes of their own; the turns with and without alternate, so that whatever
else the machine does hits both. The medians over all turns count.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench.figures import Row, row
from tests.hypervisor_shim.alone import alone
from tests.hypervisor_shim.crowd import crowd
from tests.hypervisor_shim.serving import RawClient, domain

CROWD = 1000
CALLS = 2000  # of one turn
TURNS = 3  # per run, each with and without
_GET_INFO = 16


def rows(runs: int) -> list[Row]:
    """p50 and p99, in microseconds."""
    calm: list[tuple[float, float]] = []
    crowded: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory(prefix="bh-") as name,
        alone(Path(name)) as process,
        RawClient(process.path) as client,
    ):
        client.open()
        _percentiles(client)  # warm
        for _ in range(runs * TURNS):
            calm.append(_percentiles(client))
            with crowd(process.path, CROWD, opened=True):
                crowded.append(_percentiles(client))
    return [
        row(
            f"libvirt call p{part} beside {CROWD:,} slow-loris clients",
            [each[i] * 1e6 for each in crowded],
            [each[i] * 1e6 for each in calm],
            "µs",
            peer_name="the same client without them",
            more=False,
        )
        for i, part in enumerate((50, 99))
    ]


def _percentiles(client: RawClient) -> tuple[float, float]:
    found = []
    for _ in range(CALLS):
        began = time.perf_counter()
        client.call(_GET_INFO, domain())
        found.append(time.perf_counter() - began)
    found.sort()
    return found[CALLS // 2], found[CALLS * 99 // 100]
