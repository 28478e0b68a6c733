"""What a running domain's document has beside its definition, as libvirtd 9.0 writes it under QEMU."""

from __future__ import annotations

import textwrap

import pytest

from hypervisor_shim.xml.domain import format_domain, parse_domain
from hypervisor_shim.xml.domain_live import Live, Mirror, MirrorJob

DOMAIN = """\
<domain type='kvm'>
  <name>a</name>
  <memory>65536</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/a.qcow2'/>
      <geometry cyls='16' heads='16' secs='63'/>
      <blockio logical_block_size='512'/>
      <target dev='vda' bus='virtio'/>
      <iotune><total_iops_sec>1000</total_iops_sec></iotune>
    </disk>
  </devices>
</domain>
"""
COPY = Mirror(MirrorJob.COPY, "/copy.raw", "raw", ready=False)
READY = Mirror(MirrorJob.COPY, "/copy.raw", "raw", ready=True)
COMMIT = Mirror(MirrorJob.ACTIVE_COMMIT, "/base.qcow2", "qcow2", ready=True)
# Without the index of each source: libvirtd's number of a node in its own QEMU.
SHOWN = {
    COPY: """\
        <mirror type='file' file='/copy.raw' format='raw' job='copy'>
          <format type='raw'/>
          <source file='/copy.raw'/>
          <backingStore/>
        </mirror>
        """,
    READY: """\
        <mirror type='file' file='/copy.raw' format='raw' job='copy' ready='yes'>
          <format type='raw'/>
          <source file='/copy.raw'/>
          <backingStore/>
        </mirror>
        """,
    COMMIT: """\
        <mirror type='file' job='active-commit' ready='yes'>
          <format type='qcow2'/>
          <source file='/base.qcow2'/>
        </mirror>
        """,
}


@pytest.mark.parametrize("mirror", SHOWN)
def test_a_block_job_shows_where_it_mirrors_to(mirror: Mirror) -> None:
    shown = format_domain(parse_domain(DOMAIN), Live(1, mirrors={"vda": mirror}))
    expected = textwrap.indent(textwrap.dedent(SHOWN[mirror]), "      ")
    place = "      <blockio logical_block_size='512'/>\n"
    assert place + expected + "      <target dev='vda'" in shown, shown
