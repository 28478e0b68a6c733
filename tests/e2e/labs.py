"""Labs of the end-to-end suites: processes that run beside the other tests, and what came of each.

A lab mostly waits: for firmware, for a kernel, for a deadline. So one runs beside the rest of the tests from
the session's start on, and two once nothing is left but labs; each lab test waits for its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tests.e2e.harness import ROOT

BESIDE_OTHER_TESTS = 1
BY_THEMSELVES = 2
ENDING_SECONDS = 30.0  # a lab takes its servers and namespaces down


@dataclass(frozen=True)
class Suite:
    """A file of `inside/`, what it shows, and the seconds within which it must have."""

    file: str
    shows: str
    seconds: float
    lab: str = "demo.toml"
    needs_image: bool = True  # and stage-1


class Labs:
    """Runs suites in the order given, few at a time."""

    def __init__(self, suites: Iterable[Suite]) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._room = threading.Semaphore(BESIDE_OTHER_TESTS)
        self._alone = False
        self._closed = False
        self._workers = ThreadPoolExecutor(BY_THEMSELVES, thread_name_prefix="lab")
        self._results: dict[str, Future[tuple[int, str]]] = {
            suite.file: self._workers.submit(self._run, suite) for suite in suites
        }

    def result(self, suite: Suite) -> tuple[int, str]:
        """Exit code and output, once it is through. Who waits here leaves its processor to another lab."""
        if not self._alone:
            self._alone = True
            self._room.release(BY_THEMSELVES - BESIDE_OTHER_TESTS)
        return self._results[suite.file].result()

    def _run(self, suite: Suite) -> tuple[int, str]:
        emulate = ["-m", "nicagent.cli", "emulate", str(ROOT / "tests/e2e" / suite.lab), "--"]
        inside = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/e2e/inside/{suite.file}"]
        with self._room:
            if self._closed:
                return 1, "not begun"
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
        self._closed = True
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._room.release(BY_THEMSELVES)
        with self._lock:
            for process in self._running:
                process.terminate()
        self._workers.shutdown()
