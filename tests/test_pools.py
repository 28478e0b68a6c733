"""The pools of an agent when its config changes between two starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nicagent import config
from nicagent.errors import Kind, NicagentError
from nicagent.model import Cause
from nicagent.pools import PoolRecord, Pools
from nicagent.store import Store

CAUSE = Cause("test", "because")
HOST = """
[hosts.metal]
memory_mib = 1024
power = {driver = "gpio", pins = "socket:/nowhere"}
storage = {transport = "virtio", slot = "/nowhere"}
"""


async def loaded(home: Path, store: Store, *pools: str, boot: str = "boot-1") -> Pools:
    """The pools of an agent whose config has these."""
    text = f'[libvirt]\npool_roots = ["{home}"]\n' + HOST
    for name in pools:
        (home / name).mkdir(exist_ok=True)
        text += f'[pools.{name}]\npath = "{home}/{name}"\n'
    found = Pools(config.parse(text), store)
    await found.load("an-agent", boot)
    return found


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    return await Store.open(tmp_path / "store.db")


async def test_a_pool_that_goes_from_the_config_is_gone(tmp_path: Path, store: Store) -> None:
    first = await loaded(tmp_path, store, "fast", "slow")
    second = await loaded(tmp_path, store, "slow")
    assert [record.name for record in second.records()] == ["slow"]
    assert second.directories == [tmp_path / "slow"] and dict(second.paths) == {"slow": tmp_path / "slow"}
    third = await loaded(tmp_path, store, "fast", "slow")
    assert third.named("slow").uuid == first.named("slow").uuid
    await store.close()


async def test_a_clients_pool_whose_name_the_config_takes_becomes_the_configs(
    tmp_path: Path, store: Store
) -> None:
    pools = await loaded(tmp_path, store)
    mine = PoolRecord("11111111-2222-3333-4444-555555555555", "fast", f"{tmp_path}/elsewhere")
    await pools.define(mine, CAUSE)
    again = await loaded(tmp_path, store, "fast")
    record = again.named("fast")
    assert (record.uuid, record.path, record.configured) == (mine.uuid, f"{tmp_path}/fast", True)
    with pytest.raises(NicagentError) as caught:
        await again.undefine(record.uuid, CAUSE)
    assert caught.value.kind is Kind.WRONG_STATE
    await store.close()


async def test_the_directories_follow_what_clients_do(tmp_path: Path, store: Store) -> None:
    """The block engines hold on to this very sequence."""
    pools = await loaded(tmp_path, store, "fast")
    directories, paths = pools.directories, pools.paths
    mine = PoolRecord("11111111-2222-3333-4444-555555555555", "mine", f"{tmp_path}/mine")
    await pools.define(mine, CAUSE)
    assert set(paths) == {"fast", "mine"} and list(directories) == [tmp_path / "fast"]
    await pools.start(mine.uuid, CAUSE, build=True)
    assert list(directories) == [tmp_path / "fast", tmp_path / "mine"]
    await pools.stop(mine.uuid, CAUSE)
    await pools.undefine(mine.uuid, CAUSE)
    assert set(paths) == {"fast"} and list(directories) == [tmp_path / "fast"]
    await store.close()
