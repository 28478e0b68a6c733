"""Rights per identity and domain, for calls and for events; and the audit of what was done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest

from hypervisor_shim.access import (
    LOOKS,
    About,
    Access,
    Policy,
    Right,
    Rule,
    about,
    domain_in,
    needed,
    resolve,
)
from hypervisor_shim.audit import Audited
from hypervisor_shim.driver import Caller, DomainInfo
from hypervisor_shim.driver.migration import Migration
from hypervisor_shim.driver.network import DhcpLease
from hypervisor_shim.driver.nwfilter import BindingInfo
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.memory.domains import WISHES
from hypervisor_shim.memory.network import MemoryNetworks
from hypervisor_shim.memory.nwfilter import MemoryNwFilters
from hypervisor_shim.procedures import Kind, Phase
from hypervisor_shim.sasl import Scram, UserFile
from hypervisor_shim.server import make_tables
from hypervisor_shim.xml.domain_def import DomainDef

from .serving import RawClient, Served, domain, number, serving, text

WEB, DB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
RED = "33333333-3333-4333-8333-333333333333"


def document(name: str, uuid: str, title: str = "") -> str:
    return f"""
<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>
<memory unit='KiB'>65536</memory><vcpu>1</vcpu><os><type>hvm</type></os>{title}
<devices><graphics type='vnc' passwd='open sesame'/><console type='pty'/></devices></domain>"""


RULES = (
    Rule(("sasl:reader",), Right.READ),
    Rule(("sasl:operator",), Right.READ | Right.OPERATE, ("web-*",)),
    Rule(("sasl:owner",), Right.ALL, ("web-*",)),
    Rule(("sasl:owner",), Right.READ, ("db-*",)),
    Rule(("sasl:admin",), Right.ALL),
    Rule(("sasl:blue",), Right.ALL, shared=Right.READ, tenants=("blue",)),
)


def tenant(name: str) -> str:
    """A metadata element that says whose a domain is."""
    return f"<nic:domain xmlns:nic='{WISHES}'><nic:tenant>{name}</nic:tenant></nic:domain>"


@dataclass
class Guarded:
    served: Served
    directory: Path
    records: list[Audited] = field(default_factory=list)

    def open(self, user: str) -> Any:
        def give(wanted: list[list[Any]], _: None) -> int:
            for each in wanted:
                each[4] = user if each[0] == libvirt.VIR_CRED_AUTHNAME else "secret"
            return 0

        kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE]
        return libvirt.openAuth(f"nic+unix:///system?socket={self.directory / 'sasl'}", [kinds, give, None])


class Ports(MemoryNetworks):
    """The network of `test:///default`, on which each domain has a port of its own UUID and an address."""

    def __init__(self) -> None:
        super().__init__(lambda event: None)

    def ports(self, uuid: bytes) -> list[bytes]:
        return [UUID(each).bytes for each in (WEB, DB)]

    def port_owners(self, uuid: bytes) -> dict[bytes, bytes]:
        return {port: port for port in self.ports(uuid)}

    def leases(self, uuid: bytes, mac: str | None) -> list[DhcpLease]:
        owners = {"web-1": UUID(WEB).bytes, "db-1": UUID(DB).bytes, "a guest of nobody": None}
        return [
            DhcpLease("virbr0", "192.0.2.1", 24, hostname=name, owner=owner) for name, owner in owners.items()
        ]


class Bindings(MemoryNwFilters):
    """A filter at the port of each domain."""

    def bindings(self) -> list[BindingInfo]:
        owners = {"tap-web": WEB, "tap-db": DB}
        return [BindingInfo(port, "clean-traffic", UUID(each).bytes) for port, each in owners.items()]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> UserFile:
    """Made once: a verifier takes its time, and is meant to."""
    users = UserFile(tmp_path_factory.mktemp("users") / "users")
    for name in ("reader", "operator", "owner", "admin", "blue", "stranger"):
        users.put(name, "secret")
    return users


@pytest.fixture
def guarded(directory: Path, users: UserFile) -> Iterator[Guarded]:
    records: list[Audited] = []
    driver = MemoryDriver([document("web-1", WEB), document("db-1", DB)])
    with serving(driver, directory, policy=Policy(RULES), audit=records.append) as served:
        served.run(served.server.listen_unix(directory / "sasl", authenticator=Scram(users)))
        yield Guarded(served, directory, records)


def code_of(call: Callable[[], object]) -> int:
    """libvirt's code; 0 when the call succeeded."""
    try:
        call()
    except libvirt.libvirtError as failed:
        return int(failed.get_error_code())
    return 0


# ---- who gets in ---------------------------------------------------------------------------------


def test_without_rules_whoever_got_in_may_do_everything(served: Served) -> None:
    conn = libvirt.open(served.uri)
    assert code_of(conn.lookupByName("test").destroy) == 0
    conn.close()


def test_with_rules_nobody_gets_in_whom_none_of_them_names(guarded: Guarded) -> None:
    assert code_of(lambda: guarded.open("stranger")) == 88
    assert code_of(lambda: libvirt.open(guarded.served.uri)) == 88, "root is named by no rule here"
    assert code_of(lambda: libvirt.open(f"nic+tcp://127.0.0.1:{guarded.served.tcp_port}/system")) == 88


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("rule, let_in", [("uid:65534", True), ("gid:65533", True), ("uid:1", False)])
def test_a_unix_socket_tells_user_and_groups(directory: Path, rule: str, let_in: bool) -> None:
    directory.chmod(0o755)
    with serving(MemoryDriver(), directory, policy=Policy([Rule((rule,), Right.READ)])) as served:
        served.path.chmod(0o666)
        done = subprocess.run(
            ["virsh", "-q", "-c", served.uri, "list", "--name"],
            user=65534, group=65534, extra_groups=[65533], env={"HOME": str(directory), "PATH": os.defpath},
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert (done.stdout.split() == ["test"]) is let_in, done.stderr
    assert let_in or "access denied: no rule lets uid:65534 in" in done.stderr


def test_rules_may_name_users_and_groups() -> None:
    assert resolve("user:root") == "uid:0"
    assert resolve("group:root") == "gid:0"
    assert resolve("sasl:alice") == "sasl:alice"
    with pytest.raises(KeyError):
        resolve("user:no such user")


# ---- what each may do ----------------------------------------------------------------------------

#: What is asked, and its code for each user: 0 done, 88 denied, 42 there is no such domain.
ASKED: dict[str, tuple[Callable[[Any], object], dict[str, int]]] = {
    "state of web": (lambda c: c.lookupByName("web-1").state(), {}),
    "state of db": (lambda c: c.lookupByUUIDString(DB).state(), {"operator": 42}),
    "secrets of web": (
        lambda c: c.lookupByName("web-1").XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE),
        {"reader": 88, "operator": 88},
    ),
    "secrets of db": (
        lambda c: c.lookupByName("db-1").XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE),
        {"reader": 88, "operator": 42, "owner": 88},
    ),
    "leases of web": (lambda c: c.lookupByName("web-1").interfaceAddresses(0), {}),
    "leases of db": (lambda c: c.lookupByName("db-1").interfaceAddresses(0), {"operator": 42}),
    "web's OS": (lambda c: c.lookupByName("web-1").interfaceAddresses(1), {"reader": 88}),
    "db's OS": (
        lambda c: c.lookupByName("db-1").interfaceAddresses(1),
        {"reader": 88, "operator": 42, "owner": 88},
    ),
    "nmi to web": (lambda c: c.lookupByName("web-1").injectNMI(), {"reader": 88}),
    "nmi to db": (lambda c: c.lookupByName("db-1").injectNMI(), {"reader": 88, "operator": 42, "owner": 88}),
    "autostart of web": (lambda c: c.lookupByName("web-1").setAutostart(1), {"reader": 88, "operator": 88}),
    "define web": (lambda c: c.defineXML(document("web-1", WEB)), {"reader": 88, "operator": 88}),
    "define another": (
        lambda c: c.defineXML(document("other", DB.replace("2", "3"))),
        {"reader": 88, "operator": 88, "owner": 88},
    ),
    "take db over": (
        lambda c: c.defineXML(document("web-2", DB)),
        {"reader": 88, "operator": 88, "owner": 88, "admin": 9},
    ),
    "the node": (lambda c: (c.getInfo(), c.getCapabilities(), c.getHostname()), {}),
}


@pytest.mark.parametrize("user", ["reader", "operator", "owner", "admin"])
def test_each_user_may_what_the_rules_say(guarded: Guarded, user: str) -> None:
    conn = guarded.open(user)
    found = {what: code_of(lambda ask=ask: ask(conn)) for what, (ask, _) in ASKED.items()}  # type: ignore[misc]
    conn.close()
    assert found == {what: codes.get(user, 0) for what, (_, codes) in ASKED.items()}


@pytest.mark.parametrize(
    "user, names", [("reader", ["web-1", "db-1"]), ("operator", ["web-1"]), ("owner", ["web-1", "db-1"])]
)
def test_what_may_not_be_read_is_in_no_list(guarded: Guarded, user: str, names: list[str]) -> None:
    conn = guarded.open(user)
    assert [each.name() for each in conn.listAllDomains()] == names
    assert [record[0].name() for record in conn.getAllDomainStats()] == names
    assert conn.numOfDomains() == len(names)
    assert len(conn.listDomainsID()) == len(names)
    conn.close()


def test_a_hidden_domain_is_answered_like_one_that_is_not_there(guarded: Guarded) -> None:
    """Not even the sentence differs; its UUID is known to the client, as from an earlier time."""
    conn = guarded.open("admin")
    hidden, never = conn.lookupByName("db-1"), DB.replace("2", "9")
    conn.close()
    conn = guarded.open("operator")
    told = []
    for uuid in (hidden.UUIDString(), never):
        with pytest.raises(libvirt.libvirtError) as caught:
            conn.lookupByUUIDString(uuid)
        told.append(str(caught.value).replace(uuid, "UUID"))
    assert told[0] == told[1]
    conn.close()


def listening(guarded: Guarded, user: str, last: str) -> str:
    """A client that prints the lifecycle events that it is told of, once it was told of `last`."""
    return f"""
import json, libvirt, sys
libvirt.virEventRegisterDefaultImpl()
def give(wanted, _):
    for each in wanted:
        each[4] = "{user}" if each[0] == libvirt.VIR_CRED_AUTHNAME else "secret"
    return 0
kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE]
conn = libvirt.openAuth("nic+unix:///system?socket={guarded.directory / "sasl"}", [kinds, give, None])
told = []
hear = lambda c, dom, event, detail, _: told.append([dom.name(), event, detail])
conn.domainEventRegisterAny(None, 0, hear, None)
print("ready", flush=True)
while "{last}" not in [name for name, _, _ in told]:
    libvirt.virEventRunDefaultImpl()
print(json.dumps(told), flush=True)
"""


def test_events_of_hidden_domains_are_not_delivered(guarded: Guarded) -> None:
    """CVE-2014-0028. The event that one may see comes after the one that one may not."""
    script = listening(guarded, "operator", "web-1")
    listener = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    try:
        assert listener.stdout.readline() == "ready\n"
        admin = guarded.open("admin")
        admin.lookupByName("db-1").destroy()
        admin.lookupByName("web-1").destroy()
        admin.close()
        assert {name for name, _, _ in json.loads(listener.stdout.readline())} == {"web-1"}
    finally:
        listener.kill()
        listener.communicate()


def test_rights_on_some_domains_are_none_on_what_is_shared(guarded: Guarded) -> None:
    """A tenant's rules do not open pools, networks and secrets to him."""
    owner = Access([rule for rule in RULES if "sasl:owner" in rule.who])
    assert owner.shared == Right.NONE
    assert owner.on(named("web-7")) == Right.ALL
    assert owner.on(named("db-7")) == Right.READ
    assert owner.on(named("mail")) == Right.NONE
    assert not owner.sees(None), "nor their events"
    widened = Access([Rule(("x",), Right.ALL, ("web-*",), shared=Right.READ)])
    assert widened.sees(None)
    assert not widened.unlimited


def named(name: str, tenant: str | None = None) -> DomainInfo:
    return DomainInfo(bytes(16), name, tenant=tenant)


# ---- what a domain is to become ------------------------------------------------------------------


@pytest.mark.parametrize("name, code", [("web-9", 0), ("db-9", 88), ("db-1", 88), ("mail", 88)])
def test_a_domain_gets_no_name_that_its_owner_has_no_right_on(guarded: Guarded, name: str, code: int) -> None:
    conn = guarded.open("owner")
    web = conn.lookupByName("web-1")
    web.destroy()
    assert code_of(lambda: web.rename(name)) == code
    conn.close()


def test_both_events_of_a_renaming_go_by_the_name_in_them(guarded: Guarded) -> None:
    """Who may read one of the two names is told of that one."""
    rules = Policy([Rule((f"uid:{os.getuid()}",), Right.READ, ("web-*",))])
    guarded.served.server.policy = rules
    with RawClient(guarded.served.path) as client:
        client.open()
        assert client.call(316, number(0) + number(0)).code == 0
        guarded.served.server.policy = Policy()
        with libvirt.open(guarded.served.uri) as admin:
            web, db = admin.lookupByName("web-1"), admin.lookupByName("db-1")
            db.destroy(), db.rename("db-2")
            web.destroy(), web.rename("other")
            db.rename("web-5")
        told = [client.receive().body for _ in range(3)]
    assert [b"web-1" in each for each in told] == [True, True, False], "it stopped, and its name went"
    assert b"web-5" in told[2]


@pytest.fixture
def tenants(guarded: Guarded) -> Guarded:
    """web-1 is blue's, db-1 nobody's, and `red` red's."""
    conn = guarded.open("admin")
    conn.defineXML(document("web-1", WEB, f"<metadata>{tenant('blue')}</metadata>"))
    conn.defineXML(document("red", RED, f"<metadata>{tenant('red')}</metadata>"))
    conn.close()
    return guarded


def test_a_rule_may_choose_domains_by_the_tenant_they_name(tenants: Guarded) -> None:
    conn = tenants.open("blue")
    assert [each.name() for each in conn.listAllDomains()] == ["web-1"]
    assert code_of(lambda: conn.lookupByName("red")) == 42
    web = conn.lookupByName("web-1")
    assert code_of(web.destroy) == 0
    assert code_of(web.create) == 0
    assert code_of(conn.listAllStoragePools) == 0, "shared was opened for reading"
    conn.close()


#: What blue tries with metadata, and the code.
CLAIMS: dict[str, tuple[Callable[[Any], object], int]] = {
    "give it to red": (lambda c: set_element(c, "<domain><tenant>red</tenant></domain>"), 88),
    "give it to nobody": (lambda c: set_element(c, None), 88),
    "give it up by another word": (lambda c: set_element(c, "<domain><host>h</host></domain>"), 88),
    "keep it": (lambda c: set_element(c, "<domain><tenant>blue</tenant><host>h</host></domain>"), 0),
    "another element": (
        lambda c: c.lookupByName("web-1").setMetadata(
            2, "<x/>", "x", "urn:x", libvirt.VIR_DOMAIN_AFFECT_CONFIG
        ),
        0,
    ),
    "define it as red's": (lambda c: c.defineXML(claimed("web-1", WEB, "red")), 88),
    "define it as nobody's": (lambda c: c.defineXML(document("web-1", WEB)), 88),
    "run it as red's": (lambda c: c.createXML(claimed("web-1", WEB, "red")), 88),
    "take red's": (lambda c: c.defineXML(claimed("red", RED, "blue")), 88),
    "take nobody's": (lambda c: c.defineXML(claimed("db-1", DB, "blue")), 88),
    "one more of its own": (lambda c: c.defineXML(claimed("mail", RED.replace("3", "4"), "blue")), 0),
    "one more of red's": (lambda c: c.defineXML(claimed("mail", RED.replace("3", "4"), "red")), 88),
}  # fmt: skip


def set_element(conn: Any, element: str | None) -> None:
    web = conn.lookupByName("web-1")
    web.setMetadata(2, element, "nic", WISHES, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def claimed(name: str, uuid: str, whose: str) -> str:
    return document(name, uuid, f"<metadata>{tenant(whose)}</metadata>")


def test_whose_a_domain_is_says_only_who_may_configure_what_comes_of_it(tenants: Guarded) -> None:
    conn = tenants.open("blue")
    found = {}
    for what, (claim, _) in CLAIMS.items():
        found[what] = code_of(lambda claim=claim: claim(conn))  # type: ignore[misc]
        assert code_of(lambda: conn.lookupByName("web-1")) == 0, f"after {what} it is no longer blue's"
    assert found == {what: code for what, (_, code) in CLAIMS.items()}
    conn.close()
    admin = tenants.open("admin")
    assert code_of(lambda: admin.lookupByName("red")) == 0, "red's is still there"
    admin.close()


def test_a_snapshot_of_another_tenants_time_is_not_gone_back_to(tenants: Guarded) -> None:
    admin = tenants.open("admin")
    red = admin.lookupByName("red")
    red.snapshotCreateXML("<domainsnapshot><name>then</name></domainsnapshot>")
    admin.defineXML(claimed("red", RED, "blue"))
    conn = tenants.open("blue")
    given = conn.lookupByName("red")
    snapshot = given.snapshotLookupByName("then")
    assert code_of(lambda: given.revertToSnapshot(snapshot)) == 88
    conn.close()
    assert code_of(lambda: red.revertToSnapshot(red.snapshotLookupByName("then"))) == 0
    admin.close()


def test_a_running_domain_is_not_made_its_former_tenants_again(tenants: Guarded) -> None:
    """Without its definition it is whose it was when it was started."""
    admin = tenants.open("admin")
    admin.lookupByName("red").create()
    admin.defineXML(claimed("red", RED, "blue"))
    conn = tenants.open("blue")
    given = conn.lookupByName("red")
    assert code_of(given.undefine) == 88
    assert code_of(given.destroy) == 0
    assert code_of(given.undefine) == 0
    conn.close()
    admin.close()


def test_a_tenant_is_told_of_a_domain_that_comes_to_him_or_goes(tenants: Guarded) -> None:
    """As of one that is defined or undefined. Who sees it before and after is told what libvirtd tells."""
    clients = {
        user: subprocess.Popen(
            [sys.executable, "-c", listening(tenants, user, "last")], stdout=subprocess.PIPE, text=True
        )
        for user in ("blue", "admin")
    }
    try:
        for each in clients.values():
            assert each.stdout is not None and each.stdout.readline() == "ready\n"
        admin = tenants.open("admin")
        web, red = admin.lookupByName("web-1"), admin.lookupByName("red")
        config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        web.setMetadata(2, "<domain><tenant>red</tenant></domain>", "nic", WISHES, config)
        web.setMetadata(2, "<domain><tenant>green</tenant></domain>", "nic", WISHES, config)
        red.setMetadata(2, "<domain><tenant>blue</tenant></domain>", "nic", WISHES, config)
        admin.defineXML(claimed("last", RED.replace("3", "5"), "blue"))
        admin.close()
        told = {user: json.loads(each.stdout.readline()) for user, each in clients.items() if each.stdout}
    finally:
        for each in clients.values():
            each.kill()
            each.communicate()
    assert told["blue"] == [["web-1", 1, 0], ["red", 0, 0], ["last", 0, 0]], "undefined, defined, defined"
    assert told["admin"] == [["last", 0, 0]], "metadata has an event of its own"


def test_a_domain_that_moves_in_needs_the_right_to_be_there(directory: Path) -> None:
    """Where it would be found to fit, and where it is defined: a tenant may do both with its own."""
    driver = MemoryDriver([document("db-1", DB)])
    driver.migration = AnyWhere()
    rules = [Rule(("uid:*",), Right.ALL, ("web-*",))]
    with serving(driver, directory, policy=Policy(rules)) as served, RawClient(served.path) as client:
        client.open()
        for name, uuid, code in (("web-1", WEB, 0), ("mail", RED, 88), ("db-1", DB, 88), ("web-2", DB, 88)):
            xml = document(name, uuid)
            params = number(1) + text("destination_xml") + number(7) + text(xml) + number(0)
            assert client.call(303, params + number(1024 | 8)).code == code, f"prepare {name}"
            assert client.call(306, params + number(1024 | 8) + number(0)).code == code, f"finish {name}"


class AnyWhere(Migration):
    async def prepare(self, caller: Caller, definition: DomainDef) -> None:
        """Every domain fits."""


def test_what_is_shared_tells_nothing_of_hidden_domains(directory: Path) -> None:
    """Ports, addresses in use and filter bindings name the domain whose they are."""
    driver = MemoryDriver([document("web-1", WEB), document("db-1", DB)])
    driver.networks, driver.nwfilters = Ports(), Bindings()
    rules = Policy([Rule((f"uid:{os.getuid()}",), Right.READ, ("web-*",), shared=Right.READ)])
    with serving(driver, directory, policy=rules) as served, libvirt.open(served.uri) as conn:
        network = conn.networkLookupByName("default")
        assert [port.UUIDString() for port in network.listAllPorts()] == [WEB]
        assert code_of(lambda: network.portLookupByUUIDString(DB)) == 107
        assert [lease["hostname"] for lease in network.DHCPLeases()] == ["web-1", "a guest of nobody"]
        assert [each.portDev() for each in conn.listAllNWFilterBindings()] == ["tap-web"]
        assert code_of(lambda: conn.nwfilterBindingLookupByPortDev("tap-db")) == 101


def test_every_procedure_has_a_right_and_a_subject() -> None:
    """A row that acts and names a domain is checked on that domain, whoever added it."""
    for entry in make_tables().opened.values():
        row = entry.procedure
        if row.phase is not Phase.OPENED:
            continue
        assert needed(row) in (Right.READ, Right.OPERATE, Right.CONFIGURE)
        assert needed(row) is not Right.READ or row.read_only, f"{row.api} changes something"
        if row.args is not None and domain_in(row.args) is not None:
            assert about(row) is About.DOMAIN, row.api
        if row.kind is not Kind.READ and not row.read_only and row.api not in LOOKS:
            assert entry.audited, row.api


def test_a_read_only_connection_stays_one_whatever_the_rules_give(guarded: Guarded) -> None:
    rules = Policy([Rule(("uid:*",), Right.ALL, ("te*",))])
    guarded.served.server.policy = rules
    with RawClient(guarded.served.path) as client:
        client.open(flags=1)
        assert client.call(12, domain()).code == 29


@pytest.mark.parametrize(
    "names, rights",
    [
        ([], Right.NONE),
        (["read"], Right.READ),
        (["operate"], Right.READ | Right.OPERATE),
        (["configure"], Right.READ | Right.CONFIGURE),
        (["configure", "operate"], Right.ALL),
    ],
)
def test_rights_by_name(names: list[str], rights: Right) -> None:
    assert Right.named(names) == rights
    with pytest.raises(KeyError):
        Right.named(["everything"])


# ---- audit ---------------------------------------------------------------------------------------


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_each_change_leaves_a_line_and_reading_leaves_none(guarded: Guarded) -> None:
    conn = guarded.open("owner")
    web = conn.lookupByName("web-1")
    web.state(), web.XMLDesc(), conn.listAllDomains()
    web.destroy()
    code_of(conn.lookupByName("db-1").destroy)
    conn.defineXML(document("web-1", WEB, "<title>open sesame</title>"))
    until(lambda: len(guarded.records) >= 3)
    conn.close()
    told = [(r.caller.identity, r.api, r.target, r.code) for r in guarded.records]
    assert told == [
        ("sasl:owner", "virDomainDestroy", f'"web-1" {WEB}', 0),
        ("sasl:owner", "virDomainDestroy", f'"db-1" {DB}', 88),
        ("sasl:owner", "virDomainDefineXML", f'"web-1" {WEB}', 0),
    ]
    lines = "\n".join(map(str, guarded.records))
    assert "sesame" not in lines, "documents may hold secrets"
    assert lines.splitlines()[0].startswith(
        f'sasl:owner from unix:uid={os.getuid()},pid={os.getpid()}: virDomainDestroy "web-1" {WEB}: ok in '
    )


def test_a_new_name_is_in_the_audit(guarded: Guarded) -> None:
    conn = guarded.open("owner")
    web = conn.lookupByName("web-1")
    web.destroy()
    code_of(lambda: web.rename("db-7"))
    web.rename("web-7")
    until(lambda: len(guarded.records) >= 3)
    conn.close()
    assert [(r.api, r.target, r.code) for r in guarded.records[1:]] == [
        ("virDomainRename", f'"web-1" {WEB} "db-7"', 88),
        ("virDomainRename", f'"web-1" {WEB} "web-7"', 0),
    ]


def test_what_failed_and_what_a_reader_tried_is_in_the_audit(guarded: Guarded) -> None:
    guarded.served.server.policy = Policy()
    with RawClient(guarded.served.path) as client:
        client.open().call(9, domain("web-1", bytes.fromhex(WEB.replace("-", ""))))
    with RawClient(guarded.served.read_only_path) as client:
        client.open().call(9, domain("web-1", bytes.fromhex(WEB.replace("-", ""))))
        assert client.call(12, text("cut short")).code == 29
    until(lambda: len(guarded.records) >= 3)
    assert [(r.api, r.target, r.code) for r in guarded.records] == [
        ("virDomainCreate", f'"web-1" {WEB}', 55),
        ("virDomainCreate", f'"web-1" {WEB}', 29),
        ("virDomainDestroy", "", 29),
    ]


def test_whoever_may_change_nothing_at_all_is_named_with_what_he_tried_to_change(guarded: Guarded) -> None:
    conn = guarded.open("reader")
    code_of(conn.lookupByName("web-1").destroy)
    conn.close()
    until(lambda: guarded.records)
    assert [(r.caller.identity, r.api, r.target, r.code) for r in guarded.records] == [
        ("sasl:reader", "virDomainDestroy", f'"web-1" {WEB}', 88)
    ]


def test_a_name_cannot_forge_a_line(guarded: Guarded) -> None:
    guarded.served.server.policy = Policy()
    with RawClient(guarded.served.path) as client:
        client.open().call(9, domain("a\nroot from unix: virDomainCreate: ok \x1b[2J" + "x" * 5000))
    until(lambda: guarded.records)
    line = str(guarded.records[0])
    assert line.isprintable()
    assert len(line) < 500


def test_acting_calls_without_arguments_for_it_are_not_audited(guarded: Guarded) -> None:
    guarded.served.server.policy = Policy()
    with RawClient(guarded.served.path) as client:
        assert client.open().call(12, text("cut short")).code == 39
    assert guarded.records == []


def test_the_drivers_own_view_is_not_narrowed(guarded: Guarded) -> None:
    """What the view hides from one client is still there for the others and for the driver."""
    guarded.open("operator").close()
    assert guarded.served.driver.domain(bytes.fromhex(DB.replace("-", ""))) is not None


def test_a_client_is_told_when_the_server_ends(directory: Path) -> None:
    """By the end of the connection, as of libvirtd: procedure 362 is for a hypervisor that went away."""
    script = """
import libvirt, sys
libvirt.virEventRegisterDefaultImpl()
conn = libvirt.open(sys.argv[1])
told = []
conn.registerCloseCallback(lambda conn, reason, _: told.append(reason), None)
print("ready", flush=True)
while not told:
    libvirt.virEventRunDefaultImpl()
print(told[0], flush=True)
"""
    with serving(MemoryDriver(), directory) as served:
        argv = [sys.executable, "-c", script, served.uri]
        client = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
    assert client.communicate(timeout=20)[0].strip() == str(libvirt.VIR_CONNECT_CLOSE_REASON_EOF)
