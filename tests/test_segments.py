"""The owner of segments: what clients define is durable, what the config wires in is not theirs to change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent import config as config_module
from nicagent.config import Config
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause
from nicagent.segments import Definition, SegmentEvent, Segments
from nicagent.store import Store
from tests.rig import two_hosts

TESTER = Cause("a tester", "the test asks")
UUID = "11111111-1111-1111-1111-111111111111"
OTHER = "11111111-1111-1111-1111-111111111112"
GREEN = Definition("green", "10.2.0.0/24", ("10.2.0.10", "10.2.0.99"), vni=200)


@asynccontextmanager
async def segments(
    directory: Path, *, boot: str = "first", used: Collection[str] = (), config: Config | None = None
) -> AsyncIterator[Segments]:
    """Leaving it is the agent's death."""
    store = await Store.open(directory / "nicagent.db")
    try:
        owner = Segments(config or two_hosts(), store)
        await owner.load(boot, used)
        yield owner
    finally:
        await store.close()


async def refusal(work: object) -> NicagentError:
    with pytest.raises(NicagentError) as caught:
        await work  # type: ignore[misc]
    return caught.value


async def test_what_a_client_defines_outlives_the_agent(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        blue = owner.find("blue")
        assert blue is not None and blue.wired and owner.active["blue"].vni == 100
        await owner.define(UUID, GREEN, TESTER)
        assert "green" not in owner.active, "it is defined, not started"
        await owner.start(UUID, TESTER)
        await owner.set_autostart(UUID, True, TESTER)
    async with segments(tmp_path) as owner:
        again = owner.find("blue")
        assert again is not None and again.uuid == blue.uuid, "a network keeps its UUID"
        record = owner.get(UUID)
        assert (record.config, record.live, record.autostart) == (GREEN, GREEN, True)
        assert owner.active["green"].cidr == "10.2.0.0/24"
        await owner.stop(UUID, TESTER)
        await owner.undefine(UUID, TESTER)
    async with segments(tmp_path) as owner:
        assert [record.name for record in owner.all()] == ["blue"]


async def test_after_a_boot_of_the_board_only_what_is_marked_or_in_use_is_active(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        for number, name in enumerate(("idle", "used", "marked")):
            definition = Definition(name, "10.2.0.0/24", ("10.2.0.10", "10.2.0.99"), vni=200 + number)
            uuid = UUID[:-1] + str(number)
            await owner.define(uuid, definition, TESTER)
            await owner.start(uuid, TESTER)
        await owner.set_autostart(UUID[:-1] + "2", True, TESTER)
        passing = Definition("passing", "10.2.0.0/24", ("10.2.0.10", "10.2.0.99"), vni=210)
        await owner.create(OTHER[:-1] + "9", passing, TESTER)
        assert len(owner.active) == 5
    async with segments(tmp_path, boot="second", used={"used"}) as owner:
        assert set(owner.active) == {"blue", "used", "marked"}
        assert owner.find("passing") is None, "a transient network ends with the boot"
        assert owner.find("idle") is not None


async def test_a_network_without_a_vni_gets_the_next_free_one(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        open_one = Definition("a", "10.2.0.0/24", ("10.2.0.10", "10.2.0.99"))
        first = await owner.define(UUID, open_one, TESTER)
        second = await owner.define(OTHER, Definition("b", "10.2.0.0/24", ("10.2.0.10", "10.2.0.99")), TESTER)
        assert (first.now.vni, second.now.vni) == (100_000, 100_001)
        again = await owner.define(UUID, open_one, TESTER)
        assert again.now.vni == 100_000, "defined anew, it keeps the one it has"


async def test_names_uuids_and_vnis_are_one_networks_each(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        await owner.define(UUID, GREEN, TESTER)
        for uuid, definition, words in (
            (OTHER, GREEN, f"network 'green' already exists with uuid {UUID}"),
            (UUID, Definition("red", *("10.3.0.0/24", ("10.3.0.1", "10.3.0.9"))), "is already defined"),
            (OTHER, Definition("red", "10.3.0.0/24", ("10.3.0.1", "10.3.0.9"), vni=200), "VNI 200 is that"),
            (OTHER, Definition("red", "10.3.0.0/24", ("10.3.0.1", "10.3.0.9"), vni=100), "network 'blue'"),
        ):
            failure = await refusal(owner.define(uuid, definition, TESTER))
            assert failure.kind is Kind.EXISTS and words in str(failure)


async def test_what_carries_ports_is_not_stopped(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        told: list[SegmentEvent] = []
        owner.watch(lambda event, _: told.append(event))
        await owner.define(UUID, GREEN, TESTER)
        await owner.start(UUID, TESTER)
        owner.who_uses(lambda name: ["domain web on metal-1"] if name == "green" else [])
        failure = await refusal(owner.stop(UUID, TESTER))
        assert failure.kind is Kind.WRONG_STATE and "in use by domain web on metal-1" in str(failure)
        await owner.undefine(UUID, TESTER)
        assert owner.get(UUID).config is None and "green" in owner.active, "it goes on as a transient one"
        owner.who_uses(lambda name: [])
        await owner.stop(UUID, TESTER)
        assert owner.find("green") is None
        assert told == [
            SegmentEvent.DEFINED,
            SegmentEvent.STARTED,
            SegmentEvent.UNDEFINED,
            SegmentEvent.STOPPED,
        ]


async def test_the_configs_segments_are_not_a_clients(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        blue = owner.find("blue")
        assert blue is not None
        for work in (
            owner.stop(blue.uuid, TESTER),
            owner.undefine(blue.uuid, TESTER),
            owner.define(blue.uuid, Definition("blue", "10.9.0.0/24", ("10.9.0.1", "10.9.0.9")), TESTER),
            owner.set_autostart(blue.uuid, False, TESTER),
        ):
            failure = await refusal(work)
            assert failure.kind is Kind.WRONG_STATE and "wired by the agent's config" in str(failure)


async def test_addresses_kept_on_a_segment_of_the_config_stay_kept(tmp_path: Path) -> None:
    mac, address = "52:54:00:00:00:01", "10.100.0.11"
    async with segments(tmp_path) as owner:
        blue = owner.find("blue")
        assert blue is not None and blue.config is not None
        await owner.amend(
            blue.uuid, live=None, config=replace(blue.config, fixed={mac: address}), cause=TESTER
        )
        assert owner.carrying("blue").fixed == {mac: address}, "for the ports to come, too"
        wider = replace(blue.config, range=("10.100.0.1", "10.100.0.99"))
        failure = await refusal(owner.amend(blue.uuid, live=wider, config=None, cause=TESTER))
        assert "cannot get another range" in str(failure)
    async with segments(tmp_path) as owner:
        assert owner.carrying("blue").fixed == {mac: address}


async def test_what_ports_stand_on_does_not_change_under_them(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        await owner.define(UUID, GREEN, TESTER)
        await owner.start(UUID, TESTER)
        for other in (replace(GREEN, vni=201), replace(GREEN, cidr="10.3.0.0/24"), replace(GREEN, mtu=1300)):
            failure = await refusal(owner.amend(UUID, live=other, config=None, cause=TESTER))
            assert failure.kind is Kind.UNSUPPORTED
        await owner.define(UUID, replace(GREEN, mtu=1300), TESTER)
        assert owner.active["green"].mtu == 1450, "a definition counts from the next start"
        await owner.stop(UUID, TESTER)
        await owner.start(UUID, TESTER)
        assert owner.active["green"].mtu == 1300


async def test_ports_go_to_active_segments_only(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        await owner.define(UUID, GREEN, TESTER)
        for name, kind, words in (
            ("green", Kind.WRONG_STATE, "network 'green' is not active"),
            ("nobody", Kind.NOT_FOUND, "no segment is called 'nobody'; known: blue, green"),
        ):
            with pytest.raises(NicagentError) as caught:
                owner.carrying(name)
            assert caught.value.kind is kind and words in str(caught.value)


async def test_a_config_that_takes_a_clients_name_or_vni_is_refused(tmp_path: Path) -> None:
    async with segments(tmp_path) as owner:
        await owner.define(UUID, GREEN, TESTER)
    head = 'hosts = {m = {power = {driver = "gpio"}, storage = {transport = "virtio", slot = "/s"}}}\n'
    for name, vni, words in (("green", 300, "a client has defined"), ("lime", 200, "VNI 200 is that of")):
        clashing = config_module.parse(
            f"""{head}
            [overlay]
            local = "192.0.2.1"
            [segments.{name}]
            vni = {vni}
            cidr = "10.9.0.0/24"
            range = ["10.9.0.1", "10.9.0.9"]
            """
        )
        with pytest.raises(NicagentError, match=words):
            async with segments(tmp_path, config=clashing):
                pass
