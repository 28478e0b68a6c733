"""What stage-1 finds on a disk: file systems by their magic, its kernel's modules in loading order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.boot.conftest import Shell


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["mke2fs", "-q", "-F", "-t", "ext4"], "ext4"),
        (["mke2fs", "-q", "-F", "-t", "ext2"], "ext4"),  # one driver for all three
        (["mformat", "-F", "-T", "131072", "-h", "255", "-s", "63", "::", "-i"], "vfat"),
        (["mformat", "-T", "32768", "-h", "16", "-s", "63", "::", "-i"], "vfat"),
    ],
)
def test_a_file_system_is_known_by_its_magic(
    stage1_shell: Shell, tmp_path: Path, command: list[str], kind: str
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([*command, image], check=True, env={"PATH": "/usr/bin:/usr/sbin:/sbin"})
    assert stage1_shell(f"fs_type {image}").stdout.strip() == kind


def test_magic_of_file_systems_that_need_no_tool_here(stage1_shell: Shell, tmp_path: Path) -> None:
    for offset, magic, kind in ((0, b"XFSB", "xfs"), (65600, b"_BHRfS_M", "btrfs")):
        image = tmp_path / kind
        image.write_bytes(bytes(offset) + magic + bytes(65600))
        assert stage1_shell(f"fs_type {image}").stdout.strip() == kind
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(70000))
    assert stage1_shell(f"fs_type {blank}").returncode == 1, "a blank partition was taken for a file system"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(
        "kernel/net/a-b.ko.xz: kernel/lib/c.ko.xz kernel/lib/base.ko.xz\n"
        "kernel/lib/c.ko.xz: kernel/lib/base.ko.xz\n"
        "kernel/lib/base.ko.xz:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4.ko\n")
    return tmp_path


def test_modules_come_in_loading_order_once(stage1_shell: Shell, modules: Path) -> None:
    done = stage1_shell(f"module_files {modules} a_b c ext4")
    assert done.stdout.split() == ["kernel/lib/base.ko.xz", "kernel/lib/c.ko.xz", "kernel/net/a-b.ko.xz"]


def test_a_module_that_the_kernel_lacks_is_named(stage1_shell: Shell, modules: Path) -> None:
    done = stage1_shell(f"module_files {modules} nvme_tcp")
    assert done.returncode != 0 and "nvme_tcp" in done.stderr


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ("CONFIG_NVME_HOST_AUTH=y\n", 0),
        ("# CONFIG_NVME_HOST_AUTH is not set\n", 1),
        ("CONFIG_NVME=y\n", 1),
        (None, 0),
    ],
)
def test_a_kernel_that_says_it_cannot_prove_itself_is_not_started(
    stage1_shell: Shell, tmp_path: Path, config: str | None, status: int
) -> None:
    if config is not None:
        (tmp_path / "p2/boot").mkdir(parents=True)
        (tmp_path / "p2/boot/config-6.1").write_text(config)
    assert stage1_shell(f"DISK={tmp_path}; can_prove_itself 6.1").returncode == status
