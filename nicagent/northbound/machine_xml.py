"""The machines behind this agent in libvirt's capability documents and node info: pure functions."""

from __future__ import annotations

from xml.sax.saxutils import escape

from hypervisor_shim.driver import NodeInfo
from nicagent.config import Config


def node_info(config: Config) -> NodeInfo:
    """All hosts taken together: what a scheduler may fill. Memory in KiB."""
    cpus = sum(host.cpus for host in config.hosts.values())
    first = next(iter(config.hosts.values()))
    return NodeInfo(
        model=first.cpu_model[:31],
        memory_kib=sum(host.memory_mib for host in config.hosts.values()) * 1024,
        cpus=cpus,
        nodes=1,
        sockets=1,
        cores=cpus,
        threads=1,
    )


def capabilities(config: Config, host_uuid: str) -> str:
    """`<capabilities>`: one guest type, hvm, of the hosts' architecture. Clouds key agents by `host_uuid`."""
    info = node_info(config)
    arch = escape(next(iter(config.hosts.values())).arch)
    return f"""<capabilities>

  <host>
    <uuid>{host_uuid}</uuid>
    <cpu>
      <arch>{arch}</arch>
      <model>{escape(info.model)}</model>
      <topology sockets='1' dies='1' cores='{info.cores}' threads='1'/>
    </cpu>
    <power_management/>
    <topology>
      <cells num='1'>
        <cell id='0'>
          <memory unit='KiB'>{info.memory_kib}</memory>
          <cpus num='{info.cpus}'>
{_cpus(info.cpus)}
          </cpus>
        </cell>
      </cells>
    </topology>
  </host>

  <guest>
    <os_type>hvm</os_type>
    <arch name='{arch}'>
      <wordsize>64</wordsize>
      <machine maxCpus='{info.cpus}'>metal</machine>
{_machine_names(arch, info.cpus)}
      <domain type='qemu'/>
      <domain type='kvm'/>
    </arch>
    <features>
      <acpi default='on' toggle='no'/>
      <disksnapshot default='off' toggle='no'/>
    </features>
  </guest>

</capabilities>
"""


def _machine_names(arch: str, cpus: int) -> str:
    """What clients call a machine by default; virt-manager shows no domain whose machine is not listed."""
    names = ("q35", "pc") if arch == "x86_64" else ("virt",)
    row = "      <machine canonical='metal' maxCpus='{0}'>{1}</machine>"
    return "\n".join(row.format(cpus, name) for name in names)


def _cpus(count: int) -> str:
    row = "            <cpu id='{0}' socket_id='0' die_id='0' core_id='{0}' siblings='{0}'/>"
    return "\n".join(row.format(number) for number in range(count))


def domain_capabilities(config: Config) -> str:
    """`<domainCapabilities>`: what a definition may ask of this metal."""
    first = next(iter(config.hosts.values()))
    most = max(host.cpus for host in config.hosts.values())
    return f"""<domainCapabilities>
  <path>/usr/bin/nicagent</path>
  <domain>kvm</domain>
  <machine>metal</machine>
  <arch>{escape(first.arch)}</arch>
  <vcpu max='{most}'/>
  <os supported='yes'>
    <enum name='firmware'>
      <value>efi</value>
    </enum>
  </os>
  <cpu>
    <mode name='host-passthrough' supported='yes'/>
    <mode name='host-model' supported='no'/>
    <mode name='custom' supported='no'/>
  </cpu>
  <devices>
    <disk supported='yes'>
      <enum name='diskDevice'>
        <value>disk</value>
        <value>cdrom</value>
      </enum>
      <enum name='bus'>
        <value>virtio</value>
        <value>sata</value>
        <value>scsi</value>
      </enum>
    </disk>
    <graphics supported='no'/>
    <hostdev supported='no'/>
  </devices>
  <features>
    <gic supported='no'/>
    <vmcoreinfo supported='no'/>
    <genid supported='no'/>
    <sev supported='no'/>
  </features>
</domainCapabilities>
"""
