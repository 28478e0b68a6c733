"""The end-to-end suites: each runs in a lab of its own, with real QEMU, real kernels and stock virsh."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.harness import ARTEFACTS, BASE_IMAGE, ROOT


def run_inside(suite: str, seconds: float, lab: str = "demo.toml", *, boots: bool = True) -> None:
    """Run one suite of `inside/` in a fresh lab. `boots`: it needs the OS image and stage-1."""
    if boots and not (BASE_IMAGE.exists() and (ARTEFACTS / "stage1.img").exists()):
        pytest.fail("the OS image or stage-1 is missing: run `make image` first")
    argv = [sys.executable, "-m", "nicagent.cli", "emulate", str(ROOT / "tests/e2e" / lab), "--"]
    argv += [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        f"tests/e2e/inside/{suite}",
    ]
    done = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )
    print(done.stdout)
    assert done.returncode == 0, f"{suite} failed in its lab; its output is above"


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.timeout(900)
def test_a_running_host_survives_whatever_happens_to_its_agent() -> None:
    run_inside("test_survival.py", 880)


@pytest.mark.root
@pytest.mark.timeout(240)
def test_mistakes_and_broken_things_are_told_in_a_sentence() -> None:
    run_inside("test_errors.py", 220)


@pytest.mark.root
@pytest.mark.timeout(120)
def test_volumes_are_whole_whatever_happens_to_the_agent() -> None:
    run_inside("test_pools.py", 110)


@pytest.mark.root
@pytest.mark.timeout(120)
def test_hosts_devices_and_secrets_are_shown_as_they_are() -> None:
    run_inside("test_inventory.py", 100)


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.timeout(600)
def test_disks_and_ports_come_and_go_under_a_running_os() -> None:
    run_inside("test_hotplug.py", 580)


@pytest.mark.root
@pytest.mark.timeout(120)
def test_segments_filters_and_interfaces_are_what_the_kernel_says() -> None:
    run_inside("test_segments.py", 110, boots=False)


@pytest.mark.root
@pytest.mark.timeout(240)
def test_other_projects_clients_drive_a_live_agent() -> None:
    run_inside("test_clients.py", 220)


@pytest.mark.root
@pytest.mark.timeout(120)
def test_a_domain_moves_cold_between_two_agents() -> None:
    run_inside("test_cold_move.py", 110, boots=False)


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.timeout(420)
def test_the_os_on_metal_is_asked_through_its_own_agent() -> None:
    run_inside("test_guest_agent.py", 400, lab="guest.toml")


@pytest.mark.root
@pytest.mark.timeout(180)
def test_disks_of_running_hosts_are_snapshot_copied_and_committed() -> None:
    run_inside("test_live_disks.py", 170, boots=False)
