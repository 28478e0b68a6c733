"""Numbers of the NVMe base specification 1.4 and of NVMe over Fabrics 1.1 that this target uses.

Status values are the field without its phase bit: `SCT << 8 | SC`, with `DNR` (do not retry) in bit 14.
"""

from __future__ import annotations

from enum import IntEnum

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"  # NVMe-oF 1.1, section 1.5.2
NQN_MAX = 223  # bytes of UTF-8 without the terminator (base 1.4, section 7.9)
NSID_ALL = 0xFFFF_FFFF
CNTLID_DYNAMIC = 0xFFFF
PAGE = 4096  # CAP.MPSMIN, and the size of every Identify structure

DNR = 0x4000

CC_ENABLE = 0x1  # bits of controller configuration and status (base 1.4, section 3.1)
CC_SHUTDOWN = 0x3 << 14
CSTS_READY = 0x1
CSTS_FATAL = 0x2
CSTS_SHUTDOWN_DONE = 0x2 << 2

EVENT_NAMESPACES = 1 << 8  # bits of Asynchronous Event Configuration and of OAES
EVENT_DISCOVERY = 1 << 31


class AdminOp(IntEnum):
    """Admin commands (base 1.4, figure 139)."""

    GET_LOG_PAGE = 0x02
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    KEEP_ALIVE = 0x18
    FABRICS = 0x7F


class IoOp(IntEnum):
    """NVM command set (base 1.4, figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class FabricsType(IntEnum):
    """FCTYPE, byte 4 of a fabrics command (NVMe-oF 1.1, figure 15)."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTH_SEND = 0x05
    AUTH_RECV = 0x06
    DISCONNECT = 0x08


class Status(IntEnum):
    """Status code type and status code (base 1.4, figures 127–131; NVMe-oF 1.1, figure 20)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    CID_CONFLICT = 0x003
    INTERNAL = 0x006
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE = 0x00C
    INVALID_SGL = 0x00D
    SGL_LENGTH = 0x00F
    SGL_TYPE = 0x011
    SGL_OFFSET = 0x016
    WRITE_PROTECTED = 0x020
    TRANSIENT_TRANSPORT = 0x022
    LBA_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    AER_LIMIT = 0x105
    INVALID_LOG_PAGE = 0x109
    FEATURE_NOT_CHANGEABLE = 0x10E
    CONNECT_FORMAT = 0x180
    CONNECT_BUSY = 0x181
    CONNECT_INVALID = 0x182
    CONNECT_HOST = 0x184
    CONNECT_QUEUE_TYPE = 0x185
    AUTH_REQUIRED = 0x191
    WRITE_FAULT = 0x280
    READ_ERROR = 0x281


class Feature(IntEnum):
    """Feature identifiers (base 1.4, figures 271–272)."""

    ARBITRATION = 0x01
    POWER = 0x02
    TEMPERATURE = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    QUEUES = 0x07
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B
    KEEP_ALIVE = 0x0F
    HOST_ID = 0x81


class LogPage(IntEnum):
    """Log page identifiers (base 1.4, figure 192; NVMe-oF 1.1, section 5.3)."""

    ERRORS = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS = 0x05
    DISCOVERY = 0x70


class NvmeError(Exception):
    """A command ends with this status; `result` becomes dwords 0 and 1 of the completion entry."""

    def __init__(self, status: int, result: int = 0) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status
        self.result = result
