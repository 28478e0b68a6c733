"""Who may do what: rights per identity, for every call, every domain and every event.

A session has identities (`uid:1000`, `gid:64055`, `x509:CN=nova,O=Cloud`, `sasl:alice`, `tcp:anonymous`);
rules give rights to those who have one that matches, on domains by their names and by the tenant that they
name. Each procedure needs one right, which follows from its row. A domain that a client may not read is not
there for it: in no list, behind no name or UUID, in no event. Whoever gives a domain a name or a tenant needs
the right on the domain as it is, and on what it becomes.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol, cast

from hypervisor_shim.driver import (
    Caller,
    CreateFlags,
    DomainInfo,
    Driver,
    Impact,
    Metadata,
    MetadataKind,
    UndefineFlags,
)
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, no_domain
from hypervisor_shim.frame import NONNULL_DOMAIN
from hypervisor_shim.xdr import Codec, DomainRef, Record
from hypervisor_shim.xml.domain import parse_domain, set_metadata
from hypervisor_shim.xml.domain_def import DomainDef

if TYPE_CHECKING:
    from hypervisor_shim.procedures import Procedure
    from hypervisor_shim.session import Session

_REMEMBERED = 20_000  # domains whose rights one session keeps at hand


class Right(IntFlag):
    """What may be done. Whoever may operate or configure may read."""

    NONE = 0
    READ = 1
    OPERATE = 2  # power, console, keyboard
    CONFIGURE = 4  # definitions, devices, disks, storage, networks, secrets
    ALL = 7

    @classmethod
    def named(cls, names: Iterable[str]) -> Right:
        """`["operate"]` → READ | OPERATE. A name that is none of the three is a KeyError."""
        rights = cls.NONE
        for name in names:
            rights |= cls.READ | {"read": cls.READ, "operate": cls.OPERATE, "configure": cls.CONFIGURE}[name]
        return rights


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights for whoever has an identity that one of `who` matches (shell patterns), on the domains whose
    names one of `domains` matches and whose tenant one of `tenants` does; None: of whatever tenant, or none.
    `shared` are the rights on what is no domain (pools, networks, secrets, devices of the node); None: the
    same where the rule holds for every domain, otherwise none."""

    who: tuple[str, ...]
    may: Right
    domains: tuple[str, ...] = ("*",)
    shared: Right | None = None
    tenants: tuple[str, ...] | None = None

    @property
    def for_all(self) -> bool:
        """It holds for every domain that there may be."""
        return "*" in self.domains and self.tenants is None

    def holds(self, domain: Named) -> bool:
        """It holds for this domain."""
        tenant = domain.tenant
        if self.tenants is not None and (tenant is None or not _matches(tenant, self.tenants)):
            return False
        return _matches(domain.name, self.domains)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


class Named(Protocol):
    """What rules select a domain by."""

    @property
    def name(self) -> str: ...

    @property
    def tenant(self) -> str | None: ...


class Access:
    """What one session may do: all that any of its rules gives."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        every = Right.NONE  # on each domain there is
        shared = Right.NONE
        for rule in rules:
            if rule.for_all:
                every |= rule.may
                shared |= rule.may if rule.shared is None else rule.shared
            else:
                shared |= rule.shared or Right.NONE
        self.shared = shared
        self.anywhere = shared
        for rule in rules:
            self.anywhere |= rule.may
        self.unlimited = every == Right.ALL and shared == Right.ALL
        self._every = every
        self._rules = [rule for rule in rules if rule.may & ~every]
        self._known: dict[tuple[str, str | None], Right] = {}

    def on(self, domain: Named) -> Right:
        """The rights on a domain, or on what a domain is to become."""
        if not self._rules:
            return self._every
        key = domain.name, domain.tenant
        rights = self._known.get(key)
        if rights is None:
            rights = self._every
            for rule in self._rules:
                if rule.holds(domain):
                    rights |= rule.may
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = rights
        return rights

    def sees(self, domain: Named | None) -> bool:
        """Whether an event of that domain (None: of something else) may be told."""
        return bool((self.shared if domain is None else self.on(domain)) & Right.READ)


EVERYTHING = Access((Rule(("*",), Right.ALL),))


class Policy:
    """The rules of a server. Without any, whoever was let in may do everything."""

    def __init__(self, rules: Sequence[Rule] | None = None) -> None:
        self._rules = rules

    def access(self, identities: Iterable[str]) -> Access | None:
        """What someone of these identities may do; None: no rule speaks of him."""
        if self._rules is None:
            return EVERYTHING
        known = list(identities)
        found = [rule for rule in self._rules if any(_matches(identity, rule.who) for identity in known)]
        return Access(found) if found else None


def resolve(who: str) -> str:
    """`user:alice` → `uid:1000`, `group:libvirt` → `gid:64055`; the rest as it is. KeyError: nobody has
    that name."""
    kind, _, name = who.partition(":")
    if kind == "user":
        return f"uid:{pwd.getpwnam(name).pw_uid}"
    if kind == "group":
        return f"gid:{grp.getgrnam(name).gr_gid}"
    return who


# ---- what a call needs ---------------------------------------------------------------------------


class About(Enum):
    """What a procedure concerns, which decides whose rights are asked."""

    NODE = 0  # the connection and the machine: open to whoever was let in
    DOMAIN = 1  # the domain that its arguments name
    #: Domains that its handler looks up through `session.driver`, a view of the visible ones; and one that it
    #: makes, which the view or `permit` checks.
    DOMAINS = 2
    SHARED = 3  # all else


#: What works a domain without changing what it is. Other calls that no read-only client may make configure.
_OPERATE = frozenset(
    f"virDomain{verb}"
    for verb in (
        "Create", "CreateWithFlags", "Destroy", "DestroyFlags", "Shutdown", "ShutdownFlags", "Reboot",
        "Reset", "Suspend", "Resume", "InjectNMI", "SendKey", "OpenConsole", "OpenChannel", "OpenGraphics",
        "OpenGraphicsFD", "Screenshot", "PMSuspendForDuration", "PMWakeup", "SetTime", "FSFreeze", "FSThaw",
        "FSTrim", "SendProcessSignal", "AbortJob", "AbortJobFlags",
    )
)  # fmt: skip
#: What asks the domain's OS, which libvirt lets no read-only client do; it changes nothing, though.
#: (Addresses may be read where the OS need not be asked.)
LOOKS = frozenset(
    f"virDomain{what}"
    for what in ("GetHostname", "GetTime", "GetFSInfo", "InterfaceAddresses", "GetGuestInfo", "GetGuestVcpus")
)
#: Documents that these flags (the last argument) fill with secrets: that takes CONFIGURE.
_SECURE_FLAGS = {
    "virDomainGetXMLDesc": 1 | 8,  # SECURE, MIGRATABLE
    "virDomainSnapshotGetXMLDesc": 1,
    "virDomainCheckpointGetXMLDesc": 1,
    "virDomainManagedSaveGetXMLDesc": 1,
    "virDomainSaveImageGetXMLDesc": 1,
}
#: Registering is open to whoever was let in: what is told is chosen event by event.
_EVENTS = ("EventRegister", "EventDeregister", "EventRegisterAny", "EventDeregisterAny")
_THROUGH_THE_VIEW = frozenset(
    {
        "virDomainLookupByID", "virDomainLookupByName", "virDomainLookupByUUID", "virDomainDefineXML",
        "virDomainDefineXMLFlags", "virDomainCreateXML", "virConnectListDomains", "virConnectNumOfDomains",
        "virConnectListDefinedDomains", "virConnectNumOfDefinedDomains", "virConnectListAllDomains",
        "virConnectGetAllDomainStats", "virDomainMigratePrepare3Params", "virDomainMigrateFinish3Params",
    }
)  # fmt: skip
_OF_THE_NODE = (
    "virConnectGet", "virConnectIs", "virConnectCompare", "virConnectBaseline", "virConnectDomainXML",
    "virNodeGet", "virConnectRegisterCloseCallback", "virConnectUnregisterCloseCallback",
)  # fmt: skip


def needed(row: Procedure) -> Right:
    """The right that a call of `row` takes."""
    if row.read_only:
        return Right.READ
    return Right.OPERATE if row.api in _OPERATE or row.api in LOOKS else Right.CONFIGURE


def about(row: Procedure) -> About:
    """What a call of `row` concerns."""
    if row.api in _THROUGH_THE_VIEW:
        return About.DOMAINS
    if row.api.startswith("virConnect") and row.api.endswith(_EVENTS):
        return About.NODE
    if row.args is not None and domain_in(row.args) is not None:
        return About.DOMAIN
    if row.read_only and row.api.startswith(_OF_THE_NODE):
        return About.NODE
    return About.SHARED


def domain_in(codec: Codec) -> Callable[[Any], bytes] | None:
    """How to find a domain's UUID in a value of `codec`; None where there is none. A snapshot's or a
    checkpoint's reference holds its domain's."""
    if isinstance(codec, DomainRef):
        return lambda value: cast(bytes, value[0])
    if codec is NONNULL_DOMAIN:
        return lambda value: cast(bytes, value[1])
    if isinstance(codec, Record):
        for index, member in enumerate(codec.members):
            found = domain_in(member)
            if found is not None:
                return lambda value, index=index, found=found: found(value[index])  # type: ignore[misc]
    return None


_VERBS = {Right.READ: "read", Right.OPERATE: "operate", Right.CONFIGURE: "configure"}


def denied(session: Session, right: Right, api: str) -> LibvirtError:
    """No rule gives `right`."""
    detail = f"{session.caller.identity} may not {_VERBS[right]} here ({api})"
    return error(Code.ACCESS_DENIED, detail, origin=Origin.ACCESS)


def guarded(row: Procedure) -> Callable[..., Any]:
    """The handler of `row`, behind a check of what a limited session may do."""
    handler, api, concerns = row.handler, row.api, about(row)
    right, secure = needed(row), _SECURE_FLAGS.get(row.api, 0)

    if concerns is About.SHARED:

        def shared(session: Session, *values: Any) -> Any:
            if not right & session.access.shared:
                raise denied(session, right, api)
            return handler(session, *values)

        return shared

    if concerns is About.DOMAIN:
        assert row.args is not None
        uuid_of = domain_in(row.args)
        assert uuid_of is not None

        def domain(session: Session, *values: Any) -> Any:
            uuid = uuid_of(values)
            info = session.driver.domain(uuid)
            if info is None:  # or it is hidden, which must not be told apart
                raise no_domain(uuid)
            wanted = Right.CONFIGURE if secure and values[-1] & secure else right
            if not wanted & session.access.on(info):
                raise denied(session, wanted, api)
            return handler(session, *values)

        return domain
    return handler


class _VisibleDomains:
    """A driver in which only those domains are that `session` may read."""

    def __init__(self, driver: Driver, access: Access, session: Session) -> None:
        self._driver, self._access, self._session = driver, access, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def _seen(self, info: DomainInfo | None) -> DomainInfo | None:
        return info if info is not None and self._access.on(info) & Right.READ else None

    def domains(self) -> list[DomainInfo]:
        on = self._access.on
        return [info for info in self._driver.domains() if on(info) & Right.READ]

    def domain(self, uuid: bytes) -> DomainInfo | None:
        return self._seen(self._driver.domain(uuid))

    def domain_by_name(self, name: str) -> DomainInfo | None:
        return self._seen(self._driver.domain_by_name(name))

    def domain_by_id(self, id: int) -> DomainInfo | None:
        return self._seen(self._driver.domain_by_id(id))

    async def define(self, caller: Caller, definition: DomainDef) -> DomainInfo:
        self.check(definition, Right.CONFIGURE, "virDomainDefineXML")
        return await self._driver.define(caller, definition)

    async def create_xml(self, caller: Caller, definition: DomainDef, flags: CreateFlags) -> DomainInfo:
        self.check(definition, Right.CONFIGURE, "virDomainCreateXML")
        self.check(definition, Right.OPERATE, "virDomainCreateXML")
        return await self._driver.create_xml(caller, definition, flags)

    async def set_metadata(self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact) -> None:
        if metadata.kind is MetadataKind.ELEMENT:  # one of them may say whose the domain is
            info = self._driver.domain(uuid)
            for part in info.meant(impact) if info is not None else ():
                xml = self._driver.domain_xml(uuid, inactive=part is Impact.CONFIG, secure=True)
                becomes = set_metadata(parse_domain(xml), metadata)
                self.check(becomes, Right.CONFIGURE, "virDomainSetMetadata")
        await self._driver.set_metadata(caller, uuid, metadata, impact)

    async def undefine(self, caller: Caller, uuid: bytes, flags: UndefineFlags) -> None:
        now = self._driver.domain(uuid)
        if now is not None and now.active and now.persistent:  # it goes on as what it was started as
            becomes = parse_domain(self._driver.domain_xml(uuid, inactive=False, secure=True))
            self.check(becomes, Right.CONFIGURE, "virDomainUndefine")
        await self._driver.undefine(caller, uuid, flags)

    def check(self, definition: DomainDef, right: Right, api: str) -> None:
        """As it is to be, and as it may be now."""
        now = self._driver.domain(definition.uuid)
        becomes = DomainInfo(definition.uuid, definition.name, tenant=self._driver.tenant(definition))
        for domain in (becomes,) if now is None else (now, becomes):
            if not right & self._access.on(domain):
                raise denied(self._session, right, api)


def permit(session: Session, definition: DomainDef, right: Right, api: str) -> None:
    """For calls that bring a definition in by other ways than DEFINE. Raises ACCESS_DENIED unless `session`
    has the right on what it defines, and on the domain of that UUID if there is one."""
    if isinstance(session.driver, _VisibleDomains):
        session.driver.check(definition, right, api)


def view(driver: Driver, access: Access, session: Session) -> Driver:
    """`driver` as a session of limited rights sees it."""
    return cast(Driver, _VisibleDomains(driver, access, session))
