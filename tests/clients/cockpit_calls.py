"""The calls of cockpit's page of machines on libvirt-dbus, in its order; run by Debian's own Python.

`/usr/bin/python3 cockpit_calls.py DOMAIN` with DBUS_SYSTEM_BUS_ADDRESS set. Prints a JSON object: call → its
answer, made plain, or {"error": …}. That the page makes these calls is checked by test_dbus.py.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import dbus

BUS, ROOT = "org.libvirt", "/org/libvirt/QEMU"
INACTIVE = 2
STATS = 2 | 8 | 32  # CPU, vCPU, block: what the page draws


def main() -> None:
    name = sys.argv[1]
    answers: dict[str, Any] = {}
    bus = dbus.SystemBus()

    def call(path: str, interface: str, method: str, *arguments: Any) -> Any:
        key = f"{interface}.{method}"
        try:
            member = bus.get_object(BUS, path, introspect=False).get_dbus_method(method, f"{BUS}.{interface}")
            value = member(*arguments)
        except dbus.DBusException as failed:
            answers[key] = {"error": failed.get_dbus_message()}
            return None
        answers[key] = plain(value)
        return value

    def properties(path: str, interface: str) -> None:
        member = bus.get_object(BUS, path, introspect=False).get_dbus_method(
            "GetAll", "org.freedesktop.DBus.Properties"
        )
        answers[f"{interface} properties"] = plain(member(f"{BUS}.{interface}"))

    none = dbus.UInt32(0)
    # the page comes up
    properties(ROOT, "Connect")
    for kind in ("ListNodeDevices", "ListInterfaces", "ListNetworks", "ListStoragePools", "ListDomains"):
        found = call(ROOT, "Connect", kind, none) or ()
        for path in found:
            if kind == "ListNetworks":
                call(path, "Network", "GetXMLDesc", none)
                properties(path, "Network")
            elif kind == "ListStoragePools":
                call(path, "StoragePool", "GetXMLDesc", none)
                properties(path, "StoragePool")
                for volume in call(path, "StoragePool", "ListStorageVolumes", none) or ():
                    call(volume, "StorageVol", "GetXMLDesc", none)
            elif kind == "ListNodeDevices":
                call(path, "NodeDevice", "GetXMLDesc", none)
            elif kind == "ListInterfaces":
                call(path, "Interface", "GetXMLDesc", none)
            else:
                call(path, "Domain", "GetXMLDesc", none)
    call(ROOT, "Connect", "NodeGetMemoryStats", dbus.Int32(-1), none)
    call(ROOT, "Connect", "GetDomainCapabilities", "", "x86_64", "", "", none)
    # a machine is opened, started, and looked at
    path = call(ROOT, "Connect", "DomainLookupByName", name)
    if path is None:
        raise SystemExit(json.dumps(answers))
    properties(path, "Domain")
    call(path, "Domain", "GetXMLDesc", dbus.UInt32(INACTIVE))
    call(path, "Domain", "GetState", none)
    call(path, "Domain", "Create", none)
    call(path, "Domain", "GetState", none)
    call(path, "Domain", "GetStats", dbus.UInt32(STATS), none)
    call(path, "Domain", "ListDomainSnapshots", none)
    call(path, "Domain", "InterfaceAddresses", none, none)
    call(path, "Domain", "InjectNMI", none)
    call(path, "Domain", "Reboot", none)
    call(path, "Domain", "Reset", none)
    call(path, "Domain", "Suspend")
    call(path, "Domain", "Shutdown", none)
    call(path, "Domain", "Create", none)
    call(path, "Domain", "Destroy", none)
    call(path, "Domain", "Undefine", none)
    json.dump(answers, sys.stdout)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, dbus.Struct)):
        return [plain(each) for each in value]
    if isinstance(value, bool | dbus.Boolean):
        return bool(value)
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) else str(value)


main()
