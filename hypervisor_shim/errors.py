"""libvirt's error codes, and the one exception the library and its drivers raise.

Codes, domains and levels carry the numbers of libvirt's public header `virterror.h`: clients compare them.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """What went wrong (libvirt: virErrorNumber)."""

    OK = 0
    INTERNAL_ERROR = 1
    NO_SUPPORT = 3
    NO_CONNECT = 5
    INVALID_CONN = 6
    INVALID_DOMAIN = 7
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    OS_TYPE = 16
    NO_SOURCE = 19
    NO_TARGET = 20
    NO_NAME = 21
    DRIVER_FULL = 25
    XML_ERROR = 27
    DOM_EXIST = 28
    OPERATION_DENIED = 29
    XML_DETAIL = 35
    SYSTEM_ERROR = 38
    RPC = 39
    NO_DOMAIN = 42
    NO_NETWORK = 43
    AUTH_FAILED = 45
    NO_STORAGE_POOL = 49
    NO_STORAGE_VOL = 50
    NO_NODE_DEVICE = 53
    OPERATION_INVALID = 55
    NO_NWFILTER = 62
    NO_SECRET = 66
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    NO_DOMAIN_SNAPSHOT = 72
    INVALID_STREAM = 73
    ARGUMENT_UNSUPPORTED = 74
    OPERATION_ABORTED = 78
    NO_DOMAIN_METADATA = 80
    OVERFLOW = 82
    OPERATION_UNSUPPORTED = 84
    AGENT_UNRESPONSIVE = 86
    RESOURCE_BUSY = 87
    ACCESS_DENIED = 88
    XML_INVALID_SCHEMA = 92
    AUTH_UNAVAILABLE = 94
    DEVICE_MISSING = 99
    NO_DOMAIN_CHECKPOINT = 103


class Origin(IntEnum):
    """Which part of libvirt speaks (libvirt: virErrorDomain)."""

    NONE = 0
    XML = 5
    DOM = 6
    RPC = 7
    QEMU = 10
    NET = 11
    TEST = 12
    REMOTE = 13
    STORAGE = 18
    NETWORK = 19
    DOMAIN = 20
    NODEDEV = 22
    SECRET = 30
    NWFILTER = 33
    STREAMS = 38
    EVENT = 40
    ADMIN = 62


#: The sentence libvirt puts before the detail, per code (its client prints the whole message as it is sent).
_PREFIX: dict[Code, str] = {
    Code.INTERNAL_ERROR: "internal error: ",
    Code.NO_SUPPORT: "this function is not supported by the connection driver: ",
    Code.NO_CONNECT: "no connection driver available for ",
    Code.INVALID_CONN: "invalid connection pointer in ",
    Code.INVALID_DOMAIN: "invalid domain pointer in ",
    Code.INVALID_ARG: "invalid argument: ",
    Code.OPERATION_FAILED: "operation failed: ",
    Code.OS_TYPE: "unknown OS type: ",
    Code.XML_ERROR: "XML error: ",
    Code.DOM_EXIST: "this domain exists already: ",
    Code.OPERATION_DENIED: "operation forbidden: ",
    Code.AUTH_FAILED: "authentication failed: ",
    Code.NO_DOMAIN: "Domain not found: ",
    Code.OPERATION_INVALID: "Requested operation is not valid: ",
    Code.CONFIG_UNSUPPORTED: "unsupported configuration: ",
    Code.OPERATION_TIMEOUT: "Timed out during operation: ",
    Code.NO_DOMAIN_SNAPSHOT: "Domain snapshot not found: ",
    Code.INVALID_STREAM: "invalid stream pointer: ",
    Code.ARGUMENT_UNSUPPORTED: "argument unsupported: ",
    Code.OPERATION_ABORTED: "operation aborted: ",
    Code.NO_DOMAIN_METADATA: "metadata not found: ",
    Code.OVERFLOW: "numerical overflow: ",
    Code.OPERATION_UNSUPPORTED: "Operation not supported: ",
    Code.AGENT_UNRESPONSIVE: "Guest agent is not responding: ",
    Code.RESOURCE_BUSY: "resource busy: ",
    Code.ACCESS_DENIED: "access denied: ",
    Code.NO_STORAGE_POOL: "Storage pool not found: ",
    Code.NO_STORAGE_VOL: "Storage volume not found: ",
    Code.NO_NETWORK: "Network not found: ",
    Code.AUTH_UNAVAILABLE: "authentication unavailable: ",
    Code.DEVICE_MISSING: "device not found: ",
    Code.NO_DOMAIN_CHECKPOINT: "Domain checkpoint not found: ",
}


class LibvirtError(Exception):
    """An answer that is an error. `message` is what the client's user reads, prefix included.

    Drivers raise it; the connection encodes it. Anything else a driver raises is a bug: it is logged and the
    client gets INTERNAL_ERROR without the detail.
    """

    def __init__(
        self, code: Code, message: str, *, origin: Origin = Origin.QEMU, detail: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.origin = origin
        self.detail = detail  # the part of `message` behind the code's prefix, if it has one


def error(code: Code, detail: str, *, origin: Origin = Origin.QEMU) -> LibvirtError:
    """A LibvirtError whose message is libvirt's own prefix for `code` and `detail`."""
    prefix = _PREFIX.get(code)
    message = f"{prefix}{detail}" if prefix else detail
    return LibvirtError(code, message, origin=origin, detail=detail if prefix else None)


def rpc_error(message: str) -> LibvirtError:
    """A packet that is not understood: code 39, no prefix."""
    return LibvirtError(Code.RPC, message, origin=Origin.RPC)


def uuid_text(uuid: bytes) -> str:
    """16 bytes → the usual 8-4-4-4-12 form."""
    h = uuid.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def no_domain(uuid: bytes, name: str | None = None) -> LibvirtError:
    """The answer to any call on a domain that is not (or no longer) there."""
    named = f" ({name})" if name is not None else ""
    return error(Code.NO_DOMAIN, f"no domain with matching uuid '{uuid_text(uuid)}'{named}")


def no_domain_named(name: str) -> LibvirtError:
    return error(Code.NO_DOMAIN, f"no domain with matching name '{name}'")


def no_domain_id(id: int) -> LibvirtError:
    return error(Code.NO_DOMAIN, f"no domain with matching id {id}")


def not_running() -> LibvirtError:
    return error(Code.OPERATION_INVALID, "domain is not running")


def already_running() -> LibvirtError:
    return error(Code.OPERATION_INVALID, "domain is already running")
