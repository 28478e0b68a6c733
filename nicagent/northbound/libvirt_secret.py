"""The keyring in libvirt's words."""

from __future__ import annotations

import logging
import uuid as uuids
from collections.abc import Callable
from typing import NoReturn

from hypervisor_shim.driver import Caller, Event, SecretEvent, SecretValueEvent
from hypervisor_shim.driver.secret import Secrets, check_redefinition, no_secret, no_value
from hypervisor_shim.errors import Origin, uuid_text
from hypervisor_shim.xml.secret import SecretDef, Usage
from nicagent.errors import Kind, NicagentError
from nicagent.keyring import Keyring, Secret
from nicagent.northbound.libvirt_words import translated

_DEFINED, _UNDEFINED = 0, 1

log = logging.getLogger("nicagent.libvirt")


class MetalSecrets(Secrets):
    """What libvirt clients see of the keyring."""

    def __init__(self, keyring: Keyring, publish: Callable[[Event], None]) -> None:
        self._keyring = keyring
        self._publish = publish

    def secrets(self) -> list[SecretDef]:
        return [_shown(each) for each in self._keyring.secrets()]

    def secret(self, uuid: bytes) -> SecretDef | None:
        found = self._keyring.secret(uuid_text(uuid))
        return None if found is None else _shown(found)

    async def define(self, caller: Caller, definition: SecretDef) -> SecretDef:
        holder = (
            self.secret_by_usage(definition.usage_type, definition.usage_id) if definition.usage_id else None
        )
        check_redefinition(definition, self.secret(definition.uuid), holder)
        with translated(Origin.SECRET):
            await self._keyring.define(_kept(definition))
        self._tell(caller, definition, _DEFINED)
        return definition

    async def undefine(self, caller: Caller, uuid: bytes) -> None:
        definition = self._find(uuid)
        with translated(Origin.SECRET):
            await self._keyring.undefine(uuid_text(uuid))
        self._tell(caller, definition, _UNDEFINED)

    async def set_value(self, caller: Caller, uuid: bytes, value: bytes) -> None:
        definition = self._find(uuid)
        with translated(Origin.SECRET):
            await self._keyring.set_value(uuid_text(uuid), value)
        log.info("secret %s was given a value by %s (%s)", uuid_text(uuid), caller.identity, caller.peer)
        self._publish(SecretValueEvent(uuid, definition.usage_type, definition.usage_id))

    async def value(self, caller: Caller, uuid: bytes) -> bytes:
        self._find(uuid)
        try:
            value = self._keyring.value(uuid_text(uuid))
        except NicagentError as missing:
            _refuse(missing, uuid)
        log.info("secret %s was read by %s (%s)", uuid_text(uuid), caller.identity, caller.peer)
        return value

    def _find(self, uuid: bytes) -> SecretDef:
        found = self.secret(uuid)
        if found is None:
            raise no_secret(uuid)
        return found

    def _tell(self, caller: Caller, definition: SecretDef, event: int) -> None:
        done = "undefined" if event == _UNDEFINED else "defined"
        log.info("secret %s %s by %s (%s)", uuid_text(definition.uuid), done, caller.identity, caller.peer)
        self._publish(SecretEvent(definition.uuid, definition.usage_type, definition.usage_id, event))


def _refuse(missing: NicagentError, uuid: bytes) -> NoReturn:
    if missing.kind is Kind.NOT_FOUND:
        raise no_value(uuid) from None
    raise missing


def _shown(secret: Secret) -> SecretDef:
    return SecretDef(
        uuids.UUID(secret.uuid).bytes,
        secret.ephemeral,
        secret.private,
        secret.description,
        Usage[secret.usage.upper()],
        secret.usage_id,
    )


def _kept(definition: SecretDef) -> Secret:
    return Secret(
        uuid_text(definition.uuid),
        definition.usage_type.name.lower(),
        definition.usage_id,
        definition.description,
        definition.ephemeral,
        definition.private,
    )
