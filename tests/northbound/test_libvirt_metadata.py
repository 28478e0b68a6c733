"""Metadata of metal: the running domain's own document, that of its next start, and who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hypervisor_shim.driver import (
    Caller,
    Event,
    HandoverEvent,
    Impact,
    LifecycleEvent,
    Metadata,
    MetadataChangeEvent,
    MetadataKind,
    UndefineFlags,
)
from hypervisor_shim.errors import Code, LibvirtError
from hypervisor_shim.xml.domain import parse_domain
from hypervisor_shim.xml.domain_change import with_vcpus
from nicagent.northbound.libvirt import MetalDriver
from nicagent.northbound.libvirt_domain import WISHES
from tests.fuzz.metal import Metal
from tests.hypervisor_shim.serving import TEST_UUID

TITLE = MetadataKind.TITLE
SOMEBODY = Caller("uid:0", "a test", False, True, 1)


class Heard:
    """All that the driver tells."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(params=[True, False], ids=["running", "off"])
async def metal(request: pytest.FixtureRequest) -> AsyncIterator[MetalDriver]:
    """Domain `test`, on the first of two hosts if it runs."""
    world = Metal(running=request.param)
    yield await world.begin()
    await world.end()


def runs(driver: MetalDriver) -> bool:
    info = driver.domain(TEST_UUID)
    return info is not None and info.active


def title(driver: MetalDriver, impact: Impact) -> str | None:
    try:
        return driver.metadata(TEST_UUID, TITLE, None, impact)
    except LibvirtError as e:
        assert e.code is Code.NO_DOMAIN_METADATA
        return None


async def entitle(driver: MetalDriver, text: str, impact: Impact) -> None:
    await driver.set_metadata(SOMEBODY, TEST_UUID, Metadata(TITLE, text, None, None), impact)


async def test_a_change_goes_where_libvirts_flags_say(metal: MetalDriver) -> None:
    await entitle(metal, "for the next start", Impact.CONFIG)
    assert title(metal, Impact.CONFIG) == "for the next start"
    if not runs(metal):
        assert title(metal, Impact.CURRENT) == "for the next start"
        return
    assert title(metal, Impact.LIVE) is None, "what runs is not described otherwise by that"
    await entitle(metal, "for now", Impact.CURRENT)
    assert title(metal, Impact.CURRENT) == title(metal, Impact.LIVE) == "for now"
    assert "<title>for now</title>" in metal.domain_xml(TEST_UUID, inactive=False, secure=False)
    assert title(metal, Impact.CONFIG) == "for the next start", "and the next start is not either"
    await entitle(metal, "for both", Impact.LIVE | Impact.CONFIG)
    assert title(metal, Impact.LIVE) == title(metal, Impact.CONFIG) == "for both"


async def test_it_is_told_as_a_change_of_metadata_once_and_as_nothing_else(metal: MetalDriver) -> None:
    heard = Heard()
    metal.subscribe(heard)
    await entitle(metal, "a", Impact.CONFIG)
    await entitle(metal, "b", Impact.CURRENT)
    element = Metadata(MetadataKind.ELEMENT, "<owner/>", "x", "http://x.example/1")
    await metal.set_metadata(SOMEBODY, TEST_UUID, element, Impact.CONFIG)
    told = [(type(e), e.kind, e.uri) for e in heard.events if isinstance(e, MetadataChangeEvent)]
    assert told == [
        (MetadataChangeEvent, TITLE, None),
        (MetadataChangeEvent, TITLE, None),
        (MetadataChangeEvent, MetadataKind.ELEMENT, "http://x.example/1"),
    ]
    assert len(heard.events) == len(told), f"libvirtd tells nothing else: {heard.events}"


async def test_a_figure_of_the_definition_is_changed_in_silence(metal: MetalDriver) -> None:
    """As setvcpus and setmem --config do it with libvirtd."""
    heard = Heard()
    metal.subscribe(heard)
    known = parse_domain(metal.domain_xml(TEST_UUID, inactive=True, secure=True))
    await metal.redefine(SOMEBODY, with_vcpus(known, 3, maximum=True))
    assert parse_domain(metal.domain_xml(TEST_UUID, inactive=True, secure=True)).max_vcpus == 3
    assert heard.events == []


@pytest.mark.parametrize("metal", [True], indirect=True)
async def test_a_transient_domain_has_metadata_while_it_runs(metal: MetalDriver) -> None:
    await metal.undefine(SOMEBODY, TEST_UUID, UndefineFlags(0))
    await entitle(metal, "for now", Impact.LIVE)
    assert title(metal, Impact.CURRENT) == "for now"
    info = metal.domain(TEST_UUID)
    assert info is not None and not info.persistent, "it was not made persistent by that"


@pytest.mark.parametrize("metal", [True], indirect=True)
async def test_a_running_domain_stays_where_it_is_whatever_it_is_pinned_to(metal: MetalDriver) -> None:
    pin = Metadata(MetadataKind.ELEMENT, "<domain><host>metal-2</host></domain>", "nic", WISHES)
    with pytest.raises(LibvirtError, match="stays there while it runs") as refused:
        await metal.set_metadata(SOMEBODY, TEST_UUID, pin, Impact.LIVE)
    assert refused.value.code is Code.CONFIG_UNSUPPORTED
    await metal.set_metadata(SOMEBODY, TEST_UUID, pin, Impact.CONFIG)


async def test_a_domain_that_becomes_anothers_is_handed_over_before_the_rest_is_told(
    metal: MetalDriver,
) -> None:
    heard = Heard()
    metal.subscribe(heard)
    theirs = Metadata(MetadataKind.ELEMENT, "<domain><tenant>red</tenant></domain>", "nic", WISHES)
    await metal.set_metadata(SOMEBODY, TEST_UUID, theirs, Impact.CONFIG)
    assert [type(each) for each in heard.events] == [HandoverEvent, MetadataChangeEvent]
    first = heard.events[0]
    assert isinstance(first, HandoverEvent)
    assert (first.was.tenant, first.domain.tenant) == (None, "red")
    await metal.set_metadata(SOMEBODY, TEST_UUID, replace(theirs, text=None), Impact.CONFIG)
    assert not any(isinstance(each, LifecycleEvent) for each in heard.events)
