"""`nicagent doctor`: each check against the thing really being so, and really being broken."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nicagent import config, doctor, proc
from nicagent.doctor import Check
from nicagent.errors import Kind, NicagentError
from tests.power.ipmi_sim import IpmiSim, free_udp_port

REPO = Path(__file__).parent.parent
NOBODY = 65534
PRINT_ALL = """
for check in doctor.examine(loaded, None, Path('/nowhere')):
    print(check.verdict, check.subject, check.finding, sep='|')
"""


def lab(
    tmp_path: Path, power: str = 'driver = "gpio", pins = "socket:/nowhere"', more: str = ""
) -> config.Config:
    """A host in a place of its own; whatever a test does not mean is in order."""
    slot = tmp_path / "slot"
    slot.mkdir(exist_ok=True)
    return config.parse(
        f"""
        [agent]
        state_dir = "{tmp_path}/state"
        run_dir = "{tmp_path}/run"
        artefacts = "{tmp_path}/boot"
        [hosts.metal-1]
        power = {{{power}}}
        storage = {{transport = "virtio", slot = "{slot}"}}
        {more}
        """
    )


def examine(tmp_path: Path, settings: config.Config) -> list[Check]:
    return doctor.examine(settings, None, tmp_path / "run" / "nicagent.sock")


def of(checks: list[Check], subject: str) -> Check:
    found = [check for check in checks if check.subject == subject]
    assert len(found) == 1, f"{subject} is told {len(found)} times in {checks}"
    check = found[0]
    assert (check.verdict == "ok") == (not check.mend), f"what is not ok says how to mend it: {check}"
    return check


def look(tmp_path: Path, settings: config.Config, subject: str) -> Check:
    return of(examine(tmp_path, settings), subject)


# ---- the machine


def test_a_machine_in_order_has_nothing_broken_but_what_is_not_there_yet(tmp_path: Path) -> None:
    with closing(listener(tmp_path / "lines")):
        checks = examine(tmp_path, lab(tmp_path, f'driver = "gpio", pins = "socket:{tmp_path}/lines"'))
    assert [check for check in checks if check.verdict == "broken"] == []
    assert of(checks, "agent").verdict == "warning", "an agent that was never started is no defect"


def test_a_missing_tool_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicagent.proc.shutil.which", lambda name, path: None)
    check = look(tmp_path, lab(tmp_path), "qemu-storage-daemon")
    assert check.verdict == "broken"
    assert "apt-get install qemu-system-common qemu-utils" in check.mend


def test_only_what_this_config_needs_is_asked_for(tmp_path: Path) -> None:
    subjects = {check.subject for check in examine(tmp_path, lab(tmp_path))}
    assert subjects.isdisjoint({"dnsmasq", "privileges", "network boot", "overlay", "libnftables"})


def test_boot_files_and_tools_are_asked_for_where_there_is_a_provision_link(tmp_path: Path) -> None:
    link = 'provision = {device = "lo", mac = "52:54:00:00:00:01"}'
    checks = examine(tmp_path, lab(tmp_path, more=link))
    assert of(checks, "dnsmasq").verdict == "ok"
    assert of(checks, "libnftables").verdict == "ok"
    missing = [check.finding for check in checks if check.subject == "network boot"]
    assert any("vmlinuz is missing" in each for each in missing)
    assert any("stage1.img is missing" in each for each in missing)
    (tmp_path / "boot").mkdir()
    for name in ("vmlinuz", "stage1.img"):
        (tmp_path / "boot" / name).write_bytes(bytes(2048))
    checks = examine(tmp_path, lab(tmp_path, more=link))
    found = [check for check in checks if check.subject == "network boot" and "boot/" in check.finding]
    assert {check.verdict for check in found} <= {"ok", "warning"}


@pytest.mark.root
def test_an_ordinary_user_is_told_of_privileges_and_places(tmp_path: Path) -> None:
    """The same command as another user, on a config that needs more than that user may."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    (tmp_path / "nicagent.toml").write_text(
        f"""
        [agent]
        state_dir = "{tmp_path}/state"
        [hosts.metal-1]
        power.driver = "ipmi"
        power.address = "127.0.0.1"
        power.port = {free_udp_port()}
        power.password_file = "{tmp_path}/pw"
        storage = {{transport = "virtio", slot = "{tmp_path}"}}
        provision = {{device = "lo", mac = "52:54:00:00:00:01"}}
        """
    )
    (tmp_path / "pw").write_text("secret\n")
    (tmp_path / "pw").chmod(0o600)
    script = (
        "import os; from pathlib import Path; from nicagent import config, doctor\n"
        f"loaded = config.load(Path('{tmp_path}/nicagent.toml'))\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n" + PRINT_ALL
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "broken|privileges|this user lacks CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW" in done.stdout
    assert f"broken|state|{tmp_path} may not be written by this user" in done.stdout
    assert f"broken|metal-1 BMC password|cannot read {tmp_path}/pw: Permission denied" in done.stdout


def test_places_that_cannot_be(tmp_path: Path) -> None:
    settings = lab(tmp_path, more='[pools.fast]\npath = "/nowhere/at/all"')
    (tmp_path / "state").write_text("a file")
    checks = examine(tmp_path, settings)
    assert "is not a directory" in of(checks, "state").finding
    assert of(checks, "pool fast").verdict == "broken"
    assert "pools.fast.path" in of(checks, "pool fast").mend
    assert "will be made" in of(checks, "sockets").finding


@pytest.mark.root
def test_a_disk_that_is_nearly_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    settings = (
        f"[agent]\nstate_dir = '{tmp_path}'\n"
        f"[hosts.a]\npower.driver = 'gpio'\nstorage = {{transport = 'virtio', slot = '{tmp_path}'}}"
    )
    script = (
        "from pathlib import Path; from nicagent import config, doctor\n"
        f"loaded = config.parse('''{settings}''')\n" + PRINT_ALL
    )
    for options, told in (
        ("size=1m", "only 1 MiB are free"),
        ("size=1m,ro", "is on a read-only file system"),
    ):
        command = f'mount -t tmpfs -o {options} tmpfs {tmp_path} && exec {sys.executable} -c "$0"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", command, script], cwd=REPO, capture_output=True, text=True
        )
        assert told in done.stdout, done.stdout + done.stderr


# ---- what is wired


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(8)
    return sock


def test_the_lines_of_a_chassis_answer_or_do_not(tmp_path: Path) -> None:
    settings = lab(tmp_path, f'driver = "gpio", pins = "socket:{tmp_path}/lines"')
    assert "No such file" in look(tmp_path, settings, "metal-1 power").finding
    with closing(listener(tmp_path / "lines")):
        assert look(tmp_path, settings, "metal-1 power").verdict == "ok"
    assert "Connection refused" in look(tmp_path, settings, "metal-1 power").finding


def test_a_chip_or_factory_that_is_not_there(tmp_path: Path) -> None:
    for pins, told in (
        ("/dev/gpiochip77", "there is no /dev/gpiochip77"),
        ("abacus", "no pin factory 'abacus'"),
    ):
        check = look(tmp_path, lab(tmp_path, f'driver = "gpio", pins = "{pins}"'), "metal-1 power")
        assert check.verdict == "broken"
        assert told in check.finding


def bmc(tmp_path: Path, port: int, address: str = "127.0.0.1") -> config.Config:
    power = f'driver = "ipmi", address = "{address}", port = {port}, password_file = "{tmp_path}/pw"'
    return lab(tmp_path, power)


async def test_a_bmc_that_answers_without_a_login(tmp_path: Path) -> None:
    async with IpmiSim(tmp_path) as sim:
        settings = bmc(tmp_path, sim.port)
        check = await asyncio.to_thread(look, tmp_path, settings, "metal-1 BMC")
        end = time.monotonic() + 5
        while check.verdict != "ok" and time.monotonic() < end:  # it does not say when it is ready
            await asyncio.sleep(0.05)
            check = await asyncio.to_thread(look, tmp_path, settings, "metal-1 BMC")
        assert "answers in" in check.finding, check
        assert not [call for call in sim.calls if " set " in call], "the doctor has worked the chassis"


def test_a_bmc_that_is_silent_dead_or_something_else(tmp_path: Path) -> None:
    assert "refused" in look(tmp_path, bmc(tmp_path, free_udp_port()), "metal-1 BMC").finding
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        began = time.monotonic()
        check = look(tmp_path, bmc(tmp_path, sock.getsockname()[1]), "metal-1 BMC")
        assert "is silent for 2 s" in check.finding
        assert time.monotonic() - began < 4
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        echo = threading.Thread(target=lambda: sock.sendto(b"hello", sock.recvfrom(512)[1]))
        echo.start()
        check = look(tmp_path, bmc(tmp_path, sock.getsockname()[1]), "metal-1 BMC")
        echo.join()
        assert "is no BMC" in check.finding


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (None, 0o600, "No such file"),
        ("", 0o600, "is empty"),
        ("\nsecret-word\n", 0o600, "is empty"),
        ("secret-word\n", 0o644, "can be read by everybody"),
        ("secret-word\n", 0o600, ""),
    ],
)
def test_the_password_file(tmp_path: Path, text: str | None, mode: int, told: str) -> None:
    path = tmp_path / "pw"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    checks = examine(tmp_path, bmc(tmp_path, free_udp_port()))
    check = of(checks, "metal-1 BMC password")
    assert (check.verdict == "ok") == (not told)
    assert told in check.finding
    assert not any("secret-word" in str(each) for each in checks), "a password in the output"


def test_netdevs(tmp_path: Path) -> None:
    nics = 'nics = [{{device = "{}", mac = "52:54:00:00:00:01"}}]'
    assert look(tmp_path, lab(tmp_path, more=nics.format("lo")), "metal-1 NIC").verdict == "ok"
    check = look(tmp_path, lab(tmp_path, more=nics.format("nic77")), "metal-1 NIC")
    assert (check.verdict, check.finding) == ("broken", "there is no netdev nic77")


@pytest.fixture
def down_link() -> Iterator[str]:
    name = f"doc{os.getpid() % 100000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.mark.root
def test_a_link_that_is_down_and_one_without_a_cable(tmp_path: Path, down_link: str) -> None:
    settings = lab(tmp_path, more=f'nics = [{{device = "{down_link}", mac = "52:54:00:00:00:01"}}]')
    check = look(tmp_path, settings, "metal-1 NIC")
    assert (check.verdict, check.finding) == ("warning", f"{down_link} is down")
    subprocess.run(["ip", "link", "set", down_link, "up"], check=True)
    assert look(tmp_path, settings, "metal-1 NIC").finding == f"{down_link} has no carrier"
    subprocess.run(["ip", "link", "set", f"{down_link}p", "up"], check=True)
    assert look(tmp_path, settings, "metal-1 NIC").verdict == "ok"


def test_the_console_line(tmp_path: Path) -> None:
    settings = lab(tmp_path, more=f'console = {{path = "{tmp_path}/serial"}}')
    assert "No such file" in look(tmp_path, settings, "metal-1 console").finding
    (tmp_path / "serial").write_text("")
    assert "neither a tty nor a socket" in look(tmp_path, settings, "metal-1 console").finding
    (tmp_path / "serial").unlink()
    with closing(listener(tmp_path / "serial")):
        assert look(tmp_path, settings, "metal-1 console").verdict == "ok"


def test_a_screen_its_live_picture_and_a_keyboard(tmp_path: Path) -> None:
    screen = f'screen = {{path = "{tmp_path}/capture", rfb = "{tmp_path}/rfb"}}'
    settings = lab(tmp_path, more=f'{screen}\nkeyboard = {{path = "{tmp_path}/keys"}}')
    with closing(listener(tmp_path / "capture")):
        assert look(tmp_path, settings, "metal-1 screen").verdict == "ok"
        live = look(tmp_path, settings, "metal-1 screen, live")
        assert (live.verdict, "No such file" in live.finding) == ("broken", True), live.finding
        assert "No such file" in look(tmp_path, settings, "metal-1 keyboard").finding


# ---- addresses and ports


def test_an_overlay_address_that_is_not_of_this_machine(tmp_path: Path) -> None:
    assert look(tmp_path, lab(tmp_path, more='[overlay]\nlocal = "127.0.0.1"'), "overlay").verdict == "ok"
    check = look(tmp_path, lab(tmp_path, more='[overlay]\nlocal = "192.0.2.77"'), "overlay")
    assert check.finding == "192.0.2.77 is no address of this machine"


def test_a_taken_port(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        settings = lab(tmp_path, more=f'[libvirt]\ntcp = "127.0.0.1:{port}"')
        check = look(tmp_path, settings, "libvirt over TCP")
        assert check.finding == f"TCP port {port} of 127.0.0.1 is taken"
        assert "libvirt.tcp" in check.mend
    assert look(tmp_path, settings, "libvirt over TCP").verdict == "ok"


def test_the_nvme_tcp_port_taken_by_a_stranger_and_by_our_own_target(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        settings = config.parse(
            f"""
            [agent]
            run_dir = "{tmp_path}/run"
            state_dir = "{tmp_path}/state"
            [hosts.metal-1]
            power = {{driver = "gpio"}}
            storage = {{transport = "nvme-tcp", port = {server.getsockname()[1]}}}
            [hosts.metal-1.provision]
            device = "lo"
            mac = "52:54:00:00:00:01"
            agent_address = "127.0.0.1/8"
            host_address = "127.0.0.2"
            """
        )
        assert "is taken" in look(tmp_path, settings, "metal-1 NVMe/TCP").finding
        pidfile = tmp_path / "run" / "hosts" / "metal-1" / "nvmetcp.pid"
        pidfile.parent.mkdir(parents=True)
        pidfile.write_text(f"{os.getpid()} {proc.start_time(os.getpid())}\n")
        assert not [c for c in examine(tmp_path, settings) if c.subject == "metal-1 NVMe/TCP"]


def test_another_server_at_the_libvirt_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with closing(listener(tmp_path / "run" / "libvirt-sock")):
        assert "something else answers" in look(tmp_path, lab(tmp_path), "libvirt").finding


# ---- the agent


def answering(path: Path, body: bytes) -> socket.socket:
    """An agent as far as one answer goes."""
    sock = listener(path)

    def serve() -> None:
        while True:
            try:
                peer, _ = sock.accept()
            except OSError:
                return
            with peer:
                peer.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                peer.sendall(head.encode() + body)

    threading.Thread(target=serve, daemon=True).start()
    return sock


@pytest.mark.parametrize(
    ("status", "verdict", "told"),
    [
        ('"power":"on","state":"running","reason":""', "ok", "power on, running"),
        ('"power":"unknown","state":"free","reason":""', "broken", "its power cannot be read"),
        ('"power":"on","state":"fault","reason":"power-off failed"', "broken", "fault: power-off failed"),
    ],
)
def test_what_the_agent_says_of_a_host(tmp_path: Path, status: str, verdict: str, told: str) -> None:
    (tmp_path / "run").mkdir()
    body = f'[{{"name":"metal-1",{status}}}]'.encode()
    with closing(answering(tmp_path / "run" / "nicagent.sock", body)):
        check = look(tmp_path, lab(tmp_path), "metal-1")
    assert (check.verdict, check.finding) == (verdict, told)


def test_an_agent_with_another_config_and_something_that_is_no_agent(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with closing(answering(tmp_path / "run" / "nicagent.sock", b"[]")):
        assert "does not know it" in look(tmp_path, lab(tmp_path), "metal-1").finding
    (tmp_path / "run" / "nicagent.sock").unlink()
    with closing(answering(tmp_path / "run" / "nicagent.sock", b"<html>")):
        assert "is no agent" in look(tmp_path, lab(tmp_path), "agent").finding


def test_one_host_alone_and_one_that_is_not_there(tmp_path: Path) -> None:
    settings = lab(
        tmp_path, more="[hosts.metal-2]\npower.driver = 'gpio'\nstorage = {transport = 'virtio', slot = '/'}"
    )
    subjects = {check.subject for check in doctor.examine(settings, "metal-1", tmp_path / "nothing")}
    assert "metal-1 power" in subjects
    assert not any("metal-2" in subject for subject in subjects)
    with pytest.raises(NicagentError, match="no host is called 'metal-9'") as caught:
        doctor.examine(settings, "metal-9", tmp_path / "nothing")
    assert caught.value.kind is Kind.NOT_FOUND
