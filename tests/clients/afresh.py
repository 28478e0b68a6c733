"""A server that starts again from the beginning for each client that finds it idle, as `test:///default`:
there a connection is a driver of its own, and what one client did the next knows nothing of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypervisor_shim.driver import Driver
from hypervisor_shim.server import Server
from tests.hypervisor_shim.serving import Served, serving


class Afresh(Server):
    """`make` gives the driver of the next client that comes while no other is connected."""

    def __init__(self, make: Callable[[], Driver]) -> None:
        self._make = make
        super().__init__(make())

    def _accept(self, listener) -> None:  # type: ignore[no-untyped-def]
        if not self.clients:
            if self._unsubscribe is not None:
                self._unsubscribe()
            self._driver = self._make()
            self._unsubscribe = self._driver.subscribe(self)
        super()._accept(listener)


@contextmanager
def serving_afresh(make: Callable[[], Driver], directory: Path) -> Iterator[Served]:
    with serving(make(), directory, make=lambda driver, limits: Afresh(make)) as served:
        yield served
