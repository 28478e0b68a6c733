"""What this target offers a host, and how much a host may make it hold."""

from __future__ import annotations

VERSION = 0x0001_0400  # VS and VER: NVMe 1.4.0
FIRMWARE = "1"  # never the package version: what a host sees must not change with an upgrade

QUEUE_ENTRIES = 128  # CAP.MQES + 1
IO_QUEUES_MAX = 16
AER_LIMIT = 4  # AERL + 1
ADMIN_DATA_MAX = 8 << 10  # bytes of in-capsule data on the admin queue (NVMe/TCP 1.0, section 3.2)
IN_CAPSULE_MAX = 64 << 10  # bytes on an I/O queue: writes up to here need no R2T round trip
TRANSFER_MAX = 1 << 20  # bytes of one command: MDTS, MAXH2CDATA
PENDING_BYTES = 8 << 20  # bytes a queue may have waiting for back ends; the same again for R2T
KATO_MAX = 3_600_000  # milliseconds
