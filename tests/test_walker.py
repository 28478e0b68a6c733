"""One host's walk: the order of its acts, what a failure leaves, what a crash leaves, who is told what.

Every act of every transition is failed, held while somebody asks for STOP, and crashed in; whatever is done
to it, the host ends where the last acknowledged intent wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nicagent import lifecycle, walker
from nicagent.errors import Kind, NicagentError
from nicagent.lifecycle import Action
from nicagent.model import DomainEvent, HostState, Power, PowerAction
from tests.fakes import Body
from tests.rig import TESTER, Rig, bodies, domain, held

UP = ["exports up", "ports up", "screen shown", "boot choice set"]
DOWN = ["boot choice cleared", "screen hidden", "ports down", "exports down"]
HOST = "metal-1"
VM = domain("vm", host=HOST)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "state" / "nicagent.db"


async def started(rig: Rig) -> None:
    """The domain runs, and the journal starts afresh."""
    if VM.uuid not in [status.domain.uuid for status in rig.controller.domains()]:
        await rig.controller.define(VM, TESTER)
    await rig.power_known()
    await rig.controller.start(VM.uuid, TESTER)
    rig.bodies[HOST].acts.clear()
    rig.changes.clear()


# ---- the order of acts


async def test_start_brings_up_disks_then_ports_then_the_boot_choice_and_only_then_power(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        status = await rig.controller.start(VM.uuid, TESTER)
        assert body.acts == [*UP, "power on"]
        assert status.state is HostState.RUNNING
        assert [export.disk.target for export in body.exports] == ["vda", "vdb"]
        assert body.boot is not None
        assert body.boot.disk.target == "vda", "the disk with the lowest boot order is booted"
        assert body.bindings[0].device == "nic1"


async def test_destroy_takes_the_power_first_and_leaves_nothing(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        await rig.controller.destroy(VM.uuid, TESTER)
        assert rig.bodies[HOST].acts == ["power off", *DOWN]
        assert rig.bodies[HOST].untouched
        assert rig.events() == [DomainEvent.DESTROYED]


async def test_the_os_switching_itself_off_is_seen_on_the_led_and_cleaned_up_after(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        await rig.controller.shutdown(VM.uuid, TESTER)
        await rig.in_state(HOST, HostState.FREE)
        assert rig.bodies[HOST].acts == ["ask the OS to shut down", *DOWN]
        assert rig.events() == [DomainEvent.SHUTDOWN, DomainEvent.STOPPED]


async def test_a_shutdown_that_the_os_ignores_is_reported_and_the_host_runs_on(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        rig.bodies[HOST].ignores_shutdown = True
        await started(rig)
        await rig.controller.shutdown(VM.uuid, TESTER)
        await rig.until(
            lambda: "has not gone down" in rig.controller.host(HOST).reason, "the shutdown's own clock"
        )
        assert rig.controller.host(HOST).state is HostState.RUNNING
        assert rig.bodies[HOST].exports, "its disks stay"


async def test_a_cycle_keeps_disks_and_ports(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        await rig.controller.technician.cycle(HOST, TESTER)
        assert rig.bodies[HOST].acts == ["power off", "power on"]
        assert rig.controller.domain(VM.uuid).state is HostState.RUNNING
        assert DomainEvent.STOPPED not in rig.events()


async def test_a_reboot_asks_the_os_and_switches_the_host_on_again_with_its_disks(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        body = rig.bodies[HOST]
        body.acts.clear()
        await rig.controller.reboot(VM.uuid, TESTER)
        await rig.until(
            lambda: (
                DomainEvent.REBOOT in rig.events() and rig.controller.host(HOST).state is HostState.RUNNING
            ),
            "down by the power button, and up again",
        )
        assert body.power is Power.ON
        assert "exports down" not in body.acts and "reset" not in body.acts, (
            f"no more than asked: {body.acts}"
        )
        assert DomainEvent.STARTED not in rig.events(), "a reboot is no start"


async def test_a_reset_is_told_once_it_was_done_and_never_when_it_was_not(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        rig.bodies[HOST].fail["reset"] = 1
        with pytest.raises(NicagentError):
            await rig.controller.reset(VM.uuid, TESTER)
        assert DomainEvent.REBOOT not in rig.events(), "the line was not worked"
        await rig.controller.reset(VM.uuid, TESTER)
        assert rig.events().count(DomainEvent.REBOOT) == 1


async def test_a_reboot_that_the_os_ignores_leaves_the_host_running(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        rig.bodies[HOST].ignores_shutdown = True
        await started(rig)
        await rig.controller.reboot(VM.uuid, TESTER)
        await rig.until(lambda: "for a reboot" in rig.controller.host(HOST).reason, "the OS's time is spent")
        assert rig.controller.host(HOST).state is HostState.RUNNING
        assert DomainEvent.REBOOT not in rig.events()


async def test_events_of_a_whole_life_come_in_libvirts_order(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        await rig.controller.start(VM.uuid, TESTER)
        await rig.controller.reset(VM.uuid, TESTER)
        await rig.controller.shutdown(VM.uuid, TESTER)
        await rig.in_state(HOST, HostState.FREE)
        await rig.controller.undefine(VM.uuid, TESTER)
        assert rig.events() == [
            DomainEvent.DEFINED,
            DomainEvent.STARTED,
            DomainEvent.REBOOT,
            DomainEvent.SHUTDOWN,
            DomainEvent.STOPPED,
            DomainEvent.UNDEFINED,
        ]
        serials = [change.serial for change in rig.changes]
        assert serials == sorted(set(serials)), "change serials grow by one with every change"


# ---- failing


@pytest.mark.parametrize("act", [*UP, "power on"])
async def test_a_start_that_fails_is_rolled_back_and_told(db: Path, act: str) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        body.fail[act] = 1
        with pytest.raises(NicagentError, match=f"{act} does not work today"):
            await rig.controller.start(VM.uuid, TESTER)
        assert rig.controller.host(HOST).state is HostState.FREE
        assert body.untouched, f"left behind after {act} failed: {body.exports} {body.bindings} {body.boot}"
        assert rig.events()[-1] is DomainEvent.FAILED
        assert act in rig.controller.domain(VM.uuid).reason, "the reason is kept with the domain"
        body.acts.clear()
        await rig.controller.start(VM.uuid, TESTER)
        assert body.acts == [*UP, "power on"], "the next start is a whole one"


async def test_power_good_that_does_not_come_is_a_failed_start(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        body.dead_button = True
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        with pytest.raises(NicagentError, match="power-good did not come"):
            await rig.controller.start(VM.uuid, TESTER)
        assert body.untouched
        assert body.acts == [*UP, "power on", "power off", *DOWN]


@pytest.mark.parametrize("act", DOWN)
async def test_cleaning_that_fails_is_a_fault_that_stop_clears(db: Path, act: str) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await started(rig)
        body.fail[act] = 1
        with pytest.raises(NicagentError, match=act):
            await rig.controller.destroy(VM.uuid, TESTER)
        assert rig.controller.host(HOST).state is HostState.FAULT
        assert rig.controller.domain(VM.uuid).host == HOST, "a faulty host is not free for the next tenant"
        await rig.controller.destroy(VM.uuid, TESTER)
        assert body.untouched
        assert rig.controller.host(HOST).state is HostState.FREE


@pytest.mark.parametrize("how", ["refused", "without effect"])
async def test_power_off_that_fails_is_a_fault_that_keeps_the_disks(db: Path, how: str) -> None:
    """The host is still on: taking its disks away now would be the one unforgivable thing."""
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await started(rig)
        if how == "refused":
            body.fail["power off"] = 1
        else:
            body.stuck_on = True
        with pytest.raises(NicagentError, match="could not be stopped"):
            await rig.controller.destroy(VM.uuid, TESTER)
        assert rig.controller.host(HOST).state is HostState.FAULT
        assert body.exports
        assert "exports down" not in body.acts
        body.stuck_on = False
        await rig.controller.destroy(VM.uuid, TESTER)
        assert body.untouched


@pytest.mark.parametrize(
    ("action", "act"),
    [
        (PowerAction.RESET, "reset"),
        (PowerAction.SHUTDOWN, "ask the OS to shut down"),
        (PowerAction.PRESS, "press the power button"),
    ],
)
async def test_a_power_request_that_fails_leaves_the_host_running(
    db: Path, action: PowerAction, act: str
) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        rig.bodies[HOST].fail[act] = 1
        with pytest.raises(NicagentError):  # who asked is told, not only the log
            await rig.controller.technician.power(HOST, action, TESTER)
        await rig.until(lambda: "failed" in rig.controller.host(HOST).reason, "the failure to be kept")
        assert rig.controller.host(HOST).state is HostState.RUNNING
        assert rig.bodies[HOST].exports


async def test_a_press_on_a_free_host_that_fails_is_told(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await rig.power_known()
        rig.bodies[HOST].fail["press the power button"] = 1
        with pytest.raises(NicagentError):
            await rig.controller.technician.power(HOST, PowerAction.PRESS, TESTER)
        await rig.until(lambda: "failed" in rig.controller.host(HOST).reason, "the failure to be kept")
        assert rig.controller.host(HOST).state is HostState.FREE


# ---- deadlines


@pytest.mark.parametrize("act", [*UP, "power on"])
async def test_a_start_that_hangs_is_cancelled_at_its_deadline_and_rolled_back(
    db: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {HostState.PREPARING: 0.1, HostState.POWERING_ON: 0.1}
    monkeypatch.setattr(lifecycle, "DEADLINES", {**lifecycle.DEADLINES, **short})
    async with Rig.live(db, bodies()) as rig:
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        rig.bodies[HOST].hold.add(act)
        with pytest.raises(NicagentError, match="took too long"):
            await rig.controller.start(VM.uuid, TESTER)
        assert rig.bodies[HOST].untouched


async def test_power_that_cannot_be_read_is_waited_for_however_long(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "DEADLINES", {**lifecycle.DEADLINES, HostState.UNKNOWN: 0.2})
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await started(rig)
        body.set_power(Power.UNKNOWN)
        await rig.in_state(HOST, HostState.UNKNOWN)
        body.set_power(Power.ON)
        await rig.in_state(HOST, HostState.RUNNING)
        body.set_power(Power.UNKNOWN)
        await rig.until(
            lambda: "could not be read for long" in rig.controller.host(HOST).reason,
            "the deadline to be told",
        )
        assert rig.controller.host(HOST).state is HostState.UNKNOWN, "a silent BMC is no fault of the host"
        assert body.exports, "a host of which nothing is known keeps its disks"
        body.set_power(Power.ON)
        await rig.in_state(HOST, HostState.RUNNING)


# ---- STOP in the middle of anything


@pytest.mark.parametrize("act", [*UP, "power on"])
async def test_stop_while_starting_cancels_the_act_and_undoes_the_rest(db: Path, act: str) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        body.hold.add(act)
        start = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
        await held(body)
        await rig.controller.destroy(VM.uuid, TESTER)
        assert body.untouched
        assert rig.controller.host(HOST).state is HostState.FREE
        with pytest.raises(NicagentError, match="stopped meanwhile"):
            await start
        assert rig.events()[-1] is DomainEvent.DESTROYED


@pytest.mark.parametrize("act", ["reset", "ask the OS to shut down", "press the power button", "power off"])
async def test_stop_while_something_else_is_asked_of_a_running_host(db: Path, act: str) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await started(rig)
        body.hold.add(act)
        ask = {
            "reset": rig.controller.reset(VM.uuid, TESTER),
            "ask the OS to shut down": rig.controller.shutdown(VM.uuid, TESTER),
            "press the power button": rig.controller.technician.power(HOST, PowerAction.PRESS, TESTER),
            "power off": rig.controller.technician.cycle(HOST, TESTER),
        }
        first = asyncio.create_task(ask.pop(act))
        for other in ask.values():
            other.close()
        await held(body)
        stop = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
        await rig.until(
            lambda: rig.controller.host(HOST).state not in (HostState.RUNNING, HostState.POWERING_ON),
            "the stop to be taken although an act hangs",
        )
        body.hold.clear()
        await stop
        with contextlib.suppress(NicagentError):
            await first
        assert body.untouched


@pytest.mark.parametrize("act", ["power off", *DOWN])
async def test_a_second_stop_joins_the_first(db: Path, act: str) -> None:
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await started(rig)
        body.hold.add(act)
        first = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
        await held(body)
        second = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
        await asyncio.sleep(0.02)
        assert not second.done()
        body.hold.clear()
        await asyncio.gather(first, second)
        assert body.acts == ["power off", *DOWN], "nothing was done twice"


# ---- crashes


ACT_OF = {
    Action.EXPORTS_UP: "exports up",
    Action.PORTS_UP: "ports up",
    Action.SCREEN_UP: "screen shown",
    Action.BOOT_SET: "boot choice set",
    Action.POWER_ON: "power on",
    Action.POWER_OFF: "power off",
    Action.BOOT_CLEAR: "boot choice cleared",
    Action.SCREEN_DOWN: "screen hidden",
    Action.PORTS_DOWN: "ports down",
    Action.EXPORTS_DOWN: "exports down",
}


def test_the_acts_below_are_those_of_the_table() -> None:
    """A new action must get its place in the crash tests."""
    waits = {Action.SETTLE, Action.AWAIT_PGOOD, Action.AWAIT_OFF, Action.CHECK_POWER}
    momentary = {Action.POWER_SHUTDOWN, Action.POWER_RESET, Action.POWER_PRESS}
    assert set(Action) == set(ACT_OF) | waits | momentary
    assert set(ACT_OF.values()) == {*UP, "power on", "power off", *DOWN}


async def crash_in(db: Path, world: dict[str, Body], act: str, do: str) -> None:
    """A life of the agent that ends while `act` of the transition `do` is under way."""
    async with Rig.live(db, world) as rig:
        body = world[HOST]
        if do != "start":
            await started(rig)
        else:
            await rig.controller.define(VM, TESTER)
            await rig.power_known()
        body.hold.add(act)
        asked: asyncio.Task[object] | None = None
        match do:
            case "start":
                asked = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
            case "destroy":
                asked = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
            case "cycle":
                asked = asyncio.create_task(rig.controller.technician.cycle(HOST, TESTER))
            case "os off":
                body.set_power(Power.OFF)
        await held(body)
    if asked is not None:
        asked.cancel()
    body.hold.clear()
    body.held.clear()


@pytest.mark.parametrize(
    ("do", "act"),
    [
        *(("start", act) for act in [*UP, "power on"]),
        *(("cycle", act) for act in ["power off", "power on"]),
        *(("destroy", act) for act in ["power off", *DOWN]),
        *(("os off", act) for act in DOWN),
    ],
)
async def test_a_crash_at_any_act_converges_to_the_acknowledged_intent(db: Path, do: str, act: str) -> None:
    world = bodies()
    await crash_in(db, world, act, do)
    body = world[HOST]
    async with Rig.live(db, world) as rig:
        if do in ("start", "cycle"):
            await rig.in_state(HOST, HostState.RUNNING)
            assert body.power is Power.ON
            assert len(body.exports) == 2
            assert len(body.bindings) == 1
            assert body.boot is not None
        else:
            await rig.in_state(HOST, HostState.FREE)
            assert body.untouched
            wanted = DomainEvent.DESTROYED if do == "destroy" else DomainEvent.STOPPED
            assert rig.events() == [wanted], "the ending that was decided before the crash is the one told"


async def test_a_crash_of_a_running_hosts_agent_touches_no_line(db: Path) -> None:
    world = bodies()
    async with Rig.live(db, world) as rig:
        await started(rig)
        exports = world[HOST].exports
        before = rig.controller.domain(VM.uuid)
    async with Rig.live(db, world) as rig:
        await rig.power_known()
        await rig.until(lambda: "boot choice set" in world[HOST].acts, "the recovery to look at everything")
        await asyncio.sleep(0.05)
        assert rig.controller.host(HOST).state is HostState.RUNNING
        assert not [act for act in world[HOST].acts if act.startswith(("power", "reset", "press"))]
        assert world[HOST].exports == exports, "identities are bit-equal after the restart"
        after = rig.controller.domain(VM.uuid)
        assert after.id == before.id, "the domain keeps its id"
        assert rig.events() == [], "nothing has happened to the domain"


async def test_a_host_that_went_off_while_the_agent_was_dead_is_cleaned_up(db: Path) -> None:
    world = bodies()
    async with Rig.live(db, world) as rig:
        await started(rig)
    world[HOST].power = Power.OFF
    async with Rig.live(db, world) as rig:
        await rig.in_state(HOST, HostState.FREE)
        assert world[HOST].untouched
        assert rig.events() == [DomainEvent.SHUTDOWN, DomainEvent.STOPPED]


async def test_a_press_before_the_crash_may_still_take_effect_and_is_not_pressed_again(db: Path) -> None:
    """A second press on a host that is coming up would be an ACPI button: off again."""
    world = bodies()
    body = world[HOST]
    body.dead_button = True
    async with Rig.live(db, world) as rig:
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        start = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
        await rig.until(lambda: body.acts[-1:] == ["power on"], "the press")
    start.cancel()
    body.acts.clear()
    async with Rig.live(db, world) as rig:
        await rig.until(lambda: "boot choice set" in body.acts, "the recovery to begin")
        asyncio.get_running_loop().call_later(0.05, body.set_power, Power.ON)
        await rig.in_state(HOST, HostState.RUNNING)
    assert "power off" not in body.acts


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    crashes=st.lists(st.sampled_from([*UP, "power on", "power off", *DOWN]), min_size=1, max_size=4),
    stop=st.booleans(),
)
async def test_crash_after_crash_ends_where_the_last_intent_wants_it(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[str], stop: bool
) -> None:
    """Each life dies in an act of its own choosing (or idle, where that act does not come)."""
    db = tmp_path_factory.mktemp("crashes") / "nicagent.db"
    world = bodies()
    body = world[HOST]
    async with Rig.live(db, world) as rig:
        await started(rig)
        if stop:
            body.hold.add("power off")
            asked = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
            await held(body)
            asked.cancel()
    for act in crashes:
        body.hold, body.held = {act}, asyncio.Event()
        async with Rig.live(db, world):
            with contextlib.suppress(TimeoutError):
                await held(body, 0.1)
    body.hold = set()
    async with Rig.live(db, world) as rig:
        await rig.in_state(HOST, HostState.FREE if stop else HostState.RUNNING)
        if stop:
            assert body.untouched
        else:
            assert len(body.exports) == 2


# ---- facts and their own echo


async def slow_write(rig: Rig, entered: asyncio.Event, go_on: asyncio.Event) -> None:
    """Have the store take its time over the next host record."""
    write = rig.store.put_host

    async def put_host(record: object, **how: bool) -> None:
        entered.set()
        await go_on.wait()
        await write(record, **how)  # type: ignore[arg-type]

    rig.store.put_host = put_host  # type: ignore[method-assign]


@pytest.mark.parametrize("echo", ["done", "deadline"])
async def test_the_echo_of_a_move_that_is_over_is_dropped(
    db: Path, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STOP is being written to disk when the act that it is to cancel ends (or its deadline comes): that
    DONE belongs to PREPARING, and must not end CLEANING before its acts are done.
    """
    if echo == "deadline":
        monkeypatch.setattr(lifecycle, "DEADLINES", {**lifecycle.DEADLINES, HostState.PREPARING: 0.2})
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        body.hold.add("boot choice set")
        start = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
        await held(body)
        entered, go_on = asyncio.Event(), asyncio.Event()
        await slow_write(rig, entered, go_on)
        stop = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
        await entered.wait()
        if echo == "done":
            body.hold.discard("boot choice set")
            await rig.until(lambda: body.boot is not None, "the act to end while STOP is written")
        else:
            await asyncio.sleep(0.25)
        body.hold.add("ports down")
        body.held.clear()
        go_on.set()
        await rig.until(lambda: "ports down" in body.acts, "the cleaning")
        await asyncio.sleep(0.02)
        assert rig.controller.host(HOST).state is HostState.CLEANING, "ended by an echo of the last state"
        body.hold.clear()
        await stop
        with pytest.raises(NicagentError):
            await start
        assert body.untouched
        assert rig.events()[-1] is DomainEvent.DESTROYED


async def test_an_intent_on_a_full_disk_is_refused_and_nothing_is_done(db: Path) -> None:
    async with Rig.live(db, bodies()) as rig:
        await started(rig)

        async def put_host(record: object, **how: bool) -> None:
            raise NicagentError(Kind.NO_SPACE, "the disk that holds the state is full", "free some space")

        rig.store.put_host = put_host  # type: ignore[method-assign]
        with pytest.raises(NicagentError) as refused:
            await rig.controller.destroy(VM.uuid, TESTER)
        assert refused.value.kind is Kind.NO_SPACE
        assert rig.bodies[HOST].acts == []
        assert rig.controller.host(HOST).state is HostState.RUNNING


async def test_a_fact_on_a_full_disk_is_taken_once_there_is_room(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "RETRY_SECONDS", 0.02)
    async with Rig.live(db, bodies()) as rig:
        await started(rig)
        write, refusals = rig.store.put_host, 3

        async def put_host(record: object, **how: bool) -> None:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise NicagentError(Kind.NO_SPACE, "the disk that holds the state is full", "free some space")
            await write(record, **how)  # type: ignore[arg-type]

        rig.store.put_host = put_host  # type: ignore[method-assign]
        rig.bodies[HOST].set_power(Power.OFF)
        await rig.in_state(HOST, HostState.FREE)
        assert rig.bodies[HOST].untouched
        assert refusals == 0


async def test_a_power_driver_that_is_not_there_is_tried_again(db: Path) -> None:
    world = bodies()
    world[HOST].fail["start"] = 1
    async with Rig.live(db, world) as rig:
        assert rig.controller.host(HOST).power is Power.UNKNOWN
        await rig.power_known()


async def test_the_walker_ends_when_told_while_it_waits_for_an_act_to_end(db: Path) -> None:
    """Its own cancellation must not be mistaken for that of the act (an agent that does not stop)."""
    async with Rig.live(db, bodies()) as rig:
        body = rig.bodies[HOST]
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        stubborn = asyncio.Event()

        async def present(exports: object, initiator: object) -> None:
            try:
                await stubborn.wait()
            finally:
                body.held.set()
                await asyncio.sleep(0.2)  # what a button being released, a process being ended, may take

        parts = rig.controller._walkers[HOST].parts
        parts.storage.present = present  # type: ignore[method-assign]
        start = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
        await rig.in_state(HOST, HostState.PREPARING)
        await asyncio.sleep(0.02)
        stop = asyncio.create_task(rig.controller.destroy(VM.uuid, TESTER))
        await held(body)
    start.cancel()
    stop.cancel()


# ---- recovery


async def test_recovery_of_a_running_hosts_disks_is_tried_until_it_works_and_not_cut_short(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "RETRY_SECONDS", 0.02)
    world = bodies()
    async with Rig.live(db, world) as rig:
        await started(rig)
    world[HOST].exports = ()
    world[HOST].fail["exports up"] = 3  # the pool is not mounted yet
    async with Rig.live(db, world) as rig:
        await rig.power_known()
        await rig.controller.reset(VM.uuid, TESTER)
        await rig.until(lambda: bool(world[HOST].exports), "its disks to be back")
        assert rig.controller.host(HOST).state is HostState.RUNNING


async def test_who_waits_for_a_start_is_told_when_the_agent_stops(db: Path) -> None:
    world = bodies()
    world[HOST].hold.add("exports up")
    async with Rig.live(db, world) as rig:
        await rig.controller.define(VM, TESTER)
        await rig.power_known()
        waiting = asyncio.create_task(rig.controller.start(VM.uuid, TESTER))
        await held(world[HOST])
    with pytest.raises(NicagentError, match="is stopping"):
        await waiting
