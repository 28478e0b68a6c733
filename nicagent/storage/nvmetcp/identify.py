"""Identify data structures (base 1.4, section 5.15; NVMe-oF 1.1, section 4)."""

from __future__ import annotations

from struct import pack, pack_into

from nicagent.storage.nvmetcp.config import NN
from nicagent.storage.nvmetcp.controller import Controller
from nicagent.storage.nvmetcp.limits import (
    AER_LIMIT,
    FIRMWARE,
    IN_CAPSULE_MAX,
    QUEUE_ENTRIES,
    TRANSFER_MAX,
    VERSION,
)
from nicagent.storage.nvmetcp.pdu import Sqe
from nicagent.storage.nvmetcp.spec import (
    DISCOVERY_NQN,
    DNR,
    EVENT_DISCOVERY,
    EVENT_NAMESPACES,
    NSID_ALL,
    PAGE,
    NvmeError,
    Status,
)
from nicagent.storage.nvmetcp.subsystem import Namespace

MDTS = (TRANSFER_MAX // PAGE).bit_length() - 1  # a power of two of pages
CMIC = 0x3  # several ports, several controllers: a host may come back before its old association is gone
KAS = 10  # keep alive granularity: 1 s in units of 100 ms
MAX_NAME = 256  # bytes of SUBNQN

CTRATT = 0x41  # 128-bit host identifier, traffic based keep alive
ONCS = 0x0C  # Write Zeroes, Dataset Management
VWC = 0x07  # a volatile write cache; Flush takes NSID FFFFFFFFh
SGLS = 0x1 | 1 << 20  # SGLs without alignment; data block offsets into the capsule

CNS_NAMESPACE, CNS_CONTROLLER, CNS_ACTIVE, CNS_DESCRIPTORS = 0x00, 0x01, 0x02, 0x03
CNS_CSI_NAMESPACE, CNS_CSI_CONTROLLER = 0x05, 0x06


def identify(controller: Controller, sqe: Sqe) -> bytes:
    """The structure that CDW10.CNS names. Raises NvmeError for one we have not."""
    cns = sqe.cdw10 & 0xFF
    if cns == CNS_CONTROLLER:
        return identify_controller(controller)
    subsystem = controller.subsystem
    if subsystem is None:
        raise NvmeError(Status.INVALID_FIELD | DNR)
    if cns == CNS_ACTIVE:
        if sqe.nsid >= NSID_ALL - 1:
            raise NvmeError(Status.INVALID_NAMESPACE | DNR)
        active = sorted(nsid for nsid in subsystem.namespaces if nsid > sqe.nsid)[: PAGE // 4]
        return pack(f"<{len(active)}I", *active).ljust(PAGE, b"\0")
    if cns in (CNS_CSI_NAMESPACE, CNS_CSI_CONTROLLER):
        # The NVM command set's own structures. Zero means "no limit of its own" in every field.
        if sqe.cdw11 >> 24 != 0:
            raise NvmeError(Status.INVALID_FIELD | DNR)
        if cns == CNS_CSI_NAMESPACE and sqe.nsid not in subsystem.namespaces:
            raise NvmeError(Status.INVALID_NAMESPACE | DNR)
        return bytes(PAGE)
    if cns in (CNS_NAMESPACE, CNS_DESCRIPTORS):
        if not 1 <= sqe.nsid <= NN:
            raise NvmeError(Status.INVALID_NAMESPACE | DNR)
        namespace = subsystem.namespaces.get(sqe.nsid)
        if cns == CNS_NAMESPACE:
            return bytes(PAGE) if namespace is None else identify_namespace(namespace)
        if namespace is None:
            raise NvmeError(Status.INVALID_NAMESPACE | DNR)
        return descriptors(namespace)
    raise NvmeError(Status.INVALID_FIELD | DNR)


def identify_controller(controller: Controller) -> bytes:
    """CNS 01h (figure 251)."""
    subsystem = controller.subsystem
    page = bytearray(PAGE)
    serial, model = (
        ("", "nicagent") if subsystem is None else (subsystem.config.serial, subsystem.config.model)
    )
    page[4:24] = serial.encode("ascii").ljust(20)
    page[24:64] = model.encode("ascii").ljust(40)
    page[64:72] = FIRMWARE.encode("ascii").ljust(8)
    page[76] = CMIC
    page[77] = MDTS
    oaes = EVENT_DISCOVERY if subsystem is None else EVENT_NAMESPACES
    pack_into("<HIII", page, 78, controller.cntlid, VERSION, 0, 0)
    pack_into("<II", page, 92, oaes, CTRATT)
    page[111] = 2 if subsystem is None else 1  # CNTRLTYPE
    page[258] = 3  # ACL
    page[259] = AER_LIMIT - 1  # AERL
    page[260] = 0x03  # FRMW: one slot, read only
    page[261] = 0x04 if subsystem is None else 0x06  # LPA: extended data; commands supported page
    pack_into("<H", page, 320, KAS)
    page[512], page[513] = 0x66, 0x44  # SQES, CQES
    pack_into("<H", page, 514, QUEUE_ENTRIES)  # MAXCMD
    if subsystem is not None:
        pack_into("<IH", page, 516, NN, ONCS)
        page[525] = VWC
        pack_into("<I", page, 540, NN)  # MNAN
    pack_into("<I", page, 536, SGLS)
    name = DISCOVERY_NQN if subsystem is None else subsystem.nqn
    page[768 : 768 + MAX_NAME] = name.encode().ljust(MAX_NAME, b"\0")
    capsule = 64 if subsystem is None else 64 + IN_CAPSULE_MAX
    pack_into("<IIHBB", page, 1792, capsule // 16, 1, 0, 0, 1)  # IOCCSZ, IORCSZ, ICDOFF, FCATT, MSDBD
    return bytes(page)


def identify_namespace(namespace: Namespace) -> bytes:
    """CNS 00h (figure 249)."""
    page = bytearray(PAGE)
    pack_into("<QQQ", page, 0, namespace.blocks, namespace.blocks, namespace.blocks)
    page[24] = 0x10  # NSFEAT: NPWG … NOWS below are meant
    page[30] = 0x01  # NMIC: may be attached to several controllers
    page[33] = 0x09 if namespace.backend.discard_reads_zero else 0x08  # DLFEAT
    granule = (4096 >> namespace.shift) - 1  # page cache and qcow2 sub-clusters alike: 4 KiB
    pack_into("<HHHHH", page, 64, granule, granule, granule, granule, granule)
    page[99] = 0x01 if namespace.readonly else 0  # NSATTR: write protected
    page[104:120] = bytes.fromhex(namespace.config.nguid).rjust(16, b"\0")
    page[120:128] = bytes.fromhex(namespace.config.eui64).rjust(8, b"\0")
    page[130] = namespace.shift  # LBAF 0: LBADS
    return bytes(page)


def descriptors(namespace: Namespace) -> bytes:
    """CNS 03h: EUI-64, NGUID and UUID, as far as they were given (figure 253)."""
    identity = namespace.config
    given = ((1, bytes.fromhex(identity.eui64)), (2, bytes.fromhex(identity.nguid)), (3, identity.uuid.bytes))
    listed = b"".join(pack("<BBxx", kind, len(value)) + value for kind, value in given if value)
    return listed.ljust(PAGE, b"\0")
