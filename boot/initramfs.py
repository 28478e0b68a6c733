"""Makes an initramfs without root, shell or cpio.

Kernel modules with their dependencies, programs with their libraries and one init script, in a "newc" archive
(Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

Standard library only: the set-up runs it before the `.venv` exists.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

Compression = Literal["none", "gzip", "zstd"]

DIRECTORIES = ("bin", "sbin", "dev", "etc", "proc", "run", "sys", "tmp", "lib/modules", "lib64", "mnt")
MODULE_NAME = re.compile(r"([^/]+?)\.ko(?:\.xz|\.zst|\.gz)?$")
LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)")


class InitramfsError(Exception):
    """Something that should go into the archive is not there; the message names it."""


@dataclass
class Tree:
    """The archive's content: path without leading slash → (mode, data)."""

    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def directory(self, path: str) -> None:
        parts = PurePosixPath(path.strip("/")).parts
        for depth in range(1, len(parts) + 1):
            self.entries.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b""))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        path = path.strip("/")
        self.directory(str(PurePosixPath(path).parent))
        self.entries[path] = (stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        path = path.strip("/")
        self.directory(str(PurePosixPath(path).parent))
        self.entries[path] = (stat.S_IFLNK | 0o777, target.encode())


def build(
    out: Path,
    kernel_dir: Path,
    init: Path,
    modules: Sequence[str],
    binaries: Sequence[str] = (),
    *,
    files: Mapping[str, Path] | None = None,
    optional_modules: Sequence[str] = (),
    compression: Compression = "gzip",
) -> None:
    """Write an initramfs to `out`.

    `kernel_dir` holds `lib/modules/<version>` (a root directory, as `dpkg -x` leaves it). `modules` are names
    for modprobe, taken along with all they depend on: one built into the kernel is fine, an unknown one is an
    error (unless in `optional_modules`). `init` is a script for busybox' sh, run as pid 1. `binaries` are
    programs from this machine's PATH. `files` maps further archive paths to files. A static busybox with all
    its names is always there, so `modprobe NAME` works. Raises InitramfsError naming what is missing.
    """
    tree = Tree()
    for name in DIRECTORIES:
        tree.directory(name)
    _add_busybox(tree)
    version = kernel_version(kernel_dir)
    _add_modules(tree, kernel_dir, version, modules, optional_modules)
    for name in binaries:
        _add_binary(tree, name)
    for target, source in (files or {}).items():
        tree.file(target, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
    tree.file("init", init.read_bytes(), 0o755)
    data = compress(archive(tree), compression)
    partial = out.with_name(out.name + ".new")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(data)
    partial.replace(out)


def kernel_version(kernel_dir: Path) -> str:
    """The one kernel version under `kernel_dir`/lib/modules; InitramfsError when none or several."""
    found = sorted(path.name for path in (kernel_dir / "lib/modules").glob("*") if path.is_dir())
    if len(found) != 1:
        have = ", ".join(found) or "none"
        raise InitramfsError(f"{kernel_dir} must hold exactly one kernel's modules, and holds {have}")
    return found[0]


def module_closure(dep: str, builtin: str, names: Iterable[str], optional: Iterable[str] = ()) -> list[str]:
    """Paths of modules in loading order: what each needs comes before it.

    `dep` and `builtin` are the texts of modules.dep and modules.builtin (depmod(8), modules.dep(5)).
    """
    needs: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        path_of[_module_name(path)] = path
    inside = {_module_name(line) for line in builtin.split()}
    skippable = {name.replace("-", "_") for name in optional}
    order: dict[str, None] = {}
    for name in [*names, *optional]:
        key = name.replace("-", "_")
        if key in path_of:
            # modules.dep lists all dependencies, the most basic last.
            order.update(dict.fromkeys([*reversed(needs[path_of[key]]), path_of[key]]))
        elif key not in inside and key not in skippable:
            raise InitramfsError(f"the kernel has no module {name!r}")
    return list(order)


def _module_name(path: str) -> str:
    match = MODULE_NAME.search(path)
    return match[1].replace("-", "_") if match else path


def _add_modules(
    tree: Tree, kernel_dir: Path, version: str, names: Sequence[str], optional: Sequence[str]
) -> None:
    base = kernel_dir / "lib/modules" / version
    dep_file = base / "modules.dep"
    if not dep_file.is_file():
        raise InitramfsError(f"{dep_file} is missing; run: depmod -b {kernel_dir} {version}")
    dep = dep_file.read_text()
    taken = module_closure(dep, (base / "modules.builtin").read_text(), names, optional)
    inside = f"lib/modules/{version}"
    plain = {path: re.sub(r"\.ko\.\w+$", ".ko", path) for path in taken}
    for path in taken:
        tree.file(f"{inside}/{plain[path]}", _unpacked(base / path))
    needs = {line.partition(":")[0]: line.partition(":")[2].split() for line in dep.splitlines()}
    lines = [f"{plain[path]}: {' '.join(plain[need] for need in needs[path])}".rstrip() for path in taken]
    tree.file(f"{inside}/modules.dep", ("\n".join(lines) + "\n").encode())
    for name in ("modules.alias", "modules.symbols", "modules.softdep"):
        tree.file(f"{inside}/{name}", b"")  # busybox' modprobe wants them to exist


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        case _:
            return data


def _find(name: str) -> Path:
    found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if found is None:
        raise InitramfsError(
            f"the program {name!r} is missing; install the packages of images/debian-packages.txt"
        )
    return Path(found)


def _add_busybox(tree: Tree) -> None:
    busybox = _find("busybox")
    tree.file("bin/busybox", busybox.read_bytes(), 0o755)
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name != "busybox":
            tree.link(f"bin/{name}", "busybox")
    tree.link("sbin/modprobe", "../bin/busybox")  # the kernel's own request_module() calls this path


def _add_binary(tree: Tree, name: str) -> None:
    program = _find(name)
    tree.file(f"bin/{program.name}", program.resolve().read_bytes(), 0o755)
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for library in LIBRARY.findall(listing):
        tree.file(library, Path(library).resolve().read_bytes(), 0o755)


def archive(tree: Tree) -> bytes:
    """A newc archive, parents before children; owner root, time 0: equal input gives equal bytes."""
    chunks: list[bytes] = []
    for number, (path, (mode, data)) in enumerate(sorted(tree.entries.items()), start=1):
        chunks.append(_newc(number, path, mode, data))
    chunks.append(_newc(0, "TRAILER!!!", 0, b""))
    return b"".join(chunks)


def _newc(number: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in numbers)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def compress(data: bytes, how: Compression) -> bytes:
    """The archive as the kernel may unpack it (CONFIG_RD_GZIP, CONFIG_RD_ZSTD)."""
    match how:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, 6, mtime=0)
        case "zstd":
            command = [str(_find("zstd")), "-q", "-19", "-T0", "-c"]
            return subprocess.run(command, input=data, capture_output=True, check=True).stdout
