"""Debian's cloud kernel and its modules in `.cache/guest-kernel`: for stage-1, and for tests that boot one.

python3 -m images.guest_kernel     fetch it when missing, print where it is
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

PACKAGE = "linux-image-cloud-amd64"  # drivers for virtual machines only: small, quick to boot
HOME = CACHE / "guest-kernel"


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

    def build() -> None:
        apt = Apt()
        apt.update()
        match = re.search(r"linux-image-\S+-cloud-amd64", apt.depends(PACKAGE))
        if match is None:
            raise Failure(f"{PACKAGE} of Debian {RELEASE} depends on no kernel; try another mirror")
        deb = apt.download(match[0], CACHE / "apt" / "debs")
        shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", deb, HOME], check=True)
        version = GuestKernel(HOME).version
        subprocess.run(["depmod", "-b", HOME, version], env=plain_environment(), check=True)
        shutil.rmtree(HOME / "usr", ignore_errors=True)

    recipe = digest([PACKAGE, RELEASE, "1"])
    make(
        "fetching Debian's cloud kernel",
        [HOME / "boot", HOME / "lib"],
        CACHE / "guest-kernel.stamp",
        recipe,
        build,
    )
    return GuestKernel(HOME)


def main() -> int:
    try:
        kernel = guest_kernel()
    except Failure as failure:
        print(f"guest-kernel: {failure}", file=sys.stderr)
        return 1
    print(kernel.vmlinuz)
    return 0


if __name__ == "__main__":
    sys.exit(main())
