"""Our errors and causes in libvirt's words, for every family of the libvirt face."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from hypervisor_shim.driver import Caller
from hypervisor_shim.errors import Code, Origin, error
from nicagent.errors import Kind, NicagentError, Thing
from nicagent.model import Cause

CODES: Mapping[Kind, Code] = {
    Kind.INVALID: Code.INVALID_ARG,
    Kind.NOT_FOUND: Code.OPERATION_FAILED,
    Kind.EXISTS: Code.OPERATION_FAILED,
    Kind.WRONG_STATE: Code.OPERATION_INVALID,
    Kind.UNSUPPORTED: Code.CONFIG_UNSUPPORTED,
    Kind.DENIED: Code.ACCESS_DENIED,
    Kind.UNAVAILABLE: Code.OPERATION_FAILED,
    Kind.NO_SPACE: Code.OPERATION_FAILED,
    Kind.INTERNAL: Code.INTERNAL_ERROR,
}

#: For each thing that is not found libvirt's code, and the part of libvirt that says so. Clients look at
#: both: from any part but nwfilter's they take code 62 for that of a secret, as servers of 2009 meant it.
MISSING: Mapping[Thing, tuple[Code, Origin]] = {
    Thing.DOMAIN: (Code.NO_DOMAIN, Origin.QEMU),
    Thing.SEGMENT: (Code.NO_NETWORK, Origin.NETWORK),
    Thing.PORT: (Code.NO_NETWORK_PORT, Origin.NETWORK),
    Thing.FILTER: (Code.NO_NWFILTER, Origin.NWFILTER),
    Thing.INTERFACE: (Code.NO_INTERFACE, Origin.INTERFACE),
    Thing.POOL: (Code.NO_STORAGE_POOL, Origin.STORAGE),
    Thing.VOLUME: (Code.NO_STORAGE_VOL, Origin.STORAGE),
    Thing.DEVICE: (Code.NO_NODE_DEVICE, Origin.NODEDEV),
    Thing.SECRET: (Code.NO_SECRET, Origin.SECRET),
    Thing.SNAPSHOT: (Code.NO_DOMAIN_SNAPSHOT, Origin.DOMAIN_SNAPSHOT),
}


def code_of(failure: NicagentError, origin: Origin) -> tuple[Code, Origin]:
    """What clients compare; `origin` where the thing has no part of libvirt of its own."""
    if failure.kind is Kind.NOT_FOUND and failure.of is not None:
        return MISSING[failure.of]
    if failure.kind is Kind.EXISTS and failure.of is Thing.VOLUME:
        return Code.STORAGE_VOL_EXIST, origin
    return CODES[failure.kind], origin


@contextlib.contextmanager
def translated(origin: Origin = Origin.QEMU) -> Iterator[None]:
    """Our errors in libvirt's words; `origin` is the part of libvirt that would have said so."""
    try:
        yield
    except NicagentError as e:
        code, origin = code_of(e, origin)
        raise error(code, str(e), origin=origin) from None


def cause_of(caller: Caller, why: str) -> Cause:
    """Who asks, and why, for the log and the host's record."""
    return Cause(f"{caller.identity} ({caller.peer})", f"libvirt {why}")
