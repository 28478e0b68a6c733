"""The operating system on metal: asked through its stock guest agent, or told from what we know ourselves."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import Any, TypeVar

from hypervisor_shim.driver import Caller
from hypervisor_shim.driver.guest import (
    Address,
    AddressSource,
    FileSystem,
    Guest,
    GuestInterface,
    InfoTypes,
    KeysFlags,
    Param,
)
from hypervisor_shim.errors import Code, Origin, error
from hypervisor_shim.xdr import Tag
from nicagent.hostlink.contract import ANSWER_SECONDS, GuestLink, GuestRefused, GuestSilent, answers
from nicagent.model import DomainStatus
from nicagent.northbound.libvirt_ground import Ground
from nicagent.segments import Segments

Shape = TypeVar("Shape")
FREEZE_SECONDS = 60.0  # file systems write out what they hold
TRIM_SECONDS = 300.0
LONGEST_SECONDS = 3600.0
NANO = 1_000_000_000


@contextmanager
def in_libvirts_words() -> Iterator[None]:
    """What goes wrong between us and the guest's agent."""
    try:
        yield
    except GuestSilent as silent:
        raise error(Code.AGENT_UNRESPONSIVE, str(silent)) from None
    except GuestRefused as refused:
        code = Code.OPERATION_UNSUPPORTED if refused.unknown else Code.INTERNAL_ERROR
        raise error(code, str(refused)) from None


class MetalGuest(Guest):
    """`links`: the channel of each host that has one."""

    def __init__(self, ground: Ground, segments: Segments, links: Mapping[str, GuestLink]) -> None:
        self._ground = ground
        self._segments = segments
        self._links = links
        self._patience: dict[bytes, float] = {}

    def link(self, uuid: bytes) -> GuestLink:
        """Raises ARGUMENT_UNSUPPORTED, libvirt's code, where no channel is wired."""
        host = self._ground.running(uuid).host or ""
        link = self._links.get(host)
        if link is None:
            raise error(
                Code.ARGUMENT_UNSUPPORTED,
                f"QEMU guest agent is not configured: host {host} has no guest_agent channel wired",
            )
        return link

    async def _ask(
        self,
        uuid: bytes,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        kind: type[Shape],
        seconds: float = ANSWER_SECONDS,
    ) -> Shape:
        link = self.link(uuid)
        with in_libvirts_words():
            return await link.ask(command, arguments, kind=kind, seconds=seconds)

    # ---- names and clocks

    async def hostname(self, uuid: bytes, source: AddressSource) -> str:
        if source is AddressSource.LEASE:
            return next((each.hostname for each in self._ground.running(uuid).bindings), "")
        return (await self._ask(uuid, "guest-get-host-name", kind=answers.Hostname)).host_name

    async def time(self, uuid: bytes) -> tuple[int, int]:
        told = await self._ask(uuid, "guest-get-time", kind=int)
        if not 0 <= told < 1 << 63:
            raise error(Code.INTERNAL_ERROR, "the guest's clock shows a time before 1970")
        return divmod(told, NANO)

    async def set_time(self, caller: Caller, uuid: bytes, time: tuple[int, int] | None) -> None:
        wanted = None if time is None else time[0] * NANO + time[1]
        if wanted is not None and not 0 <= wanted < 1 << 63:
            raise error(Code.INVALID_ARG, "the guest's clock cannot show that time", origin=Origin.DOMAIN)
        arguments = {} if wanted is None else {"time": wanted}
        await self._ask(uuid, "guest-set-time", arguments, kind=dict)

    async def power_down(self, caller: Caller, uuid: bytes, mode: str) -> None:
        """Have the OS go down (`powerdown`) or restart (`reboot`) by itself."""
        link = self.link(uuid)
        with in_libvirts_words():
            await link.tell("guest-shutdown", {"mode": mode})

    # ---- file systems

    def _targets(self, uuid: bytes) -> dict[str, str]:
        """Serial numbers as the guest reads them → the targets that libvirt's users know."""
        return {e.identity.serial: e.disk.target for e in self._ground.status(uuid).exports}

    async def file_systems(self, uuid: bytes) -> Sequence[FileSystem]:
        targets = self._targets(uuid)
        found = await self._ask(uuid, "guest-get-fsinfo", kind=answers.FileSystems)
        return [FileSystem(each.mountpoint, each.name, each.type, _on(each.disk, targets)) for each in found]

    async def freeze(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        arguments = {"mountpoints": list(mountpoints)} if mountpoints else None
        command = "guest-fsfreeze-freeze-list" if mountpoints else "guest-fsfreeze-freeze"
        return await self._count(uuid, command, arguments)

    async def thaw(self, caller: Caller, uuid: bytes, mountpoints: Sequence[str]) -> int:
        if mountpoints:
            raise error(Code.ARGUMENT_UNSUPPORTED, "specifying mountpoints is not supported")
        return await self._count(uuid, "guest-fsfreeze-thaw", None)

    async def _count(self, uuid: bytes, command: str, arguments: Mapping[str, Any] | None) -> int:
        count = await self._ask(uuid, command, arguments, kind=int, seconds=FREEZE_SECONDS)
        return max(0, min(count, 1 << 30))

    async def trim(self, caller: Caller, uuid: bytes, mountpoint: str | None, minimum: int) -> None:
        if mountpoint is not None:
            raise error(
                Code.OPERATION_UNSUPPORTED,
                "Specifying mount point is not supported for now",
                origin=Origin.QEMU,
            )
        arguments = {"minimum": minimum}
        await self._ask(uuid, "guest-fstrim", arguments, kind=dict, seconds=TRIM_SECONDS)

    # ---- addresses

    async def addresses(self, uuid: bytes, source: AddressSource) -> Sequence[GuestInterface]:
        if source is AddressSource.AGENT:
            found = await self._ask(uuid, "guest-network-get-interfaces", kind=answers.Interfaces)
            return [_interface(each) for each in found]
        # The address of a port is the one that it may use: its DHCP lease, and all that its guard lets by.
        status = self._ground.running(uuid)
        return list(self._leases(status))

    def _leases(self, status: DomainStatus) -> Iterator[GuestInterface]:
        names = self._ground.port_names(status)
        for binding in status.bindings:
            segment = self._segments.find(binding.port.segment)
            live = None if segment is None else segment.live
            prefix = 32 if live is None else IPv4Network(live.cidr).prefixlen
            yield GuestInterface(names[binding.mac], binding.mac, (Address(0, binding.ipv4, prefix),))

    # ---- everything together

    async def info(self, uuid: bytes, types: InfoTypes) -> Sequence[Param]:
        targets, link = self._targets(uuid), self.link(uuid)
        tellers: Mapping[InfoTypes, tuple[str, Any, Callable[[Any], list[Param]]]] = {
            InfoTypes.USERS: ("guest-get-users", answers.Users, _users),
            InfoTypes.OS: ("guest-get-osinfo", answers.OsInfo, _os),
            InfoTypes.TIMEZONE: ("guest-get-timezone", answers.Timezone, _timezone),
            InfoTypes.HOSTNAME: ("guest-get-host-name", answers.Hostname, _hostname),
            InfoTypes.FILESYSTEM: (
                "guest-get-fsinfo",
                answers.FileSystems,
                lambda f: _file_systems(f, targets),
            ),
            InfoTypes.DISKS: ("guest-get-disks", answers.Disks, lambda d: _disks(d, targets)),
            InfoTypes.INTERFACES: ("guest-network-get-interfaces", answers.Interfaces, _interfaces),
        }
        params: list[Param] = []
        for kind, (command, shape, tell) in tellers.items():
            if types and not types & kind:
                continue
            with in_libvirts_words():
                try:
                    params += tell(await link.ask(command, kind=shape))
                except GuestRefused as refused:
                    if types or not refused.unknown:
                        raise
        return params

    # ---- users

    async def set_password(
        self, caller: Caller, uuid: bytes, user: str, password: str, encrypted: bool
    ) -> None:
        coded = base64.b64encode(password.encode("utf-8", "surrogateescape")).decode()
        arguments = {"username": user, "password": coded, "crypted": encrypted}
        await self._ask(uuid, "guest-set-user-password", arguments, kind=dict)

    async def ssh_keys(self, uuid: bytes, user: str) -> Sequence[str]:
        arguments = {"username": user}
        return (await self._ask(uuid, "guest-ssh-get-authorized-keys", arguments, kind=answers.Keys)).keys

    async def set_ssh_keys(
        self, caller: Caller, uuid: bytes, user: str, keys: Sequence[str], flags: KeysFlags
    ) -> None:
        arguments: dict[str, Any] = {"username": user, "keys": list(keys)}
        if flags is KeysFlags.REMOVE:
            await self._ask(uuid, "guest-ssh-remove-authorized-keys", arguments, kind=dict)
        else:
            arguments["reset"] = flags is not KeysFlags.APPEND
            await self._ask(uuid, "guest-ssh-add-authorized-keys", arguments, kind=dict)

    # ---- processors

    async def vcpus(self, uuid: bytes) -> Sequence[Param]:
        found = await self._ask(uuid, "guest-get-vcpus", kind=answers.Vcpus)
        return [
            ("vcpus", Tag.STRING, _numbers(each.logical_id for each in found)),
            ("online", Tag.STRING, _numbers(each.logical_id for each in found if each.online)),
            ("offlinable", Tag.STRING, _numbers(each.logical_id for each in found if each.can_offline)),
        ]

    async def set_vcpus(self, caller: Caller, uuid: bytes, cpus: frozenset[int], online: bool) -> None:
        known = {each.logical_id for each in await self._ask(uuid, "guest-get-vcpus", kind=answers.Vcpus)}
        if not cpus <= known:
            raise error(Code.INVALID_ARG, "guest has no such vcpu", origin=Origin.DOMAIN)
        wanted = [{"logical-id": number, "online": online} for number in sorted(cpus)]
        done = await self._ask(uuid, "guest-set-vcpus", {"vcpus": wanted}, kind=int)
        if done != len(wanted):
            raise error(Code.INTERNAL_ERROR, f"the guest changed {done} of {len(wanted)} processors")

    # ---- the protocol itself

    async def set_response_timeout(self, caller: Caller, uuid: bytes, seconds: int) -> None:
        self._ground.status(uuid)
        self._patience[uuid] = _patience(seconds)

    async def command(self, caller: Caller, uuid: bytes, text: str, seconds: int) -> str:
        link = self.link(uuid)
        patience = self._patience.get(uuid, ANSWER_SECONDS) if seconds == -1 else _patience(seconds)
        with in_libvirts_words():
            return await link.ask_raw(text, patience)


def _patience(seconds: int) -> float:
    """-2: for ever, which nobody gets: others wait for their turn. -1: as we like. 0: it must be there."""
    return {-2: LONGEST_SECONDS, -1: ANSWER_SECONDS, 0: 0.2}.get(seconds, float(seconds))


def _on(disks: Sequence[answers.DiskAddress], targets: Mapping[str, str]) -> tuple[str, ...]:
    """The targets of disks, those that are ours first; the others by the guest's own names."""
    names = (targets.get(disk.serial or "", disk.dev) for disk in disks)
    return tuple(name for name in names if name)


def _interface(each: answers.Interface) -> GuestInterface:
    kinds = {"ipv4": 0, "ipv6": 1}
    return GuestInterface(
        each.name,
        each.hardware_address,
        tuple(
            Address(kinds[a.ip_address_type], a.ip_address, a.prefix)
            for a in each.ip_addresses
            if a.ip_address_type in kinds
        ),
    )


def _numbers(numbers: Any) -> str:
    """0, 1, 2, 5 → `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


# ---- virDomainGetGuestInfo's names -----------------------------------------------------------------


def _users(users: Sequence[answers.User]) -> list[Param]:
    params: list[Param] = [("user.count", Tag.UINT, len(users))]
    for number, each in enumerate(users):
        params.append((f"user.{number}.name", Tag.STRING, each.user))
        if each.domain is not None:
            params.append((f"user.{number}.domain", Tag.STRING, each.domain))
        params.append((f"user.{number}.login-time", Tag.ULLONG, int(each.login_time * 1000)))
    return params


def _os(os: answers.OsInfo) -> list[Param]:
    names = ("id", "name", "pretty_name", "version", "version_id", "machine", "variant", "variant_id",
             "kernel_release", "kernel_version")  # fmt: skip
    told = {name: getattr(os, name) for name in names}
    return [(f"os.{n.replace('_', '-')}", Tag.STRING, v) for n, v in told.items() if v is not None]


def _timezone(zone: answers.Timezone) -> list[Param]:
    name: list[Param] = [] if zone.zone is None else [("timezone.name", Tag.STRING, zone.zone)]
    return [*name, ("timezone.offset", Tag.INT, zone.offset)]


def _hostname(name: answers.Hostname) -> list[Param]:
    return [("hostname", Tag.STRING, name.host_name)]


def _file_systems(found: Sequence[answers.FileSystem], targets: Mapping[str, str]) -> list[Param]:
    params: list[Param] = [("fs.count", Tag.UINT, len(found))]
    for number, each in enumerate(found):
        params += [
            (f"fs.{number}.name", Tag.STRING, each.name),
            (f"fs.{number}.mountpoint", Tag.STRING, each.mountpoint),
            (f"fs.{number}.fstype", Tag.STRING, each.type),
        ]
        for name, size in (("total-bytes", each.total_bytes), ("used-bytes", each.used_bytes)):
            if size is not None:
                params.append((f"fs.{number}.{name}", Tag.ULLONG, size))
        params.append((f"fs.{number}.disk.count", Tag.UINT, len(each.disk)))
        for place, disk in enumerate(each.disk):
            named = (
                ("alias", targets.get(disk.serial or "")),
                ("serial", disk.serial),
                ("device", disk.dev),
            )
            params += [(f"fs.{number}.disk.{place}.{n}", Tag.STRING, v) for n, v in named if v]
    return params


def _disks(found: Sequence[answers.Disk], targets: Mapping[str, str]) -> list[Param]:
    params: list[Param] = [("disk.count", Tag.UINT, len(found))]
    for number, each in enumerate(found):
        params += [
            (f"disk.{number}.name", Tag.STRING, each.name),
            (f"disk.{number}.partition", Tag.BOOLEAN, int(each.partition)),
        ]
        serial = each.address.serial if each.address is not None else None
        named = (("alias", targets.get(serial or "")), ("serial", serial), ("guest_alias", each.alias))
        params += [(f"disk.{number}.{name}", Tag.STRING, value) for name, value in named if value]
    return params


def _interfaces(found: Sequence[answers.Interface]) -> list[Param]:
    params: list[Param] = [("if.count", Tag.UINT, len(found))]
    for number, each in enumerate(found):
        params.append((f"if.{number}.name", Tag.STRING, each.name))
        if each.hardware_address is not None:
            params.append((f"if.{number}.hwaddr", Tag.STRING, each.hardware_address))
        params.append((f"if.{number}.addr.count", Tag.UINT, len(each.ip_addresses)))
        for place, address in enumerate(each.ip_addresses):
            params += [
                (f"if.{number}.addr.{place}.type", Tag.STRING, address.ip_address_type),
                (f"if.{number}.addr.{place}.addr", Tag.STRING, address.ip_address),
                (f"if.{number}.addr.{place}.prefix", Tag.UINT, address.prefix),
            ]
    return params
