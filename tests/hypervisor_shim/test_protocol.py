"""The protocol packet by packet: phases, refusals, events, keepalive. The answers are libvirtd 9.0's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hypervisor_shim.connection import Limits
from hypervisor_shim.driver import Caller
from hypervisor_shim.frame import Keepalive, Program, Type, packet
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.procedures import Phase

from .serving import TEST_UUID, Closed, RawClient, Served, domain, number, optional, serving, text

OPEN, CLOSE, GET_TYPE, DESTROY, GET_INFO, XML, FEATURE, AUTH_LIST = 1, 2, 3, 12, 16, 14, 60, 66
REGISTER, DEREGISTER, LIFECYCLE = 316, 317, 318


# ---- phases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("procedure", [GET_TYPE, GET_INFO, 28, 273, 360])
def test_before_open_nothing_but_the_handshake_is_served(served: Served, procedure: int) -> None:
    with RawClient(served.path) as client:
        answer = client.call(procedure, domain())
        assert (answer.code, answer.message) == (1, "internal error: hypervisor connection not open")


def test_no_authentication_is_offered_and_none_succeeds(served: Served) -> None:
    with RawClient(served.path) as client:
        assert client.call(AUTH_LIST).body == number(1) + number(0)
        for procedure, body in ((67, b""), (68, text("PLAIN") + number(0) + text("")), (70, b"")):
            assert client.call(procedure, body).code == 45


def test_open_twice_is_an_error_and_the_first_one_stays(client: RawClient) -> None:
    again = client.call(OPEN, optional(text("nic:///system")) + number(0))
    assert (again.code, again.message) == (1, "internal error: connection already open")
    assert client.call(GET_TYPE).body == text("QEMU")


@pytest.mark.parametrize(("uri", "code"), [("foo:///system", 5), ("nic:///session", 1), ("nic://[", 5)])
def test_a_uri_that_is_not_ours_is_refused(served: Served, uri: str, code: int) -> None:
    with RawClient(served.path) as client:
        assert client.call(OPEN, optional(text(uri)) + number(0)).code == code


@pytest.mark.parametrize("uri", ["nic:///system", "qemu:///system", "nic:///system?zone=a", None])
def test_uris_that_are_ours_open(served: Served, uri: str | None) -> None:
    with RawClient(served.path) as client:
        client.open(uri)


def test_close_is_answered_and_then_the_server_hangs_up(client: RawClient) -> None:
    assert client.call(CLOSE).code == 0
    with pytest.raises(Closed):
        client.receive()


def test_features_are_answered_truthfully(client: RawClient) -> None:
    served = {n for n in range(30) if client.call(FEATURE, number(n)).body == number(1)}
    assert served == {9, 10, 14, 15, 16}, (
        "typed strings, keepalive, event callbacks, close callback; no FD passing"
    )


# ---- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("procedure", [0, 107, 169, 318, 319, 333, 362, 446, 500, 100_000, 0xFFFFFFFF])
def test_events_gaps_and_numbers_never_given_out_are_unknown(client: RawClient, procedure: int) -> None:
    """Calling an event number crashed libvirtd once (CVE-2012-4423)."""
    answer = client.call(procedure, domain())
    assert (answer.code, answer.message) == (39, f"unknown procedure: {procedure}")


@pytest.mark.parametrize(
    ("procedure", "name"),
    [(278, "virDomainGetSecurityLabelList"), (419, "virConnectSetIdentity")],
)
def test_known_calls_that_are_not_served_say_so_by_name(client: RawClient, procedure: int, name: str) -> None:
    answer = client.call(procedure)
    assert answer.code == 3
    assert answer.message == f"this function is not supported by the connection driver: {name}"


def test_every_known_number_gets_an_answer(client: RawClient) -> None:
    for procedure in range(1, 444):
        if procedure == CLOSE:
            continue
        answer = client.call(procedure)
        assert answer.procedure == procedure and answer.serial == client.serial


@pytest.mark.parametrize(
    ("program", "procedure", "code"),
    [
        (Program.ADMIN, 1, 39),
        (0x1234, 1, 39),
        (Program.KEEPALIVE, 1, 39),
        (Program.QEMU, 1, 3),
        (Program.QEMU, 99, 39),
        (Program.LXC, 1, 3),
    ],
)
def test_other_programs_are_refused(client: RawClient, program: int, procedure: int, code: int) -> None:
    answer = client.call(procedure, program=program)
    assert (answer.program, answer.code) == (program, code)


def test_other_versions_and_statuses_are_refused(client: RawClient) -> None:
    assert client.call(GET_INFO, domain(), version=2).message == "Cannot find program 536903814 version 2"
    assert client.call(GET_INFO, domain(), status=1).message == "Unexpected message status 1"


@pytest.mark.parametrize("type", [1, 2, 3, 4, 5, 6, 7, 99])
def test_packets_that_are_no_calls_are_dropped_in_silence(client: RawClient, type: int) -> None:
    client.send(GET_INFO, domain(), type=type)
    assert client.silent(0.1)
    assert client.call(GET_INFO, domain()).code == 0, "the connection goes on"


def test_arguments_cut_short_are_refused_and_trailing_bytes_accepted(client: RawClient) -> None:
    short = client.call(GET_INFO, domain()[:-4])
    assert (short.code, short.message) == (39, "Unable to decode message payload")
    assert client.call(GET_INFO, domain() + b"more").code == 0


def test_flags_nobody_knows_are_refused(client: RawClient) -> None:
    answer = client.call(212, domain() + number(3))
    assert (answer.code, answer.message) == (8, "unsupported flags (0x3) in function virDomainGetState")


@pytest.mark.parametrize(
    ("procedure", "body", "code"),
    [
        (22, number(77), 42),
        (22, number(-7), 8),
        (23, text("nobody"), 42),
        (23, text(b"\xff\xfe\xfd"), 42),
        (24, b"1" * 16, 42),
        (GET_INFO, domain(uuid=b"1" * 16), 42),
        (37, number(-1), 39),
        (37, number(99_999), 39),
        (265, domain() + number(0) + number(0) + number(0), 80),
        (265, domain() + number(7) + number(0) + number(0), 8),
        (265, domain() + number(2) + number(0) + number(0), 8),
        (9, domain(), 55),
        (11, text("<domain>"), 35),
        (REGISTER, number(99) + number(0), 1),
        (REGISTER, number(-1) + number(0), 1),
        (DEREGISTER, number(5), 1),
    ],
)
def test_mistakes_get_libvirts_own_codes(client: RawClient, procedure: int, body: bytes, code: int) -> None:
    answer = client.call(procedure, body)
    assert answer.code == code, answer.message


# ---- read-only ---------------------------------------------------------------------------------------

WRITES = {
    9: domain(), 10: text("<domain/>") + number(0), 11: text("<domain/>"), 12: domain(),
    27: domain() + number(0), 29: domain() + number(1), 33: domain(), 35: domain(), 196: domain() + number(0),
    201: domain() + number(0) + number(0), 210: domain() + number(0), 231: domain() + number(0),
    234: domain() + number(0), 245: domain() + number(0), 258: domain() + number(0),
    264: domain() + number(0) * 4 + number(0), 350: text("<domain/>") + number(0),
    8: domain() + text("<disk/>"), 13: domain() + text("<disk/>"), 392: domain() + text("net0") + number(1),
    160: domain() + text("<disk/>") + number(1), 161: domain() + text("<disk/>") + number(1),
    174: domain() + text("<disk/>") + number(1), 237: domain() + text("vda") + number(0),
    239: domain() + text("vda") + bytes(8) + number(0), 240: domain() + text("vda") + bytes(8) + number(0),
    251: domain() + text("vda") + bytes(8) + number(0), 252: domain() + text("vda") + number(0) * 2,
    266: domain() + text("vda") + number(0) + bytes(8) + number(0),
    290: domain() + text("vda") + number(0) * 2 + bytes(8) + number(0),
    345: domain() + text("vda") + text("<disk/>") + number(0) * 2,
    185: domain() + text("<domainsnapshot/>") + number(0), 192: text("s") + domain() + number(0),
    193: text("s") + domain() + number(0),
    # the node, its devices, secrets
    250: number(0) * 4, 288: number(0) * 2, 347: number(0) * 5, 123: text("<device/>") + number(0),
    **dict.fromkeys((118, 119, 120, 124), text("computer")), 428: text("<device/>") + number(0),
    **dict.fromkeys((429, 430, 434), text("computer") + number(0)), 301: text("computer") + number(0) * 2,
    142: text("<secret/>") + number(0), 144: bytes(16) + number(0) * 4, 145: bytes(16) + number(0) * 3,
    146: bytes(16) + number(0) * 2,
    # networks and interfaces
    **dict.fromkeys((39, 42, 49), text("default") + bytes(16)), 48: text("default") + bytes(16) + number(1),
    **dict.fromkeys((40, 41, 131), text("<network/>") + number(0)),
    **dict.fromkeys((432, 437), text("<network/>") + number(0)),
    291: text("default") + bytes(16) + number(3) + number(4) + number(-1) + text("<host/>") + number(0),
    406: text("default") + bytes(16) + text("<networkport/>") + number(0),
    408: text("default") + bytes(32) + number(0) * 2, 410: text("default") + bytes(32) + number(0),
    444: text("default") + bytes(16) + number(0) * 5,
    **dict.fromkeys((132, 133, 134), text("eth1") + text("") + number(0)),
    **dict.fromkeys((220, 221, 222), number(0)),
    **dict.fromkeys((180, 399, 431), text("<filter/>") + number(0)), 181: text("f") + bytes(16),
    400: text("tap0") + text("f"),
}  # fmt: skip


#: Acting calls that change nothing: they are no reading ones only because they look
#: at disks, count, or read long documents.
LOOKS_ELSEWHERE = {
    20, 64, 65, 159, 194, 243, 262, 263, 344,  # counters
    353,  # addresses, those of leases
    238,  # block jobs
    135, 136, 158, 162,  # documents: other hypervisors', processors'
    126, 127, 128, 129, 130, 137, 138, 156, 284,  # interfaces
    87, 88, 91, 92, 95, 96, 97, 98, 99, 100, 282, 378, 391,  # pools and volumes
}  # fmt: skip


@pytest.mark.parametrize("procedure", WRITES)
@pytest.mark.parametrize("flags", [0, 1], ids=["asks for more", "asks for read-only"])
def test_the_read_only_socket_lets_nothing_through_that_changes_anything(
    served: Served, procedure: int, flags: int
) -> None:
    """CVE-2011-1146 and CVE-2019-10161 were calls that forgot to ask."""
    with RawClient(served.read_only_path) as client:
        answer = client.open(flags=flags).call(procedure, WRITES[procedure])
        assert answer.code == 29
        assert answer.message.startswith("operation forbidden: read only access prevents vir")


def test_read_only_by_flag_holds_on_the_full_socket_too(served: Served) -> None:
    with RawClient(served.path) as client:
        client.open(flags=1)
        assert client.call(DESTROY, domain()).code == 29
        assert client.call(GET_INFO, domain()).code == 0
        assert client.call(XML, domain() + number(1)).code == 29, "secrets are not for readers"


def test_every_row_that_acts_is_closed_to_readers(served: Served) -> None:
    """The positive list itself: what readers may call beside memory only looks at what lies elsewhere."""
    tables = served.server.tables
    acting = {
        number
        for number, entry in tables.opened.items()
        if entry.answer is None and entry.procedure.phase is Phase.OPENED
    }
    assert set(WRITES) <= acting
    assert acting & set(tables.opened_read_only) == LOOKS_ELSEWHERE


# ---- events ------------------------------------------------------------------------------------------


def test_callbacks_are_numbered_tracked_and_forgotten(client: RawClient) -> None:
    assert client.call(REGISTER, number(0) + number(0)).body == number(0)
    assert (
        client.call(REGISTER, number(0) + number(0)).message
        == "invalid argument: event callback already tracked"
    )
    assert client.call(REGISTER, number(1) + number(0)).body == number(1)
    assert client.call(DEREGISTER, number(0)).code == 0
    assert (
        client.call(DEREGISTER, number(0)).message == "internal error: domain event callback 0 not registered"
    )
    assert client.call(REGISTER, number(0) + optional(domain())).body == number(2)


def test_every_event_id_of_libvirt_may_be_registered(client: RawClient) -> None:
    assert all(client.call(REGISTER, number(event) + number(0)).code == 0 for event in range(27))


def test_a_lifecycle_event_carries_the_callback_the_domain_and_what_happened(client: RawClient) -> None:
    client.call(REGISTER, number(0) + optional(domain()))
    client.call(REGISTER, number(0) + optional(domain("other", b"2" * 16)))
    client.send(DESTROY, domain())
    event, reply = sorted((client.receive(), client.receive()), key=lambda answer: answer.serial)
    assert (event.procedure, event.type, event.serial) == (LIFECYCLE, Type.MESSAGE, 0)
    assert event.body == number(0) + domain(id=-1) + number(5) + number(1), (
        "stopped, destroyed, for domain test"
    )
    assert reply.code == 0
    assert client.silent(0.1), "the registration for another domain stays quiet"


def test_events_go_to_nobody_who_has_not_registered(served: Served, client: RawClient) -> None:
    with RawClient(served.path) as idle:
        client.call(DESTROY, domain())
        assert idle.silent(0.1), "nor to one that has not even opened"
    assert client.silent(0.1)


# ---- keepalive ---------------------------------------------------------------------------------------


def test_ping_is_answered_even_before_authentication(served: Served) -> None:
    with RawClient(served.path) as client:
        answer = client.call(Keepalive.PING, program=Program.KEEPALIVE, type=Type.MESSAGE)
        assert (answer.program, answer.procedure, answer.type) == (Program.KEEPALIVE, Keepalive.PONG, 2)


def test_a_client_that_promised_to_answer_pings_and_does_not_is_dropped(directory: Path) -> None:
    limits = Limits(keepalive_interval=0.05, keepalive_count=3)
    with serving(MemoryDriver(), directory, limits) as served, RawClient(served.path) as client:
        client.call(FEATURE, number(10))
        pings = 0
        with pytest.raises(Closed):
            while client.receive().procedure == Keepalive.PING:
                pings += 1
        assert pings == 3


def test_a_client_that_answers_pings_stays(directory: Path) -> None:
    limits = Limits(keepalive_interval=0.03, keepalive_count=2)
    with serving(MemoryDriver(), directory, limits) as served, RawClient(served.path) as client:
        client.call(FEATURE, number(10))
        for _ in range(10):
            assert client.receive().procedure == Keepalive.PING
            client.send(Keepalive.PONG, program=Program.KEEPALIVE, type=Type.MESSAGE, serial=0)
        client.open()


# ---- order and concurrency ---------------------------------------------------------------------------


def test_many_calls_in_one_segment_are_answered_in_order(client: RawClient) -> None:
    sent = [client.send(GET_INFO, domain()) for _ in range(200)]
    assert [client.receive().serial for _ in sent] == sent


def test_a_packet_may_arrive_byte_by_byte(client: RawClient) -> None:
    for byte in packet(Program.REMOTE, 1, GET_INFO, 0, 77, 0, domain()):
        client.sock.sendall(bytes([byte]))
        time.sleep(0.0005)
    assert client.receive().serial == 77


class SlowDriver(MemoryDriver):
    """Resets take until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.let_go = asyncio.Event()

    async def reset(self, caller: Caller, uuid: bytes) -> None:
        self.waiting += 1
        await self.let_go.wait()


def test_a_slow_call_blocks_neither_other_clients_nor_other_calls(directory: Path) -> None:
    driver = SlowDriver()
    with serving(driver, directory) as served, RawClient(served.path) as one, RawClient(served.path) as two:
        one.open(), two.open()
        slow = one.send(245, domain() + number(0))
        assert one.call(GET_INFO, domain()).code == 0
        assert two.call(GET_INFO, domain()).code == 0
        served.loop.call_soon_threadsafe(driver.let_go.set)
        assert one.receive().serial == slow


def test_with_five_calls_in_flight_a_client_is_read_no_further(directory: Path) -> None:
    driver = SlowDriver()
    with serving(driver, directory) as served, RawClient(served.path) as client:
        client.open()
        for _ in range(8):
            client.send(245, domain() + number(0))
        client.send(GET_INFO, domain())
        assert client.silent(0.2)
        assert driver.waiting == 5
        served.loop.call_soon_threadsafe(driver.let_go.set)
        assert sorted(client.receive().serial for _ in range(9)) == list(range(2, 11))


def test_what_was_asked_for_is_done_though_the_client_left(directory: Path) -> None:
    driver = SlowDriver()
    with serving(driver, directory) as served:
        with RawClient(served.path) as client:
            client.open()
            client.send(245, domain() + number(0))
            assert client.silent(0.05)
        served.loop.call_soon_threadsafe(driver.let_go.set)
    assert driver.waiting == 1 and driver.domain(TEST_UUID) is not None
