"""The ordinary image boots: from a plain local disk, and over the network by nicagent's whole boot path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from boot.stage1.__main__ import stage1_auth
from images.guest_kernel import newer_guest_kernel
from nicagent.provision.contract import BootChoice
from nicagent.storage.nvmetcp import dhchap
from nicagent.storage.nvmetcp.control import ask_status
from tests.boot import newerkernel
from tests.e2e.harness import BOOT_SECONDS
from tests.provision.test_link import LINK, Lab
from tests.provision.test_script import CHOICE

ROOT = Path(__file__).resolve().parents[2]
IMAGE, ARTEFACTS = ROOT / ".cache/images/debian.qcow2", ROOT / ".cache/boot"
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(2 * BOOT_SECONDS),
    pytest.mark.skipif(not IMAGE.exists(), reason="the OS image is not built: make image"),
]


class Guest:
    """A QEMU under TCG with UEFI, its serial console, its monitor."""

    def __init__(self, work: Path, *devices: str, prefix: tuple[str, ...] = ()) -> None:
        variables = work / "vars.fd"
        shutil.copyfile(OVMF.with_name("OVMF_VARS_4M.fd"), variables)
        self._monitor = work / "monitor"
        flash = "if=pflash,format=raw"
        command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "768"]
        command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"]
        command += ["-monitor", f"unix:{self._monitor},server=on,wait=off"]
        command += [
            "-drive",
            f"{flash},unit=0,readonly=on,file={OVMF}",
            "-drive",
            f"{flash},unit=1,file={variables}",
        ]
        self._process = subprocess.Popen(
            [*prefix, *command, *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.seen = ""

    def expect(self, pattern: str, seconds: float) -> str:
        """Everything up to the pattern, which is consumed."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                raise AssertionError(
                    f"no {pattern!r} within {seconds} s; the console ends: {self.seen[-1500:]}"
                )
            self.seen += chunk.decode(errors="replace")
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def login(self) -> str:
        """To a shell; returns what the console said on the way."""
        said = self.expect(r"login: ", BOOT_SECONDS)
        self.type("debian")
        self.expect("Password: ", 60)
        self.type("debian")
        self.expect(r"\$ ", 90)
        return said

    def ask(self, command: str) -> str:
        """What a command says, without the colours some use."""
        self.type(f"{command}; echo end''mark")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.expect("endmark", 60))

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            monitor.settimeout(30)
            monitor.sendall(b"system_powerdown\n")
            said = b""
            # One prompt greets, the next says that the command was carried out: hanging up before loses it.
            while said.count(b"(qemu)") < 2:
                said += monitor.recv(4096)

    def wait(self, seconds: float) -> None:
        self._process.wait(seconds)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def overlay(work: Path) -> Path:
    disk = work / "disk.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(IMAGE), str(disk)]
    subprocess.run(command, check=True)
    return disk


def test_the_image_boots_from_a_plain_local_disk(tmp_path: Path) -> None:
    disk = f"if=none,id=disk,file={overlay(tmp_path)}"
    guest = Guest(tmp_path, "-drive", disk, "-device", "virtio-blk-pci,drive=disk")
    try:
        said = guest.expect(r"login: ", BOOT_SECONDS)
        assert "Booting `Debian GNU/Linux'" in said, "GRUB did not start the system"
        assert "file `" not in said, f"GRUB complains: {said}"
    finally:
        guest.close()


@contextlib.contextmanager
def disk_server(
    work: Path, disk: Path, choice: BootChoice, auth: dict[str, str] | None = None
) -> Iterator[Lab]:
    """Provision link, NVMe/TCP target and boot choice, as an agent would set them up."""
    lab = Lab(work)
    process = None
    try:
        ip = ["ip", "-n", lab.agent_ns]
        subprocess.run([*ip, "link", "del", "prov0"], check=True)
        subprocess.run([*ip, "tuntap", "add", "prov0", "mode", "tap"], check=True)
        shutil.rmtree(lab.artefacts)
        lab.artefacts = ARTEFACTS
        lab.start()
        link = msgspec.structs.replace(LINK, device="prov0")
        assert lab.tell("start", [link]) == "ok"
        assert lab.tell("choose", "metal-1", choice) == "ok"
        namespace = {"nsid": 1, "uuid": choice.hostid, "backend": {"type": "file", "path": str(disk)}}
        config = work / "target.json"
        names: dict[str, object] = {"nqn": choice.nqn, "serial": "S1", "hosts": [choice.hostnqn]}
        subsystem = {**names, "namespaces": [namespace], "auth": auth}
        listen = [{"host": "172.31.0.1", "port": 4420}]
        whole = {"listen": listen, "control": str(work / "control"), "subsystems": [subsystem]}
        config.write_bytes(msgspec.json.encode(whole))
        command = [sys.executable, "-m", "nicagent.storage.nvmetcp", "--config", str(config)]
        process = subprocess.Popen(["ip", "netns", "exec", lab.agent_ns, *command], cwd=ROOT)
        yield lab
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        lab.close()


def raw_disk(work: Path) -> Path:
    disk = work / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", IMAGE, disk], check=True)
    return disk


def network_guest(work: Path, lab: Lab) -> Guest:
    return Guest(
        work,
        *("-netdev", "tap,id=nic,ifname=prov0,script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=nic,mac={LINK.mac},romfile=efi-virtio.rom,bootindex=1"),
        prefix=("ip", "netns", "exec", lab.agent_ns),
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


@pytest.mark.root
@needs_root
def test_the_image_boots_over_the_network_and_switches_off(tmp_path: Path) -> None:
    with disk_server(tmp_path, raw_disk(tmp_path), CHOICE) as lab:
        guest = network_guest(tmp_path, lab)
        try:
            said = guest.login()
            assert "nicagent: metal-1 boots" in said and "starting the disk's own kernel" in said
            cmdline = guest.ask("cat /proc/cmdline")
            assert "BOOT_IMAGE=/boot/vmlinuz" in cmdline and "root=UUID=" in cmdline, (
                "not the disk's own entry"
            )
            assert "/dev/nvme0n1p2" in guest.ask("findmnt -no SOURCE /"), "the root is not the network disk"
            links = guest.ask("networkctl --no-pager --no-legend list")
            assert re.search(r"ether\s+routable\s*unmanaged", links), (
                f"systemd-networkd manages the link: {links}"
            )
            guest.press_power_button()
            guest.wait(120)
        finally:
            guest.close()


@pytest.mark.root
@needs_root
def test_a_host_proves_itself_to_its_disk_from_stage_1_to_its_own_kernel(tmp_path: Path) -> None:
    """The image with Debian's newer kernel: 12's own is built without an initiator that could."""
    disk = raw_disk(tmp_path)
    newerkernel.install(disk, newer_guest_kernel(), tmp_path)
    stage1_auth()
    key, other = (dhchap.key_text(dhchap.Key(bytes([number]) * 32, None)) for number in (1, 2))
    choice = msgspec.structs.replace(CHOICE, secret=key, controller_secret=other)
    with disk_server(tmp_path, disk, choice, {"key": key, "controller_key": other}) as lab:
        guest = network_guest(tmp_path, lab)
        try:
            said = guest.login()
            assert "starting the disk's own kernel" in said and key[10:40] not in said
            assert "/dev/nvme0n1p2" in guest.ask("findmnt -no SOURCE /"), "the root is not the network disk"
            assert "6.12" in guest.ask("uname -r")
            assert key[10:40] not in guest.ask("cat /proc/cmdline"), "a command line is for all to read"
            shown = guest.ask("cat /sys/class/nvme/nvme0/dhchap_secret")
            assert "Permission denied" in shown, f"an ordinary user reads the host's key: {shown}"
            status = asyncio.run(ask_status(tmp_path / "control"))
            assert [one.authenticated for one in status.controllers] == [True]
        finally:
            guest.close()
