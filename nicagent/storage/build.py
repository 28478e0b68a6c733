"""From a host's wiring to its storage driver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nicagent import config
from nicagent.errors import Kind, NicagentError
from nicagent.model import Transport
from nicagent.storage.contract import HostStorage
from nicagent.storage.nvme import NvmeTcpStorage
from nicagent.storage.runkeys import RunKeys, Source
from nicagent.storage.virtio import VirtioStorage


def make_storage(
    host: str,
    config: config.Storage,
    *,
    run_dir: Path,
    state_dir: Path,
    address: str | None,
    pools: Sequence[Path],
    keys: Source = lambda: None,
) -> HostStorage:
    """The driver for a host's wired transport.

    `address` is the agent's own on the host's provision link, None where there is no such link; `pools` are
    the directories from which volumes may come; `keys` tells what a host has to prove from a start on.
    Sockets and pidfiles live in `run_dir`, logs in `state_dir`.
    """
    run, logs = run_dir / "hosts" / host, state_dir / "hosts" / host
    match config.transport:
        case Transport.VIRTIO:
            return VirtioStorage(host, slot=Path(config.slot), run=run, logs=logs, pools=pools)
        case Transport.NVME_TCP:
            if address is None:
                raise NicagentError(
                    Kind.INVALID,
                    f"host {host}: nvme-tcp needs the agent's address on a provision link",
                    f"add [hosts.{host}.provision]",
                )
            return NvmeTcpStorage(
                host,
                address=address,
                port=config.port,
                discovery_port=config.discovery_port,
                run=run,
                logs=logs,
                pools=pools,
                keys=RunKeys(logs / "nvmetcp.keys", keys),
            )
