"""The board inside a chassis: one QEMU from power-on to power-off.

q35 with OVMF (or SeaBIOS), under TCG unless the processor itself can virtualise: an open /dev/kvm proves
nothing, some machines offer one that cannot run a firmware. Memory is gone with the process, as it is in
metal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from nicagent import proc
from nicagent.emulator import slot
from nicagent.emulator.front import KeyEvent
from nicagent.emulator.netns import Tap
from nicagent.emulator.settings import Chassis
from nicagent.emulator.slot import SLOT_LIMIT, SlotDisk
from nicagent.errors import Kind, NicagentError

QMP_DEADLINE = 10.0  # seconds; QMP answers in milliseconds unless QEMU is stuck
NBD_OPEN_TIMEOUT = 5  # seconds to wait at power-on for a disk that is being set up
LAST_WORDS = 0.5  # seconds between QEMU's end and its last event being read
GOODBYE = 5.0  # seconds QEMU may take to write its caches out after the OS switched off

FIRST_PORT_SLOT = 0x10  # where on the PCIe root the slot's hot-plug ports begin, eight in each device

# Boot order: slot disks first, then local ones, then the network; an order by the BMC puts the network first.
FIRST_BOOTINDEX, LOCAL_BOOTINDEX, NIC_BOOTINDEX = 20, 100, 200

OVMF = (
    (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    (Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
)
IPXE_ROMS = {  # stock option ROMs of Debian's ipxe-qemu; QEMU finds them by name
    ("uefi", "virtio-net-pci"): "efi-virtio.rom",
    ("uefi", "e1000e"): "efi-e1000e.rom",
    ("bios", "virtio-net-pci"): "pxe-virtio.rom",
    ("bios", "e1000e"): "pxe-e1000e.rom",
}

log = logging.getLogger(__name__)

# Called once when a board went off without being cut: the board, whether its OS did it, and the reason.
OnOff = Callable[["Board", bool, str], None]


@dataclass(frozen=True)
class Wires:
    """What the chassis hands to a board: descriptors and places that outlive it."""

    directory: Path  # holds vars.fd, qemu.log, vnc.sock
    disks: Sequence[tuple[Path, SlotDisk]]  # in the PCIe slot, in boot order
    taps: Sequence[Tap]


def accelerator() -> str:
    """`kvm` only where the processor says vmx or svm and /dev/kvm opens; else `tcg`."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        if ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "kvm"
    return "tcg"


def option(head: str, /, **fields: object) -> str:
    """A QEMU option list: `head`, then key=value with commas in values doubled (qemu(1)).

    In keys `__` stands for a dot and `_` for a dash; a trailing `_` keeps clear of Python's own words.
    """
    pairs = (
        f"{key.rstrip('_').replace('__', '.').replace('_', '-')}={str(value).replace(',', ',,')}"
        for key, value in fields.items()
    )
    return ",".join((head, *pairs))


def arguments(
    chassis: Chassis,
    wires: Wires,
    *,
    qmp: int,
    serial: int,
    guest: int | None = None,
    accel: str,
    network_first: bool = False,
) -> list[str]:
    """QEMU's command line for this power-on; `qmp`, `serial` and `guest` are descriptors that it inherits."""
    argv = ["qemu-system-x86_64", "-name", chassis.name, "-nodefaults", "-no-user-config"]
    argv += ["-machine", f"q35,accel={accel},smm=off,usb=off"]
    argv += ["-cpu", chassis.cpu or ("host" if accel == "kvm" else "qemu64")]
    argv += ["-m", str(chassis.memory_mib), "-smp", str(chassis.vcpus)]
    argv += ["-chardev", option("socket", id="qmp", fd=qmp), "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", option("socket", id="serial", fd=serial), "-serial", "chardev:serial"]
    argv += ["-device", "virtio-rng-pci"]
    if guest is not None:
        argv += ["-chardev", option("socket", id="guest", fd=guest), "-device", "virtio-serial-pci"]
        argv += ["-device", option("virtserialport", chardev="guest", name="org.qemu.guest_agent.0")]
    argv += _screen(chassis, wires) + _identity(chassis) + _firmware(chassis, wires)
    argv += _ports(chassis.hotplug_ports) + _slot_arguments(wires.disks, chassis.hotplug_ports)
    argv += _local_arguments(chassis)
    argv += _nic_arguments(chassis, wires, network_first=network_first)
    if chassis.direct_kernel is not None:
        direct = chassis.direct_kernel
        argv += ["-kernel", direct.kernel, "-append", direct.cmdline]
        argv += ["-initrd", direct.initrd] if direct.initrd else []
    return argv


def _screen(chassis: Chassis, wires: Wires) -> list[str]:
    if not chassis.vnc:
        return ["-display", "none", "-vga", "none"]
    vnc = f"unix:{wires.directory / 'vnc.sock'}"
    # The keyboard is the i8042 that every q35 has: kernels of cloud images have no driver for USB.
    return ["-vga", "std", "-display", "none", "-vnc", vnc]


def _identity(chassis: Chassis) -> list[str]:
    table = {"manufacturer": "nicagent", "product": "emulated server"}
    if chassis.serial_number:
        table["serial"] = chassis.serial_number
    argv = ["-smbios", option("type=1", **table)]
    return argv + (["-uuid", chassis.uuid] if chassis.uuid else [])


def _firmware(chassis: Chassis, wires: Wires) -> list[str]:
    if chassis.firmware == "bios" or chassis.direct_kernel is not None:
        return []
    code, template = next(((c, v) for c, v in OVMF if c.exists() and v.exists()), (None, None))
    if code is None or template is None:
        raise NicagentError(
            Kind.UNAVAILABLE, "the UEFI firmware OVMF is missing", "install it: apt-get install ovmf"
        )
    variables = wires.directory / "vars.fd"
    if not variables.exists():
        partial = variables.with_suffix(".new")
        shutil.copyfile(template, partial)
        partial.replace(variables)
    return [
        *("-drive", option("if=pflash", format="raw", unit=0, readonly="on", file=code)),
        *("-drive", option("if=pflash", format="raw", unit=1, file=variables)),
    ]


def _disk(node: str, *, bootindex: int, serial: str, bus: str = "") -> list[str]:
    fields = slot.device(node, serial=serial, bus=bus)
    return ["-device", option(str(fields.pop("driver")), bootindex=bootindex, **fields)]


def _ports(count: int) -> list[str]:
    """PCIe root ports with native hot-plug, as hardware has it; QEMU's q35 prefers ACPI's."""
    argv = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"] if count else []
    for port in range(count):
        # At addresses of their own, so that no other device's depends on how many there are.
        place = {"addr": f"{FIRST_PORT_SLOT + port // 8:x}.{port % 8}", "multifunction": "on"}
        argv += [
            "-device",
            option("pcie-root-port", id=f"port{port}", chassis=port + 1, slot=port + 1, **place),
        ]
    return argv


def _slot_arguments(disks: Sequence[tuple[Path, SlotDisk]], ports: int) -> list[str]:
    """The first disks sit in ports. Where there are any, each disk's node can change its connection."""
    argv = []
    for index, (path, disk) in enumerate(disks):
        node, bus = f"slot{index}", f"port{index}" if index < ports else ""
        below = f"{node}-1" if ports else node
        patient = {"open-timeout": NBD_OPEN_TIMEOUT}
        argv += ["-blockdev", json.dumps(slot.connection(below, path, disk) | patient)]
        if ports:
            argv += ["-blockdev", json.dumps(slot.above(below, node, disk))]
        argv += _disk(node, bootindex=FIRST_BOOTINDEX + index, serial=disk.serial, bus=bus)
    return argv


def _local_arguments(chassis: Chassis) -> list[str]:
    argv = []
    for index, disk in enumerate(chassis.local_disks):
        node = f"local{index}"
        file = {"file__driver": "file", "file__filename": disk.path}
        argv += ["-blockdev", option(f"driver={disk.format}", node_name=node, **file)]
        argv += _disk(node, bootindex=LOCAL_BOOTINDEX + index, serial=disk.serial)
    return argv


def _nic_arguments(chassis: Chassis, wires: Wires, *, network_first: bool) -> list[str]:
    argv = []
    for index, (nic, tap) in enumerate(zip(chassis.nics, wires.taps, strict=True)):
        argv += ["-netdev", option("tap", id=f"net{index}", fd=tap.fileno())]
        fields: dict[str, object] = {"netdev": f"net{index}", "id": f"nic{index}", "mac": nic.mac}
        boots = nic.boot or nic.bootindex is not None
        fields["romfile"] = IPXE_ROMS[chassis.firmware, nic.model] if boots else ""
        if boots:
            bootindex = NIC_BOOTINDEX + index if nic.bootindex is None else nic.bootindex
            fields["bootindex"] = index if network_first else bootindex + FIRST_BOOTINDEX
        if nic.model == "virtio-net-pci":
            fields["disable_legacy"] = "on" if chassis.firmware == "uefi" else "auto"
        # QEMU spells this one with an underscore; a host that may send larger frames is told so.
        mtu = f",host_mtu={nic.mtu}" if nic.mtu != 1500 and nic.model == "virtio-net-pci" else ""
        argv += ["-device", option(nic.model + mtu, **fields)]
    return argv


class Board:
    """One power-on."""

    def __init__(self, process: asyncio.subprocess.Process, qmp: QMPClient, directory: Path) -> None:
        self._process = process
        self._directory = directory
        self._looking = asyncio.Lock()
        self._qmp = qmp
        self._watch: asyncio.Task[None] | None = None
        self._cut = False
        self._ending = False

    @classmethod
    async def power_on(
        cls,
        chassis: Chassis,
        wires: Wires,
        serial: socket.socket,
        *,
        guest: socket.socket | None = None,
        in_reset: bool,
        network_first: bool,
        on_off: OnOff,
    ) -> Board:
        """Start QEMU. `on_off` is called later, once, unless `cut` came first.

        Raises NicagentError with QEMU's own words when it does not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        console = wires.directory / "qemu.log"
        with theirs, serial, guest or contextlib.nullcontext():
            argv = arguments(
                chassis,
                wires,
                qmp=theirs.fileno(),
                serial=serial.fileno(),
                guest=None if guest is None else guest.fileno(),
                accel=accelerator(),
                network_first=network_first,
            )
            if in_reset:
                argv.append("-S")
            for tap in wires.taps:
                tap.drain()
            began = console.stat().st_size if console.exists() else 0
            ends = [theirs, serial, *([] if guest is None else [guest])]
            fds = (*(end.fileno() for end in ends), *(tap.fileno() for tap in wires.taps))
            process = await proc.spawn(argv, log=console, pass_fds=fds)
        qmp = QMPClient(chassis.name)
        try:
            async with asyncio.timeout(QMP_DEADLINE + NBD_OPEN_TIMEOUT * SLOT_LIMIT):
                await qmp.connect(ours)
        except BaseException as error:
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if not isinstance(error, (QMPError, TimeoutError, OSError)):
                raise
            said = console.read_bytes()[began:].decode(errors="replace").strip().splitlines()[-1:]
            raise NicagentError(
                Kind.UNAVAILABLE,
                f"the board of {chassis.name} did not start: {said[0] if said else error}",
                f"see {console}",
            ) from None
        board = cls(process, qmp, wires.directory)
        board._watch = asyncio.create_task(board._follow(on_off), name=f"board {chassis.name}")
        return board

    async def acpi_button(self) -> None:
        await self._execute("system_powerdown")

    async def reset(self) -> None:
        await self._execute("system_reset")

    async def interrupt(self) -> None:
        await self._execute("inject-nmi")

    async def type(self, events: Sequence[KeyEvent]) -> None:
        """Keys of the keyboard go down and up, in this order; `qcode` names them (QAPI's QKeyCode)."""
        keys = [
            {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": qcode}}}
            for qcode, down in events
        ]
        await self._execute("input-send-event", {"events": keys})

    async def screendump(self) -> bytes | None:
        """A PNG of the screen; None when there is none any more."""
        path = self._directory / "screen.png"
        async with self._looking:
            try:
                await self._execute("screendump", {"filename": str(path), "format": "png"})
                return path.read_bytes()
            except OSError:
                return None
            finally:
                path.unlink(missing_ok=True)

    async def enter_reset(self) -> None:
        """Reset asserted: nothing runs until it is let go."""
        await self._execute("stop")
        await self._execute("system_reset")

    async def leave_reset(self) -> None:
        await self._execute("cont")

    async def disk_counters(self) -> list[dict[str, object]]:
        """What the host's disks have read and written since power-on; empty while the board goes down."""
        try:
            answer = await self.command("query-blockstats")
        except NicagentError:
            return []
        assert isinstance(answer, list)
        kept = ("rd_operations", "rd_bytes", "wr_operations", "wr_bytes", "flush_operations")
        return [
            {"disk": each["node-name"], **{key: each["stats"][key] for key in kept}}
            for each in answer
            if each.get("node-name")
        ]

    async def cut(self) -> None:
        """Take the power away. Returns when nothing of the board is left."""
        self._cut = True
        if self._ending:  # the OS switched off: QEMU writes its caches out and ends by itself
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._watch is not None and self._watch is not asyncio.current_task():
            await self._watch

    @property
    def pid(self) -> int:
        return self._process.pid

    async def command(self, name: str, arguments: dict[str, object] | None = None) -> object:
        """QEMU's answer. Raises NicagentError with its own words when it refuses."""
        try:
            async with asyncio.timeout(QMP_DEADLINE):
                return await self._qmp.execute(name, arguments)
        except (QMPError, TimeoutError) as error:
            raise NicagentError(Kind.UNAVAILABLE, f"{name}: {str(error) or 'no answer'}") from None

    async def nodes(self) -> dict[str, int]:
        """Every block node by its name, and its size in bytes."""
        nodes: Any = await self.command("query-named-block-nodes", {"flat": True})
        return {each["node-name"]: int(each["image"]["virtual-size"]) for each in nodes}

    def listener(self, event: str) -> contextlib.AbstractContextManager[EventListener]:
        """What QEMU tells of one kind, from now on."""
        return self._qmp.listener(event)

    async def _execute(self, command: str, arguments: dict[str, object] | None = None) -> None:
        try:
            await self.command(command, arguments)
        except NicagentError as error:  # the board is going down at this very moment, or is stuck
            log.warning("%s: QMP %s", self._qmp.name, error)

    async def _follow(self, on_off: OnOff) -> None:
        said = asyncio.create_task(self._shutdown_reason())
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait((said, ended), return_when=asyncio.FIRST_COMPLETED)
            if not self._cut:
                await asyncio.wait((said,), timeout=LAST_WORDS)  # they may still be on their way
            if not self._cut:
                reason = said.result() if said.done() else ""
                self._ending = bool(reason)
                fallback = f"QEMU ended with status {self._process.returncode}"
                on_off(self, reason == "guest-shutdown", reason or fallback)
            await ended
        finally:
            for task in (said, ended):
                task.cancel()
            await asyncio.wait((said, ended))
            with contextlib.suppress(QMPError, EOFError, OSError):
                await self._qmp.disconnect()

    async def _shutdown_reason(self) -> str:
        """QEMU's reason for going down (ShutdownCause), empty when it went without a word."""
        async for event in self._qmp.events:
            if event["event"] == "SHUTDOWN":
                data = event["data"]
                return str(data.get("reason", "")) if isinstance(data, dict) else ""
        return ""
