"""Which domains there are: what is defined, which host each running one occupies, how each last ended.

The controller's own; it alone calls what changes anything here, one call at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Domain, DomainEvent, DomainStatus, HostState, PortBinding
from nicagent.store import HostRecord, Run, Store
from nicagent.walker import Walker


def definition_after(old: Domain | None, new: Domain) -> Domain:
    """The definition that takes the place of `old`: what no document tells stays as it was."""
    if old is None:
        return replace(new, persistent=True, autostart=False, autostart_once=False)
    return replace(new, persistent=True, autostart=old.autostart, autostart_once=old.autostart_once)


class Domains:
    """The persistent definitions and the running domains on `walkers`."""

    def __init__(self, store: Store, walkers: Mapping[str, Walker]) -> None:
        self._store = store
        self._walkers = walkers
        self._defined: dict[str, Domain] = {}
        self._host_of: dict[str, str] = {}
        self._ended: dict[str, tuple[DomainEvent | None, str]] = {}  # how and why; of defined domains only

    async def load(self) -> None:
        """Read the definitions. What runs is told by `occupied`."""
        self._defined = {domain.uuid: domain for domain in await self._store.domains()}

    # ---- looking

    def all(self) -> list[DomainStatus]:
        """Every domain: the persistent ones and the running transient ones."""
        return [self.status(uuid) for uuid in dict.fromkeys([*self._defined, *self._host_of])]

    def status(self, uuid: str) -> DomainStatus:
        """One domain, with the definition it runs under if it runs. Raises NOT_FOUND."""
        walker = self.walker(uuid)
        if walker is not None:
            return self.running(walker.record)
        ended, reason = self._ended.get(uuid, (None, ""))
        return DomainStatus(self.definition(uuid), None, None, HostState.FREE, reason, ended=ended)

    def running(self, record: HostRecord) -> DomainStatus:
        """The domain of a record that has a run."""
        run = record.run
        assert run is not None
        persistent = self._defined.get(run.domain.uuid)
        domain = replace(
            run.domain,
            persistent=persistent is not None,
            autostart=persistent is not None and persistent.autostart,
            autostart_once=persistent is not None and persistent.autostart_once,
        )
        return DomainStatus(
            domain,
            run.id,
            record.name,
            record.state,
            record.reason,
            run.bindings,
            run.exports,
            self._walkers[record.name].parts.storage.transport,
            was_running="power-good" in record.marks,
            ended=run.ending,
            display=run.display,
        )

    def defined(self) -> list[Domain]:
        """The persistent definitions."""
        return list(self._defined.values())

    def definition(self, uuid: str) -> Domain:
        """The persistent definition, or the run's where the domain is transient. Raises NOT_FOUND."""
        domain = self._defined.get(uuid)
        if domain is None:
            run = self.run(uuid)
            if run is None:
                raise NicagentError(Kind.NOT_FOUND, f"no domain with matching uuid '{uuid}'", of=Thing.DOMAIN)
            domain = run.domain
        return domain

    def persistent(self, uuid: str, otherwise: str) -> Domain:
        """The persistent definition. Raises NOT_FOUND; WRONG_STATE with the words of `otherwise` where the
        domain is transient."""
        domain = self._defined.get(uuid)
        if domain is None:
            self.definition(uuid)
            raise NicagentError(Kind.WRONG_STATE, otherwise)
        return domain

    def is_there(self, uuid: str) -> bool:
        """Defined, running, or both."""
        return uuid in self._defined or uuid in self._host_of

    def is_defined(self, uuid: str) -> bool:
        return uuid in self._defined

    def walker(self, uuid: str) -> Walker | None:
        """That of the host which the domain occupies."""
        host = self._host_of.get(uuid)
        return None if host is None else self._walkers[host]

    def running_on(self, uuid: str) -> Walker:
        """The same. Raises NOT_FOUND; WRONG_STATE where the domain does not run."""
        walker = self.walker(uuid)
        if walker is None:
            self.definition(uuid)
            raise NicagentError(Kind.WRONG_STATE, "domain is not running")
        return walker

    def run(self, uuid: str) -> Run | None:
        walker = self.walker(uuid)
        return None if walker is None else walker.record.run

    def check(self, domain: Domain) -> None:
        """Whether it may be there beside the others. Raises EXISTS (name or UUID taken), INVALID (pinned to a
        host that is not there)."""
        for other in self.known():
            if other.name == domain.name and other.uuid != domain.uuid:
                raise NicagentError(
                    Kind.EXISTS, f"domain '{domain.name}' already exists with uuid {other.uuid}"
                )
            if other.uuid == domain.uuid and other.name != domain.name:
                raise NicagentError(
                    Kind.EXISTS, f"domain '{other.name}' is already defined with uuid {domain.uuid}"
                )
        if domain.host is not None and domain.host not in self._walkers:
            known = ", ".join(self._walkers)
            raise NicagentError(
                Kind.INVALID,
                f"domain {domain.name} is pinned to unknown host {domain.host!r}",
                f"known: {known}",
            )

    def known(self) -> Iterable[Domain]:
        """The definition of every domain."""
        yield from self._defined.values()
        for uuid in self._host_of:
            if uuid not in self._defined:
                yield self.definition(uuid)

    def ports(self) -> list[tuple[str, PortBinding]]:
        """Every port that there is, and whose it is, in words."""
        return [
            (f"domain {status.domain.name} on {status.host}", binding)
            for status in self.all()
            for binding in status.bindings
        ]

    def users_of_segment(self, name: str) -> list[str]:
        """Who has a port on a segment, in words."""
        return [
            f"domain {status.domain.name} on {status.host}"
            for status in self.all()
            if any(binding.port.segment == name for binding in status.bindings)
        ]

    # ---- changing

    async def keep(self, domain: Domain) -> None:
        """Make a definition durable, in place of the one of that UUID if there is one."""
        await self._store.put_domain(domain)
        self._defined[domain.uuid] = domain

    async def drop(self, uuid: str) -> None:
        """Forget a definition; its domain goes on as a transient one if it runs."""
        await self._store.drop_domain(uuid)
        del self._defined[uuid]
        self._ended.pop(uuid, None)
        await self.forget_derived()

    async def forget_derived(self, *also: str) -> None:
        """Drop leases and disk identities of domains that are gone. Those of a running domain stay with it,
        also when its definition goes: its address must not be given to another.
        """
        await self._store.forget_derived({*self._defined, *self._host_of, *also})

    def occupied(self, record: HostRecord) -> None:
        """The record's run is on its host."""
        assert record.run is not None
        self._host_of[record.run.domain.uuid] = record.name

    def released(self, record: HostRecord) -> None:
        """The record's run has ended."""
        run = record.run
        assert run is not None
        uuid = run.domain.uuid
        self._host_of.pop(uuid, None)
        if uuid in self._defined:  # a transient domain is forgotten with its run
            self._ended[uuid] = (run.ending, run.failure or record.reason)
