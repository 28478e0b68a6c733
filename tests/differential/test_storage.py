"""Pools and volumes: libvirtd's `test:///default` and the reference driver, by the same virsh script."""

from __future__ import annotations

from pathlib import Path

from tests.differential.pair import Pair

POOLS = {
    "spare": "<pool type='dir'><name>spare</name><uuid>11111111-2222-3333-4444-555555555555</uuid>"
    "<target><path>/spare//dir/</path><permissions><mode>0755</mode><owner>1</owner><group>-1</group>"
    "</permissions></target></pool>",
    "conflict": "<pool type='dir'><name>conflict</name><target><path>/default-pool</path></target></pool>",
    "renamed": "<pool type='dir'><name>renamed</name><uuid>11111111-2222-3333-4444-555555555555</uuid>"
    "<target><path>/elsewhere</path></target></pool>",
    "namesake": "<pool type='dir'><name>spare</name><target><path>/elsewhere</path></target></pool>",
    "transient": "<pool type='dir'><name>fleeting</name><uuid>11111111-2222-3333-4444-666666666666</uuid>"
    "<target><path>/fleeting</path></target></pool>",
    "nfs": "<pool type='netfs'><name>nfs</name><uuid>11111111-2222-3333-4444-777777777777</uuid><source>"
    "<dir path='/export'/><host name='store.example'/></source><target><path>/mnt/nfs</path></target></pool>",
    "vg": "<pool type='logical'><name>vg</name><uuid>11111111-2222-3333-4444-888888888888</uuid>"
    "<source><device path='/dev/sdb1'/></source></pool>",
}

BAD_POOLS = (
    "<pool/>",
    "<pool",
    "",
    "<domain/>",
    "<pool type='bogus'><name>x</name></pool>",
    "<pool type='dir'/>",
    "<pool type='dir'><name></name><target><path>/x</path></target></pool>",
    "<pool type='dir'><name>x</name></pool>",
    "<pool type='dir'><name>x</name><target/></pool>",
    "<pool type='dir'><name>a/b</name><target><path>/x</path></target></pool>",
    "<pool type='dir'><name>x</name><uuid>zz</uuid><target><path>/x</path></target></pool>",
    "<pool type='fs'><name>x</name><target><path>/x</path></target></pool>",
    "<pool type='netfs'><name>x</name><target><path>/x</path></target></pool>",
    "<pool type='disk'><name>x</name></pool>",
    "<pool type='iscsi'><name>x</name></pool>",
    "<pool type='rbd'><name>x</name></pool>",
    "<pool type='dir'><name>x</name><target><path>/x</path><permissions><mode>0999</mode></permissions>"
    "</target></pool>",
    "<pool type='dir'><name>x</name><target><path>/x</path><permissions><owner>bob</owner></permissions>"
    "</target></pool>",
)

VOLUMES = {
    "plain": "<volume><name>plain</name><capacity unit='M'>10</capacity></volume>",
    "thin": "<volume><name>thin</name><capacity unit='GiB'>3</capacity><allocation>0</allocation>"
    "<target><format type='qcow2'/></target></volume>",
    "over": "<volume type='file'><name>over</name><capacity>1048576</capacity><target><format type='qcow2'/>"
    "<permissions><mode>0644</mode><owner>107</owner><group>107</group></permissions><compat>1.1</compat>"
    "<clusterSize unit='KiB'>64</clusterSize><features><lazy_refcounts/></features></target>"
    "<backingStore><path>/default-pool/plain</path><format type='raw'/></backingStore></volume>",
    "huge": "<volume><name>huge</name><capacity unit='TiB'>1</capacity></volume>",
    "iso": "<volume><name>cd.iso</name><capacity unit='KB'>5</capacity><target><format type='iso'/></target>"
    "</volume>",
}

BAD_VOLUMES = (
    "<volume/>",
    "<volume",
    "<pool/>",
    "<volume><name>x</name></volume>",
    "<volume><name>x</name><capacity>abc</capacity></volume>",
    "<volume><name>x</name><capacity>-5</capacity></volume>",
    "<volume><name>x</name><capacity unit='Q'>1</capacity></volume>",
    "<volume><name>x</name><capacity unit='EiB'>100</capacity></volume>",
    "<volume><name>x</name><capacity>1</capacity><allocation>abc</allocation></volume>",
    "<volume><name>x</name><capacity>1</capacity><target><format type='bogus'/></target></volume>",
    "<volume><name>x</name><target><format type='qcow2'/></target><backingStore><path>/y</path>"
    "</backingStore></volume>",
)

SCRIPT = """\
pool-list --all --details
pool-list --inactive
pool-list --persistent --type dir
pool-list --all --type netfs,logical
pool-list --all --type bogus
pool-list --all --uuid
pool-list --all --name
pool-info default-pool
pool-info --bytes default-pool
pool-info nobody
pool-dumpxml default-pool
pool-uuid default-pool
pool-name dfe224cb-28fb-8dd0-c4b2-64eb3f0f4566
pool-name 11111111-2222-3333-4444-555555555555
pool-define {spare}
pool-define /nonexistent
pool-define {conflict}
pool-define {renamed}
pool-define {namesake}
pool-list --all
pool-info spare
pool-dumpxml spare
pool-dumpxml spare --inactive
pool-autostart spare
pool-info spare
pool-list --autostart --all
pool-list --no-autostart
pool-autostart spare --disable
pool-refresh spare
vol-list spare
vol-create spare {plain}
pool-build spare
pool-build spare --overwrite
pool-start spare
pool-start spare
pool-info spare
pool-refresh spare
pool-build spare
pool-undefine spare
pool-delete spare
pool-destroy spare
pool-destroy spare
pool-delete spare
pool-undefine spare
pool-undefine spare
pool-create {transient}
pool-list --transient
pool-list --all
pool-info fleeting
pool-autostart fleeting
pool-undefine fleeting
pool-create {transient}
pool-destroy fleeting
pool-info fleeting
pool-define {nfs}
pool-dumpxml nfs
pool-define {vg}
pool-dumpxml vg
pool-list --all --type netfs,logical
pool-define-as made dir --target /made
pool-start made
pool-define-as made2 dir
pool-create-as made3 dir --target /made3
pool-create-as made4 dir - - - - /made4 --build
pool-destroy made3
pool-info made3
vol-create default-pool {plain}
vol-create default-pool {plain}
vol-create default-pool {thin}
vol-create default-pool {over}
vol-create default-pool {huge}
vol-create default-pool {iso}
vol-create default-pool {thin} --prealloc-metadata
vol-create nobody {thin}
vol-list default-pool
vol-list default-pool --details
vol-list nobody
pool-info default-pool
vol-info plain default-pool
vol-info plain default-pool --bytes
vol-info /default-pool/plain
vol-info nothing default-pool
vol-info /nothing
vol-dumpxml plain default-pool
vol-dumpxml thin default-pool
vol-dumpxml over default-pool
vol-dumpxml cd.iso default-pool
vol-path plain default-pool
vol-name /default-pool/plain
vol-key plain default-pool
vol-pool /default-pool/plain
vol-pool /default-pool/plain --uuid
vol-path plain made
vol-create-as default-pool as1 1G
vol-create-as default-pool as2 1G --allocation 1M --format qcow2
vol-create-as default-pool as3 1X
vol-create-as default-pool as4 1G --format bogus
vol-create-as default-pool as5 1G --format qcow2 --backing-vol as1 --backing-vol-format raw
vol-create-as default-pool as6 1G --backing-vol nothing
vol-dumpxml as5 default-pool
vol-clone plain plain2 default-pool
vol-clone plain plain2 default-pool
vol-clone nothing plain3 default-pool
vol-create-from default-pool {iso} plain
vol-info plain2 default-pool
vol-resize plain 20M default-pool
vol-wipe plain default-pool
vol-wipe plain default-pool --algorithm nnsa
vol-upload plain /dev/null default-pool
vol-download plain /dev/null default-pool
vol-delete plain2 default-pool
vol-delete plain2 default-pool
vol-delete plain default-pool --delete-snapshots
pool-info default-pool
pool-destroy default-pool
vol-info plain default-pool
vol-info /default-pool/plain
pool-start default-pool
vol-list default-pool
find-storage-pool-sources-as netfs store.example
find-storage-pool-sources-as netfs
find-storage-pool-sources logical
find-storage-pool-sources dir
find-storage-pool-sources bogus
pool-capabilities
pool-event --list
"""

_OWN_NAME = "libvirtd names the test driver's own function, which is no libvirt API"
_PARSER = "another XML parser finds other words for what is not well-formed"

#: Commands whose words differ, and why that is right.
DIFFERS = {
    "pool-dumpxml spare --inactive": "as libvirtd's real storage driver; the test driver refuses it",
    "vol-list spare": "here too the pool is named, as in libvirtd's other sentences",
    "vol-wipe plain default-pool": "one call serves wiping with and without a pattern",
    "pool-build spare --overwrite": _OWN_NAME,
    "pool-create-as made4 dir - - - - /made4 --build": _OWN_NAME,
    "vol-create default-pool {thin} --prealloc-metadata": _OWN_NAME,
    "vol-delete plain default-pool --delete-snapshots": _OWN_NAME,
}
EXIT_DIFFERS = {"pool-dumpxml spare --inactive"}


def test_virsh_cannot_tell(pair: Pair, tmp_path: Path) -> None:
    places = {}
    for name, document in (POOLS | VOLUMES).items():
        places[name] = tmp_path / f"{name}.xml"
        places[name].write_text(document)
    commands = [line.format(**places) for line in SCRIPT.splitlines()]
    differs = {command.format(**places): why for command, why in DIFFERS.items()}
    bad = [("pool-define", each) for each in BAD_POOLS]
    bad += [("vol-create default-pool", each) for each in BAD_VOLUMES]
    for number, (verb, document) in enumerate(bad):
        path = tmp_path / f"bad-{number}.xml"
        path.write_text(document)
        commands.append(f"{verb} {path}")
        if not document.endswith(">"):
            differs[commands[-1]] = _PARSER
    assert not (wrong := pair.differences(commands, differs, EXIT_DIFFERS)), "\n".join(wrong)
