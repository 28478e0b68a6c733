"""Calls that no row serves: with which code each is refused, and why.

Code 3 (NO_SUPPORT) is for what a connection of this kind never has, and names the function as libvirt words
it; code 84 (OPERATION_UNSUPPORTED) for what a client may well expect, and adds the sentence. A row that is
added takes precedence over what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypervisor_shim.errors import Code, LibvirtError, Origin, error


@dataclass(frozen=True, slots=True)
class Refusal:
    code: Code
    why: str


_NO_MONITOR = Refusal(Code.NO_SUPPORT, "no QEMU monitor is behind this connection")
_NO_CONTAINERS = Refusal(Code.NO_SUPPORT, "there are no containers behind this connection")
_NO_DESCRIPTORS = Refusal(Code.NO_SUPPORT, "file descriptors are not passed (feature 8 is answered with 0)")
_NO_IDENTITY = Refusal(Code.NO_SUPPORT, "who calls is known from the connection, not from what he says")
_NO_DIRECT_DISK = Refusal(
    Code.OPERATION_UNSUPPORTED, "a disk's contents are read from its volume (virStorageVolDownload)"
)
_NO_MEMORY = Refusal(Code.OPERATION_UNSUPPORTED, "the memory of a running domain is not read from outside")
_NO_MIGRATION = Refusal(
    Code.OPERATION_UNSUPPORTED,
    "a running domain is not moved: shut it down and move it offline, or define it elsewhere",
)
_NO_CONFIDENTIALITY = Refusal(Code.OPERATION_UNSUPPORTED, "launch security is not this server's to measure")
_NO_LABEL = Refusal(Code.NO_SUPPORT, "no security driver labels domains here")
_NO_GRAPHICS = Refusal(Code.NO_SUPPORT, "no graphics server here has certificates to load again")
_NO_THROTTLE_GROUP = Refusal(
    Code.OPERATION_UNSUPPORTED, "a limit is of one disk (virDomainSetBlockIoTune), not of a group of disks"
)
_NO_THRESHOLD = Refusal(Code.OPERATION_UNSUPPORTED, "no event tells that a volume has grown to a threshold")
_NO_SNAPSHOTS = Refusal(Code.NO_SUPPORT, "the driver keeps no snapshots")
_NO_CHECKPOINTS = Refusal(Code.NO_SUPPORT, "the driver keeps no checkpoints")
_NO_UPDATE = Refusal(Code.NO_SUPPORT, "a device of the node is as it is found, not as a client wants it")

_GROUPS: Mapping[Refusal, str] = {
    _NO_MONITOR: """DomainQemuMonitorCommand DomainQemuAttach ConnectDomainQemuMonitorEventRegister
        DomainQemuAgentCommand ConnectDomainQemuMonitorEventDeregister DomainQemuMonitorCommandWithFiles""",
    _NO_CONTAINERS: "DomainLxcOpenNamespace",
    _NO_DESCRIPTORS: """DomainCreateXMLWithFiles DomainCreateWithFiles DomainOpenGraphics DomainOpenGraphicsFD
        DomainFDAssociate""",
    _NO_IDENTITY: "ConnectSetIdentity",
    _NO_DIRECT_DISK: "DomainBlockPeek",
    _NO_MEMORY: "DomainMemoryPeek DomainStartDirtyRateCalc",
    _NO_MIGRATION: """DomainMigratePrepare DomainMigratePerform DomainMigrateFinish DomainMigratePrepare2
        DomainMigrateFinish2 DomainMigratePrepareTunnel DomainMigrateSetMaxDowntime DomainMigrateSetMaxSpeed
        DomainMigrateBegin3 DomainMigratePrepare3 DomainMigratePrepareTunnel3 DomainMigratePerform3
        DomainMigrateFinish3 DomainMigrateConfirm3 DomainMigrateGetMaxSpeed DomainMigrateGetCompressionCache
        DomainMigrateSetCompressionCache DomainMigrateBegin3Params DomainMigratePrepare3Params
        DomainMigratePrepareTunnel3Params DomainMigratePerform3Params DomainMigrateFinish3Params
        DomainMigrateConfirm3Params DomainMigrateStartPostCopy DomainMigrateGetMaxDowntime""",
    _NO_CONFIDENTIALITY: "DomainGetLaunchSecurityInfo DomainSetLaunchSecurityState NodeGetSEVInfo",
    _NO_LABEL: "DomainGetSecurityLabelList",
    _NO_GRAPHICS: "DomainGraphicsReload",
    _NO_THROTTLE_GROUP: "DomainSetThrottleGroup DomainDelThrottleGroup",
    _NO_THRESHOLD: "DomainSetBlockThreshold",
    _NO_SNAPSHOTS: """DomainSnapshotCreateXML DomainSnapshotGetXMLDesc DomainSnapshotLookupByName
        DomainSnapshotCurrent DomainRevertToSnapshot DomainSnapshotDelete DomainSnapshotGetParent
        DomainSnapshotNumChildren DomainSnapshotListChildrenNames DomainSnapshotIsCurrent
        DomainSnapshotHasMetadata DomainSnapshotListAllChildren""",
    _NO_CHECKPOINTS: """DomainCheckpointCreateXML DomainCheckpointGetXMLDesc DomainCheckpointListAllChildren
        DomainCheckpointLookupByName DomainCheckpointGetParent DomainCheckpointDelete DomainBackupBegin
        DomainBackupGetXMLDesc""",
    _NO_UPDATE: "NodeDeviceUpdate",
}
#: API name → how a call is refused that has no row.
REFUSALS: Mapping[str, Refusal] = {
    f"vir{name}": refusal for refusal, names in _GROUPS.items() for name in names.split()
}


def refused(name: str) -> LibvirtError:
    """The answer to a call of `name` where no row serves it."""
    known = REFUSALS.get(name)
    if known is None or known.code is Code.NO_SUPPORT:
        return error(Code.NO_SUPPORT, name, origin=Origin.DOMAIN)
    return error(known.code, f"{name}: {known.why}", origin=Origin.DOMAIN)
