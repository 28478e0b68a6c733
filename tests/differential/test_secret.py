"""Secrets beside libvirtd's own `secret:///system`, which keeps them below a directory of its own here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from hypervisor_shim.driver import Identity
from hypervisor_shim.memory import MemoryDriver
from tests.differential.pair import virsh
from tests.differential.versions import excuses
from tests.hypervisor_shim import libvirtd as peer
from tests.hypervisor_shim.serving import serving

LIKE_SECRET = Identity(schemes=frozenset({"secret"}))
UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
OTHER = "2a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"


def document(
    usage: str = "<usage type='volume'><volume>/var/x</volume></usage>",
    *,
    uuid: str = UUID,
    private: str = "no",
    ephemeral: str = "no",
) -> str:
    return f"<secret private='{private}' ephemeral='{ephemeral}'><uuid>{uuid}</uuid>{usage}</secret>"


#: Documents of each usage, and such as are refused.
DOCUMENTS = {
    "volume": document(),
    "ceph": document("<usage type='ceph'><name>client.x secret</name></usage>"),
    "iscsi": document("<usage type='iscsi'><target>libvirtiscsi</target></usage>"),
    "tls": document("<usage type='tls'><name>TLS_example</name></usage>"),
    "vtpm": document("<usage type='vtpm'><name>VTPM_example</name></usage>"),
    "none": document("<usage type='none'/>"),
    "no usage, described": document("<description>a &lt; b</description>"),
    "private and ephemeral": document(private="yes", ephemeral="yes"),
    "unknown usage": document("<usage type='foo'><name>x</name></usage>"),
    "usage in capitals": document("<usage type='VOLUME'><volume>x</volume></usage>"),
    "usage without a type": document("<usage/>"),
    "no volume": document("<usage type='volume'/>"),
    "no name of ceph": document("<usage type='ceph'/>"),
    "no target": document("<usage type='iscsi'/>"),
    "no name of tls": document("<usage type='tls'/>"),
    "no name of vtpm": document("<usage type='vtpm'/>"),
    "private is a word": document(private="maybe"),
    "ephemeral is a word": document(ephemeral="x"),
    "bad uuid": document(uuid="zz"),
    "another root": "<x/>",
    "nothing": "",
    "cut short": "<secret",
}


@dataclass(frozen=True)
class Both:
    """libvirtd's driver, then ours."""

    uris: tuple[str, str]
    connections: tuple[libvirt.virConnect, libvirt.virConnect]


@pytest.fixture
def both() -> Iterator[Both]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    with (
        tempfile.TemporaryDirectory(prefix="lv-") as theirs,
        tempfile.TemporaryDirectory(prefix="nic-") as ours,
        peer.libvirtd(Path(theirs), ["secret"]) as daemon,
        serving(MemoryDriver(identity=LIKE_SECRET), Path(ours)) as served,
    ):
        theirs_at, ours_at = (f"secret+unix:///system?socket={path}" for path in (daemon.path, served.path))
        pair = Both((theirs_at, ours_at), (libvirt.open(theirs_at), libvirt.open(ours_at)))
        yield pair
        for conn in pair.connections:
            conn.close()


def answer(call: object, *words: object) -> object:
    """What a call gives: its value, or the error's code, origin and sentence."""
    try:
        value = call(*words)  # type: ignore[operator]
    except libvirt.libvirtError as refused:
        message = refused.get_error_message()
        if refused.get_error_code() == libvirt.VIR_ERR_XML_DETAIL:
            message = message.partition(":")[0]  # each parser has its own words for what is not XML
        return refused.get_error_code(), refused.get_error_domain(), message
    return value.UUIDString() if isinstance(value, libvirt.virSecret) else value


def same(both: Both, what: str, call: object) -> None:
    theirs, ours = (answer(call, conn) for conn in both.connections)
    assert theirs == ours, f"{what}: libvirtd {theirs}, ours {ours}"


def test_documents_are_read_and_shown_as_libvirtd_does(
    both: Both,
) -> None:
    excused = excuses("secret")
    for name, text in DOCUMENTS.items():
        if name in excused:
            theirs, ours = (answer(conn.secretDefineXML, text) for conn in both.connections)
            assert theirs != ours, f"{name}: excused, but the same"
            assert isinstance(theirs, tuple) and isinstance(ours, tuple), f"{name}: both refuse"
            continue
        same(both, name, lambda conn, text=text: conn.secretDefineXML(text).XMLDesc())
        for conn in both.connections:
            for secret in conn.listAllSecrets():
                secret.undefine()


def test_a_secrets_life_is_libvirtds(both: Both) -> None:
    def secret(conn: libvirt.virConnect) -> libvirt.virSecret:
        return conn.secretLookupByUUIDString(UUID)

    steps = {
        "none yet": lambda c: (c.numOfSecrets(), c.listSecrets(), c.listAllSecrets()),
        "not there": secret,
        "define": lambda c: c.secretDefineXML(document()),
        "by usage": lambda c: c.secretLookupByUsage(1, "/var/x"),
        "by another usage": lambda c: c.secretLookupByUsage(1, "/var/y"),
        "of another kind": lambda c: c.secretLookupByUsage(2, "/var/x"),
        "no value yet": lambda c: secret(c).value(),
        "set": lambda c: secret(c).setValue(b"hel\0lo\xff"),
        "get": lambda c: secret(c).value(),
        "get with flags": lambda c: secret(c).value(4),
        "empty value": lambda c: secret(c).setValue(b""),
        "define again keeps the value": lambda c: (c.secretDefineXML(document()), secret(c).value())[1],
        "another use": lambda c: c.secretDefineXML(
            document("<usage type='volume'><volume>/var/y</volume></usage>")
        ),
        "another kind of use": lambda c: c.secretDefineXML(
            document("<usage type='ceph'><name>/var/x</name></usage>")
        ),
        "back": lambda c: c.secretDefineXML(document()),
        "a second for the same use": lambda c: c.secretDefineXML(document(uuid=OTHER)),
        "private": lambda c: c.secretDefineXML(document(private="yes")),
        "private is not shown": lambda c: secret(c).value(),
        "private stays so": lambda c: c.secretDefineXML(document()),
        "flags": lambda c: c.secretDefineXML(document(), 1 << 4) and None,
        "filters": lambda c: [len(c.listAllSecrets(flags)) for flags in range(16)],
        "undefine": lambda c: secret(c).undefine(),
        "gone": secret,
        "all gone": lambda c: (c.numOfSecrets(), c.listSecrets(), c.listAllSecrets()),
    }
    for what, step in steps.items():
        same(both, what, step)


def test_virsh_sees_no_difference(both: Both, tmp_path: Path) -> None:
    xml, value = tmp_path / "secret.xml", tmp_path / "value"
    xml.write_text(document())
    value.write_text("a key")
    script = f"""\
secret-list
secret-define {xml}
secret-list
secret-dumpxml {UUID}
secret-get-value {UUID}
secret-set-value {UUID} aGVsbG8=
secret-get-value {UUID}
secret-get-value {UUID} --plain
secret-set-value {UUID} --file {value} --plain
secret-get-value {UUID}
secret-list --private
secret-list --no-ephemeral
secret-event --list
secret-undefine {UUID}
secret-undefine {UUID}
secret-dumpxml {UUID}
""".splitlines()
    for line in script:
        shown = [virsh(uri, line) for uri in both.uris]
        assert shown[0] == shown[1], f"$ virsh {line}\nlibvirtd: {shown[0]}\nours: {shown[1]}"
