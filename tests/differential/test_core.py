"""The same client, the same script, once against libvirtd's `test:///default` and once against this library.

What differs is listed with its reason; anything else that differs is a failure.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import pytest

from hypervisor_shim.frame import Program
from hypervisor_shim.procedure_names import CENSUS
from tests.differential.pair import Pair
from tests.differential.versions import excuses
from tests.hypervisor_shim.documents import BAD, GOOD, SEEN_DIFFERENTLY
from tests.hypervisor_shim.serving import Closed, RawClient, domain, number, optional, text

# ---- virsh -------------------------------------------------------------------------------------------

DEFINED = """\
<domain type='test'><name>metal</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid><title>A title</title>
<memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type></os></domain>
"""

#: Run in this order on one server. {xml} is the path of DEFINED.
SCRIPT = """\
list --all
define {xml}
define /nonexistent
list --all
list --inactive
list --all --name
list --all --uuid
list --title --all
dominfo metal
dominfo test
dominfo nobody
domstate metal --reason
start metal
start metal
start nobody
domstate metal --reason
domid metal
domuuid metal
domname 4dea22b3-1d52-d8f3-2516-782e98ab3fa0
dumpxml metal
dumpxml metal --inactive
autostart metal
dominfo metal
autostart metal --disable
reset metal
domstate metal --reason
shutdown metal
domstate metal --reason
shutdown metal
destroy metal
start metal
destroy metal
domstate metal --reason
desc metal
desc metal --title
desc metal --config --title Another
desc metal --title
metadata metal http://x.example/1
metadata metal http://x.example/1 --config --key x --set <owner/>
metadata metal http://x.example/1
dumpxml metal
snapshot-list metal
snapshot-list test
managedsave-remove metal
domstats
domstats --state metal
domblklist metal
vcpucount metal --maximum --config
inject-nmi metal
undefine metal
undefine metal
dominfo metal
create {xml}
list --all
undefine metal
destroy metal
list --all
list --transient
list --persistent
list --with-snapshot --all
list --autostart --all
hostname
uri
version
event --list
dumpxml 1
destroy test
list --state-shutoff
start test
"""

#: Commands whose answer differs, and why that is right.
VIRSH_DIFFERS = {
    "dominfo test": "the test driver's built-in domain is of type linux and has a security model of its own",
    "dominfo metal": "the test driver claims a security model, testSecurity; metal has none",
    "hostname": "the machine's own",
    "domstats": "more than the state is told",
    "dumpxml 1": "the test driver's built-in domain has devices",
    "shutdown metal": "wording: each driver has its own sentence for a domain that is off",
    "undefine metal": "a transient domain has no definition: QEMU's driver says so, the test driver does not",
}

EXIT_DIFFERS = {"undefine metal"}


def test_virsh_cannot_tell(pair: Pair, tmp_path: Path) -> None:
    xml = tmp_path / "metal.xml"
    xml.write_text(DEFINED)
    commands = [line.replace("{xml}", str(xml)) for line in SCRIPT.splitlines()]
    assert not (wrong := pair.differences(commands, VIRSH_DIFFERS, EXIT_DIFFERS)), "\n".join(wrong)


# ---- documents ---------------------------------------------------------------------------------------


def canonical(document: str) -> list[str]:
    """Every element with its path, attributes and text, in order; what is made up at random is masked."""
    root = ElementTree.fromstring(document)
    lines: list[str] = []

    def walk(element: ElementTree.Element, path: str) -> None:
        here = f"{path}/{element.tag}"
        attributes = {
            k: re.sub(r"52:54:00(:..){3}", "52:54:00:*", v)
            for k, v in sorted(element.attrib.items())
            if not (k == "clusters" and v == "1" and k in excuses("documents"))
        }
        body = (element.text or "").strip()
        lines.append(f"{here} {attributes} {'*' if element.tag == 'uuid' else body}")
        for child in element:
            # the test driver names every tap of a definition; real drivers do so at start
            if child.tag == "target" and child.get("dev", "").startswith("testnet"):
                continue
            walk(child, here)

    walk(root, "")
    return lines


def test_documents_come_back_as_libvirtd_gives_them_back(pair: Pair) -> None:
    theirs, ours = (libvirt.open(uri) for uri in pair.uris())
    wrong, excused = [], SEEN_DIFFERENTLY | excuses("documents")
    for name, document in GOOD.items():
        both = []
        for conn in (theirs, ours):
            domain = conn.defineXML(document)
            inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            secure = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
            again = conn.defineXML(inactive).XMLDesc()
            domain.undefine()
            both.append([canonical(text) for text in (inactive, secure, again)])
        for what, expected, got in zip(("inactive", "secure", "again"), *both, strict=True):
            if expected != got and name not in excused:
                missing = [line for line in expected if line not in got]
                extra = [line for line in got if line not in expected]
                wrong.append(f"{name} ({what}): missing {missing}, extra {extra}, or another order")
    theirs.close(), ours.close()
    assert not wrong, "\n".join(wrong)


def outcome(conn: libvirt.virConnect, document: str) -> tuple[int, int, str]:
    try:
        conn.defineXML(document).undefine()
    except libvirt.libvirtError as refused:
        return refused.get_error_code(), refused.get_error_domain(), refused.get_error_message()
    return 0, 0, ""


def test_bad_documents_are_refused_with_libvirtds_codes_and_sentences(pair: Pair) -> None:
    theirs, ours = (libvirt.open(uri) for uri in pair.uris())
    wrong = []
    for name, document in BAD.items():
        expected, got = outcome(theirs, document), outcome(ours, document)
        same = expected[0] == got[0] if got[0] == libvirt.VIR_ERR_XML_DETAIL else expected == got
        if not same and name not in SEEN_DIFFERENTLY:
            wrong.append(f"{name}: libvirtd {expected}, ours {got}")
    theirs.close(), ours.close()
    assert not wrong, "\n".join(wrong)


# ---- raw packets -------------------------------------------------------------------------------------

INFO = 16
PACKETS: dict[str, list[tuple[int, bytes, dict[str, int]]]] = {
    "unknown, event and gap numbers": [(n, b"", {}) for n in (0, 107, 173, 318, 362, 385, 438, 470)],
    "versions, programs and statuses": [
        (INFO, domain(), {"version": 2}),
        (INFO, domain(), {"program": 7}),
        (1, b"", {"program": 0x06900690}),
        (99, b"", {"program": 0x20008087}),
        (INFO, domain(), {"status": 1}),
        (INFO, domain(), {"status": 7}),
    ],
    "arguments cut short, too long, or lying": [
        (INFO, domain()[:-4], {}),
        (23, number(0xFFFFFFFF) + b"test", {}),
        (273, number(1), {}),
        (37, number(-1), {}),
        (37, number(99_999), {}),
    ],
    "domains that are not there": [(INFO, domain(uuid=b"1" * 16), {}), (150, domain(uuid=b"1" * 16), {})],
    "lookups": [(22, number(1), {}), (22, number(-7), {}), (23, text("test"), {}), (24, domain()[8:24], {})],
    "lists": [
        (273, number(1) + number(0), {}),
        (273, number(0) + number(0), {}),
        (37, number(9), {}),
        (51, b"", {}),
    ],
    "event callbacks": [
        (316, number(0) + number(0), {}),
        (316, number(0) + number(0), {}),
        (316, number(1) + optional(domain()), {}),
        (316, number(0) + number(1 << 24) + domain(), {}),  # any number but 0 says that a value follows
        (316, number(26) + number(0), {}),
        (316, number(99) + number(0), {}),
        (317, number(1), {}),
        (317, number(1), {}),
        (360, b"", {}),
        (361, b"", {}),
    ],
    "metadata": [(265, domain() + number(0) * 3, {}), (265, domain() + number(7) + number(0) * 2, {})],
    "not there": [(183, domain() + number(0), {}), (202, domain(), {}), (426, domain() + number(0), {})],
    "authentication": [(66, b"", {}), (67, b"", {}), (68, number(0) * 3, {})],
    "opening twice": [(1, optional(text("test:///default")) + number(0), {})],
    "closing": [(2, b"", {})],
}


def answers(path: Path, calls: list[tuple[int, bytes, dict[str, int]]], opened: bool) -> list[object]:
    with RawClient(path) as client:
        if opened:
            client.open("test:///default")
        found: list[object] = []
        for procedure, body, how in calls:
            answer = client.call(procedure, body, **how)
            if answer.status == 0:
                found.append((answer.procedure, answer.type, answer.serial, answer.body))
            else:
                # a driver signs with its own name, and may add a detail to a sentence
                origin = "driver" if answer.origin in (10, 12) else answer.origin
                found.append((answer.procedure, answer.serial, answer.code, origin, answer.message))
        return found


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "unopened"])
def test_packets_get_libvirtds_answers(pair: Pair, opened: bool) -> None:
    wrong = []
    for what, calls in PACKETS.items():
        if what.startswith("arguments") and not opened:
            continue  # libvirtd decodes what it then refuses; here nothing is decoded before it may be called
        expected, got = (answers(path, calls, opened) for path in (pair.theirs, pair.ours))
        for call, theirs, ours in zip(calls, expected, got, strict=True):
            if theirs != ours:
                wrong.append(f"{what}, call {call}:\n  libvirtd {theirs}\n  ours     {ours}")
    assert not wrong, "\n".join(wrong)


def test_known_numbers_are_the_same(pair: Pair) -> None:
    """Code 39 for exactly the numbers libvirtd calls unknown, but those given out after its version."""
    unknown: list[set[int]] = []
    for path in (pair.theirs, pair.ours):
        found = set()
        with RawClient(path) as client:
            client.open("test:///default")
            for procedure in range(470):
                if procedure != 2 and client.call(procedure).message.startswith("unknown procedure"):
                    found.add(procedure)
        unknown.append(found)
    newest = max(set(range(470)) - unknown[0])  # 443 in libvirt 9.0, 452 in 11.3
    later = {number for number in CENSUS[Program.REMOTE] if number > newest}
    assert unknown[0] - later == unknown[1]


@pytest.mark.parametrize("length", [0, 3, 27, 0x2000005, 0xFFFFFFFF])
def test_lengths_out_of_bounds_end_the_connection_with_both(pair: Pair, length: int) -> None:
    for path in (pair.theirs, pair.ours):
        with RawClient(path) as client:
            client.open("test:///default")
            client.sock.sendall(length.to_bytes(4, "big") + bytes(24))
            with pytest.raises(Closed):
                client.receive()


def test_events_as_old_clients_register_for_them(pair: Pair) -> None:
    """105, 106, 167, 168: what clients before 2013 know. The packets are the same, byte for byte."""
    seen: list[list[tuple[int, int, bytes | str]]] = []
    for path in (pair.theirs, pair.ours):
        answers: list[tuple[int, int, bytes | str]] = []
        with RawClient(path) as client:
            client.open("test:///default")

            def ask(procedure: int, body: bytes = b"", client: RawClient = client) -> None:
                client.send(procedure, body)
                got = [client.receive()]
                while not client.silent(0.1):
                    got.append(client.receive())
                got.sort(key=lambda answer: answer.type)
                answers.extend((a.procedure, a.code, a.message or a.body) for a in got)  # noqa: B023

            ask(106)
            ask(105)
            ask(105)
            ask(167, number(0))
            for event in (1, 15, 16, 40, -1):
                ask(167, number(event))
                ask(168, number(event))
            ask(12, domain())
            ask(9, domain())
            ask(106)
            ask(168, number(0))
            ask(167, number(0))
            ask(106)
        seen.append(answers)
    assert seen[0] == seen[1]
    assert sum(procedure == 107 for procedure, *_ in seen[1]) == 2, "stopped, started"
