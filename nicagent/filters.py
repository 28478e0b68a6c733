"""The owner of network filters: libvirt's well-known ones, and those that clients define.

A client's filter lies in the store. One that ports of running domains use may be replaced (their rules change
at once, all together or not at all), and may not be forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.filter_rules import Filter, check
from nicagent.filter_tree import expand, leads_back, reached, variables_of
from nicagent.filters_builtin import BUILT_IN, EVERY_PORT, REFUSED
from nicagent.model import Cause, PortBinding
from nicagent.store import Store

log = logging.getLogger("nicagent.filters")

KIND = "nwfilter"  # of the objects in the store
FILTERS_MAX = 1024  # of clients

# The ports that there are, each with whose it is in words
Ports = Callable[[], Iterable[tuple[str, PortBinding]]]
# Bring the rules of all ports to what their filters say by now
Apply = Callable[[], Awaitable[None]]


class Filters:
    """All filters of one agent. Reading answers from memory; an acting call returns once it is durable and
    the ports are as it says.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changing = asyncio.Lock()
        self._ports: Ports = tuple
        self._apply: Apply | None = None
        #: Every filter by name, for the network driver: changes in place.
        self.known: dict[str, Filter] = dict(BUILT_IN)

    async def load(self) -> None:
        """Read the store."""
        self.known.update({each.name: each for each in await self._store.objects(KIND, Filter)})
        self.known.update(BUILT_IN)

    def serve(self, ports: Ports, apply: Apply | None) -> None:
        """Where the ports are, and how their rules change; None where there is no network."""
        self._ports, self._apply = ports, apply

    def all(self) -> list[Filter]:
        """Every filter, by name."""
        return sorted(self.known.values(), key=lambda filter: filter.name)

    def require(self, name: str, where: str) -> None:
        """A port may name this filter. Raises UNSUPPORTED with the reason, NOT_FOUND for an unknown one."""
        if name in self.known:
            return
        if name in REFUSED:
            raise NicagentError(
                Kind.UNSUPPORTED, f"{where}: filter '{name}': {REFUSED[name]}", "leave the filter out"
            )
        raise NicagentError(
            Kind.NOT_FOUND,
            f"{where}: no nwfilter with matching name '{name}'",
            "see virsh nwfilter-list",
            of=Thing.FILTER,
        )

    async def define(self, filter: Filter, cause: Cause) -> Filter:
        """Make a filter durable, and hold the ports to it that have it.

        Raises EXISTS (name or UUID of another), UNSUPPORTED and INVALID (what a port cannot be held to; it
        would refer to itself), NO_SPACE, and what the network driver says: then nothing has changed.
        """
        async with self._changing:
            self._check(filter)
            old = self.known.get(filter.name)
            if filter == old:
                return filter
            users = self._users(filter.name)
            for who, binding in users:
                self._check_port({**self.known, filter.name: filter}, who, binding)
            await self._store.put_object(KIND, filter.uuid, filter.name, filter)
            self.known[filter.name] = filter
            try:
                await self._tell_ports(users)
            except NicagentError:
                await self._take_back(filter, old)
                raise
        log.info("filter %s defined (%s)", filter.name, cause)
        return filter

    async def undefine(self, uuid: str, cause: Cause) -> None:
        """Forget a filter. Raises NOT_FOUND, UNSUPPORTED (a built-in one), WRONG_STATE (in use)."""
        async with self._changing:
            filter = next((each for each in self.known.values() if each.uuid == uuid), None)
            if filter is None:
                raise NicagentError(
                    Kind.NOT_FOUND, f"no nwfilter with matching uuid '{uuid}'", of=Thing.FILTER
                )
            _refuse_built_in(filter.name, "undefined")
            users = self._users(filter.name)
            if users:
                who = ", ".join(sorted({who for who, _ in users}))
                raise NicagentError(Kind.WRONG_STATE, f"nwfilter is in use: '{filter.name}' by {who}")
            await self._store.drop_object(KIND, filter.uuid)
            del self.known[filter.name]
        log.info("filter %s undefined (%s)", filter.name, cause)

    def _check(self, filter: Filter) -> None:
        _refuse_built_in(filter.name, "changed")
        same = next((each for each in self.known.values() if each.uuid == filter.uuid), None)
        if same is not None and same.name != filter.name:
            raise NicagentError(
                Kind.EXISTS,
                f"filter with same UUID but different name ('{same.name}') already exists",
                of=Thing.FILTER,
            )
        named = self.known.get(filter.name)
        if named is not None and named.uuid != filter.uuid:
            raise NicagentError(
                Kind.EXISTS, f"filter '{named.name}' already exists with uuid {named.uuid}", of=Thing.FILTER
            )
        if leads_back(filter, self.known):
            raise NicagentError(Kind.INVALID, "filter would introduce a loop")
        if named is None and len(self.known) - len(BUILT_IN) >= FILTERS_MAX:
            raise NicagentError(Kind.NO_SPACE, f"there are {FILTERS_MAX} filters already")
        check(filter)
        for name in filter.refers:
            if name in REFUSED and name not in self.known:
                self.require(name, f"filter '{filter.name}'")

    def _users(self, name: str) -> list[tuple[str, PortBinding]]:
        """The ports whose filter is this one, or refers to it."""
        return [
            (who, binding)
            for who, binding in self._ports()
            if (own := self.known.get(binding.port.filter or EVERY_PORT)) is not None
            and (own.name == name or name in reached(own, self.known))
        ]

    @staticmethod
    def _check_port(known: dict[str, Filter], who: str, binding: PortBinding) -> None:
        assert binding.port.filter is not None
        try:
            expand(binding.port.filter, known, variables_of(binding))
        except NicagentError as e:
            raise NicagentError(e.kind, f"{who} cannot have it: {e.message}", e.hint, of=e.of) from None

    async def _tell_ports(self, users: list[tuple[str, PortBinding]]) -> None:
        if users and self._apply is not None:
            await self._apply()

    async def _take_back(self, filter: Filter, old: Filter | None) -> None:
        if old is None:
            await self._store.drop_object(KIND, filter.uuid)
            del self.known[filter.name]
        else:
            await self._store.put_object(KIND, old.uuid, old.name, old)
            self.known[filter.name] = old
        with contextlib.suppress(NicagentError):  # the first failure is the one to report
            assert self._apply is not None
            await self._apply()


def _refuse_built_in(name: str, verb: str) -> None:
    if name in BUILT_IN:
        raise NicagentError(
            Kind.UNSUPPORTED, f"filter '{name}' is the agent's own guard and cannot be {verb}"
        )
