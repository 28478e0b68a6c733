"""Counters of many domains in one question: side by side, kept for a moment, not waited for."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import cast

from nicagent.controller import Controller
from nicagent.counters import WAIT_SECONDS, Counters
from nicagent.model import DomainStatus, ExportStatus, HostState, PortStatus, Transport
from tests.rig import domain


class ManyHosts:
    """As much of a controller as is asked here: each host's drivers take their time."""

    def __init__(self, count: int, seconds: float, dead: frozenset[str] = frozenset()) -> None:
        names = [f"metal-{number}" for number in range(count)]
        self.statuses = {
            str(uuid.uuid5(uuid.NAMESPACE_DNS, name)): DomainStatus(
                replace(domain(name), uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name))),
                number + 1,
                name,
                HostState.RUNNING,
                "",
            )
            for number, name in enumerate(names)
        }
        self._seconds = seconds
        self._dead = dead
        self.asked = 0

    def domain(self, uuid: str) -> DomainStatus:
        return self.statuses[uuid]

    def domains(self) -> list[DomainStatus]:
        return list(self.statuses.values())

    async def statistics(self, uuid: str) -> tuple[tuple[ExportStatus, ...], tuple[PortStatus, ...]]:
        self.asked += 1
        await asyncio.sleep(3600 if self.statuses[uuid].host in self._dead else self._seconds)
        return (ExportStatus("vda", Transport.NVME_TCP, read_ops=self.asked),), ()


def test_one_question_about_a_thousand_domains_is_answered_at_once() -> None:
    async def run() -> None:
        hosts = ManyHosts(1000, 0.02)
        counters = Counters(cast(Controller, hosts), {}, list)
        began = time.monotonic()
        await counters.of(hosts.statuses)
        assert time.monotonic() - began < WAIT_SECONDS + 1.0, "the client was kept waiting for all of them"
        for _ in range(20):  # by and by they all come in
            known = await counters.of(hosts.statuses)
            if len(known) == 1000:
                break
        assert len(known) == 1000
        began, asked = time.monotonic(), hosts.asked
        known = await counters.of(list(hosts.statuses)[:10], wait=False)
        assert len(known) == 10 and hosts.asked - asked <= 10
        assert time.monotonic() - began < 0.1, "what is at hand is told at once"
        await counters.close()

    asyncio.run(run())


def test_a_host_that_never_answers_keeps_nobody_elses_figures_back() -> None:
    async def run() -> None:
        hosts = ManyHosts(20, 0.0, frozenset({"metal-3"}))
        counters = Counters(cast(Controller, hosts), {}, list)
        known = await counters.of(hosts.statuses)
        assert {hosts.statuses[each].host for each in hosts.statuses if each not in known} == {"metal-3"}
        await counters.of(hosts.statuses)
        assert hosts.asked <= 2 * 20, "the dead one is not asked again while it is being asked"
        await counters.close()
        assert len(asyncio.all_tasks()) == 1, "tasks are left behind"

    asyncio.run(run())


def test_figures_of_a_run_that_ended_are_not_those_of_the_next() -> None:
    async def run() -> None:
        hosts = ManyHosts(1, 0.0)
        counters = Counters(cast(Controller, hosts), {}, list)
        (only,) = hosts.statuses
        first = (await counters.of([only]))[only]
        hosts.statuses[only] = replace(hosts.statuses[only], id=2)
        second = (await counters.of([only]))[only]
        assert first.exports[0].read_ops != second.exports[0].read_ops
        hosts.statuses[only] = replace(hosts.statuses[only], id=None, host=None)
        assert await counters.of([only]) == {}, "a domain that is off has no figures"
        await counters.close()

    asyncio.run(run())
