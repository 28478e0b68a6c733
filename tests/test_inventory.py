"""What is known of hosts: the config over what they told, and what a hostile host may tell."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent.errors import Kind, NicagentError
from nicagent.inventories import Inventories
from nicagent.inventory import (
    REPORT_MAX,
    Cpu,
    Inventory,
    NicDevice,
    PciDevice,
    System,
    merged,
    parse_report,
)
from nicagent.store import Store


def pci(address: str, **more: object) -> PciDevice:
    return msgspec.convert(
        {"address": address, "vendor_id": "0x8086", "product_id": "0x0001", **more}, PciDevice
    )


TOLD = Inventory(
    system=System(manufacturer="QEMU", product="Standard PC"),
    pci=(pci("0000:00:01.0"), pci("0000:00:02.0", sriov_total=8)),
    nics=(NicDevice(mac="52:54:00:00:00:01", name="eth0"),),
)


def encoded(value: object) -> bytes:
    return msgspec.json.encode(value)


def test_the_config_wins_field_by_field() -> None:
    declared = Inventory(
        system=System(product="R650"),
        pci=(pci("0000:00:02.0", product="E810-C"), pci("0000:ff:00.0")),
        nics=(NicDevice(mac="52:54:00:00:00:01", speed_mbit=25_000),),
    )
    known = merged(declared, TOLD)
    assert known.system == System(manufacturer="QEMU", product="R650")
    assert known.pci == (
        pci("0000:00:01.0"),
        pci("0000:00:02.0", product="E810-C", sriov_total=8),
        pci("0000:ff:00.0"),
    )
    assert known.nics == (NicDevice(mac="52:54:00:00:00:01", name="eth0", speed_mbit=25_000),)


def test_together_they_may_not_turn_a_tree_into_a_circle() -> None:
    declared = Inventory(pci=(pci("0000:00:01.0", parent="0000:00:02.0"),))
    told = Inventory(pci=(pci("0000:00:02.0", parent="0000:00:01.0"),))
    assert merged(declared, told) == declared


@pytest.mark.parametrize(
    "body",
    {
        "no JSON": b"{",
        "no object": b"[]",
        "not UTF-8": b'{"system":{"product":"\xff"}}',
        "too large": b'{"pci":[' + b" " * REPORT_MAX + b"]}",
        "deep": b"[" * 100_000,
        "an unknown key": encoded({"password": "x"}),
        "a control character": encoded({"system": {"product": "\x1b[2J"}}),
        "a long text": encoded({"system": {"product": "x" * 129}}),
        "a bad address": encoded({"pci": [{"address": "../..", "vendor_id": "0x1", "product_id": "0x1"}]}),
        "too many": encoded({"nics": [{"mac": f"52:54:00:00:00:{n:02x}"} for n in range(65)]}),
        "a name with a slash": encoded({"disks": [{"name": "../sda"}]}),
        "a huge number": b'{"cpu":{"mhz":1e400}}',
        "one twice": encoded(Inventory(pci=(pci("0000:00:01.0"), pci("0000:00:01.0")))),
        "behind itself": encoded(Inventory(pci=(pci("0000:00:01.0", parent="0000:00:01.0"),))),
        "a circle": encoded(
            Inventory(
                pci=(
                    pci("0000:00:01.0", parent="0000:00:02.0"),
                    pci("0000:00:02.0", parent="0000:00:03.0"),
                    pci("0000:00:03.0", parent="0000:00:02.0"),
                )
            )
        ),
    }.items(),
    ids=lambda each: each[0],
)
def test_a_report_that_is_none_is_refused(body: tuple[str, bytes]) -> None:
    with pytest.raises(NicagentError) as caught:
        parse_report(body[1])
    assert caught.value.kind is Kind.INVALID
    assert len(caught.value.message) < 300, "the log is not the host's to fill"


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(encoded))
def test_no_bytes_do_anything_but_be_refused(body: bytes) -> None:
    try:
        parse_report(body)
    except NicagentError as refused:
        assert refused.kind is Kind.INVALID


async def test_what_was_told_is_kept_and_watchers_hear_of_changes_only(tmp_path: Path) -> None:
    declared = {"metal-1": Inventory(cpu=Cpu(vendor="Intel"))}
    heard: list[str] = []
    store = await Store.open(tmp_path / "db")
    inventories = Inventories(declared, store)
    await inventories.load()
    inventories.watch(heard.append)
    await inventories.report("metal-1", encoded(TOLD))
    await inventories.report("metal-1", encoded(TOLD))
    with pytest.raises(NicagentError):
        await inventories.report("metal-1", b"{")
    assert heard == ["metal-1"]
    await store.close()

    store = await Store.open(tmp_path / "db")
    again = Inventories(declared, store)
    await again.load()
    assert again.of("metal-1") == merged(declared["metal-1"], TOLD)
    await store.close()


async def test_a_kept_report_that_this_version_cannot_read_stops_nobody(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "db")
    await Inventories({"metal-1": Inventory()}, store).report("metal-1", encoded(TOLD))
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as db, db:
        db.execute("UPDATE object SET body = replace(body, 'sriov_total', 'from_tomorrow')")
    store = await Store.open(tmp_path / "db")
    inventories = Inventories({"metal-1": Inventory()}, store)
    await inventories.load()
    assert inventories.of("metal-1") == Inventory()
    await store.close()
