"""The bytes of a call's arguments, of any row: its codec says what belongs there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypervisor_shim.procedures import Procedure
from hypervisor_shim.xdr import (
    Array,
    Codec,
    DomainRef,
    Fixed,
    Opaque,
    Optional,
    Record,
    Scalar,
    Tag,
    Text,
    TypedParam,
)
from tests.hypervisor_shim.serving import TEST_UUID, domain, number, text

from .documents import WORDS, document
from .source import Source

_NUMBERS = (0, 1, 2, 3, 4, 8, 16, 64, 128, 1024, 65536, 2**30, 2**31 - 1, -1, -2, -(2**31))
_LARGE = (*_NUMBERS, 2**32, 2**63 - 1, -(2**63), 10**9, 10**18)
#: Of what the reference driver has, and of what it has not.
NAMES = (
    "test", "default", "default-pool", "eth1", "lo", "computer", "test_volume", "vda", "serial0", "nobody",
    "/default-pool/x", "/dev/null", "x86_64", "i686", "kvm", "hvm", "org.example", "52:54:00:00:00:01",
    *WORDS,
)  # fmt: skip
_NAMED: tuple[str | bytes, ...] = ("", "x" * 70, b"\xff")
UUIDS = (
    TEST_UUID,
    TEST_UUID,
    bytes.fromhex("dfe224cb28fb8dd0c4b264eb3f0f4566"),
    bytes.fromhex("dd8fe8846c02601e7551cca97df1c5df"),
    bytes(16),
    b"\xff" * 16,
)
PARAMS = (
    "cpu_shares",
    "weight",
    "total_bytes_sec",
    "read_iops_sec",
    "bandwidth",
    "name",
    "size",
    "",
    "x" * 90,
)
ITEMS_MAX = 4


class Arguments:
    """Makes the arguments of one row's calls, well-formed as a rule. `names` and `uuids`: what the server has
    told so far."""

    def __init__(
        self, row: Procedure, source: Source, names: Sequence[str] = (), uuids: Sequence[bytes] = ()
    ) -> None:
        self._names = names
        self._uuids = uuids
        self._api = row.api
        self._args = row.args
        self._source = source
        self._encoders: dict[type[Codec], Callable[[Any], bytes]] = {
            Scalar: self._scalar,
            Fixed: self._fixed,
            Text: self._text,
            Opaque: self._opaque,
            Optional: self._optional,
            Array: self._array,
            Record: self._record,
            DomainRef: self._domain,
            TypedParam: self._param,
        }

    def encoded(self) -> bytes:
        """Now and then cut short, or with a length that lies."""
        source = self._source
        whole = b"" if self._args is None else self.of(self._args)
        if source.one_in(12):
            whole = whole[: source.below(len(whole) + 1)]
        if source.one_in(12):
            at = source.below(len(whole) // 4 + 1) * 4
            whole = whole[:at] + number(source.pick(_NUMBERS)) + whole[at + 4 :]
        return whole

    def of(self, codec: Codec) -> bytes:
        """One value's bytes."""
        for kind in type(codec).__mro__:
            if kind in self._encoders:
                return self._encoders[kind](codec)
        _, size = codec.read(bytes(65_536), 0, 65_536)  # not known here: what it makes of nothing but zeros
        return bytes(size)

    def _scalar(self, codec: Scalar) -> bytes:
        size = struct.calcsize(">" + (codec.fixed or "i"))
        if self._source.one_in(2):
            return bytes(size)
        value = self._source.pick(_NUMBERS if size == 4 else _LARGE)
        if self._source.one_in(8):
            value = int.from_bytes(self._source.take(size), "big")
        return (value & (2 ** (8 * size) - 1)).to_bytes(size, "big")

    def _fixed(self, codec: Fixed) -> bytes:
        if codec.size == len(TEST_UUID):
            return self._source.pick(self._uuids if self._uuids and self._source.below(2) else UUIDS)
        return self._source.take(codec.size).ljust(codec.size, b"\0")

    def _text(self, codec: Text) -> bytes:
        source = self._source
        documents = any(word in self._api for word in ("XML", "Device", "CPU", "Metadata", "Backup", "Copy"))
        kind = source.below(8)
        if kind == 7:
            return text(source.blob())
        if documents and kind > 1:
            return text(document(source, self._api).encode("utf-8", "surrogateescape"))
        return self._name()

    def _name(self) -> bytes:
        known = self._names if self._names and self._source.below(2) else NAMES
        return text(self._source.pick(known).encode("utf-8", "surrogateescape"))

    def _opaque(self, codec: Opaque) -> bytes:
        return text(self._source.blob())

    def _optional(self, codec: Optional) -> bytes:
        return number(0) if self._source.one_in(3) else number(1) + self.of(codec.inner)

    def _array(self, codec: Array) -> bytes:
        count = self._source.below(ITEMS_MAX)
        return number(count) + b"".join(self.of(codec.inner) for _ in range(count))

    def _record(self, codec: Record) -> bytes:
        return b"".join(map(self.of, codec.members))

    def _domain(self, codec: DomainRef) -> bytes:
        source = self._source
        named = "test" if source.below(4) else source.pick(_NAMED)
        return domain(named, TEST_UUID if source.below(4) else source.pick(UUIDS), source.pick(_NUMBERS))

    def _param(self, codec: TypedParam) -> bytes:
        source = self._source
        tag = source.pick(tuple(Tag))
        size = 8 if tag in (Tag.LLONG, Tag.ULLONG, Tag.DOUBLE) else 4
        value = self._name() if tag is Tag.STRING else source.take(size).rjust(size, b"\0")
        said = source.pick(_NUMBERS) if source.one_in(16) else tag
        return text(source.pick(PARAMS)) + number(said) + value
