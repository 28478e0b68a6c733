"""What libvirtd says otherwise in Debian 12 (libvirt 9.0) and in Debian 13 (11.3), and which of them is ours.

The differential tests compare with the libvirtd that is there. Each row is an excuse with that libvirtd only
that does not say what we say; with the other one the same difference fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import libvirt


class Peer(Enum):
    """The libvirtd of a Debian release."""

    DEBIAN_12 = "9.0"
    DEBIAN_13 = "11.3"


#: Of one source with the library.
PEER = Peer.DEBIAN_13 if libvirt.getVersion() >= 10_000_000 else Peer.DEBIAN_12


@dataclass(frozen=True)
class Difference:
    where: str  # the test's module, or what several ask about
    what: str  # the command, or the test's own name for a call or document
    says_so: Peer  # the one that is not followed
    why: str


WRONG_ATTRIBUTE = "11.3 has one sentence and code 27 for all wrong attributes; ours are those of 9.0"

DIFFERENCES = (
    Difference(
        "documents", "clusters", Peer.DEBIAN_13,
        "every CPU topology is told with clusters='1', from 10.1 on, while we say that we are 10.0; a client "
        "that knows of it takes 1 where it finds none, and what a document has is kept",
    ),
    Difference(
        "documents", "serial2", Peer.DEBIAN_12,
        "a virtio console behind the one that mirrors a serial port gets port 0, and 1 when the document is "
        "sent again: here, as in 11.3, it has its port from the first",
    ),
    Difference(
        "node", "freepages 0 2048", Peer.DEBIAN_13,
        "the test driver makes up a number of free pages, where that of 9.0 fails",
    ),
    Difference(
        "node", "domcapabilities", Peer.DEBIAN_13,
        "the test driver has learnt to say that it can nothing; the driver in memory says so by a refusal",
    ),
    Difference(
        "nodedev", "nodedev-list", Peer.DEBIAN_12,
        "virsh asks for active devices, a flag that the test driver does not know",
    ),
    Difference(
        "nodedev", "no names", Peer.DEBIAN_13,
        "the test driver makes up names of a port where 9.0 refuses to: no adapter here could be told them",
    ),
    Difference(
        "metal_storage", "vol-upload full {content} p --length 100 --offset 512", Peer.DEBIAN_13,
        "libvirtd itself dies of an upload that is longer than was said",
    ),
    *(
        Difference("nwfilter", f"<filter name='f'><rule{how}/></filter>", Peer.DEBIAN_13, WRONG_ATTRIBUTE)
        for how in (
            " action='zz' direction='in'", " action='drop' direction='zz'", "",
            " action='ACCEPT' direction='out'",
        )
    ),
    Difference(
        "nwfilter",
        "<filter name='f'><rule action='accept' direction='out' priority='0x10' statematch='FALSE'><tcp/>"
        "</rule></filter>",
        Peer.DEBIAN_13,
        "a priority that is no decimal number is refused; 9.0 takes 500, and so do we",
    ),
    *(
        Difference("secret", what, Peer.DEBIAN_13, WRONG_ATTRIBUTE)
        for what in ("unknown usage", "usage in capitals", "usage without a type")
    ),
    *(
        Difference("secret", what, Peer.DEBIAN_13, "it no longer names the document that is no XML")
        for what in ("nothing", "cut short")
    ),
)  # fmt: skip


def excuses(where: str) -> dict[str, str]:
    """what → why, of one test module and the libvirtd that is there."""
    return {each.what: each.why for each in DIFFERENCES if each.where == where and each.says_so is PEER}
