"""Who may ask the OS inside a domain, and calls of libvirt's program for QEMU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from hypervisor_shim.driver import Caller
from hypervisor_shim.frame import Program
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.memory.guest import MemoryGuest

from .serving import RawClient, Served, domain, number, serving, text

AGENT_COMMAND = 3
XML = """\
<domain type='kvm'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os>
<devices><interface type='network'><source network='default'/></interface></devices></domain>
"""


class Parrot(MemoryGuest):
    async def command(self, caller: Caller, uuid: bytes, text: str, seconds: int) -> str:
        return f"{text} within {seconds}"


@pytest.fixture
def served() -> Iterator[Served]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        driver = MemoryDriver((XML,))
        driver.guest = Parrot(driver)
        with serving(driver, Path(directory)) as found:
            yield found


def test_readers_see_leases_and_leave_the_guest_alone(served: Served) -> None:
    with libvirt.openReadOnly(served.read_only_uri) as conn:
        reader = conn.lookupByName("web")
        assert reader.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    with RawClient(served.read_only_path) as client:  # libvirt's own client would not even ask
        client.open()
        uuid = served.driver.domain_by_name("web")
        assert uuid is not None
        web = domain("web", uuid.uuid)
        refused = client.call(353, web + number(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT) + number(0))
        assert (refused.code, refused.message) == (
            libvirt.VIR_ERR_OPERATION_DENIED,
            "operation forbidden: read only access prevents virDomainInterfaceAddresses",
        )


def test_an_agents_own_command_comes_through_the_program_for_qemu(served: Served) -> None:
    with libvirt.open(served.uri) as conn:
        web = conn.lookupByName("web")
        assert libvirt_qemu.qemuAgentCommand(web, "{}", 7, 0) == "{} within 7"
        assert code(web, -3) == libvirt.VIR_ERR_INVALID_ARG


def code(web: libvirt.virDomain, seconds: int) -> int:
    """No exception outlives this: it would keep the connection, which the server's own thread might close."""
    try:
        libvirt_qemu.qemuAgentCommand(web, "{}", seconds, 0)
    except libvirt.libvirtError as refused:
        return int(refused.get_error_code())
    return 0


def test_nobody_calls_it_before_opening_nor_reading_only(served: Served) -> None:
    web = served.driver.domain_by_name("web")
    assert web is not None
    body = domain("web", web.uuid) + text("{}") + number(7) + number(0)
    with RawClient(served.path) as client:
        answer = client.call(AGENT_COMMAND, body, program=Program.QEMU)
        assert (answer.code, answer.program) == (1, Program.QEMU)
        client.open()
        assert client.call(AGENT_COMMAND, body, program=Program.QEMU).status == 0
        assert client.call(AGENT_COMMAND, body[:-4], program=Program.QEMU).code == libvirt.VIR_ERR_RPC
    with RawClient(served.read_only_path) as client:
        client.open()
        answer = client.call(AGENT_COMMAND, body, program=Program.QEMU)
        assert answer.code == libvirt.VIR_ERR_OPERATION_DENIED
