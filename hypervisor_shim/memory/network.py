"""Networks that exist in memory only, in the likeness of libvirt's `test:///default`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypervisor_shim.driver.events import Defined, Event, NetworkEvent, NetworkMetadataEvent
from hypervisor_shim.driver.facts import Caller, Impact, Metadata, MetadataKind
from hypervisor_shim.driver.network import NetworkInfo, Networks, Update, invalid_network
from hypervisor_shim.errors import Code, Origin, error, uuid_text
from hypervisor_shim.xml.network import (
    format_network,
    get_metadata,
    parse_network,
    set_metadata,
)
from hypervisor_shim.xml.network_def import NetworkDef
from hypervisor_shim.xml.network_update import updated

DEFAULT_NETWORK = """\
<network>
  <name>default</name>
  <uuid>dd8fe884-6c02-601e-7551-cca97df1c5df</uuid>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on' delay='0'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
    </dhcp>
  </ip>
</network>
"""


@dataclass(slots=True)
class _Network:
    config: NetworkDef | None  # what the next start uses; None for a transient network
    live: NetworkDef | None = None
    autostart: bool = False

    @property
    def now(self) -> NetworkDef:
        found = self.live or self.config
        assert found is not None
        return found


class MemoryNetworks(Networks):
    """Starts with the networks of `documents`, active."""

    def __init__(
        self,
        publish: Callable[[Event], None],
        documents: Iterable[str] = (DEFAULT_NETWORK,),
    ) -> None:
        self._publish = publish
        self._networks: dict[bytes, _Network] = {}
        for document in documents:
            definition = parse_network(document)
            self._networks[definition.uuid] = _Network(definition, live=definition)

    # ---- reading

    def networks(self) -> list[NetworkInfo]:
        return [_info(each) for each in self._networks.values()]

    def network(self, uuid: bytes) -> NetworkInfo | None:
        found = self._networks.get(uuid)
        return None if found is None else _info(found)

    def network_xml(self, uuid: bytes, *, inactive: bool) -> str:
        found = self._find(uuid)
        return format_network(found.config if inactive and found.config is not None else found.now)

    def network_metadata(self, uuid: bytes, kind: MetadataKind, uri: str | None, impact: Impact) -> str:
        found = self._find(uuid)
        definition = found.config if impact is Impact.CONFIG and found.config is not None else found.now
        return get_metadata(definition, kind, uri)

    # ---- acting

    async def define_network(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        found = self._known(definition)
        if found is None:
            found = self._networks[definition.uuid] = _Network(definition)
        found.config = definition
        self._tell(definition, Defined.DEFINED)
        return _info(found)

    async def create_network_xml(self, caller: Caller, definition: NetworkDef) -> NetworkInfo:
        found = self._known(definition)
        if found is not None and found.live is not None:
            raise invalid_network(f"network is already active as '{definition.name}'")
        if found is None:
            found = self._networks[definition.uuid] = _Network(None)
        found.live = definition
        self._tell(definition, Defined.STARTED)
        return _info(found)

    async def create_network(self, caller: Caller, uuid: bytes) -> None:
        found = self._find(uuid)
        if found.live is not None:
            raise invalid_network(f"Network '{found.live.name}' is already running")
        found.live = found.now
        self._tell(found.live, Defined.STARTED)

    async def destroy_network(self, caller: Caller, uuid: bytes) -> None:
        """As the test driver does it: destroying what is not active is no error."""
        found = self._find(uuid)
        stopped, found.live = found.now, None
        if found.config is None:
            del self._networks[uuid]
        self._tell(stopped, Defined.STOPPED)

    async def undefine_network(self, caller: Caller, uuid: bytes) -> None:
        found = self._find(uuid)
        if found.live is not None:
            raise invalid_network(f"Network '{found.live.name}' is still running")
        del self._networks[uuid]
        self._tell(found.now, Defined.UNDEFINED)

    async def set_network_autostart(self, caller: Caller, uuid: bytes, autostart: bool) -> None:
        found = self._find(uuid)
        if found.config is None:
            raise invalid_network("cannot set autostart for transient network")
        found.autostart = autostart

    async def update_network(self, caller: Caller, uuid: bytes, update: Update, impact: Impact) -> None:
        self._change(uuid, lambda definition: updated(definition, update), impact)

    async def set_network_metadata(
        self, caller: Caller, uuid: bytes, metadata: Metadata, impact: Impact
    ) -> None:
        self._change(uuid, lambda definition: set_metadata(definition, metadata), impact)
        self._publish(NetworkMetadataEvent(self._find(uuid).now.name, uuid, metadata.kind, metadata.uri))

    # ---- within

    def _change(self, uuid: bytes, change: Callable[[NetworkDef], NetworkDef], impact: Impact) -> None:
        """Apply to the running network, to its definition, or to both; nothing when one of them fails."""
        found = self._find(uuid)
        live, config = found.live, found.config
        if live is not None and impact is not Impact.CONFIG:
            live = change(live)
        if config is not None and (impact & Impact.CONFIG or live is None):
            config = change(config)
        found.live, found.config = live, config

    def _find(self, uuid: bytes) -> _Network:
        found = self._networks.get(uuid)
        if found is None:
            raise error(
                Code.NO_NETWORK, f"no network with matching uuid '{uuid_text(uuid)}'", origin=Origin.NETWORK
            )
        return found

    def _known(self, definition: NetworkDef) -> _Network | None:
        """The network of that UUID; refuses a name or a UUID that is another's."""
        for uuid, other in self._networks.items():
            name = other.now.name
            if name == definition.name and uuid != definition.uuid:
                raise _failed(f"network '{name}' already exists with uuid {uuid_text(uuid)}")
            if uuid == definition.uuid and name != definition.name:
                raise _failed(f"network '{name}' is already defined with uuid {uuid_text(uuid)}")
        return self._networks.get(definition.uuid)

    def _tell(self, definition: NetworkDef, event: Defined) -> None:
        self._publish(NetworkEvent(definition.name, definition.uuid, event))


def _failed(detail: str) -> Exception:
    return error(Code.OPERATION_FAILED, detail, origin=Origin.NETWORK)


def _info(network: _Network) -> NetworkInfo:
    definition = network.now
    return NetworkInfo(
        definition.uuid,
        definition.name,
        active=network.live is not None,
        persistent=network.config is not None,
        autostart=network.autostart,
        bridge=definition.bridge,
    )
