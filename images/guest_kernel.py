"""Debian's cloud kernels and their modules in `.cache`: for stage-1, and for tests that boot one.

python3 -m images.guest_kernel     fetch them when missing, print where they are
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from images.apt import RELEASE, Apt
from images.steps import CACHE, Failure, digest, make, plain_environment

# Drivers for virtual machines only: small, quick to boot.
PACKAGE = "linux-image-cloud-amd64"
NEWER_PACKAGE = "linux-image-6.12-cloud-amd64"  # its NVMe/TCP initiator can authenticate itself


@dataclass(frozen=True)
class GuestKernel:
    """A kernel and its modules, as `dpkg -x` lays them out: `boot/vmlinuz-*`, `lib/modules/<version>`."""

    root: Path

    @property
    def vmlinuz(self) -> Path:
        return next((self.root / "boot").glob("vmlinuz-*"))

    @property
    def version(self) -> str:
        return self.vmlinuz.name.removeprefix("vmlinuz-")


def guest_kernel() -> GuestKernel:
    """The kernel, fetched (26 MB) and unpacked when missing. Raises Failure with what to do."""
    return _fetched(PACKAGE, CACHE / "guest-kernel")


def newer_guest_kernel() -> GuestKernel:
    """Debian's next kernel in the same form (34 MB). Raises Failure with what to do."""
    return _fetched(NEWER_PACKAGE, CACHE / "guest-kernel-newer")


def _fetched(package: str, home: Path) -> GuestKernel:
    def build() -> None:
        apt = Apt()
        apt.update()
        match = re.search(r"linux-image-\S+-cloud-amd64", apt.depends(package))
        if match is None:
            raise Failure(f"{package} of Debian {RELEASE} depends on no kernel; try another mirror")
        deb = apt.download(match[0], CACHE / "apt" / "debs")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", deb, home], check=True)
        version = GuestKernel(home).version
        subprocess.run(["depmod", "-b", home, version], env=plain_environment(), check=True)
        shutil.rmtree(home / "usr", ignore_errors=True)

    recipe = digest([package, RELEASE, "1"])
    make(
        f"fetching Debian's cloud kernel ({package})",
        [home / "boot", home / "lib"],
        home.with_name(home.name + ".stamp"),
        recipe,
        build,
    )
    return GuestKernel(home)


def main() -> int:
    try:
        kernels = (guest_kernel(), newer_guest_kernel())
    except Failure as failure:
        print(f"guest-kernel: {failure}", file=sys.stderr)
        return 1
    for kernel in kernels:
        print(kernel.vmlinuz)
    return 0


if __name__ == "__main__":
    sys.exit(main())
