"""The owner of segments: those that the config wires in, and those that clients define.

A client's segment has a definition for its next start and, while it is active, the one it was started with:
both in the store, so that a SIGKILL anywhere loses nothing acknowledged. The config's segments are always
active; only their UUID, drawn once, and the addresses kept for their hosts lie in the store.

An active segment is one that may carry ports. Its bridge and its tunnel come with the first port and go with
the last (`network.fabric`), so starting a segment costs nothing and changes nothing on the machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nicagent.config import Config, Segment
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Cause
from nicagent.store import Store, if_there_is_room

log = logging.getLogger("nicagent.segments")

KIND = "segment"  # of the objects in the store
SEGMENTS_MAX = 4096


@dataclass(frozen=True)
class Definition:
    """A segment as it is to be. `xml` is a face's document of it; the rest is read from it.

    `vni` None: the agent takes the next free one of the config's range. `reserved`: addresses that no port
    gets (a tenant's router has them). `fixed`: MAC → the one address of that NIC.
    """

    name: str
    cidr: str
    range: tuple[str, str]
    vni: int | None = None
    mtu: int = 1450
    reserved: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    xml: str = ""


@dataclass(frozen=True)
class Record:
    """A segment in the store. `config` None: it is gone once it stops. `live` None: it is not active."""

    uuid: str
    name: str
    config: Definition | None = None
    live: Definition | None = None
    autostart: bool = False
    boot: str = ""  # of which boot of the board `live` is
    wired: bool = False  # by the config file, which then says what it is

    @property
    def now(self) -> Definition:
        """What it is, else what it will be."""
        found = self.live or self.config
        assert found is not None
        return found


class SegmentEvent(StrEnum):
    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    STOPPED = "stopped"


Watcher = Callable[[SegmentEvent, Record], None]
# name of a segment → who has a port on it, in words
Users = Callable[[str], list[str]]


class Segments:
    """All segments of one agent. Reading answers from memory; an acting call returns once it is durable."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._records: dict[str, Record] = {}  # by UUID
        self._watchers: list[Watcher] = []
        self._users: Users = lambda _: []
        self._changing = asyncio.Lock()
        self._boot = ""
        #: Active segments by name, for the network driver: changes in place.
        self.active: dict[str, Segment] = {}

    async def load(self, boot_id: str, used: Collection[str] = ()) -> None:
        """Read the store. After a boot of the board only what is marked autostart, and what is in `used` (a
        host runs on, whatever the board does), is active. Raises INVALID where config and clients clash.
        """
        self._boot = boot_id
        known = {record.name: record for record in await self._store.objects(KIND, Record)}
        for record in known.values():
            if record.wired and record.name not in self._config.segments:
                await self._note(record, gone=True)
            if not record.wired and record.name in self._config.segments:
                raise NicagentError(
                    Kind.INVALID,
                    f"segments.{record.name}: a client has defined a segment of that name",
                    "rename the one in the config, or undefine the client's without it",
                )
        for name, segment in self._config.segments.items():
            record = known.get(name) or Record(str(uuid.uuid4()), name, autostart=True, wired=True)
            wired = _wired(name, segment, record.config)
            record = replace(record, config=wired, live=wired)
            if record != known.get(name):
                await self._note(record)
            self._remember(record)
        for record in known.values():
            if not record.wired:
                await self._revive(record, used)
        self._refuse_shared_vnis()

    async def _revive(self, record: Record, used: Collection[str]) -> None:
        if record.boot != self._boot:
            live = record.live if record.name in used else None
            if live is None and record.autostart:
                live = record.config
            record = replace(record, live=live, boot=self._boot)
            if live is None and record.config is None:
                await self._note(record, gone=True)  # transient, and its boot is over
                return
            await self._note(record)
        self._remember(record)

    async def _note(self, record: Record, *, gone: bool = False) -> None:
        """Make durable what follows from the config and the boot."""
        with if_there_is_room(f"segment {record.name}"):
            if gone:
                await self._store.drop_object(KIND, record.uuid)
            else:
                await self._store.put_object(KIND, record.uuid, record.name, record)

    def _refuse_shared_vnis(self) -> None:
        taken: dict[int, str] = {}
        for record in self._records.values():
            for vni in _vnis(record):
                other = taken.setdefault(vni, record.name)
                if other != record.name:
                    raise NicagentError(
                        Kind.INVALID,
                        f"VNI {vni} is that of the segments {other} and {record.name}",
                        "give the one in the config another, or undefine the client's without it",
                    )

    def who_uses(self, users: Users) -> None:
        """How to find out who has a port on a segment."""
        self._users = users

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have `watcher` called with every change, in the event loop. Returns how to end that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # ---- reading

    def all(self) -> list[Record]:
        """Every segment, by name."""
        return sorted(self._records.values(), key=lambda record: record.name)

    def get(self, uuid: str) -> Record:
        """One segment. Raises NOT_FOUND."""
        record = self._records.get(uuid)
        if record is None:
            raise NicagentError(Kind.NOT_FOUND, f"no network with matching uuid '{uuid}'", of=Thing.SEGMENT)
        return record

    def find(self, name: str) -> Record | None:
        return next((record for record in self._records.values() if record.name == name), None)

    def carrying(self, name: str) -> Definition:
        """The active segment of that name. Raises NOT_FOUND, WRONG_STATE when it is not active."""
        record = self.find(name)
        if record is None:
            known = ", ".join(each.name for each in self.all()) or "none"
            raise NicagentError(
                Kind.NOT_FOUND, f"no segment is called {name!r}", f"known: {known}", of=Thing.SEGMENT
            )
        if record.live is None:
            raise NicagentError(
                Kind.WRONG_STATE, f"network '{name}' is not active", f"start it: virsh net-start {name}"
            )
        return record.live

    # ---- acting

    async def define(self, uuid: str, definition: Definition, cause: Cause) -> Record:
        """Make a definition durable; an active segment gets it at its next start.

        Raises EXISTS (name, UUID or VNI of another), UNSUPPORTED (a segment of the config), NO_SPACE.
        """
        async with self._changing:
            record = self._same(uuid, definition)
            definition = self._numbered(uuid, definition, record)
            record = replace(record or Record(uuid, definition.name), config=definition)
            await self._keep(record)
        self._tell(SegmentEvent.DEFINED, record, cause)
        return record

    async def create(self, uuid: str, definition: Definition, cause: Cause) -> Record:
        """Start a segment that is gone once it stops. Raises like `define`, and WRONG_STATE when active."""
        async with self._changing:
            record = self._same(uuid, definition)
            if record is not None and record.live is not None:
                raise NicagentError(Kind.WRONG_STATE, f"network is already active as '{record.name}'")
            definition = self._numbered(uuid, definition, record)
            record = replace(record or Record(uuid, definition.name), live=definition, boot=self._boot)
            await self._keep(record)
        self._tell(SegmentEvent.STARTED, record, cause)
        return record

    async def start(self, uuid: str, cause: Cause) -> Record:
        """Let a segment carry ports. Raises WRONG_STATE when it does already."""
        async with self._changing:
            record = self.get(uuid)
            if record.live is not None:
                raise NicagentError(Kind.WRONG_STATE, f"network '{record.name}' is already active")
            record = replace(record, live=record.config, boot=self._boot)
            await self._keep(record)
        self._tell(SegmentEvent.STARTED, record, cause)
        return record

    async def stop(self, uuid: str, cause: Cause) -> None:
        """Let a segment carry no more ports. Raises WRONG_STATE when it carries some, or is not active.

        (libvirt cuts its guests off and goes on. A host has no other way to its network: what would be cut
        off is told instead.)
        """
        async with self._changing:
            record = self.get(uuid)
            if record.live is None:
                raise NicagentError(Kind.WRONG_STATE, f"network '{record.name}' is not active")
            self._refuse_wired(record, "be stopped")
            users = self._users(record.name)
            if users:
                raise NicagentError(
                    Kind.WRONG_STATE,
                    f"network '{record.name}' is in use by {', '.join(users)}",
                    "stop these first",
                )
            stopped, record = record, replace(record, live=None)
            if record.config is None:
                await self._forget(record)
            else:
                await self._keep(record)
        self._tell(SegmentEvent.STOPPED, stopped, cause)

    async def undefine(self, uuid: str, cause: Cause) -> None:
        """Forget a definition; an active segment goes on as a transient one.

        Raises UNSUPPORTED (a segment of the config), WRONG_STATE (transient already).
        """
        async with self._changing:
            record = self.get(uuid)
            self._refuse_wired(record, "be undefined")
            if record.config is None:
                raise NicagentError(Kind.WRONG_STATE, "cannot undefine transient network")
            gone = record
            if record.live is None:
                await self._forget(record)
            else:
                record = replace(record, config=None, autostart=False)
                await self._keep(record)
        self._tell(SegmentEvent.UNDEFINED, gone, cause)

    async def set_autostart(self, uuid: str, autostart: bool, cause: Cause) -> None:
        """Whether the segment is active once the board has booted."""
        async with self._changing:
            record = self.get(uuid)
            if record.wired and not autostart:
                self._refuse_wired(record, "be left out at boot")
            if record.config is None:
                raise NicagentError(Kind.WRONG_STATE, "cannot set autostart for transient network")
            await self._keep(replace(record, autostart=autostart))
        log.info("segment %s autostart %s (%s)", record.name, autostart, cause)

    async def amend(
        self, uuid: str, *, live: Definition | None, config: Definition | None, cause: Cause
    ) -> None:
        """Replace what is given. Of what carries ports only the kept addresses, the range and the document
        may change; a port that is there keeps its address. Raises UNSUPPORTED for the rest.
        """
        async with self._changing:
            record = self.get(uuid)
            for old, new in ((record.live, live), (record.config, config)):
                if old is not None and new is not None and _shape(old) != _shape(new):
                    raise NicagentError(
                        Kind.UNSUPPORTED,
                        f"network '{record.name}': VNI, addresses and MTU do not change while it is defined",
                        "define it anew",
                    )
            if record.wired:
                live = config = live or config  # the two are one
                if live is not None and live.range != record.now.range:
                    self._refuse_wired(record, "get another range")
            await self._keep(replace(record, live=live or record.live, config=config or record.config))
        log.info("segment %s amended (%s)", record.name, cause)

    # ---- within

    def _same(self, uuid: str, definition: Definition) -> Record | None:
        """The segment that is defined anew; refuses a name or a UUID that is another's."""
        named, record = self.find(definition.name), self._records.get(uuid)
        if named is not None and named.uuid != uuid:
            raise NicagentError(
                Kind.EXISTS, f"network '{named.name}' already exists with uuid {named.uuid}", of=Thing.SEGMENT
            )
        if record is not None and record.name != definition.name:
            raise NicagentError(
                Kind.EXISTS, f"network '{record.name}' is already defined with uuid {uuid}", of=Thing.SEGMENT
            )
        if record is not None:
            self._refuse_wired(record, "be defined anew")
        if self._config.overlay is None:
            raise NicagentError(
                Kind.UNSUPPORTED,
                "this agent is no VTEP, so it carries no segments",
                "add [overlay] to nicagent.toml",
            )
        if record is None and len(self._records) >= SEGMENTS_MAX:
            raise NicagentError(Kind.NO_SPACE, f"there are {SEGMENTS_MAX} segments already")
        return record

    def _numbered(self, uuid: str, definition: Definition, record: Record | None) -> Definition:
        """The definition with a VNI that is nobody else's."""
        taken = {
            vni: each.name for each in self._records.values() if each.uuid != uuid for vni in _vnis(each)
        }
        vni = definition.vni
        if vni is None and record is not None:
            return replace(definition, vni=record.now.vni)
        if vni is None:
            assert self._config.overlay is not None
            first, last = self._config.overlay.vnis
            vni = next((number for number in range(first, last + 1) if number not in taken), None)
            if vni is None:
                raise NicagentError(
                    Kind.NO_SPACE,
                    f"no VNI from {first} to {last} is free",
                    "widen overlay.vnis, or name the VNI in the network's metadata",
                )
        if vni in taken:
            raise NicagentError(
                Kind.EXISTS,
                f"VNI {vni} is that of network '{taken[vni]}'",
                "give each its own",
                of=Thing.SEGMENT,
            )
        return replace(definition, vni=vni)

    @staticmethod
    def _refuse_wired(record: Record, verb: str) -> None:
        if record.wired:
            raise NicagentError(
                Kind.WRONG_STATE,
                f"network '{record.name}' is wired by the agent's config and cannot {verb}",
                f"change [segments.{record.name}] in nicagent.toml",
            )

    async def _keep(self, record: Record) -> None:
        await self._store.put_object(KIND, record.uuid, record.name, record)
        self._remember(record)

    def _remember(self, record: Record) -> None:
        self._records[record.uuid] = record
        if record.live is not None:
            assert record.live.vni is not None
            self.active[record.name] = Segment(
                vni=record.live.vni, cidr=record.live.cidr, range=record.live.range, mtu=record.live.mtu
            )
        else:
            self.active.pop(record.name, None)

    async def _forget(self, record: Record) -> None:
        await self._store.drop_object(KIND, record.uuid)
        del self._records[record.uuid]
        self.active.pop(record.name, None)

    def _tell(self, event: SegmentEvent, record: Record, cause: Cause) -> None:
        log.info("segment %s %s (%s)", record.name, event.value, cause)
        for watcher in list(self._watchers):
            watcher(event, record)


def _wired(name: str, segment: Segment, kept: Definition | None) -> Definition:
    """The config's segment; what clients have added to it stays as long as it fits."""
    made = Definition(name, segment.cidr, segment.range, segment.vni, segment.mtu)
    if kept is not None:
        made = replace(made, fixed={mac: ip for mac, ip in kept.fixed.items() if lies_in(ip, segment.cidr)})
    return made


def _vnis(record: Record) -> Iterable[int]:
    return {each.vni for each in (record.live, record.config) if each is not None and each.vni is not None}


def _shape(definition: Definition) -> tuple[object, ...]:
    return definition.name, definition.vni, definition.cidr, definition.mtu


def lies_in(address: str, cidr: str) -> bool:
    """Whether an IPv4 address is one of a network's; False for what is no address."""
    try:
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(cidr)
    except ValueError:
        return False
