"""Volume streams: `virsh vol-upload` and `vol-download` of 256 MiB, beside libvirtd's own directory pools.

The whole command is timed, an upload until it is on the disk: ours is when virsh ends, libvirtd's after a
sync(1) of the file, which is timed with it. All dirty pages are written out before each turn of either. And
what a server keeps in memory of a download that nobody reads.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Row, row
from tests.bench.processes import agent, resident
from tests.hypervisor_shim import libvirtd as peer

SIZE = 256  # MiB
TURNS = 3  # per run and server
STOPPED = 1.0  # seconds that a download's reader stands still
_CONFIG = """
[agent]
state_dir = "{directory}/state"
run_dir = "{directory}/run"
[libvirt]
pool_roots = ["{roots}"]
[hosts.h0.power]
driver = "gpio"
pins = "socket:{directory}/none"
[hosts.h0.storage]
transport = "virtio"
slot = "{directory}/slot"
"""


def rows(runs: int) -> list[Row]:
    """A row per direction. Without a libvirtd that can run here, the peer's columns are None."""
    rates: dict[tuple[str, str], list[float]] = {}
    # Sockets must have short names, volumes must lie on a real disk.
    with (
        tempfile.TemporaryDirectory(prefix="bv-", dir="/var/tmp") as home,
        tempfile.TemporaryDirectory(prefix="bo-") as ours,
        tempfile.TemporaryDirectory(prefix="bl-") as theirs,
        agent(Path(ours), _CONFIG.format(directory=ours, roots=home)) as pid,
    ):
        uris, pids = {"ours": f"nic+unix:///system?socket={ours}/run/libvirt-sock"}, {"ours": pid}
        if peer.missing() is not None:
            _measure(uris, Path(home), runs, rates)
            kept = _kept(uris, pids, runs)
        else:
            with peer.libvirtd(Path(theirs), ["storage"]) as daemon:
                uris["peer"] = f"storage+unix:///system?socket={daemon.path}"
                pids["peer"] = int((Path(theirs) / "pid").read_text())
                _measure(uris, Path(home), runs, rates)
                kept = _kept(uris, pids, runs)
    return [
        *(
            _row(f"vol-{way} of {SIZE} MiB", {who: rates[who, way] for who in uris}, "MiB/s", more=True)
            for way in ("upload", "download")
        ),
        _row(f"vol-download: memory kept for a reader that stops for {STOPPED:g} s", kept, "MiB", more=False),
    ]


def _measure(uris: dict[str, str], home: Path, runs: int, rates: dict[tuple[str, str], list[float]]) -> None:
    content, back = home / "content", home / "back"
    with content.open("wb") as file:
        for _ in range(SIZE // 16):
            file.write(os.urandom(16 << 20))
    for who, uri in uris.items():
        place = home / who
        place.mkdir()
        _virsh(uri, "pool-create-as", "bench", "dir", "--target", str(place))
        _virsh(uri, "vol-create-as", "bench", "volume", f"{SIZE}M")
    for _ in range(runs * TURNS):
        for who, uri in uris.items():
            for direction, path in (("upload", content), ("download", back)):
                os.sync()
                began = time.perf_counter()
                _virsh(uri, f"vol-{direction}", "volume", str(path), "bench")
                if direction == "upload":
                    subprocess.run(["sync", home / who / "volume"], check=True)
                seconds = time.perf_counter() - began
                rates.setdefault((who, direction), []).append(SIZE / seconds)
    assert back.read_bytes() == content.read_bytes()


def _virsh(uri: str, *words: str) -> None:
    subprocess.run(["virsh", "-q", "-c", uri, *words], check=True, capture_output=True, timeout=120)


def _kept(uris: dict[str, str], pids: dict[str, int], runs: int) -> dict[str, list[float]]:
    """MiB that each server's memory grows by while a download has begun and its client reads nothing."""
    import libvirt

    grown: dict[str, list[float]] = {who: [] for who in uris}
    for who, uri in uris.items():
        conn = libvirt.open(uri)
        volume = conn.storagePoolLookupByName("bench").storageVolLookupByName("volume")
        for _ in range(runs):
            before = resident(pids[who])
            stream = conn.newStream(0)
            volume.download(stream, 0, 0, 0)
            time.sleep(STOPPED)
            grown[who].append((resident(pids[who]) - before) / 1024)
            stream.abort()
        conn.close()
    return grown


def _row(name: str, figures: dict[str, list[float]], unit: str, *, more: bool) -> Row:
    peer_name = "libvirtd, directory pool"
    return row(name, figures["ours"], figures.get("peer"), unit, peer_name=peer_name, more=more)
