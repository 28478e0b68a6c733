"""Puts Debian's newer kernel onto the ordinary image, as what is booted. Needs neither root nor mount."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from boot.initramfs import Tree, archive, module_closure
from images.guest_kernel import GuestKernel

MODULES = ("virtio_pci", "virtio_net", "nvme_tcp", "ext4", "vfat", "nls_ascii", "nls_cp437")
OPTIONAL = ("crc32c_generic", "crc32c_intel", "autofs4")


def install(disk: Path, kernel: GuestKernel, work: Path) -> None:
    """`disk` is the image as a raw file."""
    place = f"{disk}?offset={_start_of_root(disk)}"
    modules = _modules(kernel, work)
    old = _ask(place, "ls -p /boot").partition("vmlinuz-")[2].partition("/")[0]
    new = kernel.version
    initrd = work / "initrd"
    _ask(place, f"dump /boot/initrd.img-{old} {initrd}")
    with initrd.open("ab") as file:
        file.write(bytes(-file.tell() % 4) + _archive(modules, new))
    grub = work / "grub.cfg"
    grub.write_text(_ask(place, "cat /boot/grub/grub.cfg").replace(old, new))
    config = kernel.root / "boot" / f"config-{new}"
    lines = ["cd /boot", f"write {kernel.vmlinuz} vmlinuz-{new}", f"write {initrd} initrd.img-{new}"]
    lines += [f"write {config} config-{new}", "cd /boot/grub", "rm grub.cfg", f"write {grub} grub.cfg"]
    for path in sorted(modules.rglob("*")):
        inside = Path("/usr/lib/modules") / new / path.relative_to(modules)
        if path.is_dir():
            lines.append(f"mkdir {inside}")
        else:
            lines += [f"cd {inside.parent}", f"write {path} {inside.name}"]
    lines.insert(0, f"mkdir /usr/lib/modules/{new}")
    script = work / "debugfs"
    script.write_text("\n".join(lines) + "\n")
    subprocess.run(["/sbin/debugfs", "-w", "-f", script, place], check=True, capture_output=True)
    assert f"vmlinuz-{new}" in _ask(place, "cat /boot/grub/grub.cfg")


def _start_of_root(disk: Path) -> int:
    told = subprocess.run(["/sbin/sfdisk", "-J", disk], check=True, capture_output=True).stdout
    return int(json.loads(told)["partitiontable"]["partitions"][1]["start"]) * 512


def _ask(place: str, request: str) -> str:
    command = ["/sbin/debugfs", "-R", request, place]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _modules(kernel: GuestKernel, work: Path) -> Path:
    """The few modules that such a machine needs, with kmod's own index of them."""
    inside = Path("lib/modules") / kernel.version
    base, few = kernel.root / inside, work / "few" / inside
    few.mkdir(parents=True)
    wanted = module_closure(
        (base / "modules.dep").read_text(), (base / "modules.builtin").read_text(), MODULES, OPTIONAL
    )
    for name in (*wanted, "modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, few / name)
    subprocess.run(["/sbin/depmod", "-b", work / "few", kernel.version], check=True, capture_output=True)
    return few


def _archive(modules: Path, version: str) -> bytes:
    tree = Tree()
    for path in modules.rglob("*"):
        if path.is_file():
            # Not below /lib: that is a link in Debian's initramfs, and a directory would take its place.
            tree.file(f"usr/lib/modules/{version}/{path.relative_to(modules)}", path.read_bytes())
    return archive(tree)
