from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from hypervisor_shim.memory import MemoryDriver
from tests.differential.pair import LIKE_TEST, Pair
from tests.hypervisor_shim import libvirtd as peer
from tests.hypervisor_shim.serving import serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that lies here needs libvirtd, and root for it."""
    reason = peer.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both fresh: the test driver keeps its state for as long as a connection is open, so one is held. Nobody
    answers libvirtd's keepalive on it, which on a slow machine would end it under a long script."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    with (
        tempfile.TemporaryDirectory(prefix="lv-") as theirs,
        tempfile.TemporaryDirectory(prefix="nic-") as ours,
        peer.libvirtd(Path(theirs), more="keepalive_interval = -1\n") as daemon,
        serving(MemoryDriver(identity=LIKE_TEST, uri="test:///default"), Path(ours)) as served,
    ):
        held = libvirt.open(daemon.uri)
        yield Pair(daemon.path, served.path)
        held.close()
