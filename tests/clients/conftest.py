from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisor_shim.memory import MemoryDriver
from nicagent.config import parse
from nicagent.northbound import machine_xml
from tests.hypervisor_shim.serving import Served, serving

HOST_UUID = "5f6c8a1e-2b57-4a6e-9d5e-2f6f0d9a0001"

_CONFIG = """\
[agent]
name = "agent"

[hosts.metal-1]
memory_mib = 8192
cpus = 8
[hosts.metal-1.power]
driver = "gpio"
pins = "mock"
[hosts.metal-1.storage]
transport = "nvme-tcp"
[hosts.metal-1.provision]
device = "prov0"
mac = "02:00:00:01:00:01"
"""

#: A server with a console and a disk, as an operator would define it.
METAL = """\
<domain type='kvm'>
  <name>metal-1</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <memory unit='GiB'>2</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/pool/metal-1.raw'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:8b:65:02'/><source bridge='br0'/><model type='virtio'/>
    </interface>
    <console type='pty'/>
  </devices>
</domain>
"""


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)


@pytest.fixture
def home() -> Iterator[Path]:
    """A program's home: short enough for the address of a socket, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="client-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def agent(home: Path) -> Iterator[Served]:
    """A server that says what metal says of itself, with one domain defined."""
    hosts = parse(_CONFIG).hosts
    machines = [machine_xml.Machine(name, host, host.inventory) for name, host in hosts.items()]
    capabilities = machine_xml.capabilities(machines, HOST_UUID)
    with serving(MemoryDriver([METAL], running=False, capabilities=capabilities), home) as served:
        yield served


@pytest.fixture
def conn(agent: Served) -> Iterator[Any]:
    conn = libvirt.open(agent.uri)
    yield conn
    conn.close()


@pytest.fixture
def loop() -> Iterator[None]:
    """libvirt's own event loop in a thread, as nova and kvmagent run it."""
    libvirt.virEventRegisterDefaultImpl()
    ending = threading.Event()

    def turn() -> None:
        timer = libvirt.virEventAddTimeout(50, lambda *_: None, None)
        while not ending.is_set():
            libvirt.virEventRunDefaultImpl()
        libvirt.virEventRemoveTimeout(timer)

    thread = threading.Thread(target=turn)
    thread.start()
    yield
    ending.set()
    thread.join(10)


def qemu_uri(served: Served) -> str:
    """For programs that look at the scheme."""
    return f"qemu+unix:///system?socket={served.path}"
