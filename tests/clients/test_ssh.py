"""virsh from a desk, over a real sshd: `nic+ssh`, with nothing but `nc` on the agent's side."""

from __future__ import annotations

from pathlib import Path

from tests.clients.programs import program, run
from tests.clients.sshd import sshd
from tests.hypervisor_shim.serving import Served


def test_a_server_is_started_and_stopped_over_ssh(agent: Served, home: Path) -> None:
    with sshd(home) as login:
        uri = f"nic+ssh://{login.user}@127.0.0.1/system?socket={agent.path}&command={login.ssh}"
        said = run([program("virsh"), "-c", uri, "start metal-1; list; destroy metal-1; list --all"], home)
    assert "Domain 'metal-1' started" in said and "1    metal-1   running" in said, said
    assert "-    metal-1   shut off" in said, said
