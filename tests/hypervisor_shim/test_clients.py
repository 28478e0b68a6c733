"""Unmodified clients: libvirt-python and virsh against the in-memory driver."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisor_shim.memory import MemoryDriver

from .serving import Served, serving

SERVER_XML = """\
<domain type='kvm'>
  <name>metal-1</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <memory unit='GiB'>2</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='volume' device='disk'>
      <source pool='default' volume='metal-1.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'><source network='segment-100'/></interface>
    <console type='pty'/>
  </devices>
</domain>
"""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)


@pytest.fixture
def conn(served: Served) -> Iterator[Any]:
    conn = libvirt.open(served.uri)
    yield conn
    conn.close()


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(libvirt.libvirtError) as caught:
        call()
    return int(caught.value.get_error_code())


def test_the_server_says_what_clients_check(conn: Any) -> None:
    assert conn.getType() == "QEMU"
    assert conn.getLibVersion() >= 10_000_000, "nova asks for libvirt 10.0"
    assert conn.getVersion() >= 8_002_002, "and for QEMU 8.2.2"
    assert conn.getHostname() == "localhost"
    assert conn.isAlive() and conn.isSecure() and conn.getInfo()[0] == "x86_64"
    assert "<capabilities>" in conn.getCapabilities()


@pytest.mark.parametrize("scheme", ["nic", "qemu"])
def test_both_schemes_reach_it_over_unix_socket_and_tcp(served: Served, scheme: str) -> None:
    for uri in (
        f"{scheme}+unix:///system?socket={served.path}",
        f"{scheme}+tcp://127.0.0.1:{served.tcp_port}/system",
    ):
        conn = libvirt.open(uri)
        assert [domain.name() for domain in conn.listAllDomains()] == ["test"], uri
        conn.close()


def test_a_domain_from_define_to_undefine(conn: Any) -> None:
    domain = conn.defineXML(SERVER_XML)
    assert (domain.isActive(), domain.isPersistent(), domain.ID()) == (0, 1, -1)
    assert domain.info()[:4] == [libvirt.VIR_DOMAIN_SHUTOFF, 2 << 20, 2 << 20, 2]
    assert domain.create() == 0
    assert domain.isActive() and conn.lookupByID(domain.ID()).name() == "metal-1"
    assert domain.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
    assert f"<domain type='kvm' id='{domain.ID()}'>" in domain.XMLDesc()
    assert "id=" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).splitlines()[0]
    assert code_of(domain.create) == libvirt.VIR_ERR_OPERATION_INVALID
    domain.setAutostart(1)
    assert domain.autostart() == 1
    for call in (domain.reboot, domain.reset, domain.injectNMI):
        call(*(() if call == domain.reset else (0,)))
    domain.shutdown()
    assert domain.state() == [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN]
    assert code_of(domain.destroy) == libvirt.VIR_ERR_OPERATION_INVALID
    domain.undefine()
    assert code_of(lambda: conn.lookupByName("metal-1")) == libvirt.VIR_ERR_NO_DOMAIN
    assert code_of(domain.info) == libvirt.VIR_ERR_NO_DOMAIN


def test_a_transient_domain_is_gone_once_it_stops(conn: Any) -> None:
    domain = conn.createXML(SERVER_XML)
    assert not domain.isPersistent() and domain.isActive()
    domain.destroy()
    assert code_of(domain.info) == libvirt.VIR_ERR_NO_DOMAIN


def test_listing_filters_as_asked(conn: Any) -> None:
    conn.defineXML(SERVER_XML)
    names = lambda flags: sorted(domain.name() for domain in conn.listAllDomains(flags))  # noqa: E731
    assert names(0) == ["metal-1", "test"]
    assert names(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE) == ["test"]
    assert names(libvirt.VIR_CONNECT_LIST_DOMAINS_SHUTOFF) == ["metal-1"]
    assert names(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT) == []
    assert names(libvirt.VIR_CONNECT_LIST_DOMAINS_NO_MANAGEDSAVE) == ["metal-1", "test"]
    assert conn.listDefinedDomains() == ["metal-1"] and conn.listDomainsID() == [1]
    assert (conn.numOfDomains(), conn.numOfDefinedDomains()) == (1, 1)


def test_statistics_of_all_domains(conn: Any) -> None:
    ((domain, stats),) = conn.getAllDomainStats()
    assert domain.name() == "test"
    assert (stats["state.state"], stats["state.reason"], stats["vcpu.maximum"]) == (1, 1, 2)
    assert stats["balloon.maximum"] == 8 << 20


def test_metadata_is_kept_replaced_and_removed(conn: Any) -> None:
    domain = conn.defineXML(SERVER_XML)
    element, title = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_METADATA_TITLE
    domain.setMetadata(element, "<owner>me</owner>", "x", "http://x.example/1")
    assert domain.metadata(element, "http://x.example/1") == "<owner>me</owner>"
    assert "xmlns:x" in domain.XMLDesc()
    domain.setMetadata(element, None, "x", "http://x.example/1")
    assert (
        code_of(lambda: domain.metadata(element, "http://x.example/1")) == libvirt.VIR_ERR_NO_DOMAIN_METADATA
    )
    domain.setMetadata(title, "A title", None, None)
    assert domain.metadata(title, None) == "A title" and "<title>A title</title>" in domain.XMLDesc()


def test_snapshots_checkpoints_and_saves_are_truthfully_none(conn: Any) -> None:
    domain = conn.lookupByName("test")
    assert domain.listAllSnapshots() == [] and domain.listAllCheckpoints() == []
    assert (domain.hasManagedSaveImage(), domain.snapshotNum(), domain.hasCurrentSnapshot()) == (0, 0, 0)
    assert domain.isUpdated() == 0 and domain.messages(0) == []


# ---- events ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def event_loop_thread() -> Iterator[None]:
    libvirt.virEventRegisterDefaultImpl()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            libvirt.virEventRunDefaultImpl()

    timer = libvirt.virEventAddTimeout(50, lambda *_: None, None)
    thread = threading.Thread(target=run)
    thread.start()
    yield
    over.set()
    thread.join(5)
    libvirt.virEventRemoveTimeout(timer)


def test_events_come_through_the_clients_event_loop_in_order(
    event_loop_thread: None, directory: Path
) -> None:
    with serving(MemoryDriver(), directory) as served:
        conn = libvirt.open(served.uri)
        conn.setKeepAlive(5, 3)
        seen: list[tuple[str, int, int]] = []
        changed = threading.Event()

        def on_lifecycle(_: Any, domain: Any, event: int, detail: int, __: Any) -> None:
            seen.append((domain.name(), event, detail))
            changed.set()

        callback = conn.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle, None
        )
        conn.domainEventRegisterAny(
            None,
            libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
            lambda *_: (seen.append(("reboot", 0, 0)), changed.set()),
            None,
        )
        domain = conn.defineXML(SERVER_XML)
        (
            domain.create(),
            domain.reboot(),
            domain.shutdown(),
            domain.create(),
            domain.destroy(),
            domain.undefine(),
        )
        expected = [
            ("metal-1", 0, 0), ("metal-1", 2, 0), ("reboot", 0, 0), ("metal-1", 6, 0), ("metal-1", 5, 0),
            ("metal-1", 2, 0), ("metal-1", 5, 1), ("metal-1", 1, 0),
        ]  # fmt: skip
        deadline = time.monotonic() + 10
        while len(seen) < len(expected) and time.monotonic() < deadline:
            changed.wait(0.1)
            changed.clear()
        assert seen == expected
        conn.domainEventDeregisterAny(callback)
        conn.close()


# ---- console -----------------------------------------------------------------------------------------


def test_the_console_stream_carries_bytes_both_ways_and_finishes(conn: Any) -> None:
    domain = conn.createXML(SERVER_XML)
    stream = conn.newStream()
    domain.openConsole(None, stream)
    message = os.urandom(100_000)
    for start in range(0, len(message), 20_000):
        stream.send(message[start : start + 20_000])
    got = b""
    while len(got) < len(message):
        got += stream.recv(65536)
    assert got == message, "the console echoes"
    stream.finish()
    assert domain.info()[0] == 1, "the connection goes on after the stream"


def test_a_console_is_held_by_one_until_forced(conn: Any) -> None:
    domain = conn.createXML(SERVER_XML)
    first, second = conn.newStream(), conn.newStream()
    domain.openConsole("serial0", first)
    assert code_of(lambda: domain.openConsole(None, second)) == libvirt.VIR_ERR_OPERATION_FAILED
    second = conn.newStream()
    domain.openConsole(None, second, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
    assert first.recv(100) == b"", "who was thrown out sees the end"
    first.finish()
    second.abort()
    third = conn.newStream()
    for _ in range(50):  # an abort is not waited for
        try:
            domain.openConsole(None, third)
            break
        except libvirt.libvirtError:
            third = conn.newStream()
            time.sleep(0.02)
    else:
        pytest.fail("an aborted stream did not give the console back")
    third.finish()


def test_a_console_of_a_domain_that_is_off_is_refused(conn: Any) -> None:
    domain = conn.defineXML(SERVER_XML)
    assert code_of(lambda: domain.openConsole(None, conn.newStream())) == libvirt.VIR_ERR_OPERATION_INVALID
    domain.create()
    assert code_of(lambda: domain.openConsole("serial7", conn.newStream())) == libvirt.VIR_ERR_INTERNAL_ERROR


def test_virsh_console_shows_what_is_typed_and_leaves_on_its_escape(served: Served) -> None:
    conn = libvirt.open(served.uri)
    conn.createXML(SERVER_XML)
    master, slave = pty.openpty()
    virsh = subprocess.Popen(
        ["virsh", "-c", served.uri, "console", "metal-1"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
    )
    os.close(slave)
    shown = b""

    def until(pattern: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 10
        while not re.search(pattern, shown):
            assert time.monotonic() < deadline, f"virsh showed {shown!r}"
            if select.select([master], [], [], 0.2)[0]:
                shown += os.read(master, 4096)

    try:
        until(rb"Escape character")
        raw_by = time.monotonic() + 10  # virsh throws away what is typed before the terminal is raw
        while termios.tcgetattr(master)[3] & termios.ECHO:
            assert time.monotonic() < raw_by, "virsh did not make the terminal raw"
            time.sleep(0.01)
        os.write(master, b"hello metal")
        until(rb"hello metal")
        os.write(master, b"\x1d")  # ^]
        assert virsh.wait(10) == 0
    finally:
        virsh.kill()
        virsh.wait()
        os.close(master)
        conn.close()


# ---- virsh -------------------------------------------------------------------------------------------


def test_virsh_event_prints_what_happens(served: Served) -> None:
    virsh = subprocess.Popen(
        [
            "virsh",
            "-c",
            served.uri,
            "event",
            "--domain",
            "test",
            "--event",
            "lifecycle",
            "--loop",
            "--timeout",
            "8",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 8
    while not any(len(c._session.registrations) for c in list(served.server._clients)):
        assert time.monotonic() < deadline, "virsh did not register"
        time.sleep(0.02)
    conn = libvirt.open(served.uri)
    domain = conn.lookupByName("test")
    domain.destroy()
    domain.create()
    assert virsh.stdout is not None
    lines = [virsh.stdout.readline() for _ in range(2)]
    virsh.terminate()
    virsh.communicate()
    conn.close()
    assert "Stopped Destroyed" in lines[0] and "Started Booted" in lines[1], lines


def test_library_never_imports_the_product() -> None:
    listing = (
        "import sys, hypervisor_shim.server, hypervisor_shim.memory;"
        "print([name for name in sys.modules if 'nicagent' in name])"
    )
    shown = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
