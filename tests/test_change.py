"""Disks and ports that come and go under a running host: durable first, then the drivers, else as before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent.errors import Kind, NicagentError
from nicagent.model import Disk, Display, HostState, Port, VolumeFormat
from tests.rig import TESTER, Rig, bodies, domain, held

EXTRA = Disk("vdc", "/pool/extra.raw", VolumeFormat.RAW)


def targets(rig: Rig) -> list[str]:
    return [export.disk.target for export in rig.bodies["metal-1"].exports]


async def started(rig: Rig) -> str:
    await rig.power_known()
    defined = domain("web", host="metal-1")
    await rig.controller.define(defined, TESTER)
    await rig.controller.start(defined.uuid, TESTER)
    return defined.uuid


async def test_a_disk_comes_and_the_others_keep_their_names(tmp_path: Path) -> None:
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        uuid = await started(rig)
        before = rig.bodies["metal-1"].exports
        live = rig.controller.domain(uuid).domain
        async with rig.controller.devices.changing(uuid):
            await rig.controller.devices.change(uuid, replace(live, disks=(*live.disks, EXTRA)), None, TESTER)
        assert rig.bodies["metal-1"].exports[:2] == before, "a disk that stays was changed"
        assert targets(rig) == ["vda", "vdb", "vdc"]
        assert len(rig.controller.definition(uuid).disks) == 2, "only the run was to be changed"
        assert not [act for act in rig.bodies["metal-1"].acts if "power" in act][1:], "power was touched"


async def test_the_definition_alone_is_changed_for_the_next_start(tmp_path: Path) -> None:
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        uuid = await started(rig)
        config = rig.controller.definition(uuid)
        await rig.controller.devices.change(uuid, None, replace(config, disks=(*config.disks, EXTRA)), TESTER)
        assert targets(rig) == ["vda", "vdb"]
        assert len((await rig.store.domains())[0].disks) == 3, "the definition is not durable"


async def test_what_a_driver_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        uuid = await started(rig)
        before = rig.controller.domain(uuid)
        live = replace(before.domain, disks=(*before.domain.disks, EXTRA))
        rig.bodies["metal-1"].fail["exports up"] = 1
        with pytest.raises(NicagentError, match="exports up does not work today"):
            await rig.controller.devices.change(uuid, live, live, TESTER)
        assert rig.controller.domain(uuid).exports == before.exports
        assert targets(rig) == ["vda", "vdb"], "what was before did not come back"
        assert len(rig.controller.definition(uuid).disks) == 2, "the definition changed though it was refused"
        record = (await rig.store.hosts())["metal-1"]
        assert record.run is not None and record.run.exports == before.exports
        assert record.state is HostState.RUNNING


async def test_an_agent_that_dies_in_between_goes_on_with_what_is_durable(tmp_path: Path) -> None:
    machines = bodies()
    async with Rig.live(tmp_path / "db", machines) as rig:
        uuid = await started(rig)
        live = rig.controller.domain(uuid).domain
        machines["metal-1"].held.clear()
        machines["metal-1"].hold.add("exports up")
        changing = asyncio.create_task(
            rig.controller.devices.change(uuid, replace(live, disks=(*live.disks, EXTRA)), None, TESTER)
        )
        await held(machines["metal-1"])
    changing.cancel()
    machines["metal-1"].hold.clear()
    machines["metal-1"].exports = ()  # whatever half of it was done
    async with Rig.live(tmp_path / "db", machines) as rig:
        await rig.until(lambda: targets(rig) == ["vda", "vdb", "vdc"], "the change to be gone on with")


async def test_a_port_that_stays_keeps_its_address_when_the_one_before_it_goes(tmp_path: Path) -> None:
    from nicagent import config as config_module

    config = config_module.parse("""
        [hosts.metal-1]
        memory_mib = 1024
        power = {driver = "gpio"}
        storage = {transport = "virtio", slot = "/tmp/slot-1"}
        nics = [{device = "nic1", mac = "52:54:00:00:00:01"}, {device = "nic2", mac = "52:54:00:00:00:02"}]
        [overlay]
        local = "192.0.2.1"
        [segments.blue]
        vni = 100
        cidr = "10.100.0.0/24"
        range = ["10.100.0.10", "10.100.0.12"]
        """)
    machines = {"metal-1": bodies()["metal-1"]}
    async with Rig.live(tmp_path / "db", machines, config) as rig:
        await rig.power_known()
        ports = (Port("port0", "blue", "52:54:00:00:00:01"), Port("port1", "blue", "52:54:00:00:00:02"))
        defined = domain("web", ports=ports)
        await rig.controller.define(defined, TESTER)
        await rig.controller.start(defined.uuid, TESTER)
        second = machines["metal-1"].bindings[1]
        left = replace(defined, ports=(replace(ports[1], name="port0"),))
        await rig.controller.devices.change(defined.uuid, left, None, TESTER)
        assert machines["metal-1"].bindings == (second,), "the port that stays is another one"
        dark = replace(left, ports=(replace(left.ports[0], link=False),))
        await rig.controller.devices.change(defined.uuid, dark, None, TESTER)
        assert machines["metal-1"].bindings == (), "a port whose link is down still carries frames"
        assert rig.controller.domain(defined.uuid).bindings[0].ipv4 == second.ipv4


async def test_what_cannot_be_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        uuid = await started(rig)
        live = rig.controller.domain(uuid).domain
        acts = list(rig.bodies["metal-1"].acts)
        two = replace(live, ports=(Port("port0", "blue"), Port("port1", "blue")))
        with pytest.raises(NicagentError, match="1 NICs for 2 interfaces") as refused:
            await rig.controller.devices.change(uuid, two, None, TESTER)
        assert refused.value.kind is Kind.UNSUPPORTED
        await rig.controller.undefine(uuid, TESTER)
        with pytest.raises(NicagentError, match="transient"):
            await rig.controller.devices.change(uuid, None, live, TESTER)
        assert rig.bodies["metal-1"].acts == acts
        await rig.controller.destroy(uuid, TESTER)
        with pytest.raises(NicagentError) as gone:
            await rig.controller.devices.change(uuid, live, None, TESTER)
        assert gone.value.kind is Kind.NOT_FOUND


async def test_a_stop_overtakes_a_change_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Rig.live(tmp_path / "db", bodies()) as rig:
        uuid = await started(rig)
        body = rig.bodies["metal-1"]
        live = rig.controller.domain(uuid).domain
        body.held.clear()
        body.hold.add("exports up")
        changing = asyncio.create_task(
            rig.controller.devices.change(uuid, replace(live, disks=(*live.disks, EXTRA)), None, TESTER)
        )
        await held(body)
        await rig.controller.destroy(uuid, TESTER)
        with pytest.raises(NicagentError, match="stopped meanwhile"):
            await changing
        assert body.untouched, "a change brought disks back that the stop had taken away"


async def test_a_screen_keeps_its_port_under_a_new_password_and_over_a_crash(tmp_path: Path) -> None:
    """Each run has a port of its own; what was changed is durable, and shown again by the next agent."""
    world, wish = bodies(), Display(password="old")
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.power_known()
        for number, name in enumerate(("web", "db"), 1):
            defined = domain(name, host=f"metal-{number}", display=wish)
            await rig.controller.define(defined, TESTER)
            shown = (await rig.controller.start(defined.uuid, TESTER)).display
            assert shown is not None and shown == world[f"metal-{number}"].display
            assert (shown.display, shown.address, shown.port) == (wish, "127.0.0.1", 5899 + number)
        uuid = domain("web").uuid
        live = rig.controller.domain(uuid).domain
        world["metal-1"].acts.clear()
        await rig.controller.devices.change(
            uuid, replace(live, display=Display(password="new")), None, TESTER
        )
        assert world["metal-1"].acts == ["screen shown"], "disks and ports were touched"
        moved = replace(live, display=Display(port=5950))
        with pytest.raises(NicagentError, match=r"stays at 127\.0\.0\.1 port 5900") as refused:
            await rig.controller.devices.change(uuid, moved, None, TESTER)
        assert refused.value.kind is Kind.UNSUPPORTED
    world["metal-1"].display = None  # it went with the agent
    async with Rig.live(tmp_path / "db", world) as rig:
        await rig.until(lambda: world["metal-1"].display is not None, "the screen is shown again")
        again = rig.controller.domain(uuid).display
        assert again == world["metal-1"].display
        assert again is not None and (again.port, again.display.password) == (5900, "new")
        assert rig.controller.definition(uuid).display == wish
        await rig.controller.destroy(uuid, TESTER)
        assert world["metal-1"].display is None and world["metal-2"].display is not None
