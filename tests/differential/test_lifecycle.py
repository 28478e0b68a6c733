"""The rest of the life cycle and the guest's answers: one virsh script on libvirtd's test driver and ours."""

from __future__ import annotations

from pathlib import Path

import libvirt

from tests.differential.pair import Pair
from tests.differential.test_statistics import RICH

SCRIPT = """\
define {xml}
domifaddr rich
domhostname rich
domtime rich
suspend rich
resume rich
start rich
suspend rich
suspend rich
domstate rich --reason
domcontrol rich
resume rich
resume rich
domstate rich --reason
domrename rich richer
domrename test rich
send-key rich KEY_A
send-key rich KEY_LEFTCTRL KEY_LEFTALT KEY_DELETE --holdtime 10
send-process-signal rich 1 9
send-process-signal rich 2 9
inject-nmi rich
screenshot rich {shot}
set-user-password rich root x
domhostname rich
domtime rich --time 5
domtime rich
domfsinfo rich
domfsfreeze rich
domfsfreeze rich
domfsthaw rich
domfsthaw rich
domfsfreeze rich /boot
domfsthaw rich
domfstrim rich
domifaddr rich
domifaddr rich --source agent
domifaddr rich --source arp
guestinfo rich
guestvcpus rich
get-user-sshkeys rich root
qemu-agent-command rich {"execute":"guest-ping"}
dompmsuspend rich mem
dompmwakeup rich
managedsave-remove rich
restore /nonexistent.img
dump rich {core} --memory-only
domxml-from-native qemu-argv {xml}
domdirtyrate-calc rich
set-lifecycle-action rich poweroff destroy
migrate-getspeed rich
migrate-setmaxdowntime rich 5
destroy rich
domrename rich richer
domrename richer test
domrename richer richer
list --all
suspend richer
send-key richer KEY_A
domrename nobody x
undefine richer
"""

DIFFERS = {
    "restore /nonexistent.img": "nothing here is saved to files of the server, so nothing is read from them",
    "domdirtyrate-calc rich": "the test driver has no such function; here the reason is told",
    "migrate-getspeed rich": "likewise",
    "migrate-setmaxdowntime rich 5": "likewise",
    "dump rich {core} --memory-only": "the same: libvirtd says which of its formats it does not know",
}


def test_virsh_cannot_tell(pair: Pair, tmp_path: Path) -> None:
    xml = tmp_path / "rich.xml"
    xml.write_text(RICH)

    def fill(line: str) -> str:
        for word, path in (("{xml}", xml), ("{shot}", tmp_path / "shot.png"), ("{core}", tmp_path / "core")):
            line = line.replace(word, str(path))
        return line

    differs = {fill(command): why for command, why in DIFFERS.items()}
    assert not (wrong := pair.differences(map(fill, SCRIPT.splitlines()), differs)), "\n".join(wrong)
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n"), "the picture is no PNG"


def test_events_come_in_the_same_order(pair: Pair) -> None:
    """Suspended and resumed by its owner, then renamed."""
    seen = []
    libvirt.virEventRegisterDefaultImpl()
    for uri in pair.uris():
        conn = libvirt.open(uri)
        told: list[tuple[str, int, int]] = []
        conn.domainEventRegisterAny(
            None,
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lambda _, domain, event, detail, told: told.append((domain.name(), event, detail)),
            told,
        )
        domain = conn.defineXML(RICH)
        domain.create()
        domain.suspend()
        domain.resume()
        domain.destroy()
        domain.rename("richer", 0)
        domain.undefine()
        while len(told) < 8:
            libvirt.virEventRunDefaultImpl()
        seen.append(told)
        conn.close()
    theirs, ours = seen
    assert theirs == ours
