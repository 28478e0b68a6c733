"""Between libvirt's words for pools and volumes and ours."""

from __future__ import annotations

import uuid
from pathlib import Path
from xml.sax.saxutils import escape

from hypervisor_shim.driver.storage import PoolInfo, StartFlags, VolumeCreateFlags, VolumeRef
from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.storage_pool import Permissions, PoolDef
from hypervisor_shim.xml.storage_volume import Timestamps, VolumeDef
from nicagent.model import Preallocation, VolumeFormat
from nicagent.pools import PoolRecord
from nicagent.volumes import Volume, VolumeWish

#: libvirt's pool types, all but one refused.
_TYPES = (
    "dir", "fs", "netfs", "logical", "disk", "iscsi", "iscsi-direct", "scsi", "mpath", "rbd", "sheepdog",
    "gluster", "zfs", "vstorage",
)  # fmt: skip
#: An ISO image is a raw one to whoever serves its blocks.
_FORMATS = {"raw": VolumeFormat.RAW, "iso": VolumeFormat.RAW, "qcow2": VolumeFormat.QCOW2}
_CLUSTER = 64 << 10  # bytes, of the qcow2 volumes that are made here


def unsupported(detail: str, code: Code = Code.CONFIG_UNSUPPORTED) -> LibvirtError:
    return error(code, detail, origin=Origin.STORAGE)


def uuid_of(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw))


def info_of(record: PoolRecord) -> PoolInfo:
    return PoolInfo(
        uuid.UUID(record.uuid).bytes, record.name, "dir", record.active, record.persistent, record.autostart
    )


def ref_of(record: PoolRecord, found: Volume) -> VolumeRef:
    return VolumeRef(record.name, found.name, str(found.path))


def record_of(definition: PoolDef) -> PoolRecord:
    if definition.type != "dir":
        raise unsupported(f"pools of type '{definition.type}' are not served here; type 'dir' is")
    assert definition.path is not None
    rights = definition.permissions
    return PoolRecord(
        uuid_of(definition.uuid),
        definition.name,
        definition.path,
        mode=rights.mode,
        owner=rights.owner,
        group=rights.group,
    )


def builds(flags: StartFlags) -> bool:
    if flags & StartFlags.WITH_BUILD_OVERWRITE:
        raise unsupported("a directory is made, it is not formatted", Code.ARGUMENT_UNSUPPORTED)
    return bool(flags)


#: Features of qcow2 that only permit something. virt-install permits late reference counts for every volume
#: it makes; ours are never late, so that a disk needs no repair after a crash, and its document says so.
_HINTS = frozenset({"lazy_refcounts"})


def wish_of(definition: VolumeDef, flags: VolumeCreateFlags) -> VolumeWish:
    """What is asked for, or why it cannot be."""
    if "/" in definition.name:
        detail = f"volume name '{definition.name}' cannot contain '/'"
        raise error(Code.OPERATION_INVALID, detail, origin=Origin.STORAGE)
    form = _FORMATS.get(definition.format)
    unknown = [feature for feature in definition.features if feature not in _HINTS]
    refusals = (
        (form is None, f"volumes of format '{definition.format}' are not made here; raw and qcow2 are"),
        (definition.type != "file", f"volume type '{definition.type}'; a volume is a file here"),
        (definition.encrypted, "encrypted volumes are not served here"),
        (definition.nocow, "<nocow/> is not honoured here"),
        (definition.compat not in (None, "1.1"), f"compat {definition.compat} of qcow2; 1.1 is made here"),
        (
            definition.cluster_size not in (None, _CLUSTER),
            f"clusters of {definition.cluster_size} bytes; {_CLUSTER} are made here",
        ),
        (bool(unknown), f"<{', '.join(unknown)}> of qcow2 is not used here"),
        (bool(flags & VolumeCreateFlags.REFLINK), "sharing blocks with what a volume is made from"),
    )
    for refused, why in refusals:
        if refused:
            raise unsupported(why)
    assert form is not None
    capacity = definition.capacity or 0
    whole = definition.allocation is None or definition.allocation >= capacity
    asked = form is VolumeFormat.RAW or bool(flags & VolumeCreateFlags.PREALLOC_METADATA)
    if asked and whole:
        allocated = Preallocation.ALL
    elif asked and form is VolumeFormat.QCOW2:
        allocated = Preallocation.METADATA
    else:
        allocated = Preallocation.NONE
    backing = None
    if definition.backing is not None:
        base = definition.backing
        known = _FORMATS.get(base.format) if base.format is not None else None
        if base.format is not None and known is None:
            raise unsupported(f"a backing file of format '{base.format}'; raw and qcow2 are served")
        backing = (Path(base.path), known)
    rights = definition.permissions
    return VolumeWish(
        definition.name,
        capacity,
        form,
        backing,
        preallocate=allocated,
        mode=rights.mode,
        owner=-1 if rights.owner is None else rights.owner,
        group=-1 if rights.group is None else rights.group,
    )


def rights_of(path: Path) -> Permissions:
    try:
        facts = path.stat()
    except OSError:
        return Permissions()
    return Permissions(facts.st_mode & 0o7777, facts.st_uid, facts.st_gid)


def times_of(path: Path) -> Timestamps | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return Timestamps(
        *(
            f"{ns // 1_000_000_000}.{ns % 1_000_000_000:09}"
            for ns in (facts.st_atime_ns, facts.st_mtime_ns, facts.st_ctime_ns)
        )
    )


def capabilities() -> str:
    lines = ["<storagepoolCapabilities>"]
    for name in _TYPES:
        supported = name == "dir"
        lines.append(f"  <pool type='{escape(name)}' supported='{'yes' if supported else 'no'}'>")
        if supported:
            lines += ["    <volOptions>", "      <defaultFormat type='raw'/>"]
            lines.append("      <enum name='targetFormatType'>")
            lines += [f"        <value>{form}</value>" for form in ("raw", "qcow2")]
            lines += ["      </enum>", "    </volOptions>"]
        lines.append("  </pool>")
    return "\n".join([*lines, "</storagepoolCapabilities>", ""])
