"""What the controller promises its faces: placement, definitions, addresses, autostart, who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nicagent import controller as controller_module
from nicagent.errors import Kind, NicagentError
from nicagent.model import Change, Display, Domain, DomainEvent, HostState, Port, Power, PowerAction
from nicagent.snapshots import Notes
from nicagent.store import HostRecord, Store
from tests.rig import TESTER, Rig, bodies, domain, held


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig.live(tmp_path / "nicagent.db", bodies()) as rig:
        await rig.power_known()
        yield rig


def kind_of(caught: pytest.ExceptionInfo[NicagentError]) -> Kind:
    return caught.value.kind


async def run(rig: Rig, vm: Domain) -> None:
    await rig.controller.define(vm, TESTER)
    await rig.controller.start(vm.uuid, TESTER)


# ---- placement


async def test_a_domain_goes_to_the_first_host_that_can_take_it(rig: Rig) -> None:
    await run(rig, domain("a"))
    await run(rig, domain("b"))
    assert rig.controller.domain(domain("a").uuid).host == "metal-1"
    assert rig.controller.domain(domain("b").uuid).host == "metal-2"


async def test_a_domain_with_a_screen_goes_where_it_is_shown_if_it_can(rig: Rig) -> None:
    rig.bodies["metal-1"].screen = False
    for name, host, shown in (("a", "metal-2", True), ("b", "metal-1", False)):
        await run(rig, domain(name, display=Display()))
        status = rig.controller.domain(domain(name).uuid)
        assert (status.host, status.display is not None) == (host, shown)


async def test_a_pinned_domain_goes_nowhere_else(rig: Rig) -> None:
    await run(rig, domain("a", host="metal-2"))
    assert rig.controller.domain(domain("a").uuid).host == "metal-2"
    await rig.controller.define(domain("b", host="metal-2"), TESTER)
    with pytest.raises(NicagentError, match="metal-2 is running") as caught:
        await rig.controller.start(domain("b").uuid, TESTER)
    assert kind_of(caught) is Kind.WRONG_STATE
    assert "metal-1" not in caught.value.message


@pytest.mark.parametrize(
    ("wish", "refusal"),
    [
        ({"memory_kib": 3 << 20}, "metal-2 has 2048 MiB of memory, 3072 are asked for"),
        ({"vcpus": 3}, "metal-2 has 2 CPUs, 3 are asked for"),
        ({"ports": (Port("port0", "blue"), Port("port1", "blue"))}, "metal-2 has 1 NICs for 2 interfaces"),
    ],
)
async def test_a_domain_too_big_for_every_host_is_told_what_each_lacks(
    rig: Rig, wish: dict[str, Any], refusal: str
) -> None:
    await rig.controller.define(domain("big", **wish), TESTER)
    with pytest.raises(NicagentError) as caught:
        await rig.controller.start(domain("big").uuid, TESTER)
    assert refusal in caught.value.message
    assert not rig.bodies["metal-1"].acts, "nothing is touched for a start that cannot be"


async def test_a_domain_that_fits_only_the_second_host_goes_there(rig: Rig) -> None:
    await run(rig, domain("wide", vcpus=2))
    assert rig.controller.domain(domain("wide").uuid).host == "metal-2"


async def test_a_host_that_somebody_switched_on_is_not_taken(rig: Rig) -> None:
    rig.bodies["metal-1"].set_power(Power.ON)
    rig.bodies["metal-2"].set_power(Power.UNKNOWN)
    await rig.controller.define(domain("a"), TESTER)
    with pytest.raises(NicagentError) as caught:
        await rig.controller.start(domain("a").uuid, TESTER)
    assert "metal-1 is switched on without a domain" in caught.value.message
    assert "metal-2 has no readable power state" in caught.value.message


async def test_two_starts_at_once_never_share_a_host(rig: Rig) -> None:
    for name in ("a", "b"):
        await rig.controller.define(domain(name), TESTER)
    await asyncio.gather(*(rig.controller.start(domain(name).uuid, TESTER) for name in ("a", "b")))
    assert {rig.controller.domain(domain(name).uuid).host for name in ("a", "b")} == {"metal-1", "metal-2"}


async def test_two_starts_of_one_domain_start_it_once(rig: Rig) -> None:
    await rig.controller.define(domain("a"), TESTER)
    both = await asyncio.gather(
        *(rig.controller.start(domain("a").uuid, TESTER) for _ in range(2)), return_exceptions=True
    )
    assert sorted(isinstance(each, NicagentError) for each in both) == [False, True]
    assert rig.events().count(DomainEvent.STARTED) == 1


# ---- ports


async def test_a_mac_that_is_not_the_nics_own_is_refused(rig: Rig) -> None:
    own, other = "52:54:00:00:00:01", "52:54:00:aa:bb:cc"
    await rig.controller.define(
        domain("a", host="metal-1", ports=(Port("port0", "blue", mac=other),)), TESTER
    )
    with pytest.raises(NicagentError, match=f"has a NIC with MAC {own}, not {other}") as caught:
        await rig.controller.start(domain("a").uuid, TESTER)
    assert kind_of(caught) is Kind.WRONG_STATE
    await run(rig, domain("a", host="metal-1", ports=(Port("port0", "blue", mac=own),)))


async def test_a_segment_that_nobody_knows_is_refused_with_those_that_are(rig: Rig) -> None:
    await rig.controller.define(domain("a", ports=(Port("port0", "green"),)), TESTER)
    with pytest.raises(NicagentError, match="no segment is called 'green'; known: blue"):
        await rig.controller.start(domain("a").uuid, TESTER)


@pytest.mark.parametrize("address", ["192.0.2.7", "10.100.1.1", "no address"])
async def test_an_address_outside_its_segment_is_refused(rig: Rig, address: str) -> None:
    await rig.controller.define(domain("a", ports=(Port("port0", "blue", ipv4=address),)), TESTER)
    with pytest.raises(NicagentError, match=r"no address of 10\.100\.0\.0/24") as caught:
        await rig.controller.start(domain("a").uuid, TESTER)
    assert kind_of(caught) is Kind.INVALID


def address_of(rig: Rig, vm: Domain) -> str:
    return rig.controller.domain(vm.uuid).bindings[0].ipv4


async def test_addresses_are_unique_and_kept_from_run_to_run(rig: Rig) -> None:
    a, b = domain("a", host="metal-1"), domain("b", host="metal-2")
    await run(rig, a)
    await run(rig, b)
    first = address_of(rig, a), address_of(rig, b)
    assert first == ("10.100.0.10", "10.100.0.11")
    for vm in (a, b):
        await rig.controller.destroy(vm.uuid, TESTER)
    for vm in (b, a):
        await rig.controller.start(vm.uuid, TESTER)
    assert (address_of(rig, a), address_of(rig, b)) == first


async def test_an_address_that_another_domain_has_is_not_given_twice(rig: Rig) -> None:
    await run(rig, domain("a"))
    await rig.controller.define(domain("b", ports=(Port("port0", "blue", ipv4="10.100.0.10"),)), TESTER)
    with pytest.raises(NicagentError, match="is the address of domain") as caught:
        await rig.controller.start(domain("b").uuid, TESTER)
    assert kind_of(caught) is Kind.EXISTS


async def test_a_running_domain_keeps_its_address_when_it_is_undefined(rig: Rig) -> None:
    a, b = domain("a"), domain("b")
    await run(rig, a)
    await rig.controller.undefine(a.uuid, TESTER)
    await run(rig, b)
    assert address_of(rig, a) != address_of(rig, b), "two running hosts with one address"


async def test_addresses_of_domains_that_are_gone_are_free_again(rig: Rig) -> None:
    """The segment has three addresses; five transient domains in turn need one each."""
    for number in range(5):
        vm = domain(f"passing-{number}")
        await rig.controller.create(vm, TESTER)
        await rig.controller.destroy(vm.uuid, TESTER)


# ---- definitions


async def test_define_start_and_destroy_of_what_is_not_there(rig: Rig) -> None:
    for call in (rig.controller.start, rig.controller.destroy, rig.controller.undefine, rig.controller.reset):
        with pytest.raises(NicagentError, match="no domain with matching uuid") as caught:
            await call(domain("nobody").uuid, TESTER)
        assert kind_of(caught) is Kind.NOT_FOUND


async def test_a_name_and_a_uuid_belong_together(rig: Rig) -> None:
    await rig.controller.define(domain("a"), TESTER)
    with pytest.raises(NicagentError, match="'a' already exists with uuid") as caught:
        await rig.controller.define(replace(domain("b"), name="a"), TESTER)
    assert kind_of(caught) is Kind.EXISTS
    with pytest.raises(NicagentError, match="'a' is already defined with uuid"):
        await rig.controller.define(replace(domain("a"), name="b"), TESTER)


async def test_a_definition_survives_the_agent_and_its_host_being_unwired_does_not_break_it(
    tmp_path: Path,
) -> None:
    world = bodies()
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.define(domain("a", host="metal-2"), TESTER)
        await rig.controller.set_autostart(domain("a").uuid, True, TESTER)
    del world["metal-2"]
    async with Rig.live(tmp_path / "db", world) as rig:
        status = rig.controller.domain(domain("a").uuid)
        assert status.domain.autostart
        with pytest.raises(NicagentError, match="metal-2 is not in the config"):
            await rig.controller.start(domain("a").uuid, TESTER)


async def test_a_busy_host_may_not_vanish_from_the_config(tmp_path: Path) -> None:
    world = bodies()
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.power_known()
        await run(rig, domain("a", host="metal-2"))
    del world["metal-2"]
    with pytest.raises(NicagentError, match="host metal-2 is running but no longer in the config"):
        async with Rig.live(tmp_path / "db", world):
            pass


async def test_pinning_to_an_unknown_host_is_refused(rig: Rig) -> None:
    with pytest.raises(NicagentError, match="unknown host 'metal-9'; known: metal-1, metal-2"):
        await rig.controller.define(domain("a", host="metal-9"), TESTER)


async def test_a_new_definition_of_a_running_domain_counts_from_its_next_start(rig: Rig) -> None:
    await run(rig, domain("a", host="metal-2"))
    await rig.controller.define(domain("a", host="metal-2", vcpus=2), TESTER)
    assert rig.controller.domain(domain("a").uuid).domain.vcpus == 1, "what runs is what was started"
    assert rig.controller.definition(domain("a").uuid).vcpus == 2
    assert rig.events()[-1] is DomainEvent.UPDATED
    await rig.controller.destroy(domain("a").uuid, TESTER)
    await rig.controller.start(domain("a").uuid, TESTER)
    assert rig.controller.domain(domain("a").uuid).domain.vcpus == 2


async def test_a_running_domain_that_is_undefined_goes_on_as_transient_and_vanishes_at_its_end(
    rig: Rig,
) -> None:
    vm = domain("a")
    await run(rig, vm)
    await rig.controller.undefine(vm.uuid, TESTER)
    status = rig.controller.domain(vm.uuid)
    assert status.state is HostState.RUNNING
    assert not status.domain.persistent
    with pytest.raises(NicagentError, match="transient") as caught:
        await rig.controller.undefine(vm.uuid, TESTER)
    assert kind_of(caught) is Kind.WRONG_STATE
    with pytest.raises(NicagentError, match="transient"):
        await rig.controller.set_autostart(vm.uuid, True, TESTER)
    await rig.controller.destroy(vm.uuid, TESTER)
    assert rig.controller.domains() == []
    assert rig.events()[-1] is DomainEvent.DESTROYED


async def test_a_transient_domain_is_known_only_while_it_runs(rig: Rig) -> None:
    vm = domain("a")
    await rig.controller.create(vm, TESTER)
    assert not rig.controller.domain(vm.uuid).domain.persistent
    rig.bodies["metal-1"].set_power(Power.OFF)
    await rig.in_state("metal-1", HostState.FREE)
    assert rig.controller.domains() == []
    assert rig.controller._domains._ended == {}, "nothing is kept of domains that are gone"


async def test_a_transient_domain_survives_the_agent_and_can_be_made_persistent(tmp_path: Path) -> None:
    world, vm = bodies(), domain("a")
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.power_known()
        await rig.controller.create(vm, TESTER)
    async with Rig.live(tmp_path / "db", world) as rig:
        assert rig.controller.domain(vm.uuid).state is HostState.RUNNING
        await rig.controller.define(vm, TESTER)
        assert rig.controller.domain(vm.uuid).domain.persistent


async def test_a_transient_start_that_fails_says_why(rig: Rig) -> None:
    rig.bodies["metal-1"].fail["ports up"] = 1
    with pytest.raises(NicagentError, match="ports up does not work today"):
        await rig.controller.create(domain("a"), TESTER)
    assert rig.controller.domains() == []


async def test_names_of_transient_domains_are_taken_too(rig: Rig) -> None:
    results = await asyncio.gather(
        rig.controller.create(domain("a"), TESTER),
        rig.controller.create(replace(domain("b"), name="a"), TESTER),
        return_exceptions=True,
    )
    assert [type(each) for each in results if isinstance(each, BaseException)] == [NicagentError]


async def test_domain_ids_grow_over_restarts_and_are_none_while_off(tmp_path: Path) -> None:
    world, vm = bodies(), domain("a")
    ids = []
    for _ in range(3):
        async with Rig.live(tmp_path / "db", world) as rig:
            await rig.power_known()
            await run(rig, vm)
            ids.append(rig.controller.domain(vm.uuid).id)
            await rig.controller.destroy(vm.uuid, TESTER)
            assert rig.controller.domain(vm.uuid).id is None
    assert ids == [1, 2, 3]


async def test_the_last_change_of_a_run_shows_the_domain_as_it_is_then_off(rig: Rig) -> None:
    await run(rig, domain("a"))
    await rig.controller.destroy(domain("a").uuid, TESTER)
    last = next(change for change in reversed(rig.changes) if change.event is DomainEvent.DESTROYED)
    assert last.domain is not None
    assert (last.domain.id, last.domain.host) == (None, None)
    assert last.host is not None
    assert last.host.domain is None


async def test_a_watcher_that_fails_does_not_keep_others_from_being_told(rig: Rig) -> None:
    told: list[Change] = []

    def broken(change: Change) -> None:
        raise RuntimeError("a face with a fault of its own")

    rig.controller.watch(broken)
    end = rig.controller.watch(told.append)
    await rig.controller.define(domain("a"), TESTER)
    assert [change.event for change in told] == [DomainEvent.DEFINED]
    end()
    await rig.controller.undefine(domain("a").uuid, TESTER)
    assert len(told) == 1


# ---- autostart


async def test_autostart_happens_once_a_boot_of_the_board_and_not_on_an_agent_restart(tmp_path: Path) -> None:
    world = bodies()
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-1")
        await rig.controller.define(domain("auto"), TESTER)
        await rig.controller.define(domain("manual"), TESTER)
        await rig.controller.set_autostart(domain("auto").uuid, True, TESTER)
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-1")
        assert rig.controller.domain(domain("auto").uuid).id is None, "started by an agent restart"
    async with Rig.live(tmp_path / "db", world) as rig:
        # No power fact is known yet: the board has just come up, and so has the agent.
        await rig.controller.autostart("boot-2")
        assert rig.controller.domain(domain("auto").uuid).state is HostState.RUNNING
        assert rig.controller.domain(domain("manual").uuid).id is None
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-3")
        assert rig.controller.domain(domain("auto").uuid).state is HostState.RUNNING
    assert world["metal-1"].acts.count("power on") == 1, "a host that runs is left alone"


async def test_what_is_marked_to_be_started_once_is_started_at_one_boot_of_the_board(tmp_path: Path) -> None:
    world = bodies()
    uuid = domain("once").uuid
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-1")
        await rig.controller.define(domain("once"), TESTER)
        await rig.controller.set_autostart_once(uuid, True, TESTER)
        await rig.controller.define(domain("once"), TESTER)
        assert rig.controller.domain(uuid).domain.autostart_once, "a new document does not take the mark away"
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-2")
        assert rig.controller.domain(uuid).state is HostState.RUNNING
        assert not rig.controller.domain(uuid).domain.autostart_once
        await rig.controller.destroy(uuid, TESTER)
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-3")
        assert rig.controller.domain(uuid).id is None


async def test_autostart_brings_back_what_a_power_loss_took(tmp_path: Path) -> None:
    world = bodies()
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-1")
        await run(rig, domain("auto", host="metal-1"))
        await rig.controller.set_autostart(domain("auto").uuid, True, TESTER)
    world["metal-1"].power = Power.OFF  # board and host lost their power together
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-2")
        assert rig.controller.domain(domain("auto").uuid).state is HostState.RUNNING
        assert world["metal-1"].power is Power.ON


async def test_autostart_passes_over_a_host_without_a_power_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "AUTOSTART_SECONDS", 0.1)
    world = bodies()
    world["metal-1"].power = Power.UNKNOWN
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.controller.autostart("boot-1")
        await rig.controller.define(domain("auto"), TESTER)
        await rig.controller.set_autostart(domain("auto").uuid, True, TESTER)
        await rig.controller.autostart("boot-2")
        assert rig.controller.domain(domain("auto").uuid).host == "metal-2"


# ---- power for a technician


async def test_power_of_a_free_host_is_worked_directly(rig: Rig) -> None:
    status = await rig.controller.technician.power("metal-1", PowerAction.ON, TESTER)
    assert status.power is Power.ON
    assert status.state is HostState.FREE
    await rig.controller.technician.cycle("metal-1", TESTER)
    status = await rig.controller.technician.power("metal-1", PowerAction.OFF, TESTER)
    assert status.power is Power.OFF
    assert rig.bodies["metal-1"].acts == ["power on", "power off", "power on", "power off"]


async def test_a_power_button_without_effect_is_told(rig: Rig) -> None:
    rig.bodies["metal-1"].dead_button = True
    with pytest.raises(NicagentError, match="told to power on but its power reads off"):
        await rig.controller.technician.power("metal-1", PowerAction.ON, TESTER)


async def test_power_of_an_occupied_host_goes_through_its_domain(rig: Rig) -> None:
    await run(rig, domain("a"))
    assert (
        await rig.controller.technician.power("metal-1", PowerAction.ON, TESTER)
    ).state is HostState.RUNNING
    await rig.controller.technician.power("metal-1", PowerAction.RESET, TESTER)
    status = await rig.controller.technician.power("metal-1", PowerAction.OFF, TESTER)
    assert status.state is HostState.FREE
    assert rig.bodies["metal-1"].untouched
    assert rig.events()[-1] is DomainEvent.DESTROYED


async def test_verbs_that_do_not_fit_the_state_are_refused(rig: Rig) -> None:
    await rig.controller.define(domain("a"), TESTER)
    for call in (rig.controller.destroy, rig.controller.shutdown, rig.controller.reset):
        with pytest.raises(NicagentError, match="domain is not running") as caught:
            await call(domain("a").uuid, TESTER)
        assert kind_of(caught) is Kind.WRONG_STATE
    body = rig.bodies["metal-1"]
    body.hold.add("exports up")
    start = asyncio.create_task(rig.controller.start(domain("a").uuid, TESTER))
    await held(body)
    with pytest.raises(NicagentError, match="cannot reset a host in state preparing"):
        await rig.controller.reset(domain("a").uuid, TESTER)
    with pytest.raises(NicagentError, match="metal-1 is in state preparing"):
        await rig.controller.technician.power("metal-1", PowerAction.ON, TESTER)
    body.hold.clear()
    await start


async def test_an_unknown_host_is_named_with_those_that_are_known(rig: Rig) -> None:
    with pytest.raises(NicagentError, match="no host is called 'metal-9'; known hosts: metal-1, metal-2"):
        rig.controller.host("metal-9")


async def test_counters_are_of_the_run_and_empty_without_one(rig: Rig) -> None:
    await rig.controller.define(domain("a"), TESTER)
    assert await rig.controller.statistics(domain("a").uuid) == ((), ())
    await rig.controller.start(domain("a").uuid, TESTER)
    exports, ports = await rig.controller.statistics(domain("a").uuid)
    assert [export.target for export in exports] == ["vda", "vdb"]
    assert [port.name for port in ports] == ["port0"]


async def test_marks_of_a_run_say_when_it_was_asked_for_and_when_power_good_came(rig: Rig) -> None:
    await run(rig, domain("a"))
    marks = rig.controller.host("metal-1").marks
    assert marks["asked"] <= marks["power-good"]


async def test_a_host_that_nobody_ever_recorded_is_free(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "db")
    await store.put_host(HostRecord("metal-1", HostState.FREE, "clean"))
    await store.close()
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        assert [status.state for status in rig.controller.hosts()] == [HostState.FREE, HostState.FREE]


# ---- notes of snapshots


async def notes_in_store(rig: Rig) -> list[str]:
    return [each.domain for each in await rig.store.objects("snapshots", Notes)]


@pytest.mark.parametrize("died", [False, True])
async def test_notes_of_snapshots_end_with_the_domain(tmp_path: Path, died: bool) -> None:
    """It was undefined while it ran, and then stopped; the agent may die right after."""
    world, vm = bodies(), domain("a")
    async with Rig.live(tmp_path / "nicagent.db", world) as rig:
        await rig.power_known()
        await run(rig, vm)
        await rig.controller.snapshots.keep(vm.uuid, "a note")
        await rig.controller.undefine(vm.uuid, TESTER)
        assert rig.controller.snapshots.of(vm.uuid) == "a note", "it still runs"
        if died:  # before the store could be told
            rig.store.drop_object = forever  # type: ignore[method-assign]
        await rig.controller.destroy(vm.uuid, TESTER)
        assert rig.controller.snapshots.of(vm.uuid) is None
        if not died:
            await rig.until(lambda: not rig.controller.snapshots._left, "the store's forgetting")
        assert await notes_in_store(rig) == ([vm.uuid] if died else [])
    async with Rig.live(tmp_path / "nicagent.db", world) as rig:
        await rig.power_known()
        await rig.controller.define(vm, TESTER)
        assert rig.controller.snapshots.of(vm.uuid) is None, "another domain of its UUID has its snapshots"
        assert not await notes_in_store(rig)


async def forever(kind: str, uuid: str) -> None:
    await asyncio.Event().wait()
