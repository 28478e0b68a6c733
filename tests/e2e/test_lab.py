"""The end-to-end suites: each runs in a lab of its own, with real QEMU, real kernels and stock virsh.

A lab mostly waits: for firmware, for a kernel, for a deadline. So two run at a time, and each test waits for
its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.e2e.harness import ARTEFACTS, BASE_IMAGE, ROOT

AT_ONCE = 2
ENDING_SECONDS = 30.0  # a lab takes its servers and namespaces down


@dataclass(frozen=True)
class Suite:
    """A file of `inside/`, what it shows, and the seconds within which it must have."""

    file: str
    shows: str
    seconds: float
    lab: str = "demo.toml"
    needs_image: bool = True  # and stage-1


SUITES = (
    Suite("test_survival.py", "a running host survives whatever happens to its agent", 880),
    Suite("test_errors.py", "mistakes and broken things are told in a sentence", 440),
    Suite("test_guest_agent.py", "the OS on metal is asked through its own agent", 600, "guest.toml"),
    Suite("test_hotplug.py", "disks and ports come and go under a running OS", 700),
    Suite("test_pools.py", "volumes are whole whatever happens to the agent", 200),
    Suite("test_inventory.py", "hosts' devices and secrets are shown as they are", 200),
    Suite("test_live_disks.py", "live disks are snapshot, copied and committed", 300, needs_image=False),
    Suite(
        "test_segments.py", "segments, filters, interfaces are what the kernel says", 200, needs_image=False
    ),
    Suite("test_clients.py", "other projects' clients drive a live agent", 400),
    Suite("test_cold_move.py", "a domain moves cold between two agents", 200, needs_image=False),
)


class Labs:
    """Runs suites in the order given, `AT_ONCE` at a time."""

    def __init__(self, suites: Iterable[Suite]) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lab")
        self._results: dict[str, Future[tuple[int, str]]] = {
            suite.file: self._workers.submit(self._run, suite) for suite in suites
        }

    def result(self, suite: Suite) -> tuple[int, str]:
        """Exit code and output, once it is through."""
        return self._results[suite.file].result()

    def _run(self, suite: Suite) -> tuple[int, str]:
        emulate = ["-m", "nicagent.cli", "emulate", str(ROOT / "tests/e2e" / suite.lab), "--"]
        inside = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/e2e/inside/{suite.file}"]
        process = subprocess.Popen(
            [sys.executable, *emulate, sys.executable, *inside],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self._lock:
            self._running.add(process)
        try:
            output, _ = process.communicate(timeout=suite.seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate(timeout=ENDING_SECONDS)
            output += f"\nnot through after {suite.seconds:g} s"
        finally:
            with self._lock:
                self._running.discard(process)
        return process.returncode, output

    def close(self) -> None:
        """Take down what nobody waits for any more."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for process in self._running:
                process.terminate()
        self._workers.shutdown()


@pytest.fixture(scope="module")
def labs(request: pytest.FixtureRequest) -> Iterator[Labs]:
    """Those of the selected tests only."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    given = [call.params.get("suite") for call in calls if call is not None]
    running = Labs([suite for suite in given if isinstance(suite, Suite)])
    yield running
    running.close()


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
