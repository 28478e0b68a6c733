"""A whole nova in one process at an agent: API, scheduler, conductor, placement, nova-compute. Run by an
interpreter that has nova and what its functional tests need; prints what became of a server as JSON.

`python nova_whole.py URI NOVA.CONF INSTANCES IMAGE MAC`: NOVA.CONF is docs/clouds.md's, INSTANCES a directory
in a pool of the agent, MAC that of a NIC. Keystone, Glance and Neutron are the stand-ins of nova's own tests;
what these fixtures keep from the machine (libvirt's events, its network interfaces) is given back.
"""

# ruff: noqa: E402 -- nova is patched before it is imported

from __future__ import annotations

import configparser
import copy
import json
import os
import sys
import traceback
import unittest
import warnings
from pathlib import Path
from typing import Any

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"

import nova.monkey_patch

nova.monkey_patch.patch()

import fixtures
import nova.privsep
import os_brick.privileged
import os_vif
import psutil
from nova.tests.fixtures import SysFsPoisonFixture
from nova.tests.functional import integrated_helpers
from nova.virt.libvirt.host import Host

URI, CONF, INSTANCES, IMAGE, MAC = sys.argv[1:]
API_PASTE = Path(sys.prefix, "etc/nova/api-paste.ini")
IMAGE_ID = "155d900f-4e14-4e4c-a73d-069cbf4541e6"  # of nova's stand-in for Glance
WAITS = 300  # tenths of a second and more: a server takes its time

init_events, net_if_addrs = Host._init_events, psutil.net_if_addrs
for privileged in (nova.privsep.sys_admin_pctxt, os_brick.privileged.default):
    privileged.set_client_mode(False)  # what wants root is done in this process
SysFsPoisonFixture.setUp = fixtures.Fixture.setUp  # the machine's own /sys is looked at


def failed(trouble: Any) -> None:
    """The first failure ends the process: what comes after it waits for what is not there."""
    traceback.print_exception(*trouble)
    os._exit(1)


class Nova(integrated_helpers._IntegratedTestBase, integrated_helpers.InstanceHelperMixin):
    ADMIN_API = True
    CAST_AS_CALL = False
    microversion = "latest"

    def setUp(self) -> None:
        self.addOnException(failed)
        super().setUp()

    def _setup_compute_service(self) -> Any:
        given = configparser.ConfigParser()
        given.read(CONF)
        for group in ("DEFAULT", *given.sections()):
            options = given.items(group) if group == "DEFAULT" else given._sections[group].items()
            self.flags(**dict(options), group=None if group == "DEFAULT" else group)
        self.flags(connection_uri=URI, group="libvirt")
        self.flags(
            compute_driver="libvirt.LibvirtDriver", instances_path=INSTANCES, my_ip="127.0.0.1",
            shutdown_timeout=3, vif_plugging_timeout=0, vif_plugging_is_fatal=False,
        )  # fmt: skip
        self.flags(api_paste_config=str(API_PASTE), group="wsgi")
        Host._init_events, psutil.net_if_addrs = init_events, net_if_addrs
        return self.start_service("compute", host="compute")

    def port(self) -> str:
        """One that neutron has bound as with Open vSwitch, with the NIC's address."""
        os_vif.initialize()
        os_vif.plug = os_vif.unplug = lambda *_: None  # no switch runs here
        port = copy.deepcopy(self.neutron.port_2)
        self.neutron.create_port({"port": port})
        for each in self.neutron._ports.values():
            each["mac_address"] = MAC
        return str(port["id"])

    def reached(self, server: Any, status: str) -> Any:
        wanted = {"status": status, "OS-EXT-STS:task_state": None}
        return self._wait_for_server_parameter(server, wanted, max_retries=WAITS)

    def act(self, server: Any, action: dict[str, Any], status: str) -> int:
        self.api.post_server_action(server["id"], action)
        return int(self.reached(server, status)["OS-EXT-STS:power_state"])

    def test_a_server(self) -> None:
        warnings.resetwarnings()
        warnings.simplefilter("ignore")  # newer libraries than nova's tests know
        for image in self.glance.images:
            self.glance._imagedata[image] = Path(IMAGE).read_bytes()
        said: dict[str, Any] = {}
        (hypervisor,) = self.api.api_get("/os-hypervisors/detail").body["hypervisors"]
        said["hypervisor"] = [hypervisor["hypervisor_type"], hypervisor["state"]]
        flavor = {"name": "metal", "ram": 512, "vcpus": 1, "disk": 1, "id": "77"}
        self.api.post_flavor({"flavor": flavor})
        asked = self._build_server(flavor_id="77", image_uuid=IMAGE_ID, networks=[{"port": self.port()}])
        server = self.reached(self.api.post_server({"server": asked}), "ACTIVE")
        said["built"] = server["OS-EXT-STS:power_state"]
        said["stopped"] = self.act(server, {"os-stop": None}, "SHUTOFF")
        said["started"] = self.act(server, {"os-start": None}, "ACTIVE")
        said["rebooted"] = self.act(server, {"reboot": {"type": "HARD"}}, "ACTIVE")
        said["paused"] = self.act(server, {"pause": None}, "ACTIVE")
        diagnostics = self.api.api_get(f"/servers/{server['id']}/diagnostics").body
        said["nics"] = [each["mac_address"] for each in diagnostics["nic_details"]]
        self.api.delete_server(server["id"])
        self._wait_until_deleted(server)
        print(json.dumps(said), flush=True)
        os._exit(0)  # nova's threads would keep the process, and their clean-up has nothing to show


Nova("test_a_server").run(unittest.TestResult())
