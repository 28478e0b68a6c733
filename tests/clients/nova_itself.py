"""nova's own classes at a server: run by an interpreter that has nova; prints what each step said as JSON.

`python nova_itself.py URI DOCUMENT`: the host as nova sees it, then an instance from document to deletion.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"

import nova.conf
from nova import objects
from nova.virt.libvirt import config, guest, host


def main() -> None:
    uri, document = sys.argv[1], Path(sys.argv[2]).read_text()
    nova.conf.CONF([], project="nova", default_config_files=[])
    nova.conf.CONF.set_override("cpu_mode", "none", "libvirt")
    objects.register_all()
    said: dict[str, Any] = {}

    def step(what: str, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except Exception as failed:
            said[what] = {"error": f"{type(failed).__name__}: {failed}"}
            return None
        said[what] = answer if isinstance(answer, str | int | list | bool) else None
        return answer

    server = host.Host(uri)
    step("initialize", server.initialize)
    step("versions", lambda: server.has_min_version((10, 0, 0), (8, 2, 2)))
    step("hostname", server.get_hostname)
    step("uuid", lambda: server.get_capabilities().host.uuid)
    step("machine", lambda: server.get_canonical_machine_type("x86_64", "q35"))
    step("memory", server.get_memory_mb_total)
    step("cpus", lambda: sorted(server.get_available_cpus()))
    step("secret", lambda: server.create_secret("iscsi", "volume-1", password="x").UUIDString())
    made = step("create", lambda: guest.Guest.create(document, server))
    step("launch", made.launch)
    step("power", lambda: made.get_power_state(server))
    step("running", lambda: [each.name for each in server.list_guests()])
    step("disks", lambda: [disk.target_dev for disk in made.get_all_disks()])
    step("interfaces", made.get_interfaces)
    disk = config.LibvirtConfigGuestDisk()
    disk.source_type, disk.source_path, disk.serial = "block", "/dev/disk/by-id/wwn-0x2", "volume-2"
    disk.target_dev, disk.target_bus, disk.driver_name, disk.driver_format = "vdc", "virtio", "qemu", "raw"
    step("attach", lambda: made.attach_device(disk, persistent=True, live=True))
    step("attached", lambda: made.get_disk("vdc").serial)
    step("detach", lambda: made.detach_device(disk, persistent=True, live=True))
    step("detached", lambda: made.get_disk("vdc") is None)
    step("sync time", made.sync_guest_time)
    step("nmi", made.inject_nmi)
    step("poweroff", made.poweroff)
    step("delete", made.delete_configuration)
    step("left", lambda: [each.name for each in server.list_guests(only_running=False)])
    print(json.dumps(said), flush=True)
    os._exit(0)  # nova's event thread would keep the process


main()
