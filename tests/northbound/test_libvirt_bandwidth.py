"""Rates of a running server's ports, from libvirt's parameters to what the network driver is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from xml.etree.ElementTree import fromstring

import pytest

from hypervisor_shim.driver import Caller, CreateFlags, DestroyFlags, Impact
from hypervisor_shim.driver.devices import Devices
from hypervisor_shim.errors import Code, LibvirtError
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_def import Bandwidth
from hypervisor_shim.xml.domain_def import Rate as Told
from nicagent.model import PortBinding, Rate
from nicagent.northbound.libvirt import MetalDriver
from tests.fuzz.metal import Metal

MAC = "52:54:00:00:00:01"
DOMAIN = f"""<domain type='kvm'><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
<memory unit='MiB'>512</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices>
<interface type='network'><mac address='{MAC}'/><source network='default'/>
<bandwidth><outbound average='500' peak='1000' burst='64'/></bandwidth></interface></devices></domain>"""
WEB = parse_domain(DOMAIN)
SOMEBODY = Caller("uid:0", "a test", False, True, 1)
OUT = Rate(500_000, peak=1_000_000, burst=64 << 10)


@pytest.fixture
async def metal() -> AsyncIterator[MetalDriver]:
    """`web` runs on the host that has a NIC."""
    world = Metal(running=False)
    driver = await world.begin()
    await driver.define(SOMEBODY, WEB)
    await driver.create(SOMEBODY, WEB.uuid, CreateFlags(0))
    yield driver
    await world.end()


def devices(driver: MetalDriver) -> Devices:
    assert driver.devices is not None
    return driver.devices


def port(driver: MetalDriver) -> PortBinding:
    """As the network driver has it."""
    ((_, binding),) = driver._controller.ports()
    return binding


async def tune(driver: MetalDriver, name: str, given: Mapping[str, int], impact: Impact) -> None:
    await devices(driver).set_bandwidth(SOMEBODY, WEB.uuid, name, given, impact)


async def test_a_definition_says_how_fast_a_port_is_from_the_start(metal: MetalDriver) -> None:
    assert (port(metal).port.inbound, port(metal).port.outbound) == (None, OUT)


async def test_a_running_servers_port_is_tuned_by_its_address_or_its_device(metal: MetalDriver) -> None:
    await tune(metal, MAC, {"inbound.average": 1000}, Impact.LIVE)
    assert port(metal).port.inbound == Rate(1_000_000)
    assert port(metal).port.outbound == OUT, "the other direction stays"
    await tune(metal, port(metal).device, {"outbound.average": 0}, Impact.LIVE)
    assert (port(metal).port.inbound, port(metal).port.outbound) == (Rate(1_000_000), None)
    live = fromstring(metal.domain_xml(WEB.uuid, inactive=False, secure=False))
    assert live.find("devices/interface/bandwidth/inbound[@average='1000']") is not None
    assert live.find("devices/interface/bandwidth/outbound") is None
    known = devices(metal).bandwidth(WEB.uuid, MAC, Impact.CONFIG)
    assert known == Bandwidth(outbound=Told(500, 1000, 64)), "the next start is as it was"
    await metal.destroy(SOMEBODY, WEB.uuid, DestroyFlags(0))
    await metal.create(SOMEBODY, WEB.uuid, CreateFlags(0))
    assert (port(metal).port.inbound, port(metal).port.outbound) == (None, OUT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inbound.average": 10, "inbound.floor": 5}, "promised no floor"),
        ({"inbound.average": 4_294_968}, "at most 4294967 kilobytes a second"),
        ({"inbound.average": 1, "inbound.burst": 4_194_304}, "in bursts of 4194303 KiB"),
    ],
)
async def test_what_a_port_cannot_be_held_to_is_refused_and_changes_nothing(
    metal: MetalDriver, given: Mapping[str, int], said: str
) -> None:
    before = port(metal)
    with pytest.raises(LibvirtError, match=said) as refused:
        await tune(metal, MAC, given, Impact.LIVE | Impact.CONFIG)
    assert refused.value.code is Code.CONFIG_UNSUPPORTED
    assert port(metal) == before
    assert devices(metal).bandwidth(WEB.uuid, MAC, Impact.CONFIG) == Bandwidth(outbound=Told(500, 1000, 64))


async def test_an_interface_that_is_not_there_is_named(metal: MetalDriver) -> None:
    with pytest.raises(LibvirtError, match="'eth7' is not a known interface") as refused:
        await tune(metal, "eth7", {"inbound.average": 10}, Impact.LIVE)
    assert refused.value.code is Code.INVALID_ARG


async def test_a_definition_with_a_floor_is_not_taken(metal: MetalDriver) -> None:
    floor = DOMAIN.replace("<outbound", "<inbound average='5' floor='2'/><outbound")
    with pytest.raises(LibvirtError, match="promised no floor"):
        await metal.define(SOMEBODY, parse_domain(floor))
