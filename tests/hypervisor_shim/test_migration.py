"""A cold move between two servers, driven by stock virsh; a live one is refused."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import libvirt
import pytest

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.migration import Migration
from hypervisor_shim.errors import Code, error
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.xml.domain_def import DomainDef

from .serving import Served, serving

XML = """\
<domain type='kvm'><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa7</uuid>
<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>
"""


class NoRoomForNobody(Migration):
    async def prepare(self, caller: Caller, definition: DomainDef) -> None:
        if definition.name == "nobody":
            raise error(Code.OPERATION_FAILED, "there is no room for nobody")


@pytest.fixture
def sides() -> Iterator[tuple[Served, Served]]:
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="move-")))
            driver = MemoryDriver(documents=())
            driver.migration = NoRoomForNobody()
            found.append(stack.enter_context(serving(driver, directory)))
        yield found[0], found[1]


def migrate(source: Served, destination: Served, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ["virsh", "-c", source.uri, "migrate", *words, "--desturi", destination.uri]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


def names(side: Served) -> list[str]:
    with libvirt.open(side.uri) as conn:
        return [domain.name() for domain in conn.listAllDomains()]


def define(side: Served, name: str = "web", *, start: bool = False) -> None:
    with libvirt.open(side.uri) as conn:
        domain = conn.defineXML(XML.replace("web", name))
        if start:
            domain.create()


def test_a_domain_that_is_off_moves(sides: tuple[Served, Served]) -> None:
    source, destination = sides
    define(source)
    done = migrate(source, destination, "--offline", "--persistent", "--undefinesource", "web")
    assert done.returncode == 0, done.stderr
    assert (names(source), names(destination)) == ([], ["web"])


def test_it_stays_at_its_source_unless_that_is_to_forget_it(sides: tuple[Served, Served]) -> None:
    source, destination = sides
    define(source)
    done = migrate(source, destination, "--offline", "--persistent", "--dname", "web2", "web")
    assert done.returncode == 0, done.stderr
    assert (names(source), names(destination)) == (["web"], ["web2"])


def test_what_the_far_side_refuses_stays_where_it_is(sides: tuple[Served, Served]) -> None:
    source, destination = sides
    define(source, "nobody")
    done = migrate(source, destination, "--offline", "--persistent", "--undefinesource", "nobody")
    assert done.returncode != 0 and "there is no room for nobody" in done.stderr
    assert (names(source), names(destination)) == (["nobody"], [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--live"], "Operation not supported: a running domain is not moved"),
        (["--live", "--p2p"], "p2p migration is not supported by the source host"),
        (["--offline", "--persistent"], "Requested operation is not valid: domain is running"),
    ],
    ids=["live", "peer to peer", "offline though it runs"],
)
def test_a_running_domain_is_not_moved(sides: tuple[Served, Served], words: list[str], said: str) -> None:
    source, destination = sides
    define(source, start=True)
    done = migrate(source, destination, *words, "web")
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert names(destination) == []
