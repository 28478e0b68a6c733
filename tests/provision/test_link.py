"""A provision link with a real host at its other end: DHCP, boot files, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.provision.test_script import CHOICE, LINK

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LINK_HERE = msgspec.structs.replace(LINK, device="prov0")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Lab:
    """Two namespaces with a cable between them: the agent's and the host's."""

    def __init__(self, run: Path) -> None:
        tag = f"{os.getpid() % 100000}"
        self.agent_ns, self.host_ns = f"prov-a{tag}", f"prov-h{tag}"
        self.run, self.artefacts = run / "run", run / "artefacts"
        self.artefacts.mkdir()
        (self.artefacts / "vmlinuz").write_bytes(b"a kernel")
        (self.artefacts / "stage1.img").write_bytes(b"an initramfs")
        self.process: subprocess.Popen[str] | None = None
        for name in (self.agent_ns, self.host_ns):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "-n",
            self.agent_ns,
            *["link", "add", "prov0", "type", "veth", "peer", "name", "nic"],
            "netns",
            self.host_ns,
        )
        ip("-n", self.host_ns, "link", "set", "nic", "address", LINK.mac, "up")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.tell("clear")
        self.kill()
        for name in (self.agent_ns, self.host_ns):
            ip("netns", "del", name)

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.provision.agent", str(self.run), str(self.artefacts)]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.agent_ns, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def tell(self, *words: object) -> str:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(msgspec.to_builtins(words)) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def host(self, *words: str, timeout: float = 20) -> str:
        command = ["ip", "netns", "exec", self.host_ns, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False).stdout

    def ask_from(self, namespace: str, *words: str) -> str:
        command = ["ip", "netns", "exec", namespace, sys.executable, str(HERE / "host.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    def lease(self, *options: str) -> str:
        client = ["/usr/bin/busybox", "udhcpc", "-i", "nic", "-f", "-q", "-n", "-t", "4", "-T", "1"]
        return self.host(*client, "-s", str(HERE / "lease.sh"), *options).strip()

    def ask(self, *words: str) -> str:
        return self.ask_from(self.host_ns, *words)

    def get(self, path: str) -> str:
        return self.ask("get", path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def served(lab: Lab) -> Lab:
    lab.start()
    assert lab.tell("start", [LINK_HERE]) == "ok"
    assert lab.tell("choose", "metal-1", CHOICE) == "ok"
    return lab


KEYED = msgspec.structs.replace(CHOICE, secret="DHHC-1:00:host:", controller_secret="DHHC-1:00:disks:")
IPXE = ("-x", "0xaf:b10102")  # option 175: iPXE's feature list


def test_ipxe_gets_its_address_and_script_and_boot_files(served: Lab) -> None:
    assert served.lease(*IPXE) == "ip=172.31.0.2 router= dns= file=http://172.31.0.1:8080/boot/metal-1.ipxe"
    script = served.get("/boot/metal-1.ipxe")
    assert f"nicagent.nqn={CHOICE.nqn}" in script
    assert served.get("/boot/vmlinuz") == "a kernel"
    assert served.get("/boot/stage1.img") == "an initramfs"
    assert served.get("/boot/metal-2.ipxe") == "status 404", "a host could read another host's script"
    assert served.get("/boot/..%2frun%2fmetal-1%2fchoice.json") == "status 404", (
        "a path led out of the boot files"
    )


def test_what_is_kept_of_a_host_is_the_agents_alone(served: Lab) -> None:
    folder = served.run / "metal-1"
    for path in (folder, folder / "choice.json", folder / "dnsmasq.conf", folder / "dnsmasq.log"):
        assert path.stat().st_mode & 0o077 == 0, f"others may read {path}"


def test_the_script_follows_the_choice_at_once(served: Lab) -> None:
    served.lease(*IPXE)
    assert served.tell("choose", "metal-1", None) == "ok"
    assert "nothing to boot" in served.get("/boot/metal-1.ipxe")
    assert served.tell("choose", "metal-1", CHOICE) == "ok"
    assert "stage1.img" in served.get("/boot/metal-1.ipxe")


def test_another_mac_gets_no_address_and_reaches_nothing(served: Lab) -> None:
    ip("-n", served.host_ns, "link", "set", "nic", "address", "52:54:00:00:00:99")
    assert served.lease(*IPXE) == "", "a stranger on the link was given an address"
    ip("-n", served.host_ns, "address", "add", "172.31.0.2/30", "dev", "nic")
    assert served.get("/boot/vmlinuz") == "silence", "a stranger on the link was served"


def test_the_host_reaches_boot_files_and_disks_only(served: Lab) -> None:
    served.lease(*IPXE)
    for port in ("4420", "8009"):
        assert served.ask("knock", port) == "refused", "the way to a disk's port is shut"
    for port in ("22", "16509", "9999"):
        assert served.ask("knock", port) == "silence", "another port of the agent is open to the host"


@pytest.fixture
def management(served: Lab) -> Iterator[str]:
    """A neighbour on another network of the agent, who routes to the provision link through the agent."""
    name = f"prov-m{os.getpid() % 100000}"
    ip("netns", "add", name)
    try:
        agent = ("-n", served.agent_ns)
        ip(*agent, *["link", "add", "mgmt0", "type", "veth", "peer", "name", "eth0", "netns"], name)
        ip(*agent, *["address", "add", "10.9.0.1/24", "dev", "mgmt0"])
        ip(*agent, *["link", "set", "mgmt0", "up"])
        ip("-n", name, *["address", "add", "10.9.0.2/24", "dev", "eth0"])
        ip("-n", name, *["link", "set", "eth0", "up"])
        ip("-n", name, *["route", "add", "172.31.0.0/30", "via", "10.9.0.1"])
        yield name
    finally:
        ip("netns", "del", name)


def test_nobody_reaches_disks_and_boot_files_from_another_network(served: Lab, management: str) -> None:
    assert served.ask_from(management, "knock", "22", "10.9.0.1") == "refused", (
        "the neighbour is not connected"
    )
    for port in ("4420", "8009", "8080"):
        assert served.ask_from(management, "knock", port) == "silence", (
            f"port {port} of the provision link answers another network of the agent"
        )
    assert served.ask_from(served.agent_ns, "knock", "8080") == "open", (
        "the agent cannot reach its own address"
    )
    served.lease(*IPXE)
    assert served.get("/boot/vmlinuz") == "a kernel", "the host itself is shut out"


def test_dhcp_and_choice_outlive_a_killed_agent(served: Lab) -> None:
    served.kill()
    assert served.lease(*IPXE).startswith("ip=172.31.0.2"), "DHCP died with the agent"
    served.start()
    assert served.tell("start", [LINK_HERE]) == "ok"
    assert f"nicagent.nqn={CHOICE.nqn}" in served.get("/boot/metal-1.ipxe"), "the choice was lost"


def test_a_dhcp_server_whose_starter_died_before_it_was_recorded_is_ended(served: Lab) -> None:
    """dnsmasq shares its port with others of its kind, so two would answer."""

    def servers() -> int:
        command = ["ip", "netns", "exec", served.agent_ns, "ss", "-Hlnu", "sport", "=", ":67"]
        return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    for again, expected in (([LINK_HERE], 1), ([], 0)):
        served.kill()
        (served.run / "metal-1/dnsmasq.pid").unlink()
        served.start()
        assert served.tell("start", again) == "ok"
        assert servers() == expected, "a DHCP server that no pidfile knows goes on"


def test_before_the_first_choice_the_host_is_asked_to_wait(lab: Lab) -> None:
    lab.start()
    assert lab.tell("start", [LINK_HERE]) == "ok"
    lab.lease(*IPXE)
    assert "does not know yet" in lab.get("/boot/metal-1.ipxe")


def test_start_again_and_a_link_taken_away(served: Lab) -> None:
    assert served.tell("start", [LINK_HERE]) == "ok"
    assert served.tell("stop") == "ok"
    assert served.tell("start", []) == "ok"
    assert served.lease(*IPXE) == "", "the DHCP server of a link that is no more still answers"
    rules = subprocess.run(
        ["ip", "netns", "exec", served.agent_ns, "nft", "list", "ruleset"], capture_output=True, text=True
    )
    assert rules.stdout == "", "a guard of a link that is no more stayed"


def test_ipxe_is_told_at_once_that_there_is_no_ipv6_router(served: Lab) -> None:
    assert served.ask("solicit", "nic") == "lifetime 0"


def soon(condition: Callable[[], bool], what: str, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_link_whose_nic_is_missing_keeps_no_other_waiting_and_comes_up_with_it(lab: Lab) -> None:
    lab.start()
    absent = msgspec.structs.replace(
        LINK_HERE, host="metal-2", device="prov9", agent_address="172.31.0.5/30", host_address="172.31.0.6"
    )
    assert lab.tell("start", [absent, LINK_HERE]) == "ok", "a missing NIC stopped the agent"
    assert lab.lease(*IPXE).startswith("ip=172.31.0.2"), "the other host's link is not served"
    refused = lab.tell("choose", "metal-2", msgspec.structs.replace(CHOICE, link=absent))
    assert "metal-2 cannot boot over its provision link: the provision link's device prov9" in refused
    assert "plug the NIC in" in refused
    guards = ["ip", "netns", "exec", lab.agent_ns, "nft", "list", "tables"]
    assert "nicagent_provision_metal_2" in subprocess.run(guards, capture_output=True, text=True).stdout, (
        "a NIC that is plugged in gets its address before its guard"
    )
    assert lab.tell("choose", "metal-2", None) == "ok", "a host without its NIC cannot be cleaned up"
    ip("-n", lab.agent_ns, "link", "add", "prov9", "type", "veth", "peer", "name", "far9")
    try:
        soon(
            lambda: lab.tell("choose", "metal-2", msgspec.structs.replace(CHOICE, link=absent)) == "ok",
            "the link is not tried again",
        )
        assert lab.tell("clear") == "ok"
        left = subprocess.run(
            ["ip", "-n", lab.agent_ns, "-4", "address", "show", "dev", "prov9"],
            capture_output=True,
            text=True,
        )
        assert left.stdout == "", "the address of a link that came up late stayed"
    finally:
        ip("-n", lab.agent_ns, "link", "del", "prov9")


def test_a_link_that_is_down_is_given_up_by_stop(lab: Lab) -> None:
    lab.start()
    assert lab.tell("start", [msgspec.structs.replace(LINK_HERE, device="prov9")]) == "ok"
    assert lab.tell("stop") == "ok"
    assert "has no provision link" in lab.tell("choose", "metal-1", CHOICE)
    assert lab.tell("start", [LINK_HERE]) == "ok"
    assert lab.tell("choose", "metal-1", CHOICE) == "ok"


def test_a_taken_port_of_the_boot_files_is_told_and_waited_for(lab: Lab) -> None:
    lab.start()
    ip("-n", lab.agent_ns, "address", "add", "172.31.0.1/30", "dev", "prov0")
    command = ["/usr/bin/busybox", "httpd", "-f", "-p", "172.31.0.1:8080"]
    holder = subprocess.Popen(["ip", "netns", "exec", lab.agent_ns, *command])
    try:
        soon(lambda: lab.ask_from(lab.agent_ns, "knock", "8080") == "open", "the port is not taken")
        assert lab.tell("start", [LINK_HERE]) == "ok"
        told = lab.tell("choose", "metal-1", CHOICE)
        assert "port 8080 of 172.31.0.1, for the boot files of metal-1, is taken; see ss -lntp" in told
    finally:
        holder.kill()
        holder.wait()
    soon(lambda: lab.tell("choose", "metal-1", CHOICE) == "ok", "the port is not tried again")


def test_the_discovery_port_is_the_configured_one(lab: Lab) -> None:
    lab.start()
    assert lab.tell("start", [msgspec.structs.replace(LINK_HERE, discovery_port=18009)]) == "ok"
    lab.lease(*IPXE)
    assert lab.ask("knock", "18009") == "refused", "the way to discovery is shut"
    assert lab.ask("knock", "8009") == "silence", "a port that nobody configured is open to the host"


def test_mistakes_are_told_in_a_sentence(lab: Lab) -> None:
    lab.start()
    twin = msgspec.structs.replace(LINK_HERE, host="metal-2")
    assert "share the network 172.31.0.0/30" in lab.tell("start", [LINK_HERE, twin])
    (lab.artefacts / "vmlinuz").unlink()
    assert "vmlinuz is missing; build it: make stage1" in lab.tell("start", [LINK_HERE])


def test_it_runs_where_only_root_is_mapped(lab: Lab) -> None:
    """As in a lab without root: a user namespace with one user, and a network namespace in it."""
    script = (
        f"ip link add prov0 type dummy 2>/dev/null || ip link add prov0 type veth peer name nic; "
        f"exec {sys.executable} -m tests.provision.agent {lab.run} {lab.artefacts}"
    )
    lab.process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert lab.tell("start", [LINK_HERE]) == "ok"
    assert lab.tell("choose", "metal-1", CHOICE) == "ok", "the link is not served"


def test_what_a_host_proves_itself_with_is_for_its_root_alone(lab: Lab) -> None:
    (lab.artefacts / "vmlinuz-auth").write_bytes(b"a newer kernel")
    (lab.artefacts / "stage1-auth.img").write_bytes(b"its initramfs")
    lab.start()
    assert lab.tell("start", [LINK_HERE]) == "ok"
    assert lab.tell("choose", "metal-1", CHOICE) == "ok"
    assert lab.lease(*IPXE)
    assert lab.ask("get", "/boot/login", "1000") == "status 404", "who needs no key gets none"
    assert lab.tell("choose", "metal-1", KEYED) == "ok"
    script = lab.get("/boot/metal-1.ipxe")
    assert "/boot/vmlinuz-auth" in script and "/boot/stage1-auth.img" in script and "DHHC" not in script
    assert lab.get("/boot/vmlinuz-auth") == "a newer kernel"
    assert lab.get("/boot/login") == "status 403", "any process of the tenant's OS could have the key"
    told = f"dhchap_secret={KEYED.secret},dhchap_ctrl_secret={KEYED.controller_secret}"
    assert lab.ask("get", "/boot/login", "999") == told
    (lab.run / "metal-1.connected").touch()
    assert lab.ask("get", "/boot/login", "997") == "status 409", "who has its disks has booted"
    (lab.run / "metal-1.connected").unlink()
    stage1 = f". {ROOT}/boot/stage1/login.sh; login http://172.31.0.1:8080/boot/login"
    assert lab.host("/usr/bin/busybox", "sh", "-c", stage1) == told, "stage-1 does not get it"


def test_a_key_without_a_stage1_that_can_use_it_is_refused_before_the_host_is_started(lab: Lab) -> None:
    lab.start()
    assert lab.tell("start", [LINK_HERE]) == "ok"
    said = lab.tell("choose", "metal-1", KEYED)
    assert "vmlinuz-auth, is missing" in said and "make stage1-auth" in said and "DHHC" not in said


def test_a_host_tells_once_a_run_what_it_is_made_of(served: Lab) -> None:
    """Whoever tells first after the choice is stage-1: its tenant's system comes later, and is not heard."""
    served.lease(*IPXE)
    told = served.run / "metal-1.told"
    assert served.ask("post", "/report", "bad") == "status 400"
    assert served.ask("post", "/report", str(300 * 1024)) == "status 413", "no host fills the agent's memory"
    assert served.ask("post", "/report", "first") == "status 204"
    assert served.ask("post", "/report", "second") == "status 409"
    assert told.read_text() == "first"
    served.kill()
    served.start()
    assert served.tell("start", [LINK_HERE]) == "ok"
    assert served.tell("choose", "metal-1", CHOICE) == "ok"
    assert served.ask("post", "/report", "third") == "status 409", "a new agent knows that this run has told"
    assert served.tell("choose", "metal-1", None) == "ok"
    assert served.ask("post", "/report", "fourth") == "status 409", "a host without a run is not asked"
    assert served.tell("choose", "metal-1", CHOICE) == "ok"
    assert served.ask("post", "/report", "fifth") == "status 204"
    assert told.read_text() == "fifth"
