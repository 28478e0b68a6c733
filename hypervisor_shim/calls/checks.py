"""What calls on domains check before they hand on: the domain, its flags, what they may mean for it now."""

from __future__ import annotations

from hypervisor_shim.driver import DomainInfo, Impact
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, no_domain, not_running
from hypervisor_shim.session import Session
from hypervisor_shim.xdr import DomainRef

Ref = tuple[bytes, bytes]  # UUID and name, as the client sent them
DOMAIN = DomainRef()


def find_domain(session: Session, ref: Ref) -> DomainInfo:
    """The domain that a call names, as it is now. Raises NO_DOMAIN."""
    info = session.driver.domain(ref[0])
    if info is None:
        raise no_domain(ref[0], ref[1].decode("utf-8", "surrogateescape"))
    return info


def running_domain(session: Session, ref: Ref) -> DomainInfo:
    """The same, and it runs. Raises NO_DOMAIN, OPERATION_INVALID."""
    info = find_domain(session, ref)
    if not info.active:
        raise not_running()
    return info


def known_flags(flags: int, allowed: int, function: str, origin: Origin = Origin.QEMU) -> int:
    """The flags, if the call knows them all (libvirt refuses the rest with INVALID_ARG)."""
    unknown = flags & ~allowed
    if unknown:
        message = f"unsupported flags (0x{unknown:x}) in function {function}"
        raise LibvirtError(Code.INVALID_ARG, message, origin=origin)
    return flags


def impact_of(info: DomainInfo, flags: int, function: str) -> Impact:
    """What LIVE and CONFIG may mean for this domain now."""
    impact = Impact(known_flags(flags, 3, function))
    if impact & Impact.LIVE and not info.active:
        raise error(Code.OPERATION_INVALID, "domain is not running")
    if impact & Impact.CONFIG and not info.persistent:
        raise error(Code.OPERATION_INVALID, "transient domains do not have any persistent config")
    return impact
