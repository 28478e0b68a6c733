"""LAB.toml → Lab: what the emulated outside world consists of; every key, its default, its unit, its check.

Strings may hold `{run_dir}`, the directory that the lab runs in, so that one file serves many labs.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nicagent.config import readable
from nicagent.errors import Kind, NicagentError

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Mac = Annotated[str, Meta(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
Netdev = Annotated[str, Meta(pattern=r"^[^\s/:]{1,15}$")]
Offset = Annotated[int, Meta(ge=0, le=27)]  # the GPIOs of a Raspberry Pi's header


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are refused."""


class FrontPanel(Strict, frozen=True, kw_only=True):
    """Where the front-panel header's wires go, and what a line does when its holder dies.

    `active_high` says which level presses: it is the wiring between the agent's pin and the header.
    """

    power_button: Offset = 23
    reset: Offset = 27
    power_led: Offset = 24
    hdd_led: Offset = 22
    button_active_high: bool = True
    reset_active_high: bool = True
    led_active_high: bool = True
    on_holder_death: Literal["keep", "input"] = "keep"


class Nic(Strict, frozen=True, kw_only=True):
    """A network card of the host; its cable ends in the tap device `tap` inside `netns` (null: the lab's
    own).
    """

    mac: Mac
    tap: Netdev
    netns: Name | None = None
    model: Literal["virtio-net-pci", "e1000e"] = "virtio-net-pci"
    boot: bool = False  # with the stock iPXE ROM, tried after all disks
    bootindex: Annotated[int, Meta(ge=0, le=999)] | None = None
    mtu: Annotated[int, Meta(ge=68, le=65521)] = 1500


class LocalDisk(Strict, frozen=True, kw_only=True):
    """A disk inside the host, for comparison; the thing that nicagent replaces."""

    path: str
    format: Literal["raw", "qcow2"] = "raw"
    serial: str = ""


class DirectKernel(Strict, frozen=True, kw_only=True):
    """Skip the firmware: a kernel that is started at power-on, for tests of the body alone."""

    kernel: str
    initrd: str = ""
    cmdline: str = "console=ttyS0"


class Bmc(Strict, frozen=True, kw_only=True):
    """A BMC that answers IPMI 2.0 over UDP on `address` inside `netns`.

    `password_file`: its first line is the password (at most 20 bytes). A file that is missing is made, with a
    password made up and mode 0600: there is no default password. Empty: `bmc.password` beside the sockets.
    """

    address: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 623
    netns: Name | None = None
    user: Annotated[str, Meta(min_length=1, max_length=16)] = "admin"
    password_file: str = ""


class Chassis(Strict, frozen=True, kw_only=True):
    """One emulated server."""

    name: Name
    memory_mib: Annotated[int, Meta(ge=64, le=1 << 20)] = 1024
    vcpus: Annotated[int, Meta(ge=1, le=64)] = 1
    cpu: str = ""  # QEMU's name of the CPU; empty: the host's under KVM, qemu64 otherwise
    firmware: Literal["uefi", "bios"] = "uefi"
    serial_number: str = ""
    uuid: str = ""
    front_panel: FrontPanel = FrontPanel()
    nics: tuple[Nic, ...] = ()
    pcie_slot: str = ""  # directory; each *.nbd socket in it at power-on is a disk. Empty: <dir>/slot
    # That many disks of the slot come and go while the host runs; 0: the slot is read at power-on only
    hotplug_ports: Annotated[int, Meta(ge=0, le=16)] = 0
    local_disks: tuple[LocalDisk, ...] = ()
    direct_kernel: DirectKernel | None = None
    bmc: Bmc | None = None
    # A screen and a keyboard: VNC on <dir>/vnc.sock, `GET /snapshot` on capture.sock, HID on keyboard.sock
    vnc: bool = False
    guest_agent: bool = False  # a port org.qemu.guest_agent.0 for the OS, its outer end <dir>/guest.sock
    after_ac: Literal["off", "on", "last"] = "off"  # what the board does when mains come back


class CableEnd(Strict, frozen=True, kw_only=True):
    """One end of a cable: a network device in a network namespace, with its addresses (CIDR)."""

    device: Netdev
    netns: Name | None = None
    addresses: tuple[str, ...] = ()


class Cable(Strict, frozen=True, kw_only=True):
    """Two network devices that are joined (a veth pair)."""

    ends: tuple[CableEnd, CableEnd]
    mtu: Annotated[int, Meta(ge=68, le=65521)] = 1500


class Lab(Strict, frozen=True, kw_only=True):
    """The whole file."""

    run_dir: str = ""  # empty: a fresh directory under /tmp that goes away with the lab
    netns: tuple[Name, ...] = ()
    cables: tuple[Cable, ...] = ()
    chassis: tuple[Chassis, ...] = ()


def load_lab(path: Path) -> Lab:
    """Read and check a lab file; `{run_dir}` stays for `place`. Raises NicagentError with the key."""
    try:
        text = path.read_text()
    except OSError as error:
        raise NicagentError(
            Kind.INVALID, f"cannot read the lab file {path}: {error.strerror}", "check the path"
        ) from None
    try:
        lab = msgspec.convert(tomllib.loads(text), Lab)
    except tomllib.TOMLDecodeError as error:
        raise NicagentError(
            Kind.INVALID, f"{path} is not TOML: {error}", "mend the file at that place"
        ) from None
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$").removeprefix(".") or "the top level"
        raise NicagentError(
            Kind.INVALID, f"{path}: {key}: {readable(message)}", "docs/emulator.md lists every key"
        ) from None
    check(lab, path)
    return lab


def place(lab: Lab, run_dir: Path) -> Lab:
    """The lab with `{run_dir}` filled in everywhere."""

    def fill(value: object) -> object:
        match value:
            case str():
                return value.replace("{run_dir}", str(run_dir))
            case dict():
                return {key: fill(each) for key, each in value.items()}
            case list() | tuple():
                return [fill(each) for each in value]
            case _:
                return value

    placed = msgspec.convert(fill(msgspec.to_builtins(lab)), Lab)
    return msgspec.structs.replace(placed, run_dir=str(run_dir))


def check(lab: Lab, path: Path) -> None:
    """What no single key can tell: names that refer to each other, things that are used twice."""
    known = set(lab.netns)
    ends = [end for cable in lab.cables for end in cable.ends]
    nics = [(chassis.name, nic) for chassis in lab.chassis for nic in chassis.nics]
    bmcs = [(chassis.name, chassis.bmc) for chassis in lab.chassis if chassis.bmc]

    def wrong(message: str, hint: str) -> NicagentError:
        return NicagentError(Kind.INVALID, f"{path}: {message}", hint)

    def once(what: str, values: Iterable[str]) -> None:
        for value, count in Counter(values).items():
            if count > 1:
                raise wrong(f"{what} {value} is used {count} times", "give each its own")

    places = [(f"cable end {end.device}", end.netns) for end in ends]
    places += [(f"NIC {nic.tap} of chassis {name}", nic.netns) for name, nic in nics]
    places += [(f"BMC of chassis {name}", bmc.netns) for name, bmc in bmcs]
    for what, netns in places:
        if netns is not None and netns not in known:
            hint = f"add it to `netns` (now: {', '.join(sorted(known)) or 'none'})"
            raise wrong(f"{what} is in netns {netns}, which does not exist", hint)
    for end in ends:
        for address in end.addresses:
            try:
                ipaddress.ip_interface(address)
            except ValueError as error:
                raise wrong(f"cable end {end.device}: {error}", "write it as 192.0.2.1/24") from None
    for name, bmc in bmcs:
        try:
            ipaddress.ip_address(bmc.address)
        except ValueError as error:
            raise wrong(f"BMC of chassis {name}: {error}", "give an IP address") from None
    for chassis in lab.chassis:
        panel = chassis.front_panel
        offsets = (panel.power_button, panel.reset, panel.power_led, panel.hdd_led)
        once(f"in chassis {chassis.name}, line", map(str, offsets))
    once("netns", lab.netns)
    once("chassis name", (chassis.name for chassis in lab.chassis))
    once("MAC", (nic.mac for _, nic in nics))
    devices = [(end.netns, end.device) for end in ends] + [(nic.netns, nic.tap) for _, nic in nics]
    once("network device", (f"{device} in netns {netns or '(lab)'}" for netns, device in devices))
    once("BMC address", (f"{bmc.address}:{bmc.port} in netns {bmc.netns or '(lab)'}" for _, bmc in bmcs))
