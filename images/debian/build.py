"""Debian root file system → GPT disk with EFI partition → qcow2: no loop devices, no mounts, no root."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from images.apt import RELEASE, sources
from images.setup import wanted
from images.steps import CACHE, Failure, digest, make, plain_environment, run

HERE = Path(__file__).resolve().parent
IMAGE = CACHE / "images" / "debian.qcow2"

# Fixed, so that the same recipe gives the same disk. Several copies never share one host.
ROOT_UUID = "5f3c6b0e-8a51-4c0e-9d0b-6e6963616701"
ESP_UUID = "4E49-4341"  # the FAT serial, as blkid shows it

MIB = 1 << 20
DISK = 4096 * MIB  # sparse: room for tests that write a GiB
ESP_START, ESP_SIZE = 1 * MIB, 64 * MIB
ROOT_START = ESP_START + ESP_SIZE
ROOT_SIZE = DISK - ROOT_START - MIB  # the backup GPT sits in the last sectors

GRUB_EFI = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
# What grub-install writes beside the loader: find the root by its UUID, go on with Debian's own menu.
ESP_GRUB_CFG = (
    f"search.fs_uuid {ROOT_UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
)


def image() -> Path:
    """The base image, built when missing or stale. Raises Failure with what to do."""
    files = sorted(path for path in HERE.iterdir() if path.suffix in {".py", ".sh", ".txt"})
    recipe = digest([*files, *sources()])
    make(
        "building the Debian image (two or three minutes)",
        [IMAGE],
        IMAGE.with_suffix(".stamp"),
        recipe,
        _build,
    )
    return IMAGE


def _build() -> None:
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    # Under .cache, for /tmp may be a small tmpfs; open to the other uids of mmdebstrap's unshare mode.
    with tempfile.TemporaryDirectory(prefix="build-", dir=IMAGE.parent, ignore_cleanup_errors=True) as name:
        work = Path(name)
        work.chmod(0o755)
        tree, disk = work / "tree.tar", work / "disk.raw"
        _bootstrap(tree)
        _partition(disk)
        _fill_root(tree, disk, work)
        _fill_esp(disk, work)
        finished = work / "disk.qcow2"
        run(
            ["qemu-img", "convert", "-O", "qcow2", disk, finished], log="image-qcow2", doing="write the qcow2"
        )
        finished.replace(IMAGE)


# How root's part of filling the file system is played in each of mmdebstrap's modes, and tar's words for file
# capabilities. fakeroot spoils a file whose attributes are set; there, packages fall back to set-user-id.
_KEEP = "--xattrs --xattrs-include='*'"
_AS_ROOT: dict[str, tuple[list[str], str]] = {
    "root": ([], _KEEP),
    "unshare": (["unshare", "--user", "--map-root-user", "--map-auto", "--"], _KEEP),
    "fakechroot": (["fakeroot", "--"], ""),
}


def _mode() -> str:
    if os.geteuid() == 0:
        return "root"
    user = pwd.getpwuid(os.geteuid()).pw_name
    granted = Path("/etc/subuid")
    has_ids = granted.is_file() and any(
        line.startswith(f"{user}:") for line in granted.read_text().splitlines()
    )
    return "unshare" if has_ids else "fakechroot"


def _bootstrap(tree: Path) -> None:
    packages = ",".join(wanted((HERE / "packages.txt").read_text()))
    mode = _mode()
    hook = shlex.quote(str(HERE / "customize.sh"))
    command: list[str | Path] = [
        "mmdebstrap",
        f"--mode={mode}",
        "--variant=minbase",
        "--architectures=amd64",
        "--aptopt=Acquire::Languages none",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--include={packages}",
        f'--customize-hook=env ROOT_UUID={ROOT_UUID} ESP_UUID={ESP_UUID} {hook} "$1"',
        RELEASE,
        tree,
        *sources(),
    ]
    run(command, log="image-mmdebstrap", doing="install Debian into the image", needs=sources()[0].split()[1])


def _partition(disk: Path) -> None:
    with disk.open("wb") as target:
        target.truncate(DISK)
    table = (
        "label: gpt\n"
        f"start={ESP_START // 512}, size={ESP_SIZE // 512}, type=uefi, name=esp\n"
        f"start={ROOT_START // 512}, size={ROOT_SIZE // 512}, type=linux, name=root\n"
    )
    _quick(["sfdisk", "-q", disk], table)


def _fill_root(tree: Path, disk: Path, work: Path) -> None:
    """Unpack and copy into a new ext4, owners and capabilities as they were."""
    root = work / "root"
    root.mkdir()
    # Initialised now rather than by a kernel thread in everybody's first minute.
    options = f"offset={ROOT_START},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    label_and_id = f"-L root -U {ROOT_UUID}"
    prefix, xattrs = _AS_ROOT[_mode()]
    script = (
        # Device nodes belong to devtmpfs, and an ordinary user cannot make any.
        f"tar -C '{root}' {xattrs} --numeric-owner --exclude='./dev/*' -xpf '{tree}' && "
        f"cp '{root}/{GRUB_EFI}' '{work}/grubx64.efi' && "
        f"mke2fs -q -F -t ext4 {label_and_id} -d '{root}' -E {options} '{disk}' {ROOT_SIZE // 1024}k && "
        f"rm -rf '{root}'"
    )
    run([*prefix, "sh", "-ec", script], log="image-root", doing="fill the image's root file system")


def _fill_esp(disk: Path, work: Path) -> None:
    loader, config = work / "grubx64.efi", work / "grub.cfg"
    config.write_text(ESP_GRUB_CFG)
    volume = f"{disk}@@{ESP_START}"
    serial = ESP_UUID.replace("-", "")
    _quick(
        [
            "mformat",
            "-i",
            volume,
            "-F",
            "-T",
            str(ESP_SIZE // 512),
            "-h",
            "255",
            "-s",
            "63",
            "-N",
            serial,
            "::",
        ]
    )
    _quick(["mmd", "-i", volume, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"])
    _quick(["mcopy", "-i", volume, str(loader), "::/EFI/BOOT/BOOTX64.EFI"])
    _quick(["mcopy", "-i", volume, str(config), "::/EFI/debian/grub.cfg"])


def _quick(command: list[str | Path], stdin: str = "") -> None:
    name = command[0]
    if shutil.which(str(name), path=plain_environment()["PATH"]) is None:
        raise Failure(f"{name} is missing; run `make setup` first")
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=plain_environment(), check=False
    )
    if done.returncode:
        raise Failure(f"cannot write the image: {name}: {done.stderr.strip() or done.stdout.strip()}")
