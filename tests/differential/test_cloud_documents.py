"""What clouds write, as libvirtd understands it and as this library does."""

from __future__ import annotations

import re

import libvirt
import pytest

from tests.clients.documents import CLOUDS
from tests.differential.pair import Pair
from tests.differential.test_core import canonical

_WHOLE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
#: Parts of a document that libvirtd makes up and this library does not: (cloud, path) → why.
NOT_MADE_UP = {
    ("opennebula", "/domain/devices/video"): "a server has the screen that it has; none is invented for it",
    ("terraform", "/domain/devices/video"): "the same",
}


@pytest.mark.parametrize("name", CLOUDS)
def test_a_clouds_document_is_read_as_libvirtd_reads_it(pair: Pair, name: str) -> None:
    document = re.sub(r"type=(['\"])kvm", r"type=\1test", CLOUDS[name].xml, count=1)
    expected, got = (_inactive(uri, document) for uri in pair.uris())
    made_up = tuple(path for cloud, path in NOT_MADE_UP if cloud == name)
    kept = [line for line in expected if not made_up or not line.startswith(made_up)]
    assert len(kept) < len(expected) or not made_up, f"excused, but the same: {made_up}"
    missing, extra = [x for x in kept if x not in got], [x for x in got if x not in kept]
    assert kept == got, f"{name}: missing {missing}, extra {extra}, or another order"


def _inactive(uri: str, document: str) -> list[str]:
    conn = libvirt.open(uri)
    try:
        domain = conn.defineXML(document)
        first = canonical(domain.XMLDesc(_WHOLE))
        again = canonical(conn.defineXML(domain.XMLDesc(_WHOLE)).XMLDesc(_WHOLE))
        assert sorted(again) == sorted(first), "a document that comes back changes when it is sent again"
        domain.undefine()
        return first
    finally:
        conn.close()
