"""Between libvirt's words for a domain and ours: pure functions."""

from __future__ import annotations

import fnmatch
import ipaddress
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from xml.sax.saxutils import quoteattr

from hypervisor_shim.driver import (
    DefinedDetail,
    DomainInfo,
    Lifecycle,
    ShutdownDetail,
    ShutdownReason,
    ShutoffReason,
    StartedDetail,
    State,
    StoppedDetail,
    UndefinedDetail,
)
from hypervisor_shim.xml import domain as domain_xml
from hypervisor_shim.xml import domain_def
from hypervisor_shim.xml.domain_def import DomainDef
from hypervisor_shim.xml.domain_live import Live, Mirror
from hypervisor_shim.xml.metadata import word
from nicagent.config import Host, Segment
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.filter_tree import parameters
from nicagent.model import (
    Disk,
    Display,
    Domain,
    DomainEvent,
    DomainStatus,
    HostState,
    Limits,
    Port,
    Rate,
    Sharing,
    VolumeFormat,
)
from nicagent.network.contract import RATE_MAX, bridge_name

# One element of this namespace in a definition's <metadata> carries wishes that libvirt has no word for:
#   <nic:domain xmlns:nic="urn:nicagent:domain:1"><nic:host>metal-1</nic:host><nic:tenant>blue</nic:tenant>
#   </nic:domain>
WISHES = "urn:nicagent:domain:1"
# And one of this namespace in the live document says what was made of them.
FACTS = "urn:nicagent:run:1"

# Devices that an OS would look for. Others (video, input, rng, memballoon, controllers …) a server has of its
# own, or does without and nobody notices.
_LOOKED_FOR = frozenset(
    ("filesystem", "hostdev", "iommu", "lease", "memory", "redirdev", "shmem", "smartcard", "tpm",
     "vsock", "watchdog")
)  # fmt: skip

RUNNING_BOOTED = 1
PASSWORD_LIMIT = 8  # bytes of a screen's password: the protocol has no place for more

# The filter parameter by which libvirt's users name the address that a port may use (nwfilter's variable IP).
IP_PARAMETER = "IP"


def to_domain(
    definition: DomainDef, pools: Mapping[str, Path], bridges: Mapping[str, str] | None = None
) -> Domain:
    """What the controller needs of a definition; `bridges`: which segment a client means by a bridge.

    Raises INVALID or UNSUPPORTED naming the element.
    """
    return Domain(
        uuid=str(uuid.UUID(bytes=definition.uuid)),
        name=definition.name,
        xml=domain_xml.format_domain(definition, secure=True),
        memory_kib=definition.max_mem_kib,
        vcpus=definition.vcpus,  # not the most that could be plugged: nothing is, on metal
        # An empty drive is kept in the document; a host is shown a medium once there is one.
        disks=tuple(_disk(disk, definition, pools) for disk in definition.disks if not disk.empty),
        ports=tuple(_port(number, each, bridges or {}) for number, each in enumerate(definition.interfaces)),
        display=_display(definition.graphics),
        host=_pinned_host(definition),
        tenant=tenant_of(definition),
    )


class MacHolders:
    """Which domains have a MAC among their ports."""

    def __init__(self) -> None:
        self._macs: dict[bytes, frozenset[str]] = {}  # of a domain
        self._holders: dict[str, set[bytes]] = {}

    def put(self, uuid: bytes, macs: frozenset[str]) -> None:
        """A domain has these and no others."""
        for mac in self._macs.pop(uuid, frozenset()) - macs:
            self._holders[mac].discard(uuid)
            if not self._holders[mac]:
                del self._holders[mac]
        for mac in macs:
            self._holders.setdefault(mac, set()).add(uuid)
        if macs:
            self._macs[uuid] = macs

    def others(self, mac: str, uuid: bytes) -> bool:
        """Whether a domain other than `uuid` has it."""
        return bool(self._holders.get(mac, set()) - {uuid})


def with_nic_macs(
    definition: DomainDef, hosts: Mapping[str, Host], taken: Callable[[str], bool]
) -> DomainDef:
    """The definition with made-up MACs replaced by those of NICs: of the pinned host, else of the first that
    has enough NICs and whose MACs no other domain has, else of the first that has enough.
    """
    if not definition.made_up_macs:
        return definition
    pinned = _pinned_host(definition)
    count = len(definition.interfaces)
    fitting = [
        [nic.mac for nic in host.nics[:count]]
        for name, host in hosts.items()
        if len(host.nics) >= count and pinned in (None, name)
    ]
    fitting.sort(key=lambda macs: any(map(taken, macs)))
    if not fitting:
        return definition  # placement will say that no host has enough
    pairs = zip(definition.interfaces, fitting[0], strict=True)
    return domain_xml.with_macs(
        definition, {each.mac: mac for each, mac in pairs if each.mac in definition.made_up_macs}
    )


def _disk(disk: domain_def.Disk, definition: DomainDef, pools: Mapping[str, Path]) -> Disk:
    where = f"disk {disk.target}"
    if disk.device not in ("disk", "cdrom"):
        raise NicagentError(Kind.UNSUPPORTED, f"{where}: device '{disk.device}' has no place on metal")
    if disk.type in ("file", "block") and disk.path:
        path = disk.path
    elif disk.type == "volume" and disk.pool and disk.volume:
        path = str(_volume(where, disk.pool, disk.volume, pools))
    else:
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"{where}: type '{disk.type}' without a file, block device or volume cannot be exported",
            "use <source file=…>, <source dev=…> or <source pool=… volume=…>",
        )
    try:
        volume_format = VolumeFormat(disk.format or "raw")
    except ValueError:
        raise NicagentError(
            Kind.UNSUPPORTED, f"{where}: format '{disk.format}' is not known here", "use raw or qcow2"
        ) from None
    return Disk(
        target=disk.target,
        path=path,
        format=volume_format,
        readonly=disk.readonly or disk.device == "cdrom",
        serial=disk.serial,
        boot_order=disk.boot_order,
        wanted_bus=disk.bus,
        limits=_limits(where, disk.iotune),
    )


def _limits(where: str, given: Mapping[str, int | str]) -> Limits | None:
    if given.get("group_name"):
        raise NicagentError(
            Kind.UNSUPPORTED, f"{where}: a disk of metal has limits of its own and shares none"
        )
    known = {each.name for each in fields(Limits)}
    numbers = {name: int(value) for name, value in given.items() if name in known}
    return Limits(**numbers) if any(numbers.values()) else None


def _volume(where: str, pool: str, volume: str, pools: Mapping[str, Path]) -> Path:
    directory = pools.get(pool)
    if directory is None:
        known = ", ".join(pools) or "none"
        raise NicagentError(
            Kind.NOT_FOUND, f"{where}: no pool is called '{pool}'", f"known: {known}", of=Thing.POOL
        )
    if "/" in volume or volume in ("", ".", ".."):
        raise NicagentError(Kind.INVALID, f"{where}: '{volume}' is no name of a volume", "give its bare name")
    return directory / volume


def bridges_of(segments: Mapping[str, Segment]) -> dict[str, str]:
    """Which segment a client means by a bridge: the agent's own, or one that the config lists for it."""
    own = {bridge_name(segment.vni): name for name, segment in segments.items()}
    return own | {bridge: name for name, segment in segments.items() for bridge in segment.bridges}


def _segment(number: int, interface: domain_def.Interface, bridges: Mapping[str, str]) -> str:
    source = interface.source or ""
    if interface.type == "network" and source:
        return source
    # An OpenStack with Open vSwitch names no bridge but the tap device that it puts on one.
    named = {"bridge": source, "ethernet": interface.target or ""}.get(interface.type)
    found = named and next((bridges[each] for each in bridges if fnmatch.fnmatchcase(named, each)), None)
    if found:
        return found
    if named:
        what = f"{interface.type} '{named}' is that of no segment"
        advice = "list it in segments.NAME.bridges, or use <interface type='network'>"
    else:
        what = f"type '{interface.type}' names no segment"
        advice = "use <interface type='network'><source network='SEGMENT'/>"
    raise NicagentError(Kind.UNSUPPORTED, f"interface {number}: {what}", advice)


def _port(number: int, interface: domain_def.Interface, bridges: Mapping[str, str]) -> Port:
    name = f"port{number}"
    segment = _segment(number, interface, bridges)
    address = None
    if interface.filter is not None:
        addresses = interface.filter.parameters.get(IP_PARAMETER, [])
        if len(addresses) > 1:
            raise NicagentError(Kind.UNSUPPORTED, f"interface {number}: more than one {IP_PARAMETER}")
        address = addresses[0] if addresses else None
    if address is not None:
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise NicagentError(
                Kind.INVALID, f"interface {number}: {IP_PARAMETER} '{address}' is no IPv4 address"
            ) from None
    return Port(
        name,
        segment,
        interface.mac,
        address,
        interface.boot_order,
        interface.link != "down",
        interface.filter.name if interface.filter is not None else None,
        parameters(interface.filter.parameters) if interface.filter is not None else (),
        _rate(number, interface.bandwidth.inbound),
        _rate(number, interface.bandwidth.outbound),
    )


def _rate(number: int, rate: domain_def.Rate | None) -> Rate | None:
    """libvirt's kilobyte a second is 1,000 bytes, as tc's `kbps`; of a burst it is 1,024, as tc's `kb`."""
    if rate is None:
        return None
    where = f"interface {number}: bandwidth"
    if rate.floor:
        raise NicagentError(
            Kind.UNSUPPORTED, f"{where}: a port is held to an average and a peak, and promised no floor"
        )
    if max(rate.average, rate.peak) * 1000 > RATE_MAX or rate.burst * 1024 > RATE_MAX:
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"{where}: a port goes at most {RATE_MAX // 1000} kilobytes a second, in bursts of "
            f"{RATE_MAX // 1024} KiB",
            "leave it unlimited",
        )
    return Rate(rate.average * 1000, rate.peak * 1000, rate.burst * 1024)


def _display(graphics: Sequence[domain_def.Graphics]) -> Display | None:
    """The screen as RFB shows it. Other kinds are kept in the definition; nothing here speaks them."""
    shown = [each for each in graphics if each.type == "vnc"]
    if len(shown) > 1:
        raise NicagentError(
            Kind.UNSUPPORTED, "a host has one screen: only 1 graphics device of each type is supported"
        )
    if not shown or shown[0].listen == "none":
        return None
    (one,) = shown
    if one.listen != "address":
        what = "sockets" if one.listen == "socket" else "the address of a network"
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"graphics: screens are shown at addresses, not at {what}",
            "use <listen type='address'/>",
        )
    if one.websocket is not None:
        raise NicagentError(
            Kind.UNSUPPORTED, "graphics: websocket is not spoken here", "put a websockify before the VNC port"
        )
    if one.power_control:
        raise NicagentError(
            Kind.UNSUPPORTED, "graphics: a viewer has no power over the server", "use virsh, or leave it out"
        )
    if one.password is not None and len(one.password.encode()) > PASSWORD_LIMIT:
        raise NicagentError(
            Kind.UNSUPPORTED,
            f"VNC password is {len(one.password.encode())} characters long, only {PASSWORD_LIMIT} permitted",
        )
    if one.port is None and not one.autoport:
        raise NicagentError(
            Kind.UNSUPPORTED, "graphics: neither a port is given nor autoport='yes'", "choose one of them"
        )
    sharing = Sharing(one.share_policy) if one.share_policy else Sharing.EXCLUSIVE
    port = None if one.autoport else one.port
    return Display(one.address, port, one.password, one.valid_to, sharing)


def _pinned_host(definition: DomainDef) -> str | None:
    return word(definition, WISHES, "host")


def tenant_of(definition: DomainDef) -> str | None:
    """Whose the domain says it is."""
    return word(definition, WISHES, "tenant")


def missed(definition: DomainDef) -> list[str]:
    """What the definition has that an OS would look for and a server is not given, in words."""
    kinds = sorted({each.tag for each in definition.tree.iterfind("devices/*")} & _LOOKED_FOR)
    return (
        [f"kept in its definition, and nothing that a server is given: {', '.join(kinds)}"] if kinds else []
    )


def live_part(status: DomainStatus, ports: Mapping[str, str], mirrors: Mapping[str, Mirror]) -> Live:
    """What the live document adds to the definition. `ports`: by MAC, what they are called; `mirrors`: by
    disk, of its block jobs."""
    assert status.id is not None
    facts = f"<run:run xmlns:run={quoteattr(FACTS)} host={quoteattr(status.host or '')}"
    if status.transport is not None:
        facts += f" transport={quoteattr(status.transport.value)}"
    facts += ">"
    for export in status.exports:
        facts += (
            f"<run:disk target={quoteattr(export.disk.target)} uuid={quoteattr(export.identity.uuid)}"
            f" nqn={quoteattr(export.identity.nqn)} nsid='{export.identity.nsid}'"
            f" serial={quoteattr(export.identity.serial)}/>"
        )
    for binding in status.bindings:
        facts += (
            f"<run:port segment={quoteattr(binding.port.segment)} mac={quoteattr(binding.mac)}"
            f" ipv4={quoteattr(binding.ipv4)} device={quoteattr(binding.device)}/>"
        )
    facts += "</run:run>"
    display = status.display
    return Live(
        id=status.id,
        targets=ports,
        metadata=(facts,),
        mirrors=mirrors,
        screen=None if display is None else (display.address, display.port),
    )


def to_info(status: DomainStatus, *, updated: bool = False, tenant: str | None = None) -> DomainInfo:
    """A domain as libvirt's short answers tell it. `tenant`: what its persistent definition says, if it has
    one; otherwise that of its run counts."""
    state, reason = _state(status)
    active = state not in (State.SHUTOFF,)
    domain = status.domain
    return DomainInfo(
        uuid=uuid.UUID(domain.uuid).bytes,
        name=domain.name,
        id=status.id if active and status.id is not None else -1,
        state=state,
        reason=reason,
        max_mem_kib=domain.memory_kib,
        mem_kib=domain.memory_kib,
        vcpus=domain.vcpus,
        max_vcpus=domain.vcpus,
        persistent=domain.persistent,
        autostart=domain.autostart,
        autostart_once=domain.autostart_once,
        updated=updated,
        tenant=tenant if domain.persistent else domain.tenant,
    )


_ACTIVE: Mapping[HostState, tuple[State, int]] = {
    HostState.RUNNING: (State.RUNNING, RUNNING_BOOTED),
    HostState.STOPPING: (State.SHUTDOWN, ShutdownReason.USER),
    HostState.CLEANING: (State.SHUTDOWN, ShutdownReason.USER),
    HostState.UNKNOWN: (State.NOSTATE, 0),
    HostState.FAULT: (State.CRASHED, 0),
}

_ENDED: Mapping[DomainEvent | None, ShutoffReason] = {
    DomainEvent.STOPPED: ShutoffReason.SHUTDOWN,
    DomainEvent.DESTROYED: ShutoffReason.DESTROYED,
    DomainEvent.CRASHED: ShutoffReason.CRASHED,
    DomainEvent.FAILED: ShutoffReason.FAILED,
    None: ShutoffReason.UNKNOWN,
}


def _state(status: DomainStatus) -> tuple[State, int]:
    """A domain that is being started is off to libvirt until power-good: its id comes with the start."""
    if status.id is None or (
        status.state in (HostState.PREPARING, HostState.POWERING_ON) and not status.was_running
    ):
        return State.SHUTOFF, _ENDED.get(status.ended, ShutoffReason.UNKNOWN)
    return _ACTIVE.get(status.state, (State.RUNNING, RUNNING_BOOTED))


# Our event → libvirt's lifecycle event and detail.
EVENTS: Mapping[DomainEvent, tuple[Lifecycle, int]] = {
    DomainEvent.DEFINED: (Lifecycle.DEFINED, 0),
    DomainEvent.UPDATED: (Lifecycle.DEFINED, 1),
    DomainEvent.UNDEFINED: (Lifecycle.UNDEFINED, 0),
    DomainEvent.RENAMED_FROM: (Lifecycle.UNDEFINED, UndefinedDetail.RENAMED),
    DomainEvent.RENAMED: (Lifecycle.DEFINED, DefinedDetail.RENAMED),
    DomainEvent.STARTED: (Lifecycle.STARTED, StartedDetail.BOOTED),
    DomainEvent.SHUTDOWN: (Lifecycle.SHUTDOWN, ShutdownDetail.FINISHED),
    DomainEvent.STOPPED: (Lifecycle.STOPPED, StoppedDetail.SHUTDOWN),
    DomainEvent.DESTROYED: (Lifecycle.STOPPED, StoppedDetail.DESTROYED),
    DomainEvent.CRASHED: (Lifecycle.STOPPED, StoppedDetail.CRASHED),
    DomainEvent.FAILED: (Lifecycle.STOPPED, StoppedDetail.FAILED),
}
