"""Secrets are kept, are seen by nobody who does not ask for them, and are gone when they are undefined."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from nicagent.errors import Kind, NicagentError, Thing
from nicagent.keyring import Keyring, Secret
from nicagent.store import Store

KEY = b"DHHC-1:00:a-very-secret-key\0\xff:"
CHAP = Secret("11111111-2222-3333-4444-555555555555", "iscsi", "iqn.2026-01.example:x")


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "state" / "db"


async def opened(path: Path) -> tuple[Store, Keyring]:
    store = await Store.open(path)
    keyring = Keyring(store)
    await keyring.load()
    return store, keyring


async def test_a_value_survives_the_agent_and_a_new_definition(path: Path) -> None:
    store, keyring = await opened(path)
    await keyring.define(CHAP)
    await keyring.set_value(CHAP.uuid, KEY)
    await keyring.define(replace(CHAP, description="of the array"))
    await store.close()
    store, keyring = await opened(path)
    assert keyring.value(CHAP.uuid) == KEY
    assert [each.description for each in keyring.secrets()] == ["of the array"]
    await store.close()


async def test_an_ephemeral_one_never_reaches_the_disk(path: Path) -> None:
    store, keyring = await opened(path)
    await keyring.define(CHAP)
    await keyring.define(replace(CHAP, ephemeral=True))
    await keyring.set_value(CHAP.uuid, KEY)
    assert keyring.value(CHAP.uuid) == KEY
    await store.close()
    store, keyring = await opened(path)
    assert list(keyring.secrets()) == []
    await store.close()


async def test_what_is_undefined_is_not_left_in_the_file(path: Path) -> None:
    store, keyring = await opened(path)
    await keyring.define(CHAP)
    await keyring.set_value(CHAP.uuid, b"x" * 300)
    encoded = b"eHh4" * 50
    await keyring.undefine(CHAP.uuid)
    await store.close()
    assert not any(encoded in each.read_bytes() for each in path.parent.iterdir())


async def test_only_the_agents_user_may_read_the_file(path: Path) -> None:
    path.parent.mkdir(0o755)
    path.touch(0o644)
    store, keyring = await opened(path)
    await keyring.define(CHAP)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, (
        f"also of a file that was there before, and of its journals: {modes}"
    )
    await store.close()


async def test_a_value_is_shown_by_no_accident(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, keyring = await opened(path)
    await keyring.define(CHAP)
    await keyring.set_value(CHAP.uuid, b"visible")
    secret = keyring.secret(CHAP.uuid)
    assert "dmlzaWJsZQ" not in repr(secret) and "visible" not in repr(secret) + caplog.text
    await store.close()


async def test_what_cannot_be_is_told_without_the_value(path: Path) -> None:
    store, keyring = await opened(path)
    with pytest.raises(NicagentError) as caught:
        await keyring.set_value(CHAP.uuid, KEY)
    assert (caught.value.kind, caught.value.of) == (Kind.NOT_FOUND, Thing.SECRET)
    assert "DHHC" not in str(caught.value)
    await keyring.define(CHAP)
    with pytest.raises(NicagentError, match="does not have a value"):
        keyring.value(CHAP.uuid)
    with pytest.raises(NicagentError) as caught:
        await keyring.define(replace(CHAP, uuid="99999999-2222-3333-4444-555555555555"))
    assert caught.value.kind is Kind.EXISTS
    with pytest.raises(NicagentError) as caught:
        await keyring.define(replace(CHAP, description="x" * 5000))
    assert caught.value.kind is Kind.INVALID
    await store.close()
