"""Networks on the wire where no installed client reaches: calls of libvirt after 9.0, leases, ports."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import libvirt
import pytest

from hypervisor_shim.driver.events import Event
from hypervisor_shim.driver.network import DhcpLease
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.memory.network import MemoryNetworks
from tests.hypervisor_shim.serving import RawClient, Served, number, optional, serving, text

UUID = bytes.fromhex("dd8fe8846c02601e7551cca97df1c5df")
NETWORK = text("default") + UUID
PORT = bytes(range(16))
SET_METADATA, GET_METADATA, REGISTER, METADATA_CHANGED = 444, 445, 313, 446


class Networks(MemoryNetworks):
    """With a lease and a port."""

    def leases(self, uuid: bytes, mac: str | None) -> Sequence[DhcpLease]:
        held = DhcpLease("virbr0", "192.168.122.9", 24, mac="52:54:00:00:00:09", hostname="web")
        return [held] if mac in (None, held.mac) else []

    def ports(self, uuid: bytes) -> list[bytes]:
        return [PORT]

    def port_xml(self, uuid: bytes, port: bytes) -> str:
        return "<networkport/>\n"

    def port_parameters(self, uuid: bytes, port: bytes) -> list[tuple[str, int, object]]:
        return []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    driver = MemoryDriver()

    def publish(event: Event) -> None:
        driver._publish(event)

    driver.networks = Networks(publish)
    with serving(driver, tmp_path) as running:
        yield running


def test_metadata_of_a_network_is_set_read_and_told(served: Served) -> None:
    with RawClient(served.path) as client:
        client.open()
        assert client.call(REGISTER, number(1) + optional(None)).code == 0
        none = client.call(GET_METADATA, NETWORK + number(0) + optional(None) + number(0))
        assert none.code == 111, "NO_NETWORK_METADATA"
        element = optional(text("<a>1</a>")) + optional(text("k")) + optional(text("urn:k"))
        client.send(SET_METADATA, NETWORK + number(2) + element + number(0))
        kinds = {(answer := client.receive()).procedure: answer for _ in range(2)}
        assert kinds[SET_METADATA].code == 0, kinds[SET_METADATA].message
        assert kinds[METADATA_CHANGED].body == number(0) + NETWORK + number(2) + optional(text("urn:k"))
        got = client.call(GET_METADATA, NETWORK + number(2) + optional(text("urn:k")) + number(0))
        assert got.body == text("<a>1</a>")
        shown = client.call(43, NETWORK + number(0)).body
        assert b'<k:a xmlns:k="urn:k">1</k:a>' in shown


def test_a_client_reads_leases_and_ports(served: Served) -> None:
    connection = libvirt.open(served.uri)
    network = connection.networkLookupByName("default")
    (lease,) = network.DHCPLeases()
    assert (lease["iface"], lease["ipaddr"], lease["prefix"]) == ("virbr0", "192.168.122.9", 24)
    assert (lease["mac"], lease["hostname"], lease["expirytime"]) == ("52:54:00:00:00:09", "web", 0)
    assert network.DHCPLeases("52:54:00:00:00:01") == []
    (port,) = network.listAllPorts()
    assert port.UUID() == PORT and port.XMLDesc() == "<networkport/>\n" and port.parameters() == {}
    with pytest.raises(libvirt.libvirtError) as caught:
        network.portLookupByUUID(bytes(16))
    assert caught.value.get_error_code() == libvirt.VIR_ERR_NO_NETWORK_PORT
    connection.close()


def test_a_list_that_is_only_counted_is_empty(served: Served) -> None:
    with RawClient(served.path) as client:
        client.open()
        assert client.call(283, number(0) + number(0)).body == struct.pack(">II", 0, 1)
        assert client.call(404, NETWORK + number(0) + number(0)).body == struct.pack(">II", 0, 1)
