"""What only watches: virt-top, Prometheus' libvirt exporter, collectd's virt plugin."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

from tests.clients.programs import UNPACKED, eventually, program, run, running
from tests.hypervisor_shim.serving import Served


def test_virt_top_lists_what_runs(agent: Served, conn: Any, home: Path) -> None:
    conn.lookupByName("metal-1").create()
    shown = run([program("virt-top"), "-c", agent.uri, "--script", "--stream", "-n", "2", "-d", "0.2"], home)
    assert re.search(r"^ +\d+ R .* metal-1$", shown, re.M), shown


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_prometheus_exporter_finds_its_metrics(agent: Served, conn: Any, home: Path) -> None:
    conn.lookupByName("metal-1").create()
    port = _free_port()
    argv = [program("prometheus-libvirt-exporter"), f"--web.listen-address=127.0.0.1:{port}"]

    def metrics() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    with running([*argv, f"--libvirt.uri={agent.uri}"], home):
        eventually(metrics, 10, "an answer of the exporter")
        text = metrics()
    assert "libvirt_up 1" in text and "libvirt_domains_number 1" in text, text
    labels = r'\{domain="metal-1",uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0"\}'
    for metric, value in (
        ("libvirt_domain_state_code", "1"),
        ("libvirt_domain_info_virtual_cpus", "2"),
        ("libvirt_domain_info_maximum_memory_bytes", r"2.147483648e\+09"),
    ):
        assert re.search(rf"^{metric}{labels} {value}$", text, re.M), f"{metric} is not {value} in:\n{text}"


_COLLECTD = """\
Hostname "agent"
BaseDir "{home}"
PIDFile "{home}/pid"
PluginDir "{root}/usr/lib/collectd"
TypesDB "{root}/usr/share/collectd/types.db"
Interval 0.2
LoadPlugin csv
<Plugin csv>
  DataDir "{home}/values"
</Plugin>
LoadPlugin virt
<Plugin virt>
  Connection "{uri}"
  HostnameFormat name
  ExtraStats "domain_state"
</Plugin>
"""


def test_collectd_writes_what_its_virt_plugin_reads(agent: Served, conn: Any, home: Path) -> None:
    conn.lookupByName("metal-1").create()
    config = home / "collectd.conf"
    config.write_text(_COLLECTD.format(home=home, root=UNPACKED, uri=agent.uri))
    values = home / "values" / "metal-1" / "virt"
    with running([program("collectd"), "-f", "-C", config], home):
        eventually(lambda: list(values.glob("domain_state-*")), 15, "a value of collectd's")
        eventually(lambda: list(values.glob("memory-total-*")), 15, "a value of memory")
    (state,) = values.glob("domain_state-*")
    assert re.search(r"^[\d.]+,1(\.0+)?,1(\.0+)?$", state.read_text(), re.M), "running, since it was booted"
