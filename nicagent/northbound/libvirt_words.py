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

#: libvirt's code for each thing that is not found.
MISSING: Mapping[Thing, Code] = {
    Thing.DOMAIN: Code.NO_DOMAIN,
    Thing.SEGMENT: Code.NO_NETWORK,
    Thing.PORT: Code.NO_NETWORK_PORT,
    Thing.FILTER: Code.NO_NWFILTER,
    Thing.INTERFACE: Code.NO_INTERFACE,
    Thing.POOL: Code.NO_STORAGE_POOL,
    Thing.VOLUME: Code.NO_STORAGE_VOL,
    Thing.DEVICE: Code.NO_NODE_DEVICE,
    Thing.SECRET: Code.NO_SECRET,
    Thing.SNAPSHOT: Code.NO_DOMAIN_SNAPSHOT,
}


def code_of(failure: NicagentError) -> Code:
    """The number that clients compare."""
    if failure.kind is Kind.NOT_FOUND and failure.of is not None:
        return MISSING[failure.of]
    if failure.kind is Kind.EXISTS and failure.of is Thing.VOLUME:
        return Code.STORAGE_VOL_EXIST
    return CODES[failure.kind]


@contextlib.contextmanager
def translated(origin: Origin = Origin.QEMU) -> Iterator[None]:
    """Our errors in libvirt's words; `origin` is the part of libvirt that would have said so."""
    try:
        yield
    except NicagentError as e:
        raise error(code_of(e), str(e), origin=origin) from None


def cause_of(caller: Caller, why: str) -> Cause:
    """Who asks, and why, for the log and the host's record."""
    return Cause(f"{caller.identity} ({caller.peer})", f"libvirt {why}")
