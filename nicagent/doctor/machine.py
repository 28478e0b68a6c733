"""The machine that the agent runs on: tools, rights, room for its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from nicagent import proc
from nicagent.config import Config
from nicagent.doctor.check import Check
from nicagent.errors import NicagentError
from nicagent.provision.contract import AUTH_ARTEFACTS
from nicagent.provision.dhcp import CHAINLOADER

STATE_LOW, POOL_LOW = 64 << 20, 1 << 30  # bytes free below which we warn

# capabilities(7): their numbers, and what we need them for.
CAPABILITIES: Mapping[str, int] = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def tools(config: Config) -> Iterator[Check]:
    wanted = ["qemu-storage-daemon", "qemu-img", "setpriv"]
    if config.segments or _provisions(config):
        wanted.append("dnsmasq")
    for name in wanted:
        try:
            yield Check("ok", name, proc.find_tool(name))
        except NicagentError as e:
            yield Check("broken", name, e.message, e.hint)
    if config.segments or _provisions(config):
        yield _libnftables()
    if _provisions(config):
        if CHAINLOADER.is_file():
            yield Check("ok", "network boot", str(CHAINLOADER))
        else:
            finding = f"{CHAINLOADER} is missing: only NICs with an iPXE of their own will boot"
            yield Check("warning", "network boot", finding, "apt-get install ipxe")
        for name in ("vmlinuz", "stage1.img"):
            yield _file("network boot", Path(config.agent.artefacts) / name, "build it: make stage1")
        if any(host.storage.secret for host in config.hosts.values()):
            for name in AUTH_ARTEFACTS:
                path = Path(config.agent.artefacts) / name
                yield _file("network boot with a key", path, "build it: make stage1-auth")


def _provisions(config: Config) -> bool:
    return any(host.provision is not None for host in config.hosts.values())


def _libnftables() -> Check:
    try:
        import nftables

        nftables.Nftables()
    except Exception as e:  # whatever a library that cannot be loaded raises
        return Check("broken", "libnftables", f"cannot be loaded: {e}", "apt-get install libnftables1")
    return Check("ok", "libnftables", "loaded")


def _file(subject: str, path: Path, mend: str) -> Check:
    if not path.is_file():
        return Check("broken", subject, f"{path} is missing", mend)
    if not os.access(path, os.R_OK):
        return Check("broken", subject, f"{path} may not be read by this user", "run it as the agent's user")
    return Check("ok", subject, f"{path}, {path.stat().st_size >> 10} KiB")


def privileges(config: Config) -> Iterator[Check]:
    if not (config.segments or _provisions(config)):
        return
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, number in CAPABILITIES.items() if not held >> number & 1]
    if missing:
        yield Check(
            "broken",
            "privileges",
            f"this user lacks {', '.join(missing)}, which ports and provision links need",
            "run the agent (and the doctor) as root, or give its unit these as AmbientCapabilities",
        )
    else:
        yield Check("ok", "privileges", ", ".join(CAPABILITIES))


def places(config: Config) -> Iterator[Check]:
    yield place("state", Path(config.agent.state_dir), "agent.state_dir", low=STATE_LOW)
    yield place("sockets", Path(config.agent.run_dir), "agent.run_dir")


def place(subject: str, path: Path, key: str, low: int = 0) -> Check:
    """A directory that is ours to write, or that we can make."""
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        return Check("broken", subject, f"{there} is not a directory", f"set {key} to one")
    if not os.access(there, os.W_OK | os.X_OK):
        why = "is on a read-only file system" if _read_only(there) else "may not be written by this user"
        return Check("broken", subject, f"{there} {why}", f"mend that, or set {key} to another directory")
    free = _free(there)
    if free < low:
        return Check("warning", subject, f"{path}: only {free >> 20} MiB are free", "make room on that disk")
    made = "" if there == path else ", will be made"
    return Check("ok", subject, f"{path}{made}, {free >> 20} MiB free")


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def pools(config: Config) -> Iterator[Check]:
    for name, pool in config.pools.items():
        path = Path(pool.path)
        if not path.exists():
            yield Check(
                "broken", f"pool {name}", f"{path} does not exist", f"make it, or mend pools.{name}.path"
            )
        else:
            yield place(f"pool {name}", path, f"pools.{name}.path", low=POOL_LOW)
