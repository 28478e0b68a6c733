"""A real sshd on loopback, with keys and a config of its own, that lets its own user in.

As root it wants a user `sshd` and a directory below /run for the part that speaks before the login: it gets
both in a mount namespace of its own, so nothing of the machine's is changed.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.clients import UNPACKED
from tests.clients.programs import environment, eventually, program, running

_AS_ROOT = """\
grep -q ^sshd: /etc/passwd || { cp /etc/passwd "$0/passwd"
    echo sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin >> "$0/passwd"
    mount --bind "$0/passwd" /etc/passwd; }
mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"
"""

_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
PidFile none
AuthorizedKeysFile {home}/key.pub
AuthenticationMethods publickey
StrictModes no
UsePAM no
SetEnv PATH={home}/bin:/usr/bin:/bin
"""

_CLIENT = """\
Host 127.0.0.1
    Port {port}
    IdentityFile {home}/key
    IdentitiesOnly yes
    UserKnownHostsFile {home}/known_hosts
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Sshd:
    """`ssh` is the client with the config that knows this server, for a URI's `command=`."""

    user: str
    ssh: Path


@contextmanager
def sshd(home: Path) -> Iterator[Sshd]:
    """Runs until the block ends. What is logged in finds `nc` on its way, as on a board that has it."""
    for name in ("host_key", "key"):
        _keygen(home / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (home / "bin").mkdir()
    (home / "bin" / "nc").symlink_to(program("nc.openbsd"))
    (home / "sshd_config").write_text(_SERVER.format(port=port, home=home) + _parts())
    (home / "ssh_config").write_text(_CLIENT.format(port=port, home=home))
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {(home / 'host_key.pub').read_text()}")
    ssh = home / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec ssh -F {home}/ssh_config "$@"\n')
    ssh.chmod(0o755)
    argv: list[str | Path] = [program("sshd"), "-D", "-e", "-f", home / "sshd_config"]
    if os.geteuid() == 0:
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", _AS_ROOT, home, *argv]
    with running(argv, home):
        eventually(lambda: _listens(port), 10, "a listening sshd")
        yield Sshd(pwd.getpwuid(os.geteuid()).pw_name, ssh)


def _parts() -> str:
    """Newer sshds are three programs, of which two are looked for where an installed one has them."""
    there = UNPACKED / "usr/lib/openssh"
    found = (("SshdSessionPath", there / "sshd-session"), ("SshdAuthPath", there / "sshd-auth"))
    return "".join(f"{key} {path}\n" for key, path in found if path.exists())


def _keygen(path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(argv, env=environment(path.parent), check=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
