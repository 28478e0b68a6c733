"""Many clients that mean harm, and what they cost the others, the memory and the descriptors of the server.

The server is a process of its own, and so is the crowd. Times are compared with the same client's on the same
server in the same minute; what a busy machine adds is allowed for.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from hypervisor_shim.frame import HEADER, PACKET_MAX, Program, packet

from .alone import Process, alone
from .crowd import crowd
from .serving import RawClient, domain, number, text

GET_INFO, DEFINE, LIST_ALL, CONSOLE, XML = 16, 11, 273, 201, 14
DEFINE_POOL, DEFINE_NETWORK, COMPARE_CPU = 77, 41, 158
CALLS = 2000
MIB = 1024 * 1024


def latencies(client: RawClient, calls: int = CALLS) -> list[float]:
    """Seconds of each of so many `info` calls, shortest first."""
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        answer = client.call(GET_INFO, domain())
        found.append(time.perf_counter() - began)
        assert answer.code == 0
    return sorted(found)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with alone(tmp_path_factory.mktemp("hostile")) as process:
        yield process


@pytest.fixture
def good(process: Process):  # type: ignore[no-untyped-def]
    with RawClient(process.path, timeout=30) as client:
        yield client.open()


def test_a_thousand_slow_loris_clients_leave_a_good_one_its_speed(process: Process, good: RawClient) -> None:
    """Each has opened a connection and sends a frame, a byte a second. 2× is the promise, which the benchmark
    shows; here the slowest calls are left room for what else the machine does."""
    before = process.resident()
    for last_try in (False, False, True):
        alone_, crowded = [], []
        for _ in range(2):
            alone_ += latencies(good, CALLS // 2)
            with crowd(process.path, 1000, opened=True):
                crowded += latencies(good, CALLS // 2)
                used = process.resident() - before
        alone_.sort(), crowded.sort()
        ratios = [crowded[int(CALLS * part)] / alone_[int(CALLS * part)] for part in (0.5, 0.99)]
        if ratios[0] < 2 and ratios[1] < 4:
            break
        assert not last_try, f"with the crowd p50 is {ratios[0]:.1f}× and p99 {ratios[1]:.1f}× what it was"
    assert used < 32 * MIB, f"a thousand slow clients cost {used / MIB:.0f} MiB"


def test_a_thousand_that_never_open_delay_a_newcomer_and_do_not_keep_him_out(directory: Path) -> None:
    with alone(directory, unopened_pressed=0.2) as process, crowd(process.path, 1000, opened=False):
        began = time.monotonic()
        with RawClient(process.path, timeout=30) as newcomer:
            newcomer.open()
        waited = time.monotonic() - began
    assert waited < 10, f"{waited:.1f} s for a queue of 128 and 20 let in every 0.2 s"


def test_a_client_in_good_order_is_not_turned_away_while_nobody_waits(directory: Path) -> None:
    with alone(directory, unopened=2, unopened_pressed=0.05) as process:
        clients = [RawClient(process.path), RawClient(process.path)]
        time.sleep(0.4)
        for client in clients:
            client.open().close()


def test_a_frame_of_32_mib_from_each_of_many_is_bounded_together(directory: Path) -> None:
    """256 MiB is the limit of all; the memory of those who went over it is given back."""
    with alone(directory, partial_total=64 * MIB) as process:
        before = process.resident()
        clients = [RawClient(process.path).open() for _ in range(16)]
        head = HEADER.pack(PACKET_MAX, Program.REMOTE, 1, DEFINE, 0, 9, 0)
        most = 0
        for client in clients:
            with contextlib.suppress(ConnectionError, TimeoutError):
                client.sock.sendall(head + bytes(16 * MIB))
            most = max(most, process.resident() - before)
        assert most < 130 * MIB, f"{most / MIB:.0f} MiB for unfinished frames"
        for client in clients:
            client.close()
        with RawClient(process.path) as good:
            good.open()
            assert process.descriptors_settle(20) < 20
            assert process.resident() - before < 40 * MIB


def test_whole_frames_of_32_mib_are_taken_answered_and_given_back(directory: Path) -> None:
    with alone(directory) as process:
        before = process.resident()
        frame = packet(Program.REMOTE, 1, DEFINE, 0, 9, 0, number(0xFFFFFFF0) + bytes(PACKET_MAX - 32))
        for _ in range(4):
            with RawClient(process.path) as client:
                client.open().sock.sendall(frame)
                assert client.receive().code == 39
        assert process.resident() - before < 80 * MIB


def test_one_who_asks_for_everything_at_once_lets_others_have_their_turn(directory: Path) -> None:
    """Calls that cost much and answer little, thousands in one segment."""
    with (
        alone(directory, domains=1000) as process,
        RawClient(process.path, timeout=60) as greedy,
        RawClient(process.path) as good,
    ):
        greedy.open(), good.open()
        one = packet(Program.REMOTE, 1, LIST_ALL, 0, 7, 0, number(0) + number(1))
        began = time.perf_counter()
        greedy.sock.sendall(one)
        greedy.receive()
        cost = time.perf_counter() - began
        greedy.sock.sendall(one * 2000)
        worst = latencies(good, 20)[10]
        assert worst < 20 * cost + 0.05, f"{worst:.3f} s, where one call of the other's takes {cost:.4f} s"


@pytest.mark.parametrize(
    ("procedure", "document"),
    [
        (DEFINE, "<domain type='test'>{}</domain>"),
        (DEFINE_POOL, "<pool type='dir'>{}</pool>"),
        (DEFINE_NETWORK, "<network>{}</network>"),
        (COMPARE_CPU, "<cpu>{}</cpu>"),
    ],
)
def test_a_long_document_does_not_hold_up_others(
    process: Process, good: RawClient, procedure: int, document: str
) -> None:
    """Tens of thousands of elements take a good part of a second, in a thread."""
    whole = text(document.replace("{}", "<name>x</name>" * 30_000))
    with RawClient(process.path, timeout=60) as sender:
        sender.open()
        sender.send(procedure, whole + number(0))
        times: list[float] = []
        sender.sock.settimeout(0)
        done = False
        while not done:
            began = time.perf_counter()
            good.call(GET_INFO, domain())
            times.append(time.perf_counter() - began)
            with contextlib.suppress(BlockingIOError):
                done = bool(sender.sock.recv(1))
    times.sort()
    assert times[len(times) // 2] < 0.25, f"half of the calls took longer than {times[len(times) // 2]:.2f} s"


def test_descriptors_and_memory_are_given_back(process: Process) -> None:
    """CVE-2013-1962. Clients that close after the handshake, in mid-frame, with a stream open, unasked."""
    with RawClient(process.path) as steady:
        steady.open()
        descriptors, resident = process.descriptors(), 0
        for round_ in range(300):
            with RawClient(process.path) as client:
                if round_ % 4:
                    client.open().call(316, number(0) + number(0))
                if round_ % 4 == 2:
                    client.sock.sendall(HEADER.pack(100_000, Program.REMOTE, 1, DEFINE, 0, 9, 0) + b"x" * 500)
                if round_ % 4 == 3:
                    serial = client.send(CONSOLE, domain() + number(0) + number(1))
                    client.send(CONSOLE, b"x" * 70_000, type=3, status=2, serial=serial)
            if round_ == 100:
                resident = process.resident()
        assert process.descriptors_settle(descriptors) <= descriptors
        assert process.resident() - resident < 8 * MIB
        assert steady.call(GET_INFO, domain()).code == 0


def test_a_thousand_who_hang_up_at_once_cost_nothing(process: Process) -> None:
    descriptors = process.descriptors()
    for _ in range(1000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(process.path))
    assert process.descriptors_settle(descriptors) <= descriptors


def test_readers_that_never_read_do_not_slow_the_one_who_does(directory: Path) -> None:
    with alone(directory, stalled_time=1.0) as process:
        deaf = [RawClient(process.path, timeout=0.3).open() for _ in range(20)]
        ask = packet(Program.REMOTE, 1, XML, 0, 7, 0, domain() + number(0))
        before = process.resident()

        def flood(client: RawClient) -> None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(100):
                    client.sock.sendall(ask * 2000)

        with RawClient(process.path) as good:
            good.open()
            threads = [threading.Thread(target=flood, args=(client,)) for client in deaf]
            for thread in threads:
                thread.start()
            worst = latencies(good, 20)[18]
            for thread in threads:
                thread.join()
            assert process.resident() - before < len(deaf) * 3 * MIB
        assert worst < 2.0, f"{worst:.2f} s for a call beside 20 who never read"
        for client in deaf:
            client.close()
