"""Stage-1 starts what the disk's own boot loader would start: the same entry, kernel, initrds and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.boot.conftest import Shell

SAMPLES = Path(__file__).resolve().parent / "samples"
UBUNTU = (SAMPLES / "ubuntu-grub.cfg").read_text()


Entry = tuple[str, list[str], str]
Reader = Callable[[Path], Entry | None]


@pytest.fixture(scope="session")
def entry(stage1_shell: Shell) -> Reader:
    """What stage-1 reads on a file system: kernel, initrds, options of the default entry."""

    def read(root: Path) -> Entry | None:
        done = stage1_shell(f"boot_entry {root}")
        assert not done.stderr, done.stderr
        if done.returncode:
            return None
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        return (
            next(rest for key, _, rest in lines if key == "linux"),
            [rest for key, _, rest in lines if key == "initrd"],
            next(rest for key, _, rest in lines if key == "options"),
        )

    return read


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def grubenv(**variables: str) -> str:
    text = "# GRUB Environment Block\n" + "".join(f"{key}={value}\n" for key, value in variables.items())
    return text.ljust(1024, "#")


def test_what_update_grub_writes_on_debian(entry: Reader, tmp_path: Path) -> None:
    text = (SAMPLES / "debian12-grub.cfg").read_text()
    found = entry(put(tmp_path, {"boot/grub/grub.cfg": text}))
    assert found is not None
    linux, initrds, options = found
    assert linux.startswith("/boot/vmlinuz-6.1.0-")
    assert initrds == [linux.replace("vmlinuz", "initrd.img")]
    assert options == "root=UUID=5f3c6b0e-8a51-4c0e-9d0b-6e6963616701 ro console=ttyS0,115200 quiet"


OLDER = ("/vmlinuz-6.8.0-49-generic", ["/microcode.img", "/initrd.img-6.8.0-49-generic"])
NEWEST = ("/vmlinuz-6.8.0-50-generic", ["/initrd.img-6.8.0-50-generic"])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, NEWEST),
        ({"saved_entry": "0"}, NEWEST),
        ({"saved_entry": "1>1"}, OLDER),
        ({"saved_entry": "Advanced options for Ubuntu>Ubuntu, with Linux 6.8.0-49-generic"}, OLDER),
        ({"saved_entry": "gnulinux-advanced-aaaa>gnulinux-6.8.0-49-generic-advanced-aaaa"}, OLDER),
        ({"saved_entry": "gnulinux-6.8.0-49-generic-advanced-aaaa"}, OLDER),
        ({"saved_entry": "1"}, NEWEST),  # a whole submenu: its first entry
        ({"saved_entry": "0", "next_entry": "1>1"}, OLDER),  # grub-reboot: once
        ({"saved_entry": "uefi-firmware"}, NEWEST),  # boots no kernel, so not that one
        ({"saved_entry": "no such entry"}, NEWEST),
    ],
)
def test_the_default_entry_by_number_title_and_id(
    entry: Reader, tmp_path: Path, variables: dict[str, str], expected: tuple[str, list[str]]
) -> None:
    found = entry(put(tmp_path, {"grub/grub.cfg": UBUNTU, "grub/grubenv": grubenv(**variables)}))
    assert found is not None and found[:2] == expected, f"grubenv {variables} chose {found}"
    assert found[2] == "root=/dev/mapper/vg-root ro quiet splash"


def test_quotes_variables_and_devices(entry: Reader, tmp_path: Path) -> None:
    text = (
        "set a='one two'\nset root=(hd0,gpt2)\n# menuentry 'not me' { linux /wrong }\n"
        'menuentry "it\'s \\"this\\"" {\n'
        "  linux ($root)/boot/vm\\\n"
        'linuz root=LABEL="my root" x=$a y="$a" z=\'$a\'\n'
        "}\n"
    )
    found = entry(put(tmp_path, {"boot/grub2/grub.cfg": text}))
    assert found == ("/boot/vmlinuz", [], "root=LABEL=my root x=one two y=one two z=$a")


def test_boot_loader_specification_takes_the_newest(entry: Reader, tmp_path: Path) -> None:
    files = {
        "grub2/grub.cfg": "insmod blscfg\nblscfg\n",
        "grub2/grubenv": grubenv(kernelopts="root=/dev/vda3 ro"),
    } | {
        f"loader/entries/id-6.{minor}.0.conf": f"title F\nversion 6.{minor}.0\nlinux /vmlinuz-6.{minor}.0\n"
        f"initrd /initramfs-6.{minor}.0.img $tuned_initrd\noptions $kernelopts rhgb\n"
        for minor in (9, 10, 2)
    }
    found = entry(put(tmp_path, files))
    assert found == ("/vmlinuz-6.10.0", ["/initramfs-6.10.0.img"], "root=/dev/vda3 ro rhgb")


def test_boot_loader_specification_obeys_the_saved_entry(entry: Reader, tmp_path: Path) -> None:
    files = {"grub2/grubenv": grubenv(saved_entry="id-6.2")} | {
        f"loader/entries/id-6.{minor}.conf": f"linux /v{minor}\noptions ro\n" for minor in (2, 9)
    }
    assert entry(put(tmp_path, files)) == ("/v2", [], "ro")


def test_a_disk_without_a_boot_entry(entry: Reader, tmp_path: Path) -> None:
    assert entry(put(tmp_path, {"etc/fstab": ""})) is None
    assert entry(put(tmp_path, {"boot/grub/grub.cfg": "menuentry x {\nchainloader +1\n}\n"})) is None


PIECES = [
    "menuentry x {",
    "submenu y {",
    "}",
    "if [ $a = b ]; then",
    "fi",
    "else",
    "elif [ ]; then",
    "linux /k $o",
]
PIECES += [
    "'",
    '"',
    "\\",
    "set default=",
    "${",
    "$",
    "function f {",
    "initrd",
    "[",
    "set o='",
    ";",
    "\t",
    "\n",
    "é",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=25))
def test_no_grub_cfg_hangs_or_breaks_the_parser(entry: Reader, tmp_path: Path, pieces: list[str]) -> None:
    entry(put(tmp_path, {"boot/grub/grub.cfg": "\n".join(pieces)}))
