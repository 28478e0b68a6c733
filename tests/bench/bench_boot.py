"""Seconds from `virsh start` to the login prompt: NVMe/TCP and virtio beside the same image on a local disk.

The three take turns in one lab, so that a drifting machine hits all of them; each boot starts from a fresh
overlay on the same base image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Row, row
from tests.e2e import harness

LOGIN_SECONDS = 300.0
KINDS = ("local", "by-virtio", "by-network")
NAMES = {"by-virtio": "virtio (QSD)", "by-network": "NVMe/TCP (iPXE, stage-1, kexec)"}


def rows(runs: int) -> list[Row]:
    """Rows of the bench: seconds to login, each beside the local disk."""
    argv = [sys.executable, "-m", "nicagent.cli", "emulate", str(harness.ROOT / "tests/e2e/bench.toml"), "--"]
    argv += [sys.executable, "-m", "tests.bench.bench_boot", str(runs)]
    with tempfile.NamedTemporaryFile(prefix="nicagent-bench-", suffix=".json") as out:
        subprocess.run([*argv, out.name], cwd=harness.ROOT, check=True)
        seconds = json.loads(Path(out.name).read_text())
    return [
        row(
            f"start to login: {NAMES[kind]}",
            seconds[kind],
            seconds["local"],
            "s",
            peer_name="same image, local disk",
            more=False,
        )
        for kind in ("by-network", "by-virtio")
    ]


def measure(runs: int) -> dict[str, list[float]]:
    """Runs inside the lab."""
    lab = harness.lab_directory()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="nicagent-bench-") as directory:
        agent = harness.bench_agent(lab, Path(directory))
        agent.start()
        try:
            for _ in range(runs):
                for kind in KINDS:
                    found[kind].append(boot(agent, kind, lab, Path(directory)))
        finally:
            agent.stop()
    return found


def boot(agent: harness.Agent, kind: str, lab: Path, directory: Path) -> float:
    """One boot from a fresh overlay; seconds from `virsh start` to the prompt."""
    volume = harness.disk(agent.directory, kind)
    if kind == "local":
        # The disk is in the chassis: the domain itself has none.
        volume.replace(lab / "local.qcow2")
        base = volume.parent / "debian.qcow2"
        rebase = ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", str(base), str(lab / "local.qcow2")]
        subprocess.run(rebase, check=True)
    definition = directory / f"{kind}.xml"
    disk = None if kind == "local" else volume.name
    definition.write_text(harness.domain_xml(kind, disk, host=kind, segment=None))
    agent.virsh("define", str(definition))
    began = time.monotonic()
    agent.virsh("start", kind)
    console = harness.Console.open(agent, kind)
    try:
        console.expect("login: ", LOGIN_SECONDS)
        seconds = time.monotonic() - began
    finally:
        console.close()
    print(f"    {kind}: {seconds:.1f} s", flush=True)
    agent.virsh("destroy", kind)
    agent.virsh("undefine", kind)
    return seconds


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(int(sys.argv[1]))))
