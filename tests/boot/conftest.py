"""Stage-1's own user space for its scripts: busybox under all its names, and nothing else on the path."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STAGE1 = Path(__file__).resolve().parents[2] / "boot" / "stage1"

Shell = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def stage1_shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs a script with stage-1's own functions."""
    applets = tmp_path_factory.mktemp("applets")
    subprocess.run(["/usr/bin/busybox", "--install", "-s", applets], check=True)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [applets / "sh", "-c", f". {STAGE1}/entry.sh; . {STAGE1}/inventory.sh; {script}"],
            env={"HERE": str(STAGE1), "PATH": str(applets)},
            capture_output=True,
            text=True,
            timeout=10,
        )

    return run
