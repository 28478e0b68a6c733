"""The procedure numbers libvirt has given out, so that a refusal can tell "not here" from "no such thing".

Measured against libvirtd 9.0: it answers 39 to events and gaps, anything else to a procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypervisor_shim.frame import Program

LAST = 443
#: Numbers within 1..LAST that no client may call: events, which only servers send, and unused ones.
_NOT_CALLS = frozenset(
    (107, *range(169, 174), 195, 224, 241, 248, 268, 269, 270, 276, 292, 311, 315, *range(318, 334), 339, 346,
     348, 354, 359, 362, 363, 367, 370, 373, 376, 377, 379, 382, 383, 385, 423, 438)
)  # fmt: skip

#: API names (without their "vir") of calls that clients are known to make and no row serves yet.
_CLIENTS_ASK_FOR = """
    5:ConnectGetMaxVcpus 8:DomainAttachDevice 13:DomainDetachDevice 20:DomainGetVcpus 28:DomainResume
    31:DomainSetMemory 32:DomainSetVcpus 34:DomainSuspend 39:NetworkCreate 41:NetworkDefineXML
    42:NetworkDestroy 43:NetworkGetXMLDesc 44:NetworkGetAutostart 45:NetworkGetBridgeName
    46:NetworkLookupByName 47:NetworkLookupByUUID 48:NetworkSetAutostart 49:NetworkUndefine 54:DomainRestore
    55:DomainSave 64:DomainBlockStats 65:DomainInterfaceStats 76:StoragePoolCreateXML
    77:StoragePoolDefineXML 78:StoragePoolCreate 80:StoragePoolDestroy 82:StoragePoolUndefine
    83:StoragePoolRefresh 84:StoragePoolLookupByName 85:StoragePoolLookupByUUID 86:StoragePoolLookupByVolume
    87:StoragePoolGetInfo 88:StoragePoolGetXMLDesc 89:StoragePoolGetAutostart 90:StoragePoolSetAutostart
    91:StoragePoolNumOfVolumes 92:StoragePoolListVolumes 93:StorageVolCreateXML 94:StorageVolDelete
    95:StorageVolLookupByName 96:StorageVolLookupByKey 97:StorageVolLookupByPath 98:StorageVolGetInfo
    99:StorageVolGetXMLDesc 100:StorageVolGetPath 102:NodeGetFreeMemory 113:NodeDeviceLookupByName
    114:NodeDeviceGetXMLDesc 115:NodeDeviceGetParent 141:SecretLookupByUUID 142:SecretDefineXML
    144:SecretSetValue 146:SecretUndefine 152:NetworkIsActive 153:NetworkIsPersistent
    154:StoragePoolIsActive 155:StoragePoolIsPersistent 158:ConnectCompareCPU 159:DomainMemoryStats
    160:DomainAttachDeviceFlags 161:DomainDetachDeviceFlags 162:ConnectBaselineCPU 163:DomainGetJobInfo
    164:DomainAbortJob 166:DomainMigrateSetMaxDowntime 174:DomainUpdateDeviceFlags 182:DomainManagedSave
    184:DomainManagedSaveRemove 185:DomainSnapshotCreateXML 186:DomainSnapshotGetXMLDesc
    189:DomainSnapshotLookupByName 191:DomainSnapshotCurrent 192:DomainRevertToSnapshot
    193:DomainSnapshotDelete 194:DomainGetBlockInfo 199:DomainSetVcpusFlags 200:DomainGetVcpusFlags
    203:ConnectGetSysinfo 204:DomainSetMemoryFlags 208:StorageVolUpload 209:StorageVolDownload
    211:DomainScreenshot 216:DomainMigratePerform3 226:DomainSendKey 227:NodeGetCPUStats
    228:NodeGetMemoryStats 229:DomainGetControlInfo 230:DomainGetVcpuPinInfo 237:DomainBlockJobAbort
    238:DomainGetBlockJobInfo 243:DomainBlockStatsFlags 251:DomainBlockResize 262:DomainGetCPUStats
    263:DomainGetDiskErrors 266:DomainBlockRebase 277:DomainGetHostname 281:ConnectListAllStoragePools
    282:StoragePoolListAllVolumes 283:ConnectListAllNetworks 284:ConnectListAllInterfaces
    285:ConnectListAllNodeDevices 286:ConnectListAllNWFilters 287:ConnectListAllSecrets
    290:DomainBlockCommit 293:NodeGetCPUMap 298:DomainGetJobStats 305:DomainMigratePerform3Params
    312:ConnectGetCPUModelNames 313:ConnectNetworkEventRegisterAny 335:DomainFSFreeze 336:DomainFSThaw
    337:DomainGetTime 338:DomainSetTime 341:NetworkGetDHCPLeases 345:DomainBlockCopy 349:DomainGetFSInfo
    353:DomainInterfaceAddresses 357:DomainSetUserPassword 358:DomainRename
    368:ConnectStoragePoolEventRegisterAny 374:ConnectNodeDeviceEventRegisterAny 418:DomainGetGuestInfo
"""

_OTHER_PROGRAMS: dict[int, dict[int, str]] = {
    Program.QEMU: {
        1: "virDomainQemuMonitorCommand",
        2: "virDomainQemuAttach",
        3: "virDomainQemuAgentCommand",
        4: "virConnectDomainQemuMonitorEventRegister",
        5: "virConnectDomainQemuMonitorEventDeregister",
        7: "virDomainQemuMonitorCommandWithFiles",
    },
    Program.LXC: {1: "virDomainLxcOpenNamespace"},
}


def known_numbers(served: Iterable[tuple[int, int, str]]) -> dict[int, Callable[[int], str | None]]:
    """For each program that is spoken at all: number → API name, None for a number that is no procedure.

    `served` are the (program, number, API name) of the rows. The admin program is not among them: libvirtd
    too speaks it on a socket of its own only.
    """
    names: dict[int, dict[int, str]] = {program: dict(table) for program, table in _OTHER_PROGRAMS.items()}
    remote = names.setdefault(Program.REMOTE, {})
    for item in _CLIENTS_ASK_FOR.split():
        number, _, name = item.partition(":")
        remote[int(number)] = "vir" + name
    for program, procedure, name in served:
        names.setdefault(program, {})[procedure] = name
    for procedure in range(1, LAST + 1):
        if procedure not in _NOT_CALLS:
            remote.setdefault(procedure, f"procedure {procedure}")
    return {program: table.get for program, table in names.items()}
