"""A guest with Debian's kernel, whose init script tells facts on its serial console."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

from boot.initramfs import build
from images.guest_kernel import GuestKernel

HERE = Path(__file__).parent
STEP_TIMEOUT = 60.0  # seconds for any line of the guest


class Guest:
    """QEMU under TCG with slirp: the machine's loopback is 10.0.2.2 inside."""

    def __init__(
        self, home: Path, kernel: GuestKernel, init: str, words: str, files: dict[str, Path] | None = None
    ) -> None:
        """Boots `kernel` with the script `init`, which finds `words` on its command line."""
        image = home / "initramfs"
        modules = ["virtio_pci", "virtio_net", "nvme_tcp"]
        build(image, kernel.root, HERE / init, modules, files=files, optional_modules=["crc32c_intel"])
        argv = ["qemu-system-x86_64", "-accel", "tcg", "-smp", "2", "-m", "384", "-nodefaults", "-no-reboot"]
        argv += ["-display", "none", "-serial", "stdio"]
        argv += ["-kernel", str(kernel.vmlinuz), "-initrd", str(image)]
        argv += ["-append", f"console=ttyS0 quiet panic=-1 {words}"]
        argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.transcript: list[str] = []
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").strip()
            self.transcript.append(line)
            if "GUEST " in line:
                self._lines.put(line.partition("GUEST ")[2])

    def line(self, prefix: str) -> str:
        """The rest of the next line, which must start with `prefix`."""
        try:
            line = self._lines.get(timeout=STEP_TIMEOUT)
        except Empty:
            raise AssertionError(f"the guest says nothing; so far: {self.transcript[-30:]}") from None
        assert line.startswith(prefix), f"expected {prefix!r}: {line!r}; {self.transcript[-30:]}"
        return line[len(prefix) :].strip()

    def go_on(self, words: str = "") -> None:
        """Gives it the line it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
