"""A whole nova in one process at an agent: API, scheduler, conductor, placement, nova-compute. Run by an
interpreter that has nova and what its functional tests need; prints what became of a server as JSON.

`python nova_whole.py URI NOVA.CONF POLICY.YAML INSTANCES IMAGE MAC`: the first two files are those of
docs/clouds.md, INSTANCES is a directory in a pool of the agent, MAC that of a NIC. Keystone, Glance, Neutron
and Cinder are the stand-ins of nova's own tests; what these fixtures keep from the machine (libvirt's events,
its network interfaces, its /sys) is given back.

Of each step is told: what the API answered, how nova's own action ended, what the server's status is then.
"""

# ruff: noqa: E402 -- nova is patched before it is imported

from __future__ import annotations

import configparser
import copy
import json
import os
import sys
import time
import traceback
import unittest
import urllib.parse
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
import yaml
from nova.tests.fixtures import SysFsPoisonFixture
from nova.tests.functional import integrated_helpers
from nova.virt.libvirt.host import Host

URI, CONF, POLICY, INSTANCES, IMAGE, MAC = sys.argv[1:]
API_PASTE = Path(sys.prefix, "etc/nova/api-paste.ini")
IMAGE_ID = "155d900f-4e14-4e4c-a73d-069cbf4541e6"  # of nova's stand-in for Glance
WAITS = 300  # tenths of a second and more: a server takes its time
SECONDS = 60  # within which an action is over

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
            options = given.items(group) if group == "DEFAULT" else given._sections[group].items()  # type: ignore[attr-defined]
            self.flags(**dict(options), group=None if group == "DEFAULT" else group)
        self.flags(connection_uri=URI, group="libvirt")
        self.flags(
            compute_driver="libvirt.LibvirtDriver", instances_path=INSTANCES, my_ip="127.0.0.1",
            shutdown_timeout=1, vif_plugging_timeout=0, vif_plugging_is_fatal=False,
        )  # fmt: skip
        self.flags(wait_soft_reboot_seconds=1, group="libvirt")  # no OS is there to hear of it
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

    def volume(self) -> str:
        """One that Cinder has on this machine, in a pool of the agent."""
        path = Path(INSTANCES, "volume")
        path.touch()
        os.truncate(path, 64 << 20)
        where = {"driver_volume_type": "local", "data": {"device_path": str(path)}}
        self.cinder.VOLUME_CONNECTION_INFO = {"fake": where}
        return str(self.cinder.IMAGE_BACKED_VOL)

    def _ask(self, verb: str, path: str, body: Any = None) -> Any:
        """The API's answer, whatever it is."""
        given = () if body is None else (body,)
        call = getattr(self.api, f"api_{verb}")
        return call(f"/servers/{self.server['id']}{path}", *given, check_response_status=False)

    def _actions(self) -> list[dict[str, Any]]:
        return list(self._ask("get", "/os-instance-actions").body["instanceActions"])

    def _ended(self, known: int) -> str | None:
        """How the newest action ended, if there is one more than were `known` and nothing of it goes on."""
        actions = self._actions()
        if len(actions) == known:
            return "none"
        found = self._ask("get", f"/os-instance-actions/{actions[0]['request_id']}").body["instanceAction"]
        results = {event["result"] for event in found["events"]}
        if not results or None in results:
            return None
        return "Error" if "Error" in results else "Success"

    def step(self, name: str, verb: str, path: str, body: Any = None, *, acts: bool = True) -> Any:
        """One call and what came of it: [answer, action, status]. `acts`: nova has an action for it."""
        known, until = len(self._actions()), time.monotonic() + SECONDS
        answer = self._ask(verb, path, body)
        acts = acts and answer.status < 400
        while time.monotonic() < until:
            ended, server = self._ended(known), self.api.get_server(self.server["id"])
            if server["OS-EXT-STS:task_state"] is None and (not acts or ended not in (None, "none")):
                break
            time.sleep(0.2)  # nova tells nobody; its command line asks again, too
        self.said[name] = [answer.status, ended if acts else "none", server["status"]]
        return answer.body

    def act(self, name: str, action: str, arguments: Any = None, *, acts: bool = True) -> Any:
        return self.step(name, "post", "/action", {action: arguments}, acts=acts)

    def test_a_server(self) -> None:
        warnings.resetwarnings()
        warnings.simplefilter("ignore")  # newer libraries than nova's tests know
        for image in self.glance.images:
            self.glance._imagedata[image] = Path(IMAGE).read_bytes()
        keep_images(self.glance)
        self.said: dict[str, Any] = {}
        (hypervisor,) = self.api.api_get("/os-hypervisors/detail").body["hypervisors"]
        self.said["hypervisor"] = [hypervisor["hypervisor_type"], hypervisor["state"]]
        for id, memory in (("77", 512), ("78", 768)):
            self.api.post_flavor({"flavor": {"name": id, "ram": memory, "vcpus": 1, "disk": 1, "id": id}})
        port, volume = self.port(), self.volume()
        asked = self._build_server(flavor_id="77", image_uuid=IMAGE_ID, networks=[{"port": port}])
        self.server = self.api.post_server({"server": asked})
        built = self.reached(self.server, "ACTIVE")
        self.said["built"] = built["OS-EXT-STS:power_state"]

        self.watch()
        self.act("console log", "os-getConsoleOutput", {"length": 9}, acts=False)
        self.act("crash dump", "trigger_crash_dump")
        self.act("pause", "pause")
        self.act("suspend", "suspend")
        self.act("set state", "os-resetState", {"state": "active"}, acts=False)
        self.policy.set_rules(yaml.safe_load(Path(POLICY).read_text()), overwrite=False)
        self.act("pause by policy", "pause")
        self.act("suspend by policy", "suspend")
        self.act("reboot soft", "reboot", {"type": "SOFT"})
        self.act("reboot hard", "reboot", {"type": "HARD"})
        self.act("stop", "os-stop")
        self.act("start", "os-start")
        self.act("resize", "resize", {"flavorRef": "78"})
        self.act("live migration", "os-migrateLive", {"host": None, "block_migration": "auto"})
        attachment = {"volumeAttachment": {"volumeId": volume}}
        self.step("attach volume", "post", "/os-volume_attachments", attachment)
        self.step("detach volume", "delete", f"/os-volume_attachments/{volume}")
        self.step("detach port", "delete", f"/os-interface/{port}")
        self.said["nics without it"] = self.nics()
        self.step("attach port", "post", "/os-interface", {"interfaceAttachment": {"port_id": port}})
        self.said["nics"] = self.nics()
        self.act("snapshot", "createImage", {"name": "of a running server"})
        self.act("shelve", "shelve")
        self.act("unshelve", "unshelve")
        self.act("rescue", "rescue", {})
        self.act("unrescue", "unrescue")
        self.act("rebuild", "rebuild", {"imageRef": IMAGE_ID})
        self.api.delete_server(self.server["id"])
        self._wait_until_deleted(self.server)
        print(json.dumps(self.said), flush=True)
        os._exit(0)  # nova's threads would keep the process, and their clean-up has nothing to show

    def nics(self) -> list[str]:
        return [each["mac_address"] for each in self._ask("get", "/diagnostics").body["nic_details"]]

    def watch(self) -> None:
        """Where nova's proxy would take a browser that has the console's token; the test looks at it."""
        wanted = {"remote_console": {"protocol": "vnc", "type": "novnc"}}
        url = self._ask("post", "/remote-consoles", wanted).body["remote_console"]["url"]
        token = urllib.parse.unquote(url).rpartition("token=")[2]
        console = self.api.api_get(f"/os-console-auth-tokens/{token}").body["console"]
        print(json.dumps({"console": [console["host"], console["port"]]}), flush=True)
        self.said["looked"] = sys.stdin.readline().strip()


def keep_images(glance: Any) -> None:
    """The stand-in forgets what is uploaded to an image that is there already."""
    kept = glance.update

    def update(_: Any, context: Any, image: str, metadata: Any, data: Any = None, **options: Any) -> Any:
        if data is not None:
            glance._imagedata[image] = data.read()
        return kept(context, image, metadata, **options)

    type(glance).update = update


Nova("test_a_server").run(unittest.TestResult())
