"""`python3 -m boot.stage1`: make `.cache/boot/{vmlinuz,stage1.img}` when they are missing or stale."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from boot.initramfs import InitramfsError, build
from images.guest_kernel import GuestKernel, guest_kernel
from images.steps import CACHE, Failure, digest, make

HERE = Path(__file__).resolve().parent
OUT = CACHE / "boot"

MODULES = ("virtio_pci", "virtio_net", "nvme_tcp", "crc32c_generic", "ext4", "vfat", "nls_ascii", "nls_cp437")
OPTIONAL_MODULES = ("e1000e", "igb", "vmxnet3", "xfs", "btrfs")  # as far as this kernel has them
BINARIES = ("kexec",)
FILES = ("entry.sh", "bootentry.awk", "bls.awk", "inventory.sh", "inventory.awk", "overlay/nicagent")


def stage1() -> Path:
    """The directory with the kernel and the initramfs a host boots first. Raises Failure with what to do."""
    kernel = guest_kernel()
    sources = [HERE / name for name in ("init", "__main__.py", *FILES)] + [HERE.parent / "initramfs.py"]
    recipe = digest([*sources, kernel.version])

    def write() -> None:
        _build(kernel)

    make("building stage-1", [OUT / "vmlinuz", OUT / "stage1.img"], OUT / "stamp", recipe, write)
    return OUT


def _build(kernel: GuestKernel) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    files = {f"nicagent/{name}": HERE / name for name in FILES}
    try:
        build(
            OUT / "stage1.img",
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
    shutil.copyfile(kernel.vmlinuz, OUT / "vmlinuz")


if __name__ == "__main__":
    try:
        stage1()
    except Failure as failure:
        sys.exit(f"stage-1: {failure}")
