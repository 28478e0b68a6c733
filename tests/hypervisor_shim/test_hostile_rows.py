"""The same malice against every procedure that is served: a new row is attacked without a change here."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor_shim.errors import Code, LibvirtError
from hypervisor_shim.frame import Program
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.procedures import Phase, Procedure
from hypervisor_shim.server import make_tables
from hypervisor_shim.xdr import (
    LIST_MAX,
    STRING_MAX,
    Array,
    Codec,
    Optional,
    Record,
    Text,
    TypedParam,
    XdrError,
)
from tests.fuzz.arguments import Arguments
from tests.fuzz.rig import Client, Rig
from tests.fuzz.source import Source
from tests.fuzz.targets import parsers

from .serving import TEST_UUID, RawClient, number, serving, text

ROWS = [
    entry.procedure
    for program, table in sorted(make_tables().by_program.items())
    for _, entry in sorted(table.items())
]
CLOSE = 2
SERVED = [row for row in ROWS if row.phase is Phase.OPENED]
LIES = (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x01000000)


def name_of(row: Procedure) -> str:
    return f"{row.number}-{row.api}"


def example(row: Procedure) -> bytes:
    """Arguments in good order, about a domain that is there."""
    return Arguments(row, Source(b"")).encoded()


def holds(codec: Codec | None, kind: type[Codec]) -> bool:
    """Whether a value of `codec` may have one of `kind` in it."""
    if codec is None or isinstance(codec, kind):
        return codec is not None
    inner = codec.members if isinstance(codec, Record) else [getattr(codec, "inner", None)]
    return any(holds(each, kind) for each in inner)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


async def opened(rig: Rig, *, read_only: bool = False) -> Client:
    client = rig.client(read_only=read_only)
    await client.call(1, number(0) + number(0))
    return client


# ---- what only some may do -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    """An opened connection to the read-only socket."""
    with (
        serving(MemoryDriver(), tmp_path_factory.mktemp("ro")) as served,
        RawClient(served.read_only_path) as client,
    ):
        yield client.open()


@pytest.mark.parametrize("row", [row for row in SERVED if not row.read_only], ids=name_of)
def test_a_reader_may_call_nothing_that_is_not_marked_for_readers(reader: RawClient, row: Procedure) -> None:
    """CVE-2011-1146, CVE-2019-10161: calls that forgot to ask."""
    answer = reader.call(row.number, example(row), program=row.program)
    assert answer.code == Code.OPERATION_DENIED, answer.message
    assert answer.message == f"operation forbidden: read only access prevents {row.api}"


def test_no_row_that_changes_something_is_marked_for_readers() -> None:
    """By their names: a row whose function sets, creates or deletes is no reader's."""
    changing = re.compile(
        "Set|Create|(?i:define)|Destroy|Delete|Attach|Detach|Update|Resize|Upload|Wipe|Build|Start|Shutdown|"
        "Reboot|Reset|Rename|Migrate|Inject|Send|Pin|Suspend|Resume|Save|Restore|FSFreeze|FSThaw|FSTrim"
    )
    reading = re.compile("Get|List|Lookup|NumOf|Is|Has|Num")
    marked = [row.api for row in SERVED if row.read_only and not reading.search(row.api)]
    assert not [api for api in marked if changing.search(api)]


def test_before_open_no_handler_is_entered(rig: Rig) -> None:
    """CVE-2013-0170: a call before its time, then the connection goes on with what was left of it."""

    async def scenario(rig: Rig, source: Source) -> None:
        client = rig.client()
        for row in SERVED:
            await client.call(row.number, example(row), program=row.program)
            assert rig.ran == [], f"the handler of {row.api} was entered"
            assert rig.codes[0] in (Code.INTERNAL_ERROR, Code.RPC), row.api
        await client.call(1, number(0) + number(0))
        assert rig.ran == [1]

    rig.run(scenario, b"")


# ---- arguments that lie --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS if row.args is not None], ids=name_of)
def test_lengths_and_counts_that_lie_allocate_nothing(row: Procedure) -> None:
    """CVE-2011-2511, CVE-2024-2494: negative or huge, in every word of the arguments."""
    body = example(row)
    assert row.args is not None
    row.args.read(body, 0, len(body))
    tracemalloc.start()
    try:
        for at in range(0, len(body), 4):
            for lie in LIES:
                lying = body[:at] + struct.pack(">I", lie) + body[at + 4 :]
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                with contextlib.suppress(XdrError):
                    row.args.read(lying, 0, len(lying))
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < 20_000, f"{peak - before} bytes for {len(lying)} that lie at {at}"
    finally:
        tracemalloc.stop()


def test_arguments_cut_short_are_refused_and_nothing_acts(rig: Rig) -> None:
    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        for row in ROWS:
            body = example(row)
            for end in sorted({0, 3, len(body) // 2, len(body) - 4}):
                if not 0 <= end < len(body) or not _undecodable(row, body[:end]):
                    continue
                await client.call(row.number, body[:end], program=row.program)
                assert rig.ran == [], f"{row.api} acted on {end} of {len(body)} bytes"
                assert rig.codes == [Code.RPC], f"{row.api}: {rig.codes} for {end} of {len(body)} bytes"

    rig.run(scenario, b"")


def _undecodable(row: Procedure, body: bytes) -> bool:
    assert row.args is not None
    try:
        row.args.read(body, 0, len(body))
    except XdrError:
        return True
    return False


def _arrays(codec: Codec) -> Iterator[Array]:
    if isinstance(codec, Array):
        yield codec
    inner = codec.members if isinstance(codec, Record) else [getattr(codec, "inner", None)]
    for each in inner:
        if each is not None:
            yield from _arrays(each)


@pytest.mark.parametrize("row", [row for row in ROWS if holds(row.args, Array)], ids=name_of)
def test_lists_are_bounded_whatever_is_in_them(row: Procedure) -> None:
    """CVE-2013-4292: as many members as a packet holds."""
    assert row.args is not None
    for array in _arrays(row.args):
        assert array.limit <= LIST_MAX
        for count in (array.limit + 1, 0xFFFFFFFF):
            with pytest.raises(XdrError):
                array.read(number(count) + bytes(4 * (array.limit + 1)), 0, 4 * (array.limit + 2))


@pytest.mark.parametrize("row", [row for row in ROWS if holds(row.args, TypedParam)], ids=name_of)
def test_nparams_may_be_nothing_and_may_not_lie(rig: Rig, row: Procedure) -> None:
    """CVE-2012-3445: no parameters at all; then more than there are, and of a type that is none."""
    body = example(row)
    at = _place_of_params(row)

    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        await client.call(row.number, body, program=row.program)
        for params in (number(1), number(-1), number(2) + text("x") + number(1) + number(0),
                       number(1) + text("x") + number(8) + number(0)):  # fmt: skip
            lying = body[:at] + params
            await client.call(row.number, lying, program=row.program)
            assert rig.codes == [Code.RPC] and rig.ran == []

    rig.run(scenario, b"")


def _place_of_params(row: Procedure) -> int:
    """Where in the example the count of the parameters stands."""
    assert row.args is not None
    pos, body = 0, example(row)
    for member in row.args.members:
        if isinstance(member, Array) and isinstance(member.inner, TypedParam):
            return pos
        _, pos = member.read(body, pos, len(body))
    raise AssertionError(f"{row.api} has its parameters elsewhere")


# ---- answers -------------------------------------------------------------------------------------------


def test_an_error_carries_no_part_of_an_answer(rig: Rig) -> None:
    """CVE-2013-4296: what was prepared before it failed. (The rig checks every packet to its last byte.)"""

    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        for row in SERVED:
            body = example(row).replace(TEST_UUID, b"\x11" * 16)
            await client.call(row.number, body, program=row.program)
            await client.call(row.number, body.replace(b"test", b"\xff\xfe\xfd\xfc"), program=row.program)

    rig.run(scenario, b"")


# ---- documents -----------------------------------------------------------------------------------------

MARK = "what-only-the-server-may-read"
TEXTS = [row for row in SERVED if holds(row.args, Text)]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "file"
    path.write_text(MARK)
    return path


class Listener:
    """An address where nobody should call."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self.called = 0
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        try:
            while True:
                self._sock.accept()[0].close()
                self.called += 1
        except OSError:
            return

    def close(self) -> None:
        self._sock.close()


def attacks(secret: Path, port: int) -> list[str]:
    laughs = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 12))
    return [
        f"<!DOCTYPE d [<!ENTITY e SYSTEM 'file://{secret}'>]>{{}}",
        f"<!DOCTYPE d SYSTEM 'http://127.0.0.1:{port}/d.dtd'>{{}}",
        f"<!DOCTYPE d [<!ENTITY % p SYSTEM 'http://127.0.0.1:{port}/p'> %p;]>{{}}",
        f"<!DOCTYPE d [<!ENTITY l0 'ha'>{laughs}<!ENTITY e '&l11;'>]>{{}}",
    ]


def _encode(codec: Codec, document: str, row: Procedure) -> bytes:
    """The row's example with the document wherever a text goes."""
    if isinstance(codec, Text):
        return text(document)
    if isinstance(codec, Record):
        return b"".join(_encode(member, document, row) for member in codec.members)
    if isinstance(codec, Optional):
        return number(1) + _encode(codec.inner, document, row)
    if isinstance(codec, Array):
        return number(1) + _encode(codec.inner, document, row)
    return Arguments(row, Source(b"")).of(codec)


ROOTS = ("domain", "pool", "volume", "network", "filter", "secret", "interface", "device", "domainsnapshot",
         "domaincheckpoint", "domainbackup", "cpu", "disk", "networkport", "filterbinding")  # fmt: skip


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawClient]:
    """An opened connection."""
    with serving(MemoryDriver(), tmp_path_factory.mktemp("rw")) as served, RawClient(served.path) as client:
        yield client.open()


@pytest.mark.parametrize("row", TEXTS, ids=name_of)
def test_no_text_of_any_call_reads_a_file_calls_an_address_or_laughs(
    reached: RawClient, secret: Path, row: Procedure
) -> None:
    """CVE-2014-5177, and the billion laughs, in every argument that could be a document."""
    assert row.args is not None
    listener = Listener()
    began = time.monotonic()
    for attack in attacks(secret, listener.port):
        root = next((each for each in ROOTS if each in row.api.lower()), "domain")
        document = attack.replace("{}", f"<{root} type='test'><name>&e;</name>&e;</{root}>")
        answer = reached.call(row.number, _encode(row.args, document, row), program=row.program)
        assert MARK.encode() not in answer.body
    took = time.monotonic() - began
    assert MARK.encode() not in reached.call(14, example_domain()).body
    listener.close()
    assert listener.called == 0, "an address in a document was called"
    assert took < 5, f"{took:.1f} s for four small documents"


def example_domain() -> bytes:
    return example(next(row for row in ROWS if row.number == 14))


@pytest.mark.parametrize("name", parsers())
def test_every_parser_of_documents_refuses_what_declares_a_type(name: str, secret: Path) -> None:
    for attack in attacks(secret, 1):
        for root in ROOTS:
            try:
                parsers()[name](attack.replace("{}", f"<{root}><name>&e;</name></{root}>"))
            except LibvirtError as refused:
                assert MARK not in refused.message
            else:
                assert name == "parse_uuid", f"{name} took a document type declaration"


def test_names_that_are_not_utf_8_match_nothing_and_harm_nobody(rig: Rig) -> None:
    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        for row in TEXTS:
            for name in (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"a\x00b", b"x" * 1_000_000):
                body = example(row).replace(text("test"), text(name))
                await client.call(row.number, body, program=row.program)
            assert client.connected, f"{row.api} ended the connection"
        await client.call(59, b"")
        assert rig.codes == [0], "the connection goes on"

    rig.run(scenario, b"")


def test_an_error_that_quotes_a_name_of_four_mebibytes_fits(rig: Rig) -> None:
    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        await client.call(23, text(b"x" * STRING_MAX))
        assert rig.codes == [Code.NO_DOMAIN]

    rig.run(scenario, b"")


def test_numbers_that_are_no_calls_are_refused_in_every_program(rig: Rig) -> None:
    """CVE-2012-4423: events, gaps and numbers never given out."""

    async def scenario(rig: Rig, source: Source) -> None:
        client = await opened(rig)
        known = {(row.program, row.number) for row in ROWS}
        for program in (Program.REMOTE, Program.QEMU, Program.LXC):
            for procedure in (*range(470), 2**31, 2**32 - 1):
                if (program, procedure) not in known:
                    await client.call(procedure, bytes(64), program=program)
                    assert rig.ran == [] and rig.codes[0] in (Code.RPC, Code.NO_SUPPORT, 84), procedure

    rig.run(scenario, b"")
