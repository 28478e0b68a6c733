"""The end-to-end suites: each runs in a lab of its own, with real QEMU, real kernels and stock virsh."""

from __future__ import annotations

import pytest

from tests.e2e.harness import ARTEFACTS, BASE_IMAGE
from tests.e2e.labs import Labs, Suite

SUITES = (
    Suite("test_survival.py", "a running host survives whatever happens to its agent", 1200),
    Suite("test_errors.py", "mistakes and broken things are told in a sentence", 500),
    Suite("test_guest_agent.py", "the OS on metal is asked through its own agent", 600, "guest.toml"),
    Suite("test_hotplug.py", "disks and ports come and go under a running OS", 700),
    Suite("test_pools.py", "volumes are whole whatever happens to the agent", 200),
    Suite("test_inventory.py", "hosts' devices and secrets are shown as they are", 200),
    Suite("test_live_disks.py", "live disks are snapshot, copied and committed", 300, needs_image=False),
    Suite("test_slot.py", "disks come and go in a PCIe slot", 200, "slot.toml", needs_image=False),
    Suite(
        "test_segments.py", "segments, filters, interfaces are what the kernel says", 200, needs_image=False
    ),
    Suite("test_clients.py", "other projects' clients drive a live agent", 400),
    Suite(
        "test_screen.py", "a server's screen is shown to stock viewers", 400, "guest.toml", needs_image=False
    ),
    Suite("test_clouds.py", "clouds work a server by their own calls", 400, "guest.toml", needs_image=False),
    Suite("test_cold_move.py", "a domain moves cold between two agents", 200, needs_image=False),
)


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.timeout(1800)  # it may wait for its turn first; a suite's own bound is in the table
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.shows)
def test_in_a_lab(suite: Suite, labs: Labs) -> None:
    if suite.needs_image and not (BASE_IMAGE.exists() and (ARTEFACTS / "stage1.img").exists()):
        pytest.fail("the OS image or stage-1 is missing: run `make image` first")
    code, output = labs.result(suite)
    print(output)
    assert code == 0, f"{suite.file} failed in its lab; its output is above"
