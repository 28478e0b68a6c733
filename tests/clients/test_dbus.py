"""libvirt-dbus, and cockpit's page of machines, which talks to it: its calls, replayed in its order.

Both know `qemu:///system` only, hence look for the socket where libvirt has it: here that is in a mount
namespace of their own, on an agent it is `libvirt.socket = "/run/libvirt/libvirt-sock"`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from images.clients import release_here
from tests.clients.programs import UNPACKED, environment, program
from tests.hypervisor_shim.serving import Served

CALLS = Path(__file__).with_name("cockpit_calls.py")
#: Run in a mount namespace: libvirt's place is ours, and the interfaces' descriptions are where they belong.
_INSIDE = """\
set -e
mount -t tmpfs none /run
mkdir -p /run/libvirt
ln -s "$1" /run/libvirt/libvirt-sock
[ -d /usr/share/dbus-1/interfaces ] || { mount -t tmpfs none /usr/share/dbus-1; mkdir /usr/share/dbus-1/interfaces; }
mount --bind "$2/usr/share/dbus-1/interfaces" /usr/share/dbus-1/interfaces
dbus-daemon --config-file="$3" --nofork & bus=$!
trap 'kill $server $bus 2>/dev/null' EXIT
for i in $(seq 100); do [ -S /run/bus ] && break; sleep 0.05; done
"$4" --system & server=$!
for i in $(seq 100); do dbus-send --system --print-reply --dest=org.freedesktop.DBus / \\
  org.freedesktop.DBus.NameHasOwner string:org.libvirt | grep -q 'true' && break; sleep 0.05; done
/usr/bin/python3 "$5" "$6"
"""  # noqa: E501
_BUS = """\
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""
#: What the page asks for and a server without that family refuses; it then shows an empty list.
MAY_BE_REFUSED = {
    "Domain.Suspend": "a server cannot be paused",
    "Connect.GetDomainCapabilities": "the in-memory driver has none",
    "Connect.NodeGetMemoryStats": "nor has it memory of its own to tell of",
    "Domain.InterfaceAddresses": "no guest agent answers here",
}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace with a place of libvirt's own needs root")
def test_cockpits_calls_are_answered(agent: Served, home: Path) -> None:
    server = program("libvirt-dbus")
    config = home / "bus.conf"
    config.write_text(_BUS)
    inside = ["sh", "-c", _INSIDE, "sh", agent.path, UNPACKED, config, server, CALLS, "metal-1"]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", *map(str, inside)],
        env=environment(home, {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/run/bus"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    refused = {
        call: answer["error"]
        for call, answer in answers.items()
        if isinstance(answer, dict) and "error" in answer
    }
    assert not (odd := {k: v for k, v in refused.items() if k not in MAY_BE_REFUSED}), f"refused: {odd}"
    assert answers["Connect properties"]["LibVersion"] >= 10_000_000
    assert answers["Domain properties"]["Name"] == "metal-1" and answers["Domain properties"]["Persistent"]
    assert answers["Domain.GetState"] == [1, 1], "the page shows the machine as running"
    assert answers["Domain.GetStats"]["vcpu.current"] == 2


def test_the_replayed_calls_are_those_of_the_page() -> None:
    page = UNPACKED / "usr/share/cockpit/machines/index.js.gz"
    if not page.exists():
        pytest.skip("cockpit-machines is not here; run: python3 -m images.clients")
    words = gzip.decompress(page.read_bytes()).decode()
    asked = set(re.findall(r'"org\.libvirt\.(\w+)","(\w+)"', words))
    replayed = set(re.findall(r'call\(\w+, "(\w+)", "(\w+)"', CALLS.read_text()))
    if release_here() != "bookworm":
        replayed.remove(("Interface", "GetXMLDesc"))  # the page of Debian 13 does without
    assert not (strange := replayed - asked), f"the page makes no such calls: {strange}"
    assert ("Connect", "ListDomains") in asked and ("Domain", "Create") in replayed
