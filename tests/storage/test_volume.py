"""Which files may become a host's disk: nothing outside the pools, no format guessed, no chain unbounded."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicagent.errors import Kind, NicagentError
from nicagent.model import VolumeFormat
from nicagent.storage import qcow2, volume

RAW, QCOW2 = VolumeFormat.RAW, VolumeFormat.QCOW2


def qemu_img(*arguments: str | Path) -> str:
    argv = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    directory = tmp_path / "pool"
    directory.mkdir()
    return directory


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the agent's own that no tenant may read."""
    path = tmp_path / "secret"
    path.write_bytes(b"root:x:0:0\n".ljust(1024, b"."))
    return path


def refused(path: Path, format: VolumeFormat, pools: list[Path], kind: Kind) -> str:
    with pytest.raises(NicagentError) as caught:
        volume.resolve(path, format, pools)
    assert caught.value.kind is kind, str(caught.value)
    assert caught.value.hint, "an error says what to do next"
    return str(caught.value)


def test_a_chain_is_followed_from_the_written_layer_down(pool: Path) -> None:
    base, middle, top = pool / "base.raw", pool / "middle.qcow2", pool / "top.qcow2"
    base.write_bytes(bytes(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", middle)
    qemu_img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top, "4M")
    chain = volume.resolve(top, QCOW2, [pool])
    assert [(layer.path.name, layer.format) for layer in chain] == [
        ("top.qcow2", QCOW2),
        ("middle.qcow2", QCOW2),
        ("base.raw", RAW),
    ]
    assert [layer.size for layer in chain] == [4 << 20, 1 << 20, 1 << 20]


def test_a_chain_may_cross_pools_but_not_leave_them(pool: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "base.raw").write_bytes(bytes(4096))
    top = pool / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", images / "base.raw", "-F", "raw", top)
    assert len(volume.resolve(top, QCOW2, [pool, images])) == 2
    assert "base.raw" in refused(top, QCOW2, [pool], Kind.DENIED)


class TestForgedImages:
    """A tenant uploads an image that names a file of ours; it must not become the content of a disk."""

    def test_backing_file_outside_the_pools(self, pool: Path, secret: Path) -> None:
        image = pool / "evil.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", image, "1M")
        assert str(secret) in refused(image, QCOW2, [pool], Kind.DENIED)

    def test_backing_file_by_dots(self, pool: Path, secret: Path) -> None:
        image = pool / "evil.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", f"../{secret.name}", "-F", "raw", image, "1M")
        refused(image, QCOW2, [pool], Kind.DENIED)

    def test_backing_file_by_a_symbolic_link(self, pool: Path, secret: Path) -> None:
        image, link = pool / "evil.qcow2", pool / "innocent.raw"
        link.symlink_to(secret)
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", link, "-F", "raw", image, "1M")
        refused(image, QCOW2, [pool], Kind.DENIED)
        refused(link, RAW, [pool], Kind.DENIED)

    @pytest.mark.parametrize("name", ["nbd:unix:/run/other.sock", "json:{}", "fat:/etc", "http://host/x"])
    def test_backing_file_by_protocol(self, pool: Path, name: str) -> None:
        image = pool / "evil.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        forge_backing(image, name)
        refused(image, QCOW2, [pool], Kind.DENIED)

    def test_external_data_file(self, pool: Path, secret: Path) -> None:
        image = pool / "evil.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", image, "1M")
        refused(image, QCOW2, [pool], Kind.UNSUPPORTED)

    def test_a_raw_volume_stays_raw_whatever_a_guest_wrote_into_it(self, pool: Path, secret: Path) -> None:
        image = pool / "disk.raw"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", image, "1M")
        os.truncate(image, 1 << 20)
        (layer,) = volume.resolve(image, RAW, [pool])
        assert layer.format is RAW and layer.size == 1 << 20

    def test_a_backing_format_is_never_guessed(self, pool: Path) -> None:
        (pool / "base.raw").write_bytes(bytes(4096))
        image = pool / "top.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        forge_backing(image, "base.raw")
        assert "never guessed" in refused(image, QCOW2, [pool], Kind.INVALID)

    def test_a_circle(self, pool: Path) -> None:
        for one, other in (("a", "b"), ("b", "a")):
            qemu_img(
                *("create", "-q", "-f", "qcow2", "-u", "-b", f"{other}.qcow2", "-F", "qcow2"),
                *(pool / f"{one}.qcow2", "1M"),
            )
        assert "circle" in refused(pool / "a.qcow2", QCOW2, [pool], Kind.INVALID)


def forge_backing(image: Path, name: str) -> None:
    """Write a backing file name into a header (offset 8: place and size) without a format extension."""
    with image.open("r+b") as file:
        file.seek(8)
        file.write((4096).to_bytes(8, "big") + len(name).to_bytes(4, "big"))
        file.seek(4096)
        file.write(name.encode())


class TestMistakes:
    def test_missing(self, pool: Path) -> None:
        assert "gone.raw does not exist" in refused(pool / "gone.raw", RAW, [pool], Kind.NOT_FOUND)

    def test_missing_backing_file_names_both(self, pool: Path) -> None:
        image = pool / "top.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "gone.raw", "-F", "raw", image, "1M")
        message = refused(image, QCOW2, [pool], Kind.NOT_FOUND)
        assert "gone.raw" in message and "top.qcow2" in message

    def test_raw_called_qcow2(self, pool: Path) -> None:
        (pool / "disk").write_bytes(bytes(4096))
        assert "not in qcow2 format" in refused(pool / "disk", QCOW2, [pool], Kind.INVALID)

    @pytest.mark.parametrize("size", [0, 511, 1000])
    def test_a_size_no_disk_has(self, pool: Path, size: int) -> None:
        (pool / "disk").write_bytes(bytes(size))
        assert str(size) in refused(pool / "disk", RAW, [pool], Kind.INVALID)

    def test_directory_and_fifo(self, pool: Path) -> None:
        os.mkfifo(pool / "fifo")
        (pool / "sub").mkdir()
        refused(pool / "fifo", RAW, [pool], Kind.INVALID)
        refused(pool / "sub", RAW, [pool], Kind.INVALID)

    @pytest.mark.parametrize("method", [1, 2], ids=["aes", "luks"])
    def test_encrypted(self, pool: Path, method: int) -> None:
        """qemu-img makes the image with AES, since for LUKS it measures its own speed, which fails now and
        then on a busy machine (*Unable to get accurate CPU usage*). The header differs in one number."""
        image = pool / "secret.qcow2"
        options = ("encrypt.format=aes,encrypt.key-secret=s", image, "1M")
        qemu_img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", *options)
        with image.open("r+b") as file:
            file.seek(32)  # crypt_method
            file.write(method.to_bytes(4, "big"))
        refused(image, QCOW2, [pool], Kind.UNSUPPORTED)

    def test_no_pools_at_all(self, pool: Path) -> None:
        (pool / "disk").write_bytes(bytes(4096))
        assert "[pools." in refused(pool / "disk", RAW, [], Kind.DENIED)


class TestHeader:
    @pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M"])
    def test_agrees_with_qemu_img(self, pool: Path, options: str) -> None:
        (pool / "base.raw").write_bytes(bytes(4096))
        image = pool / "x.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base.raw", "-F", "raw", image, "3M")
        with image.open("rb") as file:
            header = qcow2.read_header(file, "x")
        said = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image))
        assert header.size == said["virtual-size"]
        assert header.backing_file == said["backing-filename"]
        assert header.backing_format == said["backing-filename-format"]

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=600), st.lists(st.tuples(st.integers(0, 599), st.integers(0, 255)), max_size=8))
    def test_no_header_however_broken_does_worse_than_an_error(
        self, tail: bytes, edits: list[tuple[int, int]]
    ) -> None:
        head = bytearray(qcow2.BASE.pack(qcow2.MAGIC, 3, 520, 8, 9, 1 << 20, 0).ljust(104, b"\0") + tail)
        for place, value in edits:
            if place < len(head):
                head[place] = value
        try:
            header = qcow2.read_header(io.BytesIO(bytes(head)), "fuzzed")
        except NicagentError as e:
            assert e.kind is Kind.INVALID
        else:
            assert header.backing_file is None or len(header.backing_file) <= qcow2.NAME_LIMIT
