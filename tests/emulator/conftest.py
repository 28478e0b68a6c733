"""A tiny guest for chassis tests: Debian's cloud kernel and an init that does what a test asks on the
serial port.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from boot.initramfs import build
from images.guest_kernel import guest_kernel
from nicagent.emulator.settings import DirectKernel

# Powers off on the ACPI button until told to be deaf; takes commands on the serial port.
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe evdev
modprobe button
modprobe virtio_pci
modprobe virtio_blk
for device in /dev/input/event*; do
  ( head -c 24 $device >/dev/null; echo GUEST sees the power button; poweroff -f ) &
  listeners="$listeners $!"
done
echo GUEST is up
while read -r command; do
  case "$command" in
    poweroff) poweroff -f ;;
    reboot) reboot -f ;;
    disks) for d in /sys/block/vd*; do echo "DISK $(basename $d) $(cat $d/serial) $(cat $d/size)"; done ;;
    write*) set -- $command
      yes $3 | head -c 1048576 | dd of=/dev/$2 conv=fsync 2>/dev/null; echo GUEST wrote $? ;;
    load*) set -- $command
      ( while [ ! -e stop ]; do head -c 65536 /dev/urandom > /tmp/load
          dd if=/tmp/load of=/dev/$2 seek=1048576 oflag=seek_bytes conv=fsync 2>/dev/null || echo GUEST failed
        done; echo GUEST rests ) & ;;
    rest) touch stop ;;
    sum*) set -- $command
      echo "SUM $(dd if=/dev/$2 bs=1M count=1 iflag=direct 2>/dev/null | md5sum | cut -c1-32)" ;;
    deaf) kill $listeners; echo GUEST is deaf ;;
    *) echo "GUEST heard $command" ;;
  esac
done
sleep 1000
"""


@pytest.fixture(scope="session")
def tiny_guest(tmp_path_factory: pytest.TempPathFactory) -> DirectKernel:
    kernel = guest_kernel()
    directory = tmp_path_factory.mktemp("guest")
    init = directory / "init"
    init.write_text(INIT)
    initrd = directory / "initrd"
    build(initrd, Path(kernel.root), init, ["evdev", "button", "virtio_blk", "virtio_net", "virtio_pci"])
    return DirectKernel(
        kernel=str(kernel.vmlinuz), initrd=str(initrd), cmdline="console=ttyS0 quiet panic=-1"
    )
