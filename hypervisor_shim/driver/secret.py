"""Secrets: keys that definitions name and never hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.errors import Code, LibvirtError, Origin, error, uuid_text
from hypervisor_shim.xml.secret import SecretDef


class Secrets(ABC):
    """A store of keys. Definitions are read from memory; values are bytes that go to nobody but who asks by
    `value`, and into no document, log or error.

    `define` and the like report `SecretEvent` and `SecretValueEvent` through the driver's `subscribe`.
    """

    @abstractmethod
    def secrets(self) -> Iterable[SecretDef]:
        """All of them, in a stable order."""

    @abstractmethod
    def secret(self, uuid: bytes) -> SecretDef | None: ...

    def secret_by_usage(self, usage_type: int, usage_id: str) -> SecretDef | None:
        """The one that is meant for this use; there is at most one."""
        found = (
            each for each in self.secrets() if (each.usage_type, each.usage_id) == (usage_type, usage_id)
        )
        return next(found, None)

    @abstractmethod
    async def define(self, caller: Caller, definition: SecretDef) -> SecretDef:
        """Create or replace; a value that is there stays. `check_redefinition` knows what is refused."""

    @abstractmethod
    async def undefine(self, caller: Caller, uuid: bytes) -> None:
        """Forget the secret and its value. Raises NO_SECRET."""

    @abstractmethod
    async def set_value(self, caller: Caller, uuid: bytes, value: bytes) -> None:
        """Raises NO_SECRET."""

    @abstractmethod
    async def value(self, caller: Caller, uuid: bytes) -> bytes:
        """Raises NO_SECRET, also when it was never given a value. A private one is not asked for."""


def no_secret(uuid: bytes) -> LibvirtError:
    """The answer to any call on a secret that is not there."""
    return error(Code.NO_SECRET, f"no secret with matching uuid '{uuid_text(uuid)}'", origin=Origin.SECRET)


def no_value(uuid: bytes) -> LibvirtError:
    """The answer to reading a secret that was defined and never given a value."""
    return error(Code.NO_SECRET, f"secret '{uuid_text(uuid)}' does not have a value", origin=Origin.SECRET)


def check_redefinition(new: SecretDef, present: SecretDef | None, holder: SecretDef | None) -> None:
    """What libvirt refuses: one use for two secrets (`holder` has it), another use for the secret that is
    there (`present`), and to make a private secret readable.
    """
    if present is None:
        if holder is not None:
            raise _internal(
                f"a secret with UUID {uuid_text(holder.uuid)} already defined for use with {new.usage_id}"
            )
        return
    if new.usage_id != present.usage_id:
        raise _internal(
            f"a secret with UUID {uuid_text(present.uuid)} is already defined for use with "
            + (present.usage_id or "(null)")
        )
    if present.private and not new.private:
        raise _internal("cannot change private flag on existing secret")
    if holder is not None and holder.uuid != new.uuid:
        raise _internal(
            f"a secret with UUID {uuid_text(holder.uuid)} already defined for use with {new.usage_id}"
        )


def _internal(detail: str) -> LibvirtError:
    return error(Code.INTERNAL_ERROR, detail, origin=Origin.SECRET)
