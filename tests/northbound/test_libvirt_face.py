"""The listeners of a real agent, as its config asks for them, met by stock virsh."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisor_shim.access import Right
from hypervisor_shim.driver import DomainInfo
from nicagent import config
from nicagent.errors import Kind, NicagentError
from nicagent.northbound.libvirt_face import policy
from tests.e2e.harness import answers
from tests.hypervisor_shim.serving import RawClient, number, text
from tests.rig import ONE_HOST

CONFIG = (
    ONE_HOST
    + """[libvirt.tls]
listen = "127.0.0.1:{1}"
[libvirt.sasl]
at = ["tls"]
[[libvirt.access]]
who = ["sasl:alice"]
may = ["operate"]
domains = ["web-*"]
[[libvirt.access]]
who = ["sasl:dora"]
may = ["operate", "configure"]
tenants = ["blue"]
"""
)
DOMAIN = """
<domain type='kvm'><name>{0}</name><memory unit='GiB'>1</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>
"""


@dataclass
class Agent:
    directory: Path
    port: int

    def nicagent(self, *arguments: str, told: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nicagent.cli", *arguments, "-c", str(self.directory / "nicagent.toml")],
            capture_output=True, text=True, timeout=30, input=told, check=False,
        )  # fmt: skip

    def virsh(self, uri: str, *command: str, told: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "-q", "-c", uri, *command],
            capture_output=True, text=True, timeout=30, input=told, check=False,
        )  # fmt: skip

    @property
    def local(self) -> str:
        return f"nic+unix:///system?socket={self.directory}/run/libvirt-sock"

    def remote(self, user: str) -> str:
        auth = self.directory / "auth.conf"
        auth.write_text(
            f"[credentials-a]\nauthname={user}\npassword=open sesame\n"
            "[auth-libvirt-127.0.0.1]\ncredentials=a\n"
        )
        return f"nic+tls://127.0.0.1:{self.port}/system?pkipath={self.directory}/client&authfile={auth}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Certificates, a login and a rule, made as an operator would."""
    directory = tmp_path_factory.mktemp("a")
    agent = Agent(directory, 20000 + os.getpid() % 20000)
    (directory / "nicagent.toml").write_text(CONFIG.format(directory, agent.port))
    for made in (
        agent.nicagent("libvirt", "certs", "127.0.0.1", "agent.example"),
        agent.nicagent("libvirt", "client", "ops", "--to", str(directory / "client")),
        agent.nicagent("libvirt", "passwd", "alice", told="open sesame\n"),
        agent.nicagent("libvirt", "passwd", "bob", told="open sesame\n"),
        agent.nicagent("libvirt", "passwd", "dora", told="open sesame\n"),
    ):
        assert made.returncode == 0, made.stderr
    with (directory / "log").open("wb") as log:
        argv = [sys.executable, "-m", "nicagent.cli", "serve", "-c", str(directory / "nicagent.toml")]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not answers(directory / "run/libvirt-sock"):
            assert process.poll() is None, agent.log
            assert time.monotonic() < deadline, agent.log
            time.sleep(0.05)
        for name in ("web-1", "db-1"):
            defined = agent.virsh(agent.local, "define", "/dev/stdin", told=DOMAIN.format(name))
            assert defined.returncode == 0, defined.stderr
        yield agent
    finally:
        process.terminate()
        process.wait(30)


def test_a_tenant_sees_and_works_his_own_domains_over_tls(agent: Agent) -> None:
    alice = agent.remote("alice")
    assert agent.virsh(alice, "list", "--all", "--name").stdout.split() == ["web-1"]
    assert "failed to get domain 'db-1'" in agent.virsh(alice, "dominfo", "db-1").stderr
    refused = agent.virsh(alice, "undefine", "web-1")
    assert "access denied: sasl:alice may not configure here (virDomainUndefine" in refused.stderr
    assert "access denied" not in agent.virsh(alice, "start", "web-1").stderr, "it may be started"


def test_a_domain_is_a_tenants_by_its_metadata(agent: Agent) -> None:
    dora = agent.remote("dora")

    def claim(uri: str, *change: str) -> str:
        words = ("metadata", "db-1", "urn:nicagent:domain:1", "--key", "nic", "--config", *change)
        return agent.virsh(uri, *words).stderr

    def seen() -> list[str]:
        return agent.virsh(dora, "list", "--all", "--name").stdout.split()

    assert seen() == []
    assert claim(agent.local, "--set", "<domain><tenant>blue</tenant></domain>") == ""
    assert seen() == ["db-1"]
    assert "access denied" in claim(dora, "--set", "<domain><tenant>red</tenant></domain>")
    assert "access denied" in claim(dora, "--remove")
    assert claim(dora, "--set", "<domain><tenant>blue</tenant><host>metal-1</host></domain>") == ""
    assert seen() == ["db-1"]
    assert claim(agent.local, "--remove") == ""
    assert seen() == []


def test_a_strict_client_takes_the_certificates(agent: Agent) -> None:
    context = ssl.create_default_context(cafile=str(agent.directory / "client/cacert.pem"))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # the default from Python 3.13 on
    context.load_cert_chain(
        agent.directory / "client/clientcert.pem", agent.directory / "client/clientkey.pem"
    )
    with (
        socket.create_connection(("127.0.0.1", agent.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        assert encrypted.recv(1) == b"\1", "libvirt's confirmation that the client's certificate is taken"


def test_who_is_named_by_no_rule_is_not_let_in(agent: Agent) -> None:
    assert "no rule lets sasl:bob in" in agent.virsh(agent.remote("bob"), "list").stderr


def test_root_needs_no_rule_and_no_login_where_none_is_asked(agent: Agent) -> None:
    assert agent.virsh(agent.local, "list", "--all", "--name").stdout.split() == ["db-1", "web-1"]


def test_virsh_of_libvirt_11_marks_a_domain_for_the_next_boot_only(agent: Agent) -> None:
    """`virsh autostart --once`, by its packets: virsh of libvirt 9 has no such word."""
    marked, mark = 449, 450
    with RawClient(agent.directory / "run/libvirt-sock") as client:
        client.open()
        web = client.call(23, text("web-1")).body
        assert client.call(marked, web).body == number(0)
        assert client.call(mark, web + number(1)).status == 0
        assert client.call(marked, web).body == number(1)
        assert client.call(15, web).body == number(0), "the mark for every boot is another"
        assert client.call(mark, web + number(0)).status == 0
        assert client.call(marked, web).body == number(0)


def test_the_audit_is_in_the_agents_log(agent: Agent) -> None:
    agent.virsh(agent.remote("alice"), "destroy", "web-1")
    agent.virsh(agent.remote("alice"), "undefine", "web-1")
    lines = [line for line in agent.log.splitlines() if "nicagent.audit" in line]
    assert any("virDomainDefineXML" in line and '"web-1"' in line and "ok in" in line for line in lines), (
        lines
    )
    assert any("sasl:alice from tls:127.0.0.1:" in line and "error 88" in line for line in lines), lines
    assert "sesame" not in agent.log


def test_users_are_listed_and_dropped(agent: Agent) -> None:
    assert agent.nicagent("libvirt", "users").stdout.split() == ["alice", "bob", "dora"]
    assert agent.nicagent("libvirt", "passwd", "carol", told="one\n").returncode == 0
    assert agent.nicagent("libvirt", "drop", "carol").returncode == 0
    again = agent.nicagent("libvirt", "drop", "carol")
    assert (again.returncode, "no user carol can log in" in again.stderr) == (1, True)
    assert "the password is empty" in agent.nicagent("libvirt", "passwd", "carol", told="\n").stderr


def test_keys_and_verifiers_are_private(agent: Agent) -> None:
    state = agent.directory / "state"
    for path in (
        state / "pki/cakey.pem", state / "pki/serverkey.pem", state / "libvirt-users",
        agent.directory / "client/clientkey.pem",
    ):  # fmt: skip
        assert path.stat().st_mode & 0o777 == 0o600, path


HOST = "[hosts.h]\npower = {driver = 'gpio'}\nstorage = {transport = 'virtio', slot = '/s'}\n"


def rule(text: str) -> config.Libvirt:
    return config.parse(HOST + "[[libvirt.access]]\n" + text).libvirt


def test_the_examples_of_the_docs_are_configs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    examples = re.findall(r"```toml\n(.+?)```", page, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        policy(config.parse(example).libvirt)


def test_rules_of_the_config() -> None:
    made = policy(rule("who = ['group:root', 'x509:CN=nova*']\nmay = ['operate']\ndomains = ['web-*']"))
    for identity in ("gid:0", "x509:CN=nova-1"):
        access = made.access([identity])
        assert access is not None
        web, db = (DomainInfo(bytes(16), name) for name in ("web-1", "db"))
        assert (access.on(web), access.on(db), access.shared) == (
            Right.READ | Right.OPERATE, Right.NONE, Right.NONE,
        ), identity  # fmt: skip
    root = made.access(["uid:0"])
    assert root is not None and root.unlimited
    assert made.access(["uid:4711"]) is None


def test_a_rule_of_the_config_for_a_tenant() -> None:
    access = policy(rule("who = ['sasl:a']\nmay = ['read']\ntenants = ['blue']")).access(["sasl:a"])
    assert access is not None
    assert (access.anywhere, access.shared) == (Right.READ, Right.NONE), "it is not for every domain"
    for tenant, right in (("blue", Right.READ), ("red", Right.NONE), (None, Right.NONE)):
        assert access.on(DomainInfo(bytes(16), "web", tenant=tenant)) == right


@pytest.mark.parametrize(
    "text, told",
    [
        ("who = ['alice']\nmay = ['read']", "'alice' is no identity"),
        ("who = []\nmay = ['read']", "access[0].who"),
        ("who = ['sasl:a']\nmay = ['everything']", "'everything' is none of the values"),
    ],
)
def test_rules_that_mean_nothing_are_refused(text: str, told: str) -> None:
    with pytest.raises(NicagentError) as caught:
        rule(text)
    assert told in str(caught.value)


def test_a_group_that_is_not_there_is_an_error_at_start() -> None:
    with pytest.raises(NicagentError, match="does not exist") as caught:
        policy(rule("who = ['group:no such group']\nmay = ['read']"))
    assert caught.value.kind is Kind.INVALID
