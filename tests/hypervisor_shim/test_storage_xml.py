"""Pool and volume documents: what is read is what was written; only a LibvirtError comes of the rest."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from hypervisor_shim.errors import LibvirtError
from hypervisor_shim.xml.storage_pool import Permissions, PoolDef, format_pool, parse_pool, sanitised
from hypervisor_shim.xml.storage_volume import (
    FILE_FORMATS,
    Backing,
    Timestamps,
    VolumeDef,
    format_volume,
    parse_volume,
)

LETTERS = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Cs", "Z"), exclude_characters="/\ufffe\uffff"
)
WORDS = st.text(LETTERS, min_size=1)
PATHS = st.lists(WORDS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
IDS = st.none() | st.integers(0, 1 << 31)
RIGHTS = st.builds(Permissions, st.none() | st.integers(0, 0o7777), IDS, IDS)
SIZES = st.integers(0, (1 << 63) - 1)
FORMATS = st.sampled_from(FILE_FORMATS)
POOLS = st.builds(
    PoolDef,
    name=WORDS,
    uuid=st.binary(min_size=16, max_size=16),
    type=st.just("dir"),
    path=PATHS,
    permissions=RIGHTS,
)
VOLUMES = st.builds(
    VolumeDef,
    name=WORDS,
    capacity=SIZES,
    allocation=SIZES,
    format=FORMATS,
    type=st.sampled_from(("file", "block", "dir")),
    backing=st.none() | st.builds(Backing, PATHS, FORMATS, RIGHTS),
    permissions=RIGHTS,
    compat=st.none() | st.just("1.1"),
    cluster_size=st.none() | SIZES,
    features=st.sampled_from(((), ("lazy_refcounts",))),
)


@given(POOLS, SIZES, SIZES, SIZES)
def test_a_pool_comes_back_as_it_went(pool: PoolDef, capacity: int, allocation: int, available: int) -> None:
    text = format_pool(pool, capacity, allocation, available)
    assert parse_pool(text) == pool
    assert format_pool(parse_pool(text), capacity, allocation, available) == text


@given(VOLUMES, PATHS)
def test_a_volume_comes_back_as_it_went(volume: VolumeDef, path: str) -> None:
    assert volume.allocation is not None
    times = Timestamps("1.0", "2.0", "3.0")
    text = format_volume(volume, path, allocation=volume.allocation, timestamps=times)
    assert ("<mtime>2.0</mtime>" in text, "btime" in text) == (True, False), "what is not known is absent"
    assert parse_volume(text) == volume


HEADS = st.sampled_from(("", "<pool type='dir'>", "<volume>", "<volume><name>x</name><capacity>"))


@given(st.builds(str.__add__, HEADS, st.text()))
def test_anything_else_is_refused_in_libvirts_words(text: str) -> None:
    for parse in (parse_pool, parse_volume):
        with contextlib.suppress(LibvirtError):
            parse(text)


@given(st.text(min_size=1))
def test_paths_are_made_plain_once(path: str) -> None:
    once = sanitised(path)
    assert sanitised(once or "/") == (once or "/")
