"""The peer: libvirtd itself with its `test:///default`, in a directory and a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
unix_sock_dir = "{dir}"
unix_sock_rw_perms = "0777"
unix_sock_ro_perms = "0777"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:{dir}/log"
"""
# What libvirtd writes to outside its socket directory is hidden behind file systems that end with it.
_START = """\
mount -t tmpfs none /run
for d in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    [ -d $d ] && mount -t tmpfs none $d
done
home=$1; shift
if [ -f "$home/qemu.conf" ]; then  # its driver ends at once without the user that Debian's package makes
    cp "$home/qemu.conf" /etc/libvirt/; mkdir /run/lock
    for f in passwd group; do
        { cat /etc/$f; grep -q ^libvirt-qemu: /etc/$f || grep ^nobody: /etc/$f | sed s/^nobody/libvirt-qemu/
        grep -q ^libvirt-qemu: /etc/$f || grep ^nogroup: /etc/$f | sed s/^nogroup/libvirt-qemu/; } >"$home/$f"
        mount --bind "$home/$f" /etc/$f
    done
fi
exec libvirtd -f "$home/libvirtd.conf" -p "$home/pid" "$@"
"""


@dataclass(frozen=True)
class Libvirtd:
    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / "libvirt-sock"

    @property
    def read_only_path(self) -> Path:
        return self.directory / "libvirt-sock-ro"

    @property
    def uri(self) -> str:
        return f"test+unix:///default?socket={self.path}"

    @property
    def read_only_uri(self) -> str:
        return f"test+unix:///default?socket={self.read_only_path}"


def missing() -> str | None:
    """Why the peer cannot run here, None if it can."""
    if shutil.which("libvirtd") is None:
        return "libvirtd is not installed (Debian: libvirt-daemon)"
    if os.geteuid() != 0:
        return "libvirtd with its read-only socket needs root"
    return None


def _driver(name: str) -> Path:
    found = list(Path("/usr/lib").glob(f"*/libvirt/connection-driver/libvirt_driver_{name}.so"))
    assert found, f"libvirt's {name} driver is not installed (Debian: libvirt-daemon)"
    return found[0]


@contextmanager
def libvirtd(
    directory: Path, drivers: Iterable[str] = (), more: str = "", *arguments: str
) -> Iterator[Libvirtd]:
    """Runs until the block ends. `directory`: not below /run, and short enough for a socket address.
    `drivers`: those of libvirt's real ones that shall be there beside the test driver, such as `secret`.
    `more`: lines of its config, `arguments`: of its command."""
    (directory / "libvirtd.conf").write_text(_CONFIG.format(dir=directory) + more)
    chosen = directory / "drivers"  # the test driver is built in; the others look at the machine
    chosen.mkdir(exist_ok=True)
    for name in drivers:
        (chosen / f"libvirt_driver_{name}.so").symlink_to(_driver(name))
    daemon = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", _START, "sh", str(directory), *arguments],
        env={**os.environ, "LIBVIRT_DRIVER_DIR": str(chosen)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        peer = Libvirtd(directory)
        deadline = time.monotonic() + 20
        while not peer.read_only_path.exists() or not peer.path.exists():
            assert daemon.poll() is None, f"libvirtd ended with {daemon.returncode}; see {directory}/log"
            assert time.monotonic() < deadline, "libvirtd did not make its sockets within 20 s"
            time.sleep(0.05)
        yield peer
    finally:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
