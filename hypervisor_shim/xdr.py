"""XDR (RFC 4506) as libvirt uses it: codecs that are put together once and then only run.

A codec knows how to read one value from a buffer and how to append one to a list of byte strings. Nothing is
allocated before the bytes for it are known to be there, so a length that lies costs its sender an error and
the server nothing.

libvirt's own turns: `char` in an array takes four bytes on the wire, `opaque` is packed; an optional value is
a list of none or one; a typed parameter's union tag is 1..7.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import Any

STRING_MAX = 4 * 1024 * 1024  # bytes in one string
LIST_MAX = 16_384  # members of one list

_U32 = Struct(">I")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


class XdrError(ValueError):
    """The bytes are not what the codec stands for: too short, or a length, tag or flag out of bounds."""


class Codec(ABC):
    """One type. `fixed` is its struct format where its size never varies, else None."""

    fixed: str | None = None

    @abstractmethod
    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        """The value at `pos` and the position behind it; nothing at or past `end` is touched."""

    @abstractmethod
    def write(self, value: Any, out: list[bytes]) -> None:
        """Append the value's bytes."""

    def write_many(self, values: Iterable[Any], out: list[bytes]) -> None:
        """Append the bytes of each: what long lists are written with."""
        write = self.write
        for value in values:
            write(value, out)


class Scalar(Codec):
    """A number of fixed width, by its struct format character."""

    def __init__(self, char: str) -> None:
        self.fixed = char
        self._struct = Struct(">" + char)

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        behind = pos + self._struct.size
        if behind > end:
            raise XdrError("number is cut short")
        return self._struct.unpack_from(buf, pos)[0], behind

    def write(self, value: Any, out: list[bytes]) -> None:
        out.append(self._struct.pack(value))


class Fixed(Codec):
    """`opaque[n]`: n bytes (n a multiple of four here), nothing before or after."""

    def __init__(self, size: int) -> None:
        assert size % 4 == 0
        self.fixed = f"{size}s"
        self.size = size

    def read(self, buf: bytes, pos: int, end: int) -> tuple[bytes, int]:
        behind = pos + self.size
        if behind > end:
            raise XdrError("fixed bytes are cut short")
        return buf[pos:behind], behind

    def write(self, value: bytes, out: list[bytes]) -> None:
        out.append(value)


class Opaque(Codec):
    """`opaque<max>`: a length, the bytes, padding to four."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, buf: bytes, pos: int, end: int) -> tuple[bytes, int]:
        start = pos + 4
        if start > end:
            raise XdrError("length is cut short")
        (size,) = _U32.unpack_from(buf, pos)
        behind = start + size + (-size & 3)
        if size > self.limit or behind > end:
            raise XdrError(f"length {size} is beyond the limit or the packet")
        return buf[start : start + size], behind

    def write(self, value: bytes, out: list[bytes]) -> None:
        size = len(value)
        if size > self.limit:
            raise XdrError(f"{size} bytes do not fit a field of at most {self.limit}")
        out += (_U32.pack(size), value, _PAD[size & 3])


class Text(Opaque):
    """A string. libvirt's are C strings of no declared encoding: bytes that are not UTF-8 come through as
    surrogates and go back unchanged, so they match no name and break nothing. NUL ends it, as in C."""

    def __init__(self, limit: int = STRING_MAX) -> None:
        super().__init__(limit)

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        raw, behind = super().read(buf, pos, end)
        nul = raw.find(0)
        if nul >= 0:
            raw = raw[:nul]
        return raw.decode("utf-8", "surrogateescape"), behind

    def write(self, value: Any, out: list[bytes]) -> None:
        super().write(value.encode("utf-8", "surrogateescape"), out)


class Optional(Codec):
    """A pointer: 0, or 1 and the value. Read as libvirtd's XDR library does: whatever is not 0 means that a
    value follows. go-libvirt, which terraform's provider stands on, opens with 0x01000000.
    """

    def __init__(self, inner: Codec) -> None:
        self.inner = inner

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        if pos + 4 > end:
            raise XdrError("pointer is cut short")
        (there,) = _U32.unpack_from(buf, pos)
        if there == 0:
            return None, pos + 4
        return self.inner.read(buf, pos + 4, end)

    def write(self, value: Any, out: list[bytes]) -> None:
        if value is None:
            out.append(b"\0\0\0\0")
        else:
            out.append(b"\0\0\0\1")
            self.inner.write(value, out)


class Array(Codec):
    """`type<max>`: a count and that many values. Every member is at least four bytes, so a count that
    promises more than the packet holds is refused before the first member is read."""

    def __init__(self, inner: Codec, limit: int = LIST_MAX) -> None:
        self.inner = inner
        self.limit = limit

    def read(self, buf: bytes, pos: int, end: int) -> tuple[list[Any], int]:
        if pos + 4 > end:
            raise XdrError("count is cut short")
        (count,) = _U32.unpack_from(buf, pos)
        pos += 4
        if count > self.limit or count * 4 > end - pos:
            raise XdrError(f"count {count} is beyond the limit or the packet")
        values = []
        for _ in range(count):
            value, pos = self.inner.read(buf, pos, end)
            values.append(value)
        return values, pos

    def write(self, value: Sequence[Any], out: list[bytes]) -> None:
        if len(value) > self.limit:
            raise XdrError(f"a list of {len(value)} does not fit a field of at most {self.limit}")
        out.append(_U32.pack(len(value)))
        self.inner.write_many(value, out)


class WideChars(Codec):
    """`char[n]` (fixed) or `char<max>` (counted): one byte to four on the wire. Writes text, NUL-padded
    or with its NUL; reads are not needed by any call that is served."""

    def __init__(self, size: int, *, counted: bool) -> None:
        self._size = size
        self._counted = counted

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        raise XdrError("no call sends characters to the server")

    def write(self, value: str, out: list[bytes]) -> None:
        raw = value.encode()[: self._size - 1] + b"\0"
        if self._counted:
            out.append(_U32.pack(len(raw)))
        else:
            raw = raw.ljust(self._size, b"\0")
        out.append(b"".join(b"\0\0\0" + raw[i : i + 1] for i in range(len(raw))))


class Chars(Codec):
    """`char<max>` that holds bytes and not text (what SASL sends): four bytes on the wire for each."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, buf: bytes, pos: int, end: int) -> tuple[bytes, int]:
        start = pos + 4
        if start > end:
            raise XdrError("length is cut short")
        (count,) = _U32.unpack_from(buf, pos)
        behind = start + count * 4
        if count > self.limit or behind > end:
            raise XdrError(f"length {count} is beyond the limit or the packet")
        return buf[start + 3 : behind : 4], behind

    def write(self, value: bytes, out: list[bytes]) -> None:
        if len(value) > self.limit:
            raise XdrError(f"{len(value)} characters do not fit a field of at most {self.limit}")
        wide = bytearray(4 * len(value))
        wide[3::4] = value
        out += (_U32.pack(len(value)), bytes(wide))


class Record(Codec):
    """A struct: its members in order, as a tuple."""

    def __init__(self, *members: Codec) -> None:
        self.members = members
        self._writes = [member.write for member in members]
        formats = [member.fixed for member in members]
        if all(formats):
            self.fixed = "".join(f for f in formats if f)
            self._struct = Struct(">" + self.fixed)

    def read(self, buf: bytes, pos: int, end: int) -> tuple[tuple[Any, ...], int]:
        if self.fixed is not None:
            behind = pos + self._struct.size
            if behind > end:
                raise XdrError("struct is cut short")
            return self._struct.unpack_from(buf, pos), behind
        values = []
        for member in self.members:
            value, pos = member.read(buf, pos, end)
            values.append(value)
        return tuple(values), pos

    def write(self, value: Sequence[Any], out: list[bytes]) -> None:
        if self.fixed is not None:
            out.append(self._struct.pack(*value))
            return
        for write, v in zip(self._writes, value, strict=True):
            write(v, out)


class Remembered(Record):
    """A struct whose values come again and again, such as the references in a listing: how each is written is
    kept, for as many as one list can hold. Its values are tuples of hashable members. (What is kept is no
    state: the bytes follow from the value alone, and nothing but time tells whether they were there.)"""

    def __init__(self, *members: Codec) -> None:
        super().__init__(*members)
        self._bytes = lru_cache(maxsize=LIST_MAX)(self._encoded)

    def _encoded(self, value: tuple[Any, ...]) -> bytes:
        out: list[bytes] = []
        super().write(value, out)
        return b"".join(out)

    def write(self, value: Any, out: list[bytes]) -> None:
        out.append(self._bytes(value))

    def write_many(self, values: Iterable[Any], out: list[bytes]) -> None:
        out.extend(map(self._bytes, values))


class Ready(Codec):
    """A value, or bytes that it was written to before by `written`."""

    def __init__(self, inner: Codec) -> None:
        self._inner = inner

    def written(self, value: Any) -> bytes:
        out: list[bytes] = []
        self._inner.write(value, out)
        return b"".join(out)

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        return self._inner.read(buf, pos, end)

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is bytes:
            out.append(value)
        else:
            self._inner.write(value, out)

    def write_many(self, values: Iterable[Any], out: list[bytes]) -> None:
        write = self._inner.write
        for value in values:
            if type(value) is bytes:
                out.append(value)
            else:
                write(value, out)


INT = Scalar("i")
UINT = Scalar("I")
HYPER = Scalar("q")
UHYPER = Scalar("Q")
DOUBLE = Scalar("d")
TEXT = Text()
OPTIONAL_TEXT = Optional(TEXT)
UUID = Fixed(16)


class DomainRef(Codec):
    """A domain as a call names it, read only: `(uuid, raw name)`. The id is left unread: it is the client's
    memory of a moment gone by. The name serves error messages; domains are found by UUID."""

    def read(self, buf: bytes, pos: int, end: int) -> tuple[tuple[bytes, bytes], int]:
        if pos + 4 > end:
            raise XdrError("domain is cut short")
        (size,) = _U32.unpack_from(buf, pos)
        start = pos + 4
        uuid = start + size + (-size & 3)
        behind = uuid + 20
        if size > STRING_MAX or behind > end:
            raise XdrError("domain is cut short, or its name beyond the limit")
        return (buf[uuid : uuid + 16], buf[start : start + size]), behind

    def write(self, value: Any, out: list[bytes]) -> None:
        raise NotImplementedError("replies carry a domain as a record of name, UUID and id")


class Tag(IntEnum):
    """The kinds of a typed parameter's value (libvirt: virTypedParameterType)."""

    INT = 1
    UINT = 2
    LLONG = 3
    ULLONG = 4
    DOUBLE = 5
    BOOLEAN = 6
    STRING = 7


_ARMS: dict[int, Codec] = {
    Tag.INT: INT,
    Tag.UINT: UINT,
    Tag.LLONG: HYPER,
    Tag.ULLONG: UHYPER,
    Tag.DOUBLE: DOUBLE,
    Tag.BOOLEAN: INT,
    Tag.STRING: TEXT,
}


class TypedParam(Codec):
    """`(name, tag, value)`."""

    def read(self, buf: bytes, pos: int, end: int) -> tuple[Any, int]:
        name, pos = TEXT.read(buf, pos, end)
        tag, pos = INT.read(buf, pos, end)
        arm = _ARMS.get(tag)
        if arm is None:
            raise XdrError(f"typed parameter tag {tag} is not one of 1..7")
        value, pos = arm.read(buf, pos, end)
        return (name, tag, value), pos

    def write(self, value: tuple[str, int, Any], out: list[bytes]) -> None:
        self.write_many((value,), out)

    def write_many(self, values: Iterable[tuple[str, int, Any]], out: list[bytes]) -> None:
        for name, tag, inner in values:
            head, pack = _param_head(name, tag)
            if pack is not None:
                out.append(pack(head, inner))
            else:
                out.append(head)
                TEXT.write(inner, out)


@lru_cache(maxsize=4096)
def _param_head(name: str, tag: int) -> tuple[bytes, Callable[[bytes, Any], bytes] | None]:
    """What stands before a value, and how to write both at once where the value is a number. A table that
    fills itself: it follows from its arguments alone, so it is no more state than a constant is."""
    out: list[bytes] = []
    TEXT.write(name, out)
    INT.write(tag, out)
    head, arm = b"".join(out), _ARMS[tag]
    return head, (Struct(f">{len(head)}s{arm.fixed}").pack if arm.fixed is not None else None)


TYPED_PARAM = TypedParam()
