"""libvirt's error codes, and the one exception the library and its drivers raise.

Codes, domains and levels carry the numbers of libvirt's public header `virterror.h`: clients compare them.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """What went wrong (libvirt: virErrorNumber)."""

    OK = 0
    INTERNAL_ERROR = 1
    NO_MEMORY = 2
    NO_SUPPORT = 3
    UNKNOWN_HOST = 4
    NO_CONNECT = 5
    INVALID_CONN = 6
    INVALID_DOMAIN = 7
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    OS_TYPE = 16
    NO_SOURCE = 19
    NO_TARGET = 20
    NO_NAME = 21
    NO_OS = 22
    NO_DEVICE = 23
    DRIVER_FULL = 25
    XML_ERROR = 27
    DOM_EXIST = 28
    OPERATION_DENIED = 29
    XML_DETAIL = 35
    INVALID_NETWORK = 36
    NETWORK_EXIST = 37
    SYSTEM_ERROR = 38
    RPC = 39
    NO_DOMAIN = 42
    NO_NETWORK = 43
    INVALID_MAC = 44
    AUTH_FAILED = 45
    INVALID_STORAGE_POOL = 46
    INVALID_STORAGE_VOL = 47
    NO_STORAGE_POOL = 49
    NO_STORAGE_VOL = 50
    INVALID_NODE_DEVICE = 52
    NO_NODE_DEVICE = 53
    NO_SECURITY_MODEL = 54
    OPERATION_INVALID = 55
    NO_INTERFACE = 57
    INVALID_INTERFACE = 58
    MULTIPLE_INTERFACES = 59
    INVALID_NWFILTER = 61
    NO_NWFILTER = 62
    BUILD_FIREWALL = 63
    INVALID_SECRET = 65
    NO_SECRET = 66
    CONFIG_UNSUPPORTED = 67
    OPERATION_TIMEOUT = 68
    MIGRATE_PERSIST_FAILED = 69
    INVALID_DOMAIN_SNAPSHOT = 71
    NO_DOMAIN_SNAPSHOT = 72
    INVALID_STREAM = 73
    ARGUMENT_UNSUPPORTED = 74
    STORAGE_PROBE_FAILED = 75
    STORAGE_POOL_BUILT = 76
    SNAPSHOT_REVERT_RISKY = 77
    OPERATION_ABORTED = 78
    AUTH_CANCELLED = 79
    NO_DOMAIN_METADATA = 80
    MIGRATE_UNSAFE = 81
    OVERFLOW = 82
    BLOCK_COPY_ACTIVE = 83
    OPERATION_UNSUPPORTED = 84
    AGENT_UNRESPONSIVE = 86
    RESOURCE_BUSY = 87
    ACCESS_DENIED = 88
    STORAGE_VOL_EXIST = 90
    CPU_INCOMPATIBLE = 91
    XML_INVALID_SCHEMA = 92
    MIGRATE_FINISH_OK = 93
    AUTH_UNAVAILABLE = 94
    AGENT_UNSYNCED = 97
    DEVICE_MISSING = 99
    INVALID_NWFILTER_BINDING = 100
    NO_NWFILTER_BINDING = 101
    INVALID_DOMAIN_CHECKPOINT = 102
    NO_DOMAIN_CHECKPOINT = 103
    NO_DOMAIN_BACKUP = 104
    INVALID_NETWORK_PORT = 105
    NETWORK_PORT_EXIST = 106
    NO_NETWORK_PORT = 107
    NO_HOSTNAME = 108
    CHECKPOINT_INCONSISTENT = 109
    MULTIPLE_DOMAINS = 110
    NO_NETWORK_METADATA = 111


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
    SECURITY = 24
    INTERFACE = 26
    SECRET = 30
    CPU = 31
    NWFILTER = 33
    DOMAIN_SNAPSHOT = 35
    SYSINFO = 37
    STREAMS = 38
    EVENT = 40
    CAPABILITIES = 44
    AUTH = 46
    DEVICE = 49
    ACCESS = 55
    POLKIT = 60
    ADMIN = 62
    DOMAIN_CHECKPOINT = 69


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
    Code.NO_NODE_DEVICE: "Node device not found: ",
    Code.NO_INTERFACE: "Interface not found: ",
    Code.MULTIPLE_INTERFACES: "multiple matching interfaces found: ",
    Code.NO_NWFILTER: "Network filter not found: ",
    Code.NO_NWFILTER_BINDING: "Network filter binding not found: ",
    Code.NO_SECRET: "Secret not found: ",
    Code.INVALID_SECRET: "Invalid secret: ",
    Code.NO_NETWORK_PORT: "network port not found: ",
    Code.NO_NETWORK_METADATA: "metadata not found: ",
    Code.CPU_INCOMPATIBLE: "the CPU is incompatible with host CPU: ",
    Code.AGENT_UNSYNCED: "guest agent replied with wrong id to guest-sync command: ",
    Code.NO_SOURCE: "missing source information for device ",
    Code.NO_NAME: "missing name information in ",
    Code.MIGRATE_UNSAFE: "Unsafe migration: ",
    Code.BLOCK_COPY_ACTIVE: "block copy still active: ",
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


def unsupported(function: str) -> LibvirtError:
    """Code 3, as libvirt words it. `function` is the public API name, e.g. `virDomainSuspend`."""
    return error(Code.NO_SUPPORT, function)


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
