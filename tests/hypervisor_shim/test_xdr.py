"""XDR as RFC 4506 has it, and libvirt's turns of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor_shim import xdr

ints = st.integers(-(2**31), 2**31 - 1)
uints = st.integers(0, 2**32 - 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)
params = st.one_of(
    st.tuples(texts, st.just(xdr.Tag.INT), ints),
    st.tuples(texts, st.just(xdr.Tag.UINT), uints),
    st.tuples(texts, st.just(xdr.Tag.LLONG), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(texts, st.just(xdr.Tag.ULLONG), st.integers(0, 2**64 - 1)),
    st.tuples(texts, st.just(xdr.Tag.DOUBLE), st.floats(allow_nan=False)),
    st.tuples(texts, st.just(xdr.Tag.BOOLEAN), st.integers(0, 1)),
    st.tuples(texts, st.just(xdr.Tag.STRING), texts),
)
SHAPES: list[tuple[xdr.Codec, st.SearchStrategy[Any]]] = [
    (xdr.INT, ints),
    (xdr.UHYPER, st.integers(0, 2**64 - 1)),
    (xdr.TEXT, texts),
    (xdr.OPTIONAL_TEXT, st.none() | texts),
    (xdr.Opaque(64), st.binary(max_size=64)),
    (xdr.Array(xdr.TEXT), st.lists(texts, max_size=20)),
    (xdr.Array(xdr.TYPED_PARAM), st.lists(params, max_size=10)),
    (xdr.Record(xdr.TEXT, xdr.UUID, xdr.INT), st.tuples(texts, st.binary(min_size=16, max_size=16), ints)),
    (xdr.Record(xdr.INT, xdr.UHYPER), st.tuples(ints, st.integers(0, 2**64 - 1))),
]


def encode(codec: xdr.Codec, value: Any) -> bytes:
    out: list[bytes] = []
    codec.write(value, out)
    return b"".join(out)


@given(st.data())
def test_what_is_written_is_read_back_and_takes_whole_words(data: st.DataObject) -> None:
    codec, values = data.draw(st.sampled_from(SHAPES))
    value = data.draw(values)
    raw = encode(codec, value)
    assert len(raw) % 4 == 0
    assert codec.read(raw + b"more", 0, len(raw)) == (value, len(raw))


@given(st.data())
def test_every_truncation_is_an_error_of_the_codec(data: st.DataObject) -> None:
    codec, values = data.draw(st.sampled_from(SHAPES))
    raw = encode(codec, data.draw(values))
    cut = data.draw(st.integers(0, max(0, len(raw) - 1)))
    with pytest.raises(xdr.XdrError):
        codec.read(raw, 0, cut)


@given(st.data(), st.binary(max_size=300))
def test_arbitrary_bytes_give_a_value_or_an_error_of_the_codec(data: st.DataObject, raw: bytes) -> None:
    codec = data.draw(st.sampled_from([codec for codec, _ in SHAPES] + [xdr.DomainRef()]))
    try:
        _, behind = codec.read(raw, 0, len(raw))
    except xdr.XdrError:
        return
    assert behind <= len(raw)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, xdr.STRING_MAX + 1])
def test_a_length_that_lies_is_refused_before_anything_is_allocated(size: int) -> None:
    for codec in (xdr.TEXT, xdr.Opaque(64), xdr.Array(xdr.INT), xdr.DomainRef()):
        with pytest.raises(xdr.XdrError):
            codec.read(size.to_bytes(4, "big") + bytes(64), 0, 68)


def test_a_count_that_lies_is_refused_before_the_first_member() -> None:
    with pytest.raises(xdr.XdrError, match="count 16384"):
        xdr.Array(xdr.INT).read((16_384).to_bytes(4, "big") + bytes(400), 0, 404)


def test_a_pointer_is_zero_or_followed_by_a_value() -> None:
    assert xdr.OPTIONAL_TEXT.read(b"\0\0\0\0", 0, 4) == (None, 4)
    for there in (b"\0\0\0\1", b"\1\0\0\0"):  # the second is go-libvirt's
        assert xdr.OPTIONAL_TEXT.read(there + bytes(4), 0, 8) == ("", 8)
        with pytest.raises(xdr.XdrError):
            xdr.OPTIONAL_TEXT.read(there, 0, 4)


def test_a_parameter_has_a_tag_of_one_to_seven() -> None:
    for tag in (0, 8, 255):
        with pytest.raises(xdr.XdrError):
            xdr.TYPED_PARAM.read(bytes(4) + tag.to_bytes(4, "big") + bytes(8), 0, 16)


def test_characters_take_four_bytes_each() -> None:
    assert len(encode(xdr.WideChars(32, counted=False), "i686")) == 128
    assert encode(xdr.WideChars(9, counted=True), "ab") == b"\0\0\0\3" + b"\0\0\0a" + b"\0\0\0b" + b"\0\0\0\0"


def test_bytes_that_are_not_utf8_survive_a_round_trip() -> None:
    raw = b"\0\0\0\3\xff\xfe\xfd\0"
    value, _ = xdr.TEXT.read(raw, 0, len(raw))
    assert encode(xdr.TEXT, value) == raw
