"""The initramfs builder: what goes in, in which order, and that the kernel's own format comes out."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from boot.initramfs import InitramfsError, Tree, archive, build, module_closure

VERSION = "6.1.0-test"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    base = tmp_path / "kernel" / "lib" / "modules" / VERSION
    for name in ("kernel/a.ko", "kernel/b-c.ko"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"module " + name.encode())
    (base / "kernel/packed.ko.xz").write_bytes(lzma.compress(b"module packed"))
    (base / "modules.dep").write_text(
        "kernel/a.ko:\nkernel/b-c.ko: kernel/a.ko\nkernel/packed.ko.xz: kernel/a.ko\n"
    )
    (base / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return tmp_path / "kernel"


def unpack(image: Path, into: Path) -> Path:
    into.mkdir()
    data = image.read_bytes()
    subprocess.run(
        ["/usr/bin/busybox", "cpio", "-idm"], input=data, cwd=into, check=True, capture_output=True
    )
    return into


def test_it_holds_init_modules_binaries_and_their_libraries(tmp_path: Path, kernel: Path) -> None:
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\n")
    out = tmp_path / "image"
    build(
        out, kernel, init, ["b_c", "packed", "ext4"], ["kmod"], compression="none", optional_modules=["nix"]
    )
    root = unpack(out, tmp_path / "root")
    assert (root / "init").stat().st_mode & 0o111, "init cannot be run"
    assert (root / f"lib/modules/{VERSION}/kernel/packed.ko").read_bytes() == b"module packed"
    dep = (root / f"lib/modules/{VERSION}/modules.dep").read_text()
    assert "kernel/b-c.ko: kernel/a.ko\n" in dep and "kernel/packed.ko: kernel/a.ko\n" in dep
    assert (root / "bin/sh").readlink() == Path("busybox")
    assert list(root.glob("lib*/**/libc.so.6")), "a program came without its libraries"
    run = subprocess.run(["chroot", root, "/bin/kmod", "--version"], capture_output=True, check=False)
    assert run.returncode in (0, 125), "kmod does not run inside the initramfs"  # 125: chroot needs root


def test_equal_input_gives_equal_bytes(tmp_path: Path, kernel: Path) -> None:
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\n")
    for name in ("one", "two"):
        build(tmp_path / name, kernel, init, ["a"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_is_missing_is_named(tmp_path: Path, kernel: Path) -> None:
    init = tmp_path / "init"
    init.write_text("")
    with pytest.raises(InitramfsError, match="no module 'nvme_tcp'"):
        build(tmp_path / "x", kernel, init, ["nvme_tcp"])
    with pytest.raises(InitramfsError, match="'no-such-program' is missing"):
        build(tmp_path / "x", kernel, init, [], ["no-such-program"])
    with pytest.raises(InitramfsError, match="exactly one kernel"):
        build(tmp_path / "x", tmp_path, init, [])


def test_dependencies_load_first() -> None:
    dep = "k/x.ko: k/y.ko k/z.ko\nk/y.ko: k/z.ko\nk/z.ko:\n"
    assert module_closure(dep, "", ["x"]) == ["k/z.ko", "k/y.ko", "k/x.ko"]


def test_archive_is_aligned_and_ends_with_its_trailer() -> None:
    tree = Tree()
    tree.file("a/b", b"12345")
    tree.link("l", "a/b")
    data = archive(tree)
    assert len(data) % 4 == 0 and b"TRAILER!!!" in data[-16:]
    assert data.index(b"a\0") < data.index(b"a/b\0"), "a directory must come before what is in it"
