"""Snapshots on the wire: what readers are shown, and documents that cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor_shim.driver.snapshot import Snapshot, SnapshotDeleteFlags, Tree
from hypervisor_shim.errors import LibvirtError
from hypervisor_shim.memory import MemoryDriver
from hypervisor_shim.xml.snapshot import parse_snapshot
from tests.hypervisor_shim.serving import Served, serving

SCREEN = """\
<domain type='test'><name>desk</name><memory>1024</memory><os><type>hvm</type></os>
<devices><graphics type='vnc' port='5900' passwd='hush'/></devices></domain>
"""


@pytest.fixture
def served() -> Iterator[Served]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    with TemporaryDirectory(prefix="nic-") as place, serving(MemoryDriver([SCREEN]), Path(place)) as served:
        yield served


def test_a_snapshot_keeps_secrets_from_readers(served: Served) -> None:
    connection = libvirt.open(served.uri)
    snapshot = connection.lookupByName("desk").snapshotCreateXML(
        "<domainsnapshot><name>s</name></domainsnapshot>"
    )
    assert "hush" not in snapshot.getXMLDesc(), "a password is shown to whoever asks"
    assert "hush" in snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    reader = libvirt.openReadOnly(served.read_only_uri)
    seen = reader.lookupByName("desk").snapshotLookupByName("s")
    with pytest.raises(libvirt.libvirtError) as refused:
        seen.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    assert refused.value.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED
    reader.close()
    connection.close()


def test_checkpoints_are_none_and_say_so(served: Served) -> None:
    connection = libvirt.open(served.uri)
    domain = connection.lookupByName("desk")
    assert domain.listAllCheckpoints() == []
    with pytest.raises(libvirt.libvirtError) as missing:
        domain.checkpointLookupByName("x")
    assert missing.value.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT
    connection.close()


@given(
    st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
def test_any_text_is_a_request_or_a_refusal(text: str) -> None:
    for document in (text, f"<domainsnapshot>{text}</domainsnapshot>"):
        with contextlib.suppress(LibvirtError):
            parse_snapshot(document)


NAMES = st.lists(st.integers(0, 9).map(str), unique=True, min_size=1, max_size=8)


@given(NAMES, st.data())
def test_a_tree_stays_a_tree_whatever_is_deleted(names: list[str], data: st.DataObject) -> None:
    tree = Tree()
    for name in names:
        tree = Tree(
            tree.snapshots, data.draw(st.sampled_from([None, *(each.name for each in tree.snapshots)]))
        )
        tree = tree.with_one(Snapshot(name, None, "shutoff", 0, ""))
    while tree.snapshots:
        name = data.draw(st.sampled_from([each.name for each in tree.snapshots]))
        tree = tree.without(name, data.draw(st.sampled_from([SnapshotDeleteFlags(f) for f in (0, 1)])))
        known: set[str | None] = {None}
        for each in tree.snapshots:
            assert each.parent in known, f"{each.name} stands before its parent, or on one that is gone"
            known.add(each.name)
        assert tree.current in known, "the current snapshot is gone"
