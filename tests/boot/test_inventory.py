"""What stage-1 tells of a machine, read from a sysfs that is laid out here, and understood by the agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nicagent.inventory import (
    Cpu,
    DiskDevice,
    Firmware,
    Inventory,
    NicDevice,
    PciDevice,
    System,
    parse_report,
)
from tests.boot.conftest import Shell

BRIDGE = "pci0000:00/0000:00:1c.0"
NIC = f"{BRIDGE}/0000:3b:00.0"
NVME = "pci0000:00/0000:01:00.0"
VIRTIO = "pci0000:00/0000:00:04.0"
CPUINFO = "".join(
    f"processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz\n"
    f"cpu MHz\t\t: 812.{n}\nphysical id\t: {n % 2}\nsiblings\t: 8\ncpu cores\t: 4\n\n"
    for n in range(16)
)


class Machine:
    """A sysfs and a /proc that are put together in a directory."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        self.proc.mkdir(parents=True)
        (self.proc / "cpuinfo").write_text(CPUINFO)
        for directory in ("bus/pci/devices", "class/net", "class/block", "class/dmi/id", "devices"):
            (self.sys / directory).mkdir(parents=True)

    def put(self, path: str, **files: str) -> None:
        """Attributes of a device below /sys/devices, or of a class."""
        for name, text in files.items():
            place = self.sys / path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")

    def link(self, where: str, device: str) -> None:
        name = device.rpartition("/")[2]
        depth = where.count("/") + 1
        (self.sys / where / name).symlink_to("../" * depth + f"devices/{device}")

    def function(self, path: str, vendor: str, device: str, code: str, **more: str) -> None:
        files = {"vendor": vendor, "device": device, "class": code, "numa_node": "-1", **more}
        self.put(f"devices/{path}", **files)
        self.link("bus/pci/devices", path)

    def told(self, shell: Shell) -> Inventory:
        done = shell(f"inventory {self.sys} {self.proc}")
        assert done.returncode == 0 and not done.stderr, done.stderr
        return parse_report(done.stdout.encode())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_server_tells_what_it_is_made_of(machine: Machine, stage1_shell: Shell) -> None:
    machine.put(
        "class/dmi/id",
        sys_vendor="Dell Inc.",
        product_name='PowerEdge "R650"',
        product_serial="CN7\\1",
        product_uuid="4c4c4544-0043-4e10-8037-b7c04f4a3332",
        product_sku="To be filled by O.E.M.",
        product_version="   ",
        bios_vendor="Dell Inc.",
        bios_date="07/12/2023",
    )
    (machine.sys / "firmware/efi").mkdir(parents=True)
    machine.function(BRIDGE, "0x8086", "0xa190", "0x060400")
    machine.function(NIC, "0x8086", "0x1592", "0x020000", sriov_totalvfs="64", numa_node="1")
    machine.put(f"devices/{NIC}/net/ens1f0", address="52:54:00:aa:bb:cc")
    machine.link("class/net", f"{NIC}/net/ens1f0")
    machine.put("devices/virtual/net/lo", address="00:00:00:00:00:00")
    machine.link("class/net", "virtual/net/lo")
    machine.function(NVME, "0x144d", "0xa80a", "0x010802")
    namespace = f"{NVME}/nvme/nvme0/nvme0n1"
    machine.put(f"devices/{NVME}/nvme/nvme0", model="SAMSUNG MZQL21T9   ", serial="S64GNE0")
    machine.put(f"devices/{namespace}", size="3750748848", **{"queue/logical_block_size": "512"})
    machine.link("class/block", namespace)
    machine.put(f"devices/{namespace}/nvme0n1p1", size="2048", partition="1")
    machine.link("class/block", f"{namespace}/nvme0n1p1")
    machine.function(VIRTIO, "0x1af4", "0x1042", "0x010000")
    machine.put(f"devices/{VIRTIO}/virtio1/block/vda", size="2097152", serial="root")
    machine.link("class/block", f"{VIRTIO}/virtio1/block/vda")

    told = machine.told(stage1_shell)

    assert told.system == System(
        manufacturer="Dell Inc.",
        product="PowerEdge 'R650'",
        serial="CN7/1",
        uuid="4c4c4544-0043-4e10-8037-b7c04f4a3332",
    ), "blanks and a maker's placeholders are nothing known"
    assert told.firmware == Firmware(kind="efi", vendor="Dell Inc.", date="07/12/2023")
    assert told.cpu == Cpu(
        name="Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz",
        vendor="Intel",
        mhz=2000,
        sockets=2,
        cores=4,
        threads=2,
    ), "the nominal speed: that of this moment would be another every time"
    assert told.pci == (
        PciDevice(address="0000:00:04.0", vendor_id="0x1af4", product_id="0x1042", class_code="0x010000"),
        PciDevice(address="0000:00:1c.0", vendor_id="0x8086", product_id="0xa190", class_code="0x060400"),
        PciDevice(address="0000:01:00.0", vendor_id="0x144d", product_id="0xa80a", class_code="0x010802"),
        PciDevice(
            address="0000:3b:00.0",
            vendor_id="0x8086",
            product_id="0x1592",
            class_code="0x020000",
            parent="0000:00:1c.0",
            numa_node=1,
            sriov_total=64,
        ),
    )
    assert told.nics == (NicDevice(mac="52:54:00:aa:bb:cc", name="ens1f0", pci="0000:3b:00.0"),)
    assert told.disks == (
        DiskDevice(
            name="nvme0n1",
            pci="0000:01:00.0",
            bus="nvme",
            model="SAMSUNG MZQL21T9",
            serial="S64GNE0",
            size_bytes=3750748848 * 512,
            block_bytes=512,
        ),
        DiskDevice(name="vda", pci="0000:00:04.0", bus="virtio", serial="root", size_bytes=1 << 30),
    )


def test_a_machine_without_any_of_it_tells_nothing(machine: Machine, stage1_shell: Shell) -> None:
    (machine.proc / "cpuinfo").write_text("")
    assert machine.told(stage1_shell) == Inventory(firmware=Firmware(kind="bios"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.binary(max_size=300).filter(lambda raw: b"\0" not in raw))
def test_whatever_a_maker_writes_the_agent_can_read_it(
    text: bytes, machine: Machine, stage1_shell: Shell
) -> None:
    (machine.sys / "class/dmi/id/product_name").write_bytes(text)
    assert isinstance(machine.told(stage1_shell).system.product, str)
