"""Snapshots of the test driver and of the memory driver, by the same virsh script."""

from __future__ import annotations

from pathlib import Path

from tests.differential.pair import Pair

DEFINED = """\
<domain type='test'><name>metal</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
<memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type></os>
<devices><disk type='file' device='disk'><source file='/x.img'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
"""
SCRIPT = """\
define {xml}
snapshot-list metal
snapshot-current metal
snapshot-create-as metal off
snapshot-dumpxml metal off
start metal
snapshot-create-as metal s1
snapshot-create-as metal s2 words
snapshot-create-as metal s1
snapshot-create-as metal s3 --diskspec vda,snapshot=no
snapshot-create-as metal s4 --diskspec vdz
snapshot-dumpxml metal s3
snapshot-list metal --name
snapshot-list metal --tree
snapshot-list metal --name --roots
snapshot-list metal --name --leaves
snapshot-list metal --name --no-leaves
snapshot-list metal --name --inactive
snapshot-list metal --name --active
snapshot-list metal --name --internal
snapshot-list metal --name --external
snapshot-list metal --name --from s1
snapshot-list metal --name --from off --descendants
snapshot-list metal --name --from off
snapshot-info metal s1
snapshot-info metal --current
snapshot-current metal --name
snapshot-current metal
snapshot-current metal s1
snapshot-parent metal s2
snapshot-parent metal off
snapshot-info metal nosuch
snapshot-delete metal nosuch
snapshot-create-as metal d1 --disk-only
snapshot-create-as metal d2 --disk-only --no-metadata
snapshot-create-as metal r1 --reuse-external
snapshot-create-as metal h1 --halt
domstate metal --reason
snapshot-list metal --tree
undefine metal
snapshot-revert metal s1
domstate metal
snapshot-current metal --name
snapshot-revert metal off
domstate metal
snapshot-delete metal s2 --children-only
snapshot-list metal --tree
snapshot-delete metal s1 --metadata
snapshot-delete metal s1
snapshot-list metal --tree
snapshot-delete metal off --children
snapshot-list metal --name
checkpoint-list metal
checkpoint-info metal nosuch
snapshot-create-as metal last
undefine metal --snapshots-metadata
list --all --name
"""


def test_snapshots_come_and_go_in_the_same_tree(pair: Pair, tmp_path: Path) -> None:
    definition = tmp_path / "metal.xml"
    definition.write_text(DEFINED)
    script = SCRIPT.format(xml=definition).splitlines()
    wrong = pair.differences(script)
    assert not wrong, "\n".join(wrong)
