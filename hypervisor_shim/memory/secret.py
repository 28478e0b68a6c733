"""Secrets that are kept in memory only."""

from __future__ import annotations

from collections.abc import Callable

from hypervisor_shim.driver.events import Event, SecretEvent, SecretValueEvent
from hypervisor_shim.driver.facts import Caller
from hypervisor_shim.driver.secret import Secrets, check_redefinition, no_secret, no_value
from hypervisor_shim.xml.secret import SecretDef

_DEFINED, _UNDEFINED = 0, 1


class MemorySecrets(Secrets):
    """Starts with none."""

    def __init__(self, publish: Callable[[Event], None]) -> None:
        self._publish = publish
        self._secrets: dict[bytes, SecretDef] = {}
        self._values: dict[bytes, bytes] = {}

    def secrets(self) -> list[SecretDef]:
        return list(self._secrets.values())

    def secret(self, uuid: bytes) -> SecretDef | None:
        return self._secrets.get(uuid)

    async def define(self, caller: Caller, definition: SecretDef) -> SecretDef:
        holder = (
            self.secret_by_usage(definition.usage_type, definition.usage_id) if definition.usage_id else None
        )
        check_redefinition(definition, self._secrets.get(definition.uuid), holder)
        self._secrets[definition.uuid] = definition
        self._tell(definition, _DEFINED)
        return definition

    async def undefine(self, caller: Caller, uuid: bytes) -> None:
        secret = self._find(uuid)
        del self._secrets[uuid]
        self._values.pop(uuid, None)
        self._tell(secret, _UNDEFINED)

    async def set_value(self, caller: Caller, uuid: bytes, value: bytes) -> None:
        secret = self._find(uuid)
        self._values[uuid] = value
        self._publish(SecretValueEvent(uuid, secret.usage_type, secret.usage_id))

    async def value(self, caller: Caller, uuid: bytes) -> bytes:
        self._find(uuid)
        if uuid not in self._values:
            raise no_value(uuid)
        return self._values[uuid]

    def _find(self, uuid: bytes) -> SecretDef:
        secret = self._secrets.get(uuid)
        if secret is None:
            raise no_secret(uuid)
        return secret

    def _tell(self, secret: SecretDef, event: int) -> None:
        self._publish(SecretEvent(secret.uuid, secret.usage_type, secret.usage_id, event))
