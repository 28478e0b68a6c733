"""Clients that mean harm, by the classes of bug libvirt itself has had. No input ends the server.

Each class and its tests. R: test_hostile_rows.py (every procedure that is served); C: test_hostile_crowds.py
(many clients, a server process of its own); here otherwise. `tests/fuzz` looks for what has no name yet.

lengths before allocation (CVE-2024-2494, CVE-2011-2511)
    R lengths_and_counts_that_lie_allocate_nothing, a_length_out_of_bounds_closes_the_connection
nparams of 0, or that lies (CVE-2012-3445)
    R nparams_may_be_nothing_and_may_not_lie, a_maximum_of_minus_one_or_zero_is_an_error_or_empty
event numbers as calls (CVE-2012-4423)
    R numbers_that_are_no_calls_are_refused_in_every_program
unbounded lists (CVE-2013-4292)
    R lists_are_bounded_whatever_is_in_them
reply data on the error path (CVE-2013-4296)
    R an_error_carries_no_part_of_an_answer
message reuse before auth (CVE-2013-0170)
    R before_open_no_handler_is_entered
close during keepalive (CVE-2014-1447) and during events (CVE-2013-4399)
    closing_in_the_midst_of_events_and_pings_harms_nobody
leak of descriptors (CVE-2013-1962)
    C descriptors_and_memory_are_given_back, C a_thousand_who_hang_up_at_once_cost_nothing
read-only bypass (CVE-2011-1146, CVE-2019-10161)
    R a_reader_may_call_nothing_that_is_not_marked_for_readers
event delivery without rights (CVE-2014-0028)
    a_reader_hears_of_what_it_asked_for_and_cannot_act; with rules of access: test_access.py
XML external entities in every argument (CVE-2014-5177), billion laughs
    R no_text_of_any_call_reads_a_file_calls_an_address_or_laughs,
    R every_parser_of_documents_refuses_what_declares_a_type, xml_that_means_harm_is_refused
undecodable calls that act
    R arguments_cut_short_are_refused_and_nothing_acts
slow-loris frames
    C a_thousand_slow_loris_clients_leave_a_good_one_its_speed, a_packet_that_never_ends_is_dropped
a thousand half-open connections
    C a_thousand_that_never_open_delay_a_newcomer_and_do_not_keep_him_out
a 32 MiB frame on each of many
    C a_frame_of_32_mib_from_each_of_many_is_bounded_together,
    C whole_frames_of_32_mib_are_taken_answered_and_given_back
dear calls by the thousand
    C one_who_asks_for_everything_at_once_lets_others_have_their_turn
a stream never finished
    streams_never_finished_end_with_their_client
a reader that never reads
    C readers_that_never_read_do_not_slow_the_one_who_does,
    a_reader_that_never_reads_is_stopped_and_then_dropped, a_client_that_does_not_read_its_events_is_dropped
names that are not UTF-8
    R names_that_are_not_utf_8_match_nothing_and_harm_nobody,
    R an_error_that_quotes_a_name_of_four_mebibytes_fits
"""

from __future__ import annotations

import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisor_shim.connection import Limits
from hypervisor_shim.frame import HEADER, PACKET_MAX, Program, Status, packet
from hypervisor_shim.memory import MemoryDriver

from .serving import Closed, RawClient, Served, domain, number, optional, serving, text

GET_INFO, XML = 16, 14


def alive(served: Served) -> None:
    with RawClient(served.path) as client:
        assert client.open().call(GET_INFO, domain()).code == 0, "the server still serves others"


@pytest.mark.parametrize("length", [0, 3, 4, 27, PACKET_MAX + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_out_of_bounds_closes_the_connection(served: Served, length: int) -> None:
    with RawClient(served.path) as client:
        client.open()
        client.sock.sendall(struct.pack(">I", length))
        with pytest.raises(Closed):
            client.receive()
    alive(served)


def test_before_open_only_small_packets_are_taken(served: Served) -> None:
    with RawClient(served.path) as client:
        client.sock.sendall(HEADER.pack(1_000_000, Program.REMOTE, 1, 1, 0, 1, 0))
        with pytest.raises(Closed):
            client.receive()


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 4 * 1024 * 1024 + 1])
@pytest.mark.parametrize("procedure", [GET_INFO, 23, 11, 344])
def test_lengths_and_counts_that_lie_are_an_error(client: RawClient, procedure: int, size: int) -> None:
    """CVE-2011-2511, CVE-2013-4292, CVE-2024-2494."""
    assert client.call(procedure, number(size) + bytes(64)).code == 39


def test_a_maximum_of_minus_one_or_zero_is_an_error_or_empty(client: RawClient) -> None:
    """CVE-2012-3445: a count of nothing."""
    assert client.call(37, number(0)).body == number(0)
    assert client.call(21, number(-1)).code == 39


def test_a_client_that_never_opens_is_dropped(directory: Path) -> None:
    with serving(MemoryDriver(), directory, Limits(opening_time=0.2)) as served:
        with RawClient(served.path) as silent, RawClient(served.path) as dripping:
            for byte in packet(Program.REMOTE, 1, 1, 0, 1, 0, bytes(8))[:20]:
                dripping.sock.sendall(bytes([byte]))
            for client in (silent, dripping):
                with pytest.raises(Closed):
                    client.receive()
        alive(served)


def test_a_packet_that_never_ends_is_dropped(directory: Path) -> None:
    with serving(MemoryDriver(), directory, Limits(packet_time=0.2)) as served:
        with RawClient(served.path) as client:
            client.open()
            client.sock.sendall(HEADER.pack(1000, Program.REMOTE, 1, GET_INFO, 0, 1, 0))
            with pytest.raises(Closed):
                client.receive()
        alive(served)


def test_half_open_clients_do_not_keep_others_out_for_long(directory: Path) -> None:
    with serving(MemoryDriver(), directory, Limits(unopened=4, opening_time=0.3)) as served:
        idle = [RawClient(served.path) for _ in range(12)]
        alive(served)  # waits its turn in the kernel's queue
        for client in idle:
            client.close()


def test_clients_beyond_the_limit_wait_until_one_leaves(directory: Path) -> None:
    with serving(MemoryDriver(), directory, Limits(clients=2)) as served:
        first, second = RawClient(served.path).open(), RawClient(served.path).open()
        third = RawClient(served.path)
        third.send(66)
        assert third.silent(0.2), "there is no room yet"
        first.close()
        assert third.receive().code == 0
        second.close(), third.close()


def test_unfinished_packets_of_all_clients_are_bounded_together(directory: Path) -> None:
    with serving(MemoryDriver(), directory, Limits(partial_total=1_000_000)) as served:
        clients = [RawClient(served.path).open() for _ in range(8)]
        dropped = 0
        for client in clients:
            try:
                client.sock.sendall(HEADER.pack(20_000_000, Program.REMOTE, 1, 11, 0, 9, 0) + bytes(400_000))
                if not client.silent(0.1):
                    dropped += 1
            except (Closed, ConnectionError):
                dropped += 1
        assert dropped >= 5
        for client in clients:
            client.close()
        alive(served)
        time.sleep(0.1)
        assert served.server.partial_bytes == 0, "what was kept is given back"


def test_a_reader_that_never_reads_is_stopped_and_then_dropped(directory: Path) -> None:
    big = MemoryDriver(
        [WITH_CONSOLE.replace("<memory>", f"<description>{'x' * 500_000}</description><memory>")]
    )
    limits = Limits(stalled_time=0.5)
    with serving(big, directory, limits) as served, RawClient(served.path) as client:
        client.open()
        request = b"".join(packet(Program.REMOTE, 1, XML, 0, n, 0, domain() + number(0)) for n in range(300))
        client.sock.sendall(request)  # 150 MB of answers
        time.sleep(0.3)
        (connection,) = served.server._clients
        kept = connection._transport.get_write_buffer_size()
        assert kept < 8_000_000, f"{kept} bytes kept for a client that does not read"
        deadline = time.monotonic() + 20
        while served.server.clients and time.monotonic() < deadline:
            time.sleep(0.05)
        assert served.server.clients == 0


def test_a_client_that_does_not_read_its_events_is_dropped(directory: Path) -> None:
    driver = MemoryDriver()
    with serving(driver, directory, Limits(event_backlog=200_000, write_high=50_000)) as served:
        with RawClient(served.path) as deaf:
            deaf.open()
            assert deaf.call(316, number(1) + number(0)).code == 0

            async def storm() -> None:
                from hypervisor_shim.driver import RebootEvent

                info = driver.domains()[0]
                for _ in range(10_000):
                    driver._publish(RebootEvent(info))

            served.run(storm())
            deadline = time.monotonic() + 20
            while served.server.clients and time.monotonic() < deadline:
                time.sleep(0.02)
            assert served.server.clients == 0
        alive(served)


def test_closing_in_the_midst_of_events_and_pings_harms_nobody(served: Served) -> None:
    """CVE-2013-4399 and CVE-2014-1447."""
    for _ in range(20):
        with RawClient(served.path) as client:
            client.open().call(316, number(0) + number(0))
            client.send(1, program=Program.KEEPALIVE, type=2)
            client.send(12, domain())
            client.send(9, domain())
    alive_again = RawClient(served.path).open()
    assert alive_again.call(XML, domain() + number(0)).code == 0
    alive_again.close()


def test_a_reader_hears_of_what_it_asked_for_and_cannot_act(served: Served) -> None:
    """CVE-2014-0028 is about who may hear: a reader hears of domains he may read, and of nothing unasked."""
    with RawClient(served.read_only_path) as reader, RawClient(served.read_only_path) as unasked:
        reader.open(), unasked.open()
        assert reader.call(316, number(0) + number(0)).code == 0
        assert reader.call(12, domain()).code == 29
        with RawClient(served.path) as actor:
            assert actor.open().call(12, domain()).code == 0
        assert reader.receive().procedure == 318
        assert unasked.silent(0.1)


@pytest.mark.parametrize(
    "attack",
    [
        "<!DOCTYPE d [<!ENTITY a 'x'>]>{}",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/hostname'>]>{}",
        "<!DOCTYPE d SYSTEM 'http://127.0.0.1:1/d.dtd'>{}",
        "<!DOCTYPE d [<!ENTITY % p SYSTEM 'file:///etc/hostname'> %p;]>{}",
        "<!DOCTYPE d [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;'>]>{}",
        "<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>",
        "<domain>" + "<a/>" * 150_000 + "</domain>",
        "\0",
        "<domain \ud800/>",
    ],
    ids=["entity", "external", "external dtd", "parameter", "laughs", "deep", "many", "nul", "surrogate"],
)
@pytest.mark.parametrize("procedure", [10, 11, 350])
def test_xml_that_means_harm_is_refused(client: RawClient, attack: str, procedure: int) -> None:
    """CVE-2014-5177, in every call that takes a document."""
    document = attack.replace("{}", "<domain type='test'><name>&a;</name></domain>")
    body = text(document.encode("utf-8", "surrogatepass")) + (b"" if procedure == 11 else number(0))
    began = time.monotonic()
    assert client.call(procedure, body).code == 35
    assert time.monotonic() - began < 3


# ---- streams -----------------------------------------------------------------------------------------

WITH_CONSOLE = (
    "<domain type='test'><name>test</name><uuid>6695eb01f6a4830479aa97f2502e193f</uuid><memory>1024</memory>"
    "<os><type>hvm</type></os><devices><serial type='pty'/></devices></domain>"
)


def open_console(client: RawClient, flags: int = 0) -> int:
    answer = client.call(201, domain() + number(0) + number(flags))
    assert answer.code == 0, answer.message
    return answer.serial


def test_streams_never_finished_end_with_their_client(directory: Path) -> None:
    driver = MemoryDriver([WITH_CONSOLE])
    with serving(driver, directory) as served:
        for _ in range(5):
            with RawClient(served.path) as client:
                client.open()
                serial = open_console(client, flags=1)
                client.send(201, b"x" * 1000, type=3, status=Status.CONTINUE, serial=serial)
        alive(served)


def test_a_console_that_takes_nothing_stops_the_reading(directory: Path) -> None:
    driver = MemoryDriver([WITH_CONSOLE])
    with serving(driver, directory) as served, RawClient(served.path, timeout=1) as client:
        client.open()
        serial = open_console(client)
        chunk = packet(Program.REMOTE, 1, 201, 3, serial, Status.CONTINUE, bytes(100_000))
        sent = 0
        client.sock.settimeout(0.5)
        try:
            for _ in range(1000):  # the echo is not read, so the console fills, then the socket
                client.sock.sendall(chunk)
                sent += len(chunk)
        except TimeoutError:
            pass
        assert sent < 20_000_000, "the server took more than it could pass on"
        alive(served)


def test_a_second_stream_on_a_serial_in_use_is_refused(directory: Path) -> None:
    with serving(MemoryDriver([WITH_CONSOLE]), directory) as served, RawClient(served.path) as client:
        client.open()
        serial = open_console(client)
        assert client.call(201, domain() + number(0) + number(1), serial=serial).code in (0, 9)
        alive(served)


# ---- anything at all ---------------------------------------------------------------------------------

Head = tuple[int, int, int, int, int, int]  # program, version, procedure, type, serial, status

headers: st.SearchStrategy[Head] = st.tuples(
    st.sampled_from(
        [Program.REMOTE] * 4 + [Program.QEMU, Program.LXC, Program.ADMIN, Program.KEEPALIVE, 0, 7]
    ),
    st.sampled_from([1, 1, 1, 0, 2]),
    st.integers(0, 460) | st.sampled_from([1, 2, 201, 316, 2**32 - 1]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 77]),
    st.integers(0, 5),
    st.sampled_from([0, 0, 0, 1, 2, 9]),
)
bodies = st.binary(max_size=120) | st.sampled_from(
    [domain(), domain() + number(0), optional(text("nic:///system"))]
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(headers, bodies), max_size=12), st.binary(max_size=40), st.booleans())
def test_no_sequence_of_packets_ends_the_server(
    fuzzed: Served,
    packets: list[tuple[Head, bytes]],
    tail: bytes,
    opened: bool,
) -> None:
    with RawClient(fuzzed.path) as client:
        if opened:
            client.open()
        with suppress(ConnectionError):
            client.sock.sendall(b"".join(packet(*head, body) for head, body in packets) + tail)
    with RawClient(fuzzed.path) as client:
        assert client.call(66).code == 0


@pytest.fixture
def fuzzed(directory: Path):  # type: ignore[no-untyped-def]
    random.seed(0)
    with serving(MemoryDriver([WITH_CONSOLE]), directory, Limits(opening_time=1.0)) as served:
        yield served
