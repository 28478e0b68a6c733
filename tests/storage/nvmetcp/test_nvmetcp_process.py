"""The target as a process: reload, restart, second instance, wrong configuration."""

from __future__ import annotations

import json
import random
import signal
import socket
import stat
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from initiator import AER, Closed, Host
from target_process import HOST, NQN, TargetProcess, file_backend, free_port, namespace, until

from nicagent.errors import Kind, NicagentError
from nicagent.storage.nvmetcp import config, control

MIB = 1 << 20


@pytest.fixture
def second_disk(tmp_path: Path) -> Path:
    path = tmp_path / "second.raw"
    path.write_bytes(random.Random(2).randbytes(MIB))
    return path


def _listening(host: Host) -> int:
    assert host.feature(0x0B, 1 << 8).status == 0
    return host.admin.submit(AER)


# Reload ----------------------------------------------------------------------------------------------------


def test_a_disk_is_attached_and_detached_under_a_running_host(
    target: TargetProcess, disk: Path, second_disk: Path
) -> None:
    with Host(target.port, NQN, HOST) as host:
        waiting = _listening(host)
        target.namespaces.append(namespace(5, file_backend(second_disk)))
        assert target.reload()["changes"] == {"added": [f"{NQN}/5"], "removed": [], "changed": []}
        assert host.admin.complete(waiting).result == 0x040002, "namespace attribute changed: read log page 4"
        assert host.log(4, 4096).data == struct.pack("<I", 5).ljust(4096, b"\0")
        assert host.log(4, 4096).data == bytes(4096), "reading clears it"
        assert host.identify(2, 0).data[:12] == struct.pack("<III", 1, 5, 0)
        assert host.read(0, 4096, nsid=5).data == second_disk.read_bytes()[:4096]
        waiting = host.admin.submit(AER)
        target.namespaces.pop()
        assert target.reload()["changes"]["removed"] == [f"{NQN}/5"]
        assert host.admin.complete(waiting).result == 0x040002
        assert host.read(0, 4096, nsid=5).status & 0xFFF == 0x0B
        assert host.read(0, 4096).data == disk.read_bytes()[:4096], "the other disk never noticed"
        assert len(target.status()["controllers"]) == 1


def test_a_grown_disk_is_announced(target: TargetProcess, disk: Path) -> None:
    with Host(target.port, NQN, HOST) as host:
        waiting = _listening(host)
        with disk.open("r+b") as file:
            file.truncate(16 * MIB)
        assert target.reload()["changes"]["changed"] == [f"{NQN}/1"]
        assert host.admin.complete(waiting).result == 0x040002
        assert struct.unpack_from("<Q", host.identify(0, 1).data)[0] == 16 * MIB // 512
        assert host.write(15 * MIB, b"g" * 4096).status == 0


def test_sighup_reloads_and_a_bad_file_changes_nothing(target: TargetProcess, second_disk: Path) -> None:
    assert target.process is not None
    with Host(target.port, NQN, HOST) as host:
        target.namespaces.append(namespace(2, file_backend(second_disk)))
        target.write()
        target.process.send_signal(signal.SIGHUP)
        until("the second disk", lambda: host.read(0, 512, nsid=2).status == 0)
        target.namespaces.append(namespace(3, file_backend(second_disk.with_name("missing"))))
        answer = target.reload()
        assert not answer["ok"] and "missing" in answer["error"] and "No such file" in answer["error"]
        target.file.write_text("{")
        assert "target.json" in target.ask("reload")["error"]
        assert host.read(0, 512).status == host.read(0, 512, nsid=2).status == 0, "everything stays as it was"
        assert len(target.status()["subsystems"][0]["namespaces"]) == 2


def test_a_host_that_is_no_longer_allowed_is_cut_off(target: TargetProcess) -> None:
    target.hosts = [HOST, HOST + "0"]
    target.reload()
    with Host(target.port, NQN, HOST) as stays, Host(target.port, NQN, HOST + "0") as goes:
        target.hosts = [HOST]
        target.reload()
        with pytest.raises(Closed):
            goes.io[0].receive()
        with pytest.raises(Closed):
            goes.admin.receive()
        assert stays.read(0, 512).status == 0


# Death and return ------------------------------------------------------------------------------------------


def test_sigkill_loses_nothing_that_was_flushed_and_no_identity(target: TargetProcess, disk: Path) -> None:
    choice = random.Random(3)
    model = bytearray(disk.read_bytes())
    seen: list[tuple[bytes, ...]] = []
    for _ in range(3):
        with Host(target.port, NQN, HOST) as host:
            controller = bytearray(host.identify(1).data)
            controller[78:80] = bytes(2)  # CNTLID: a dynamic controller's own
            seen.append((bytes(controller), host.identify(0, 1).data, host.identify(3, 1).data))
            for _ in range(20):
                offset = choice.randrange(len(model) // 4096) * 4096
                data = choice.randbytes(4096)
                assert host.write(offset, data).status == 0
                model[offset : offset + 4096] = data
            assert host.flush().status == 0
            host.io[0].submit(1, nsid=1, cdw=(0, 0, 0), data=bytes(model[:512]))  # dies in flight
            target.kill()
        target.start()
    assert len(set(seen)) == 1, "identity must be bit-equal after every restart"
    assert disk.read_bytes() == model


def test_a_second_instance_says_what_is_wrong(target: TargetProcess) -> None:
    same = target.spawn()
    assert same.wait(20) == 3
    other = json.loads(target.file.read_text()) | {"control": str(target.home / "other.sock")}
    target.file.with_name("other.json").write_text(json.dumps(other))
    done = _run(target.home / "other.json")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1 and f"127.0.0.1:{target.port}: the address is taken" in done.stderr
    other["listen"] = [{"host": "127.0.0.1", "port": free_port()}]
    other["control"] = str(target.control)
    target.file.with_name("other.json").write_text(json.dumps(other))
    done = _run(target.home / "other.json")
    assert done.returncode == 3 and "already running" in done.stderr
    with Host(target.port, NQN, HOST) as host:
        assert host.read(0, 512).status == 0, "the first one is untouched"
    assert target.ask("ping")["ok"]


def _run(file: Path) -> subprocess.CompletedProcess[str]:
    import sys

    argv = [sys.executable, "-m", "nicagent.storage.nvmetcp", "--config", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_a_wrong_configuration_is_told_in_one_sentence(tmp_path: Path, disk: Path) -> None:
    running = TargetProcess(tmp_path, [namespace(1, file_backend(disk))])
    running.write()
    good = json.loads(running.file.read_text())

    def told(change: Any) -> str:
        wrong = json.loads(json.dumps(good))
        change(wrong)
        running.file.write_text(json.dumps(wrong))
        done = _run(running.file)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, f"not one sentence: {done.stderr}"
        return done.stderr

    space = lambda wrong: wrong["subsystems"][0]["namespaces"][0]  # noqa: E731
    assert "nsid" in told(lambda wrong: space(wrong).update(nsid=0))
    assert "/nowhere" in told(lambda wrong: space(wrong).update(backend={"type": "file", "path": "/nowhere"}))
    assert "multiple" in told(lambda _: disk.write_bytes(b"x" * 100))


# The control socket ----------------------------------------------------------------------------------------


async def test_the_control_socket(target: TargetProcess) -> None:
    assert stat.S_IMODE(target.control.stat().st_mode) == 0o600
    assert target.process is not None
    assert target.ask("ping") == {"ok": True, "pid": target.process.pid}
    with Host(target.port, NQN, HOST, queues=2) as host:
        host.read(0, 4096)
        status = await control.ask_status(target.control)
        assert status.connections == 3 and status.listen == [f"127.0.0.1:{target.port}"]
        (controller,) = status.controllers
        assert (controller.hostnqn, controller.subnqn, controller.queues) == (HOST, NQN, [0, 1, 2])
        assert status.subsystems[0].namespaces[0].read_bytes == 4096
    for line in (b"", b"[]", b"{", b'{"cmd":"format"}', b'{"cmd":"ping","x":1}', b"\xff" * 9):
        answer = json.loads(_raw(target.control, line + b"\n"))
        assert answer["ok"] is False and answer["error"], line
    assert _raw(target.control, b'{"cmd":"' + b"x" * (2 << 20)) == b"", (
        "a line beyond the limit ends the client"
    )
    assert target.ask("ping")["ok"]
    with pytest.raises(NicagentError) as failure:
        await control.ask(target.home / "nobody.sock", "ping")
    assert failure.value.kind is Kind.UNAVAILABLE
    with pytest.raises(NicagentError):
        await control.ask(target.control, "format")


def _raw(path: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        try:
            client.sendall(line)
            return client.recv(1 << 16)
        except ConnectionError:
            return b""


def test_sigterm_is_a_clean_stop(target: TargetProcess) -> None:
    with Host(target.port, NQN, HOST) as host:
        assert target.stop() == 0
        with pytest.raises(Closed):
            host.admin.receive()
    assert not target.control.exists()


# The configuration file ------------------------------------------------------------------------------------


def _load(tmp_path: Path, content: Any) -> config.TargetConfig:
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return config.load(file)


def _good() -> dict[str, Any]:
    space = {"nsid": 1, "uuid": str(uuid.UUID(int=1)), "backend": {"type": "file", "path": "/disk"}}
    subsystem = {"nqn": NQN, "serial": "S", "hosts": [HOST], "namespaces": [space]}
    return {"listen": [{"host": "::1", "port": 1}], "control": "/run/ctl", "subsystems": [subsystem]}


def _changed(path: list[str | int], value: Any) -> dict[str, Any]:
    root: Any = _good()
    place = root
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dict(root)


SUBSYSTEM: list[str | int] = ["subsystems", 0]
SPACE: list[str | int] = [*SUBSYSTEM, "namespaces", 0]
WRONG = {
    "an unknown key": (["lsten"], []),
    "no listener": (["listen"], []),
    "a port out of range": (["listen", 0, "port"], 65536),
    "a listener twice": (["listen"], [{"host": "::1", "port": 1}] * 2),
    "a control path too long for a socket": (["control"], "/" + "x" * 107),
    "no NQN": ([*SUBSYSTEM, "nqn"], "metal-1"),
    "an NQN too long": ([*SUBSYSTEM, "nqn"], "nqn.2024-01.org:" + "x" * 210),
    "the discovery NQN": ([*SUBSYSTEM, "nqn"], "nqn.2014-08.org.nvmexpress.discovery"),
    "a host that is no NQN": ([*SUBSYSTEM, "hosts"], ["*"]),
    "a serial too long": ([*SUBSYSTEM, "serial"], "x" * 21),
    "a model that is not ASCII": ([*SUBSYSTEM, "model"], "modèle"),
    "an NSID twice": ([*SUBSYSTEM, "namespaces"], [_good()["subsystems"][0]["namespaces"][0]] * 2),
    "an NSID over NN": ([*SPACE, "nsid"], 1025),
    "no UUID": ([*SPACE, "uuid"], "disk"),
    "a short NGUID": ([*SPACE, "nguid"], "00"),
    "an EUI-64 that is no hex": ([*SPACE, "eui64"], "x" * 16),
    "an odd block size": ([*SPACE, "block_size"], 1024),
    "an unknown back end": ([*SPACE, "backend"], {"type": "rbd", "path": "x"}),
    "an NBD back end without export": ([*SPACE, "backend"], {"type": "nbd", "path": "x"}),
}


def test_a_good_configuration_loads(tmp_path: Path) -> None:
    loaded = _load(tmp_path, _good())
    assert loaded.subsystems[0].namespaces[0].backend == config.FileBackend("/disk")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_refused(tmp_path: Path, name: str) -> None:
    path, value = WRONG[name]
    with pytest.raises(NicagentError) as failure:
        _load(tmp_path, _changed(path, value))
    assert failure.value.kind is Kind.INVALID and "config.json" in str(failure.value)


@settings(max_examples=50, deadline=None)
@given(raw=st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(json.dumps)))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes | str) -> None:
    content = raw.encode() if isinstance(raw, str) else raw
    with pytest.raises(NicagentError):
        _load(tmp_path_factory.getbasetemp(), content)


def test_what_is_not_said_is_not_written_so_that_an_older_target_goes_on_understanding() -> None:
    """A target outlives the agent that started it, so one of today may serve an agent of tomorrow."""
    subsystem = config.Subsystem(
        NQN, "1", (HOST,), (config.Namespace(1, uuid.UUID(int=1), config.FileBackend("/x")),)
    )
    written = msgspec.to_builtins(config.TargetConfig((config.Listen("127.0.0.1"),), "/c", (subsystem,)))
    (told,) = written["subsystems"]
    assert set(told) == {"nqn", "serial", "hosts", "namespaces"}
    assert set(told["namespaces"][0]) == {"nsid", "uuid", "backend"}
