"""`python3 -m boot.stage1`: make `.cache/boot/{vmlinuz,stage1.img}` when they are missing or stale.

With `auth` in its command line: `{vmlinuz,stage1}-auth…`, for hosts that prove themselves to their disks.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from boot.initramfs import InitramfsError, build
from images.guest_kernel import GuestKernel, guest_kernel, newer_guest_kernel
from images.steps import CACHE, Failure, digest, make

HERE = Path(__file__).resolve().parent
OUT = CACHE / "boot"

MODULES = ("virtio_pci", "virtio_net", "nvme_tcp", "crc32c_generic", "ext4", "vfat", "nls_ascii", "nls_cp437")
OPTIONAL_MODULES = ("e1000e", "igb", "vmxnet3", "xfs", "btrfs")  # as far as this kernel has them
BINARIES = ("kexec",)
FILES = (
    "entry.sh",
    "bootentry.awk",
    "bls.awk",
    "inventory.sh",
    "inventory.awk",
    "login.sh",
    "overlay/nicagent",
)


def stage1() -> Path:
    """The directory with the kernel and the initramfs a host boots first. Raises Failure with what to do."""
    _make(guest_kernel(), "")
    return OUT


def stage1_auth() -> Path:
    """As `stage1`, with a kernel whose initiator can do DH-HMAC-CHAP."""
    _make(newer_guest_kernel(), "-auth")
    return OUT


def _make(kernel: GuestKernel, suffix: str) -> None:
    vmlinuz, image = OUT / f"vmlinuz{suffix}", OUT / f"stage1{suffix}.img"
    sources = [HERE / name for name in ("init", "__main__.py", *FILES)] + [HERE.parent / "initramfs.py"]
    recipe = digest([*sources, kernel.version])

    def write() -> None:
        _build(kernel, vmlinuz, image)

    make(f"building stage-1{suffix}", [vmlinuz, image], OUT / f"stamp{suffix}", recipe, write)


def _build(kernel: GuestKernel, vmlinuz: Path, image: Path) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    files = {f"nicagent/{name}": HERE / name for name in FILES}
    try:
        build(
            image,
            kernel.root,
            HERE / "init",
            MODULES,
            BINARIES,
            files=files,
            optional_modules=OPTIONAL_MODULES,
            compression="zstd",
        )
    except InitramfsError as error:
        raise Failure(f"cannot build stage-1: {error}") from None
    shutil.copyfile(kernel.vmlinuz, vmlinuz)


if __name__ == "__main__":
    try:
        stage1_auth() if "auth" in sys.argv[1:] else stage1()
    except Failure as failure:
        sys.exit(f"stage-1: {failure}")
