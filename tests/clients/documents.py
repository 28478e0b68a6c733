"""Domain documents as clouds write them: their structure from their public sources, the words our own.

Each is what one cloud sends to libvirt for an ordinary guest of its own, with all that metal has no use for:
a client that cannot be changed must be understood as it is.
"""

# ruff: noqa: E501 -- elements a line, as the clouds' own generators lay them out

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cloud:
    """`xml`: what it defines. `update`: a second definition of the same domain, as after a resize.
    `keeps`: what must be found in the document again, being what the cloud reads back. `undefine`: the
    flags with which it takes the domain away."""

    name: str
    domain: str
    xml: str
    keeps: tuple[str, ...]
    undefine: int
    changed: tuple[str, str]  # text in `xml` and what an update replaces it by


#: As nova 34 writes it, with a root disk of Ceph, a volume, and a port of Open vSwitch.
NOVA = """<domain type="kvm">
  <uuid>7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001</uuid>
  <name>instance-000004d2</name>
  <memory>8388608</memory>
  <vcpu>4</vcpu>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="34.0.0"/>
      <nova:name>web-1</nova:name>
      <nova:creationTime>2026-03-01 12:00:00</nova:creationTime>
      <nova:flavor name="bm.large" id="9d3f">
        <nova:memory>8192</nova:memory>
        <nova:disk>40</nova:disk>
        <nova:swap>0</nova:swap>
        <nova:ephemeral>0</nova:ephemeral>
        <nova:vcpus>4</nova:vcpus>
        <nova:extraSpecs><nova:extraSpec name="hw:cpu_policy">shared</nova:extraSpec></nova:extraSpecs>
      </nova:flavor>
      <nova:image uuid="5a4d8a30-24f0-4a8e-9d62-1c1f3a6b0001">
        <nova:containerFormat>bare</nova:containerFormat>
        <nova:diskFormat>raw</nova:diskFormat>
        <nova:minDisk>1</nova:minDisk>
        <nova:minRam>0</nova:minRam>
        <nova:properties>
          <nova:property name="hw_machine_type">q35</nova:property>
        </nova:properties>
      </nova:image>
      <nova:owner>
        <nova:user uuid="u1" name="admin"/>
        <nova:project uuid="p1" name="admin"/>
      </nova:owner>
      <nova:root type="image" uuid="5a4d8a30-24f0-4a8e-9d62-1c1f3a6b0001"/>
      <nova:ports>
        <nova:port uuid="1c9d1b2e-9d8b-4a53-9a43-4a5c6e0a0001">
          <nova:ip type="fixed" address="10.0.0.5" ipVersion="4"/>
        </nova:port>
      </nova:ports>
    </nova:instance>
  </metadata>
  <sysinfo type="smbios">
    <system>
      <entry name="manufacturer">OpenStack Foundation</entry>
      <entry name="product">OpenStack Nova</entry>
      <entry name="version">34.0.0</entry>
      <entry name="serial">7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001</entry>
      <entry name="uuid">7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001</entry>
      <entry name="family">Virtual Machine</entry>
    </system>
  </sysinfo>
  <os>
    <type machine="q35">hvm</type>
    <loader type="pflash" readonly="yes" secure="no">/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template="/usr/share/OVMF/OVMF_VARS_4M.fd"/>
    <boot dev="hd"/>
    <smbios mode="sysinfo"/>
  </os>
  <features>
    <acpi/>
    <apic/>
    <vmcoreinfo/>
  </features>
  <iothreads>1</iothreads>
  <cputune>
    <shares>4096</shares>
  </cputune>
  <clock offset="utc">
    <timer name="pit" tickpolicy="delay"/>
    <timer name="rtc" tickpolicy="catchup"/>
    <timer name="hpet" present="no"/>
  </clock>
  <cpu match="exact">
    <topology sockets="4" cores="1" threads="1"/>
  </cpu>
  <devices>
    <disk type="network" device="disk">
      <driver type="raw" cache="none" discard="unmap"/>
      <source protocol="rbd" name="vms/7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001_disk">
        <host name="192.0.2.11" port="6789"/>
        <host name="192.0.2.12" port="6789"/>
      </source>
      <auth username="cinder">
        <secret type="ceph" uuid="457eb676-33da-42ec-9a8c-9293d545c337"/>
      </auth>
      <target dev="vda" bus="virtio"/>
    </disk>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" cache="none" io="native"/>
      <source dev="/dev/disk/by-id/dm-uuid-mpath-360001"/>
      <target bus="virtio" dev="vdb"/>
      <serial>0f0c3d3e-7d0c-4bb2-8ab7-3a61b3a30001</serial>
      <alias name="ua-0f0c3d3e-7d0c-4bb2-8ab7-3a61b3a30001"/>
    </disk>
    <interface type="bridge">
      <mac address="fa:16:3e:5a:10:01"/>
      <model type="virtio"/>
      <driver name="vhost" queues="4"/>
      <source bridge="br-int"/>
      <mtu size="1450"/>
      <target dev="tap1c9d1b2e-9d"/>
      <virtualport type="openvswitch">
        <parameters interfaceid="1c9d1b2e-9d8b-4a53-9a43-4a5c6e0a0001"/>
      </virtualport>
      <bandwidth>
        <inbound average="125000" peak="250000" burst="1000"/>
        <outbound average="125000"/>
      </bandwidth>
    </interface>
    <serial type="pty">
      <log file="/var/lib/nova/instances/7c4f2a52-4c0d-4f3a-9a55-0d1d6a6cf001/console.log" append="off"/>
    </serial>
    <graphics type="vnc" autoport="yes" listen="192.0.2.21"/>
    <video>
      <model type="virtio"/>
    </video>
    <input type="tablet" bus="usb"/>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
    </rng>
    <controller type="usb" index="0"/>
    <controller type="pci" model="pcie-root"/>
    <controller type="pci" model="pcie-root-port"/>
    <controller type="pci" model="pcie-root-port"/>
    <memballoon model="virtio" autodeflate="on" freePageReporting="on">
      <stats period="10"/>
    </memballoon>
  </devices>
</domain>
"""

#: The same of an instance on the compute node's own disk, whose port's `vif_type` is *ovs* without a bridge.
NOVA_LOCAL = """<domain type="kvm">
  <uuid>0785f11c-9d37-4ef3-8ecd-223a387e1ea2</uuid>
  <name>instance-00000001</name>
  <memory>524288</memory>
  <vcpu>1</vcpu>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="34.0.0"/>
      <nova:name>web-2</nova:name>
      <nova:flavor name="bm.small" id="77"><nova:memory>512</nova:memory><nova:extraSpecs/></nova:flavor>
      <nova:owner/>
    </nova:instance>
  </metadata>
  <os>
    <type arch="x86_64" machine="pc">hvm</type>
    <boot dev="hd"/>
    <smbios mode="sysinfo"/>
  </os>
  <features><acpi/><apic/><vmcoreinfo/></features>
  <iothreads>1</iothreads>
  <clock offset="utc"/>
  <cpu match="exact"><topology sockets="1" cores="1" threads="1"/></cpu>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" cache="none"/>
      <source file="/var/lib/nova/instances/0785f11c-9d37-4ef3-8ecd-223a387e1ea2/disk"/>
      <target dev="vda" bus="virtio"/>
    </disk>
    <interface type="ethernet">
      <mac address="02:00:00:02:00:02"/>
      <model type="virtio"/>
      <mtu size="1450"/>
      <target dev="tap88dae9fa-0d"/>
    </interface>
    <serial type="pty">
      <log file="/var/lib/nova/instances/0785f11c-9d37-4ef3-8ecd-223a387e1ea2/console.log" append="off"/>
    </serial>
    <graphics type="vnc" autoport="yes" listen="127.0.0.1"/>
    <video><model type="virtio"/></video>
    <input type="tablet" bus="usb"/>
    <rng model="virtio"><backend model="random">/dev/urandom</backend></rng>
    <controller type="usb" index="0"/>
    <memballoon model="virtio" autodeflate="on" freePageReporting="on"><stats period="10"/></memballoon>
  </devices>
</domain>
"""

#: What kvmagent of ZStack 5.3 writes (kvmagent/plugins/vm_plugin.py, `Vm.from_StartVmCmd`) of a Linux machine
#: with UEFI whose memory may be hot-plugged; the elements stand in its order.
ZSTACK = """<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>3f1c9a2be5a4431cb6d1d6e5b5c0a001</name>
  <uuid>3f1c9a2b-e5a4-431c-b6d1-d6e5b5c0a001</uuid>
  <description>vm-of-a-tenant</description>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>preserve</on_crash>
  <metadata>
    <zs:zstack xmlns:zs="http://zstack.org">
      <zs:internalId>12</zs:internalId>
      <zs:hostManagementIp>192.0.2.41</zs:hostManagementIp>
    </zs:zstack>
  </metadata>
  <clock offset="utc"/>
  <cputune/>
  <vcpu placement="static" current="2">128</vcpu>
  <cpu mode="host-model">
    <model fallback="allow"/>
    <topology sockets="32" cores="4" threads="1"/>
    <numa>
      <cell id="0" cpus="0-127" memory="4194304" unit="KiB"/>
    </numa>
    <feature name="x2apic" policy="disable"/>
    <feature name="hypervisor" policy="disable"/>
  </cpu>
  <maxMemory slots="16" unit="KiB">34359738368</maxMemory>
  <currentMemory unit="k">4194304</currentMemory>
  <os>
    <type machine="q35">hvm</type>
    <loader readonly="yes" type="pflash">/usr/share/edk2.git/ovmf-x64/OVMF_CODE-pure-efi.fd</loader>
    <nvram template="/usr/share/edk2.git/ovmf-x64/OVMF_VARS-pure-efi.fd">/var/lib/libvirt/qemu/nvram/3f1c9a2be5a4431cb6d1d6e5b5c0a001.fd</nvram>
    <bootmenu enable="yes" timeout="3000"/>
    <smbios mode="sysinfo"/>
  </os>
  <sysinfo type="smbios">
    <system><entry name="serial">b2d5f3e0-5b0a-4b1c-9f2f-0d1d6a6c0001</entry></system>
    <chassis><entry name="asset">www.example.org</entry></chassis>
    <oemStrings><entry>tenant:one</entry></oemStrings>
  </sysinfo>
  <features>
    <apic/>
    <pae/>
    <acpi/>
    <kvm><hidden state="on"/></kvm>
    <vmport state="off"/>
    <ioapic driver="kvm"/>
  </features>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <input type="tablet" bus="usb"/>
    <video><model type="vga"/></video>
    <interface type="bridge">
      <mac address="fa:2c:c8:47:3d:00"/>
      <alias name="net0"/>
      <mtu size="1450"/>
      <source bridge="br_zsn0_100"/>
      <target dev="vnic12.0"/>
      <address type="pci"/>
      <filterref filter="clean-traffic">
        <parameter name="IP" value="10.0.0.9"/>
      </filterref>
      <model type="virtio"/>
      <driver name="vhost" txmode="iothread" ioeventfd="on" event_idx="off" queues="2" rx_queue_size="1024" tx_queue_size="1024"/>
      <boot order="2"/>
      <bandwidth><outbound average="12800"/><inbound average="12800"/></bandwidth>
    </interface>
    <disk type="file" device="disk" snapshot="external">
      <driver name="qemu" type="qcow2" cache="none" discard="unmap" queues="1"/>
      <source file="/zstack_ps/rootVolumes/acct-36c27e8ff05c4780bf6d2fa65700f22e/vol-5c9a/5c9a.qcow2"/>
      <target dev="vda" bus="virtio"/>
      <boot order="1"/>
      <serial>5c9a8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>
    </disk>
    <disk type="block" device="disk" snapshot="external">
      <driver name="qemu" type="raw" cache="none" io="native"/>
      <source dev="/dev/vg-shared/6d9b"/>
      <shareable/>
      <target dev="sdb" bus="scsi"/>
      <wwn>000f3d0cbf0f6b21</wwn>
      <address type="drive" controller="0" unit="1"/>
      <iotune><total_bytes_sec>104857600</total_bytes_sec></iotune>
      <serial>6d9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>
    </disk>
    <graphics type="vnc" port="5900" autoport="yes" passwd="hidden"><listen type="address" address="0.0.0.0"/></graphics>
    <channel type="unix">
      <source mode="bind" path="/var/lib/libvirt/qemu/3f1c9a2be5a4431cb6d1d6e5b5c0a001"/>
      <target type="virtio" name="org.qemu.guest_agent.0"/>
    </channel>
    <channel type="unix">
      <source mode="bind"/>
      <target type="virtio" name="zwatch.vm"/>
    </channel>
    <panic model="isa"><address type="isa" iobase="0x505"/></panic>
    <memballoon model="virtio"><stats period="10"/></memballoon>
    <serial type="pty"><target port="0"/></serial>
    <console type="pty"><target type="serial" port="0"/></console>
    <controller type="scsi" model="virtio-scsi"/>
    <controller type="sata" index="0"><alias name="sata"/><address type="pci" domain="0" bus="0" slot="0x1f" function="2"/></controller>
    <controller type="pci" model="pcie-root" index="0"/>
    <controller type="pci" model="dmi-to-pci-bridge" index="1"/>
    <controller type="pci" model="pci-bridge" index="2"/>
    <controller type="pci" model="pcie-root-port" index="3"/>
    <controller type="pci" model="pcie-root-port" index="4"/>
    <disk type="file" device="cdrom">
      <driver name="qemu" type="raw"/>
      <target dev="hdc" bus="sata"/>
      <address type="drive" bus="0" unit="1"/>
      <readonly/>
      <serial>8e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>
    </disk>
    <controller type="usb" index="0"/>
    <controller type="usb" index="1" model="ehci"/>
    <controller type="usb" index="2" model="nec-xhci"/>
    <controller type="usb" index="3" model="ehci"/>
    <controller type="usb" index="4" model="nec-xhci"/>
  </devices>
  <pm><suspend-to-disk enabled="no"/><suspend-to-mem enabled="no"/></pm>
  <seclabel type="none"/>
  <qemu:commandline>
    <qemu:arg value="-qmp"/>
    <qemu:arg value="unix:/var/lib/libvirt/qemu/zstack/3f1c9a2be5a4431cb6d1d6e5b5c0a001.sock,server,nowait"/>
  </qemu:commandline>
</domain>
"""

#: The same of a desktop with Windows, with all that a VM may be tuned by: pinning, NUMA nodes, huge pages.
ZSTACK_DESKTOP = """<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>4a2d0b3cf6b5542dc7e2e7f6c6d1b002</name>
  <iothreadids><iothread id="1"/></iothreadids>
  <iothreads>1</iothreads>
  <uuid>4a2d0b3c-f6b5-542d-c7e2-e7f6c6d1b002</uuid>
  <description>desktop</description>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>restart</on_crash>
  <metadata>
    <zs:zstack xmlns:zs="http://zstack.org">
      <zs:internalId>13</zs:internalId>
      <zs:hostManagementIp>192.0.2.41</zs:hostManagementIp>
    </zs:zstack>
  </metadata>
  <clock offset="localtime">
    <timer name="rtc" tickpolicy="catchup" track="guest"/>
    <timer name="pit" tickpolicy="delay"/>
    <timer name="hpet" present="no"/>
    <timer name="hypervclock" present="yes"/>
  </clock>
  <vcpu placement="static">4</vcpu>
  <cputune>
    <iothreadpin iothread="1" cpuset="0-1"/>
    <vcpupin vcpu="0" cpuset="0"/>
    <emulatorpin cpuset="2-3"/>
  </cputune>
  <cpu mode="custom">
    <model fallback="allow" vendor_id="GenuineIntel">Haswell-noTSX-IBRS</model>
    <topology sockets="2" cores="2" threads="1"/>
    <numa>
      <cell id="0" cpus="0-1" memory="2097152" unit="KiB"><distances><sibling id="0" value="10"/><sibling id="1" value="21"/></distances></cell>
      <cell id="1" cpus="2-3" memory="2097152" unit="KiB"><distances><sibling id="0" value="21"/><sibling id="1" value="10"/></distances></cell>
    </numa>
  </cpu>
  <numatune>
    <memnode cellid="0" mode="preferred" nodeset="0"/>
    <memnode cellid="1" mode="preferred" nodeset="0"/>
  </numatune>
  <memory unit="k">4194304</memory>
  <currentMemory unit="k">4194304</currentMemory>
  <os>
    <type machine="pc">hvm</type>
  </os>
  <features>
    <apic/>
    <pae/>
    <acpi/>
    <hyperv>
      <relaxed state="on"/>
      <vapic state="on"/>
      <frequencies state="on"/>
      <vpindex state="on"/>
      <synic state="on"/>
      <stimer state="on"/>
      <spinlocks state="on" retries="8191"/>
      <vendor_id state="on" value="example"/>
    </hyperv>
    <ioapic driver="kvm"/>
  </features>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <input type="tablet" bus="usb"/>
    <video><model type="qxl" ram="65536" vram="32768" vgamem="16384"/></video>
    <sound model="ich6"/>
    <interface type="bridge">
      <mac address="fa:2c:c8:47:3d:01"/>
      <alias name="net0"/>
      <mtu size="1500"/>
      <link state="down"/>
      <source bridge="br_eth0"/>
      <target dev="vnic13.0"/>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x03" function="0x0"/>
      <filterref filter="clean-traffic"/>
      <model type="e1000"/>
    </interface>
    <disk type="file" device="disk" snapshot="external">
      <driver name="qemu" type="qcow2" cache="none" discard="unmap" iothread="1"/>
      <source file="/zstack_ps/rootVolumes/acct-36c27e8ff05c4780bf6d2fa65700f22e/vol-7d1b/7d1b.qcow2"/>
      <target dev="vda" bus="virtio"/>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x06" function="0x0"/>
      <iotune><read_bytes_sec>1048576</read_bytes_sec><write_iops_sec>500</write_iops_sec></iotune>
      <serial>7d1b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>
    </disk>
    <graphics type="vnc" port="5900" autoport="yes"><listen type="address" address="0.0.0.0"/></graphics>
    <graphics type="spice" port="5900" autoport="yes">
      <listen type="address" address="0.0.0.0"/>
      <channel name="main" mode="secure"/>
      <image compression="auto_glz"/>
      <jpeg compression="always"/>
      <zlib compression="never"/>
      <playback compression="off"/>
      <streaming mode="off"/>
    </graphics>
    <panic model="hyperv"/>
    <serial type="pty"><target port="0"/><log file="/tmp/4a2d0b3cf6b5542dc7e2e7f6c6d1b002-vm-kernel.log"/></serial>
    <console type="pty"><target type="serial" port="0"/><log file="/tmp/4a2d0b3cf6b5542dc7e2e7f6c6d1b002-vm-kernel.log"/></console>
    <controller type="scsi" model="virtio-scsi"/>
    <controller type="pci" index="1" model="pci-bridge"/>
    <channel type="spiceport"><source channel="org.spice-space.webdav.0"/><target type="virtio" name="org.spice-space.webdav.0"/></channel>
    <disk type="file" device="floppy">
      <driver name="qemu" type="raw"/>
      <source file="/var/lib/zstack/virtio-drivers/virtio-win_x86.vfd"/>
      <readonly/>
      <target dev="fda" type="fdc"/>
    </disk>
    <disk type="file" device="cdrom">
      <driver name="qemu" type="raw"/>
      <target dev="hdc" bus="ide"/>
      <address type="drive" bus="0" unit="1"/>
      <readonly/>
      <serial>9e9b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>
      <boot order="1"/>
      <source file="/zstack_ps/imagecache/iso/windows.iso"/>
    </disk>
    <controller type="usb" index="0"/>
    <controller type="usb" index="1" model="ehci"/>
    <controller type="usb" index="2" model="nec-xhci"/>
    <controller type="usb" index="3" model="ehci"/>
    <controller type="usb" index="4" model="nec-xhci"/>
    <channel type="spicevmc"><target type="virtio" name="com.redhat.spice.0"/><address type="virtio-serial"/></channel>
    <redirdev type="spicevmc" bus="usb"><address type="usb" bus="3" port="1"/></redirdev>
    <redirdev type="spicevmc" bus="usb"><address type="usb" bus="4" port="1"/></redirdev>
  </devices>
  <pm><suspend-to-disk enabled="no"/><suspend-to-mem enabled="no"/></pm>
  <seclabel type="none"/>
  <memoryBacking>
    <hugepages/>
    <allocation mode="immediate"/>
    <nosharepages/>
    <access mode="shared"/>
  </memoryBacking>
  <qemu:commandline>
    <qemu:arg value="-cpu"/>
    <qemu:arg value="Haswell-noTSX-IBRS,vendor=GenuineIntel"/>
  </qemu:commandline>
</domain>
"""

CLOUDSTACK = """<domain type='kvm'>
<name>i-2-14-VM</name>
<uuid>0c2c1a52-1f4b-4c7e-8a6d-9c8a5f3b1014</uuid>
<description>Debian GNU/Linux 12 (64-bit)</description>
<sysinfo type='smbios'>
<system>
<entry name='manufacturer'>Apache Software Foundation</entry>
<entry name='product'>CloudStack KVM Hypervisor</entry>
<entry name='uuid'>0c2c1a52-1f4b-4c7e-8a6d-9c8a5f3b1014</entry>
<entry name='serial'>0c2c1a52-1f4b-4c7e-8a6d-9c8a5f3b1014</entry>
</system>
</sysinfo>
<os>
<type arch='x86_64' machine='pc'>hvm</type>
<boot dev='cdrom'/>
<boot dev='hd'/>
<smbios mode='sysinfo'/>
</os>
<memory>4194304</memory>
<currentMemory>2097152</currentMemory>
<devices>
<memballoon model='virtio'>
</memballoon>
</devices>
<vcpu current='2'>2</vcpu>
<cputune>
<shares>1024</shares>
</cputune>
<features>
<pae/>
<apic/>
<acpi/>
</features>
<clock offset='utc'>
<timer name='kvmclock' />
</clock>
<devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<graphics type='vnc' autoport='yes' listen='192.0.2.31' passwd='Zq1FpV8w'/>
<watchdog model='i6300esb' action='none'/>
<disk  device='disk' type='file'>
<driver name='qemu' type='qcow2' cache='none'  />
<source file='/mnt/6bb26f4c-2ce2-3f5c-9a5f-4b3d00000014/9d1f2c3a-root'/>
<target dev='vda' bus='virtio'/>
<serial>9d1f2c3a0b5c4e6d8f7a</serial>
<iotune>
<total_iops_sec>500</total_iops_sec>
</iotune>
</disk>
<disk  device='cdrom' type='file'>
<driver name='qemu' type='raw'  />
<source file=''/>
<target dev='hdc' bus='ide'/>
</disk>
<interface type='bridge'>
<source bridge='brbond0-100'/>
<mac address='1e:00:b1:00:00:14'/>
<model type='virtio'/>
<bandwidth>
<inbound average='25600' peak='25600'/>
<outbound average='25600' peak='25600'/>
</bandwidth>
<link state='up'/>
</interface>
<channel type='unix'>
<source mode='bind' path='/var/lib/libvirt/qemu/i-2-14-VM.org.qemu.guest_agent.0'/>
<target type='virtio' name='org.qemu.guest_agent.0'/>
</channel>
<serial type='pty'>
<target port='0'/>
</serial>
<video><model type='cirrus'  vram='16384' ></model></video>
<input type='tablet' bus='usb'/>
<console type='pty'><target port='0'/></console>
<rng model='virtio'>
<rate period="1000" bytes="2048" />
<backend model='random'>/dev/random</backend>
</rng>
</devices>
<cpu><topology sockets='2' cores='1' threads='1' /></cpu>
<on_reboot>restart</on_reboot>
<on_poweroff>destroy</on_poweroff>
<on_crash>destroy</on_crash>
</domain>
"""

VDSM = """<?xml version="1.0" encoding="UTF-8"?>
<domain type="kvm" xmlns:ovirt-tune="http://ovirt.org/vm/tune/1.0" xmlns:ovirt-vm="http://ovirt.org/vm/1.0">
  <name>vm-el9</name>
  <uuid>a1b9de75-5ab4-4f94-9a0e-9c5a6d4e0042</uuid>
  <memory>2097152</memory>
  <currentMemory>2097152</currentMemory>
  <iothreads>1</iothreads>
  <maxMemory slots="16">8388608</maxMemory>
  <vcpu current="2">32</vcpu>
  <sysinfo type="smbios">
    <system>
      <entry name="manufacturer">oVirt</entry>
      <entry name="product">RHEL</entry>
      <entry name="version">9.4-1.el9</entry>
      <entry name="serial">30333436-3638-5355-4532-313631574337</entry>
      <entry name="uuid">a1b9de75-5ab4-4f94-9a0e-9c5a6d4e0042</entry>
    </system>
  </sysinfo>
  <clock offset="variable" adjustment="0">
    <timer name="rtc" tickpolicy="catchup"/>
    <timer name="pit" tickpolicy="delay"/>
    <timer name="hpet" present="no"/>
  </clock>
  <features><acpi/><vmcoreinfo state="on"/></features>
  <cpu match="exact">
    <model>Skylake-Server-noTSX-IBRS</model>
    <topology cores="1" threads="1" sockets="32"/>
    <numa><cell id="0" cpus="0-31" memory="2097152"/></numa>
  </cpu>
  <cputune/>
  <devices>
    <input type="tablet" bus="usb"/>
    <channel type="unix">
      <target type="virtio" name="ovirt-guest-agent.0"/>
      <source type="unix" mode="bind" path="/var/lib/libvirt/qemu/channels/a1b9de75.ovirt-guest-agent.0"/>
    </channel>
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0"/>
      <source type="unix" mode="bind" path="/var/lib/libvirt/qemu/channels/a1b9de75.org.qemu.guest_agent.0"/>
    </channel>
    <controller type="pci" model="pcie-root-port" index="1"><address bus="0x00" domain="0x0000" function="0x0" slot="0x02" type="pci" multifunction="on"/></controller>
    <controller type="pci" model="pcie-root-port" index="2"/>
    <controller type="pci" model="pcie-root"/>
    <rng model="virtio"><backend model="random">/dev/urandom</backend><alias name="ua-1b4a3a3c-0001"/></rng>
    <graphics type="vnc" port="-1" autoport="yes" passwd="*****" passwdValidTo="1970-01-01T00:00:01" keymap="en-us"><listen type="network" network="vdsm-ovirtmgmt"/></graphics>
    <controller type="usb" model="qemu-xhci" index="0" ports="8"><alias name="ua-usb"/></controller>
    <controller type="virtio-serial" index="0" ports="16"><alias name="ua-serial"/></controller>
    <memballoon model="virtio"><stats period="5"/><alias name="ua-balloon"/></memballoon>
    <video><model type="vga" vram="16384" heads="1"/><alias name="ua-video"/></video>
    <controller type="scsi" model="virtio-scsi" index="0"><driver iothread="1"/><alias name="ua-scsi"/></controller>
    <serial type="unix"><source mode="bind" path="/var/run/ovirt-vmconsole-console/a1b9de75.sock"/><target port="0"/></serial>
    <console type="unix"><source mode="bind" path="/var/run/ovirt-vmconsole-console/a1b9de75.sock"/><target type="serial" port="0"/><alias name="ua-console"/></console>
    <interface type="bridge">
      <model type="virtio"/>
      <link state="up"/>
      <source bridge="ovirtmgmt"/>
      <driver queues="2" name="vhost"/>
      <alias name="ua-9f2d6f1e-0001"/>
      <boot order="2"/>
      <mac address="56:6f:a5:c2:00:42"/>
      <mtu size="1500"/>
      <filterref filter="vdsm-no-mac-spoofing"/>
      <bandwidth/>
    </interface>
    <disk type="file" device="cdrom" snapshot="no">
      <driver name="qemu" type="raw" error_policy="report"/>
      <source file="" startupPolicy="optional"><seclabel model="dac" type="none" relabel="no"/></source>
      <target dev="sdc" bus="sata"/>
      <readonly/>
      <alias name="ua-cdrom"/>
    </disk>
    <disk snapshot="no" type="block" device="disk">
      <target dev="vda" bus="virtio"/>
      <source dev="/rhev/data-center/mnt/blockSD/8f9c/images/77aa/55bb"><seclabel model="dac" type="none" relabel="no"/></source>
      <driver name="qemu" iothread="1" io="native" type="qcow2" error_policy="stop" cache="none"/>
      <alias name="ua-77aa"/>
      <boot order="1"/>
      <serial>77aa0000-0000-4000-8000-000000000042</serial>
    </disk>
    <lease>
      <key>a1b9de75-5ab4-4f94-9a0e-9c5a6d4e0042</key>
      <lockspace>8f9c</lockspace>
      <target offset="6291456" path="/dev/8f9c/xleases"/>
    </lease>
  </devices>
  <pm><suspend-to-disk enabled="no"/><suspend-to-mem enabled="no"/></pm>
  <os>
    <type arch="x86_64" machine="pc-q35-rhel9.4.0">hvm</type>
    <loader readonly="yes" secure="no" type="pflash">/usr/share/OVMF/OVMF_CODE.secboot.fd</loader>
    <nvram template="/usr/share/OVMF/OVMF_VARS.fd">/var/lib/libvirt/qemu/nvram/a1b9de75.fd</nvram>
    <bios useserial="yes"/>
    <smbios mode="sysinfo"/>
  </os>
  <metadata>
    <ovirt-tune:qos/>
    <ovirt-vm:vm>
      <ovirt-vm:minGuaranteedMemoryMb type="int">2048</ovirt-vm:minGuaranteedMemoryMb>
      <ovirt-vm:clusterVersion>4.7</ovirt-vm:clusterVersion>
      <ovirt-vm:custom/>
      <ovirt-vm:device mac_address="56:6f:a5:c2:00:42"><ovirt-vm:custom/></ovirt-vm:device>
      <ovirt-vm:launchPaused>false</ovirt-vm:launchPaused>
    </ovirt-vm:vm>
  </metadata>
</domain>
"""

OPENNEBULA = """<?xml version='1.0' encoding='UTF-8'?>
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>one-42</name>
<title>web</title>
<uuid>5b6f6f0e-0a59-4e0e-8f5b-30c0f7a00042</uuid>
<cputune>
<shares>1024</shares>
</cputune>
<vcpu><![CDATA[2]]></vcpu>
<memory>2097152</memory>
<os>
<type arch='x86_64'>hvm</type>
</os>
<pm>
<suspend-to-disk enabled='no'/>
<suspend-to-mem enabled='no'/>
</pm>
<cpu mode='host-passthrough'>
</cpu>
<devices>
<emulator><![CDATA[/usr/bin/qemu-system-x86_64]]></emulator>
<disk type='file' device='disk'>
<source file='/var/lib/one//datastores/0/42/disk.0'/>
<target dev='vda'/>
<boot order='1'/>
<driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
</disk>
<disk type='file' device='cdrom'>
<source file='/var/lib/one//datastores/0/42/disk.1'/>
<target dev='hda'/>
<readonly/>
<driver name='qemu' type='raw'/>
</disk>
<interface type='bridge'>
<source bridge='onebr.100'/>
<mac address='02:00:0a:00:00:2a'/>
<target dev='one-42-0'/>
<model type='virtio'/>
<filterref filter='clean-traffic'>
<parameter name='IP' value='10.0.0.42'/>
</filterref>
</interface>
<graphics type='vnc' listen='0.0.0.0' port='5942'/>
</devices>
<features>
<acpi/>
</features>
<devices>
<channel type='unix'>
<source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/>
</channel>
</devices>
<metadata>
<one:vm xmlns:one="http://opennebula.org/xmlns/libvirt/1.0">
<one:system_datastore><![CDATA[/var/lib/one//datastores/0/42]]></one:system_datastore>
<one:name><![CDATA[web]]></one:name>
<one:uname><![CDATA[oneadmin]]></one:uname>
</one:vm>
</metadata>
</domain>
"""

TERRAFORM = """<domain type="kvm">
  <name>terraform-metal</name>
  <uuid>8b0b5a3e-6f0f-4c39-8d35-5f3c7a1e0065</uuid>
  <memory unit="MiB">2048</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <boot dev="hd"></boot>
    <boot dev="network"></boot>
  </os>
  <features>
    <pae></pae>
    <acpi></acpi>
    <apic></apic>
  </features>
  <cpu mode="host-passthrough"></cpu>
  <devices>
    <disk type="volume" device="disk">
      <driver name="qemu" type="qcow2"></driver>
      <source pool="default" volume="terraform-metal.qcow2"></source>
      <target dev="vda" bus="virtio"></target>
      <wwn>05abcd0123456789</wwn>
    </disk>
    <interface type="network">
      <mac address="52:54:00:8b:65:01"></mac>
      <source network="default"></source>
      <model type="virtio"></model>
    </interface>
    <console type="pty">
      <target type="serial" port="0"></target>
    </console>
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0"></target>
    </channel>
    <graphics type="vnc" autoport="yes">
      <listen type="address" address="127.0.0.1"></listen>
    </graphics>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
    </rng>
  </devices>
</domain>
"""

# virDomainUndefineFlagsValues: managed save 1, snapshots' metadata 2, NVRAM 4, keep NVRAM 8, checkpoints' 16
CLOUDS = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            "nova",
            "instance-000004d2",
            NOVA,
            (
                "nova:flavor name=",
                "<nova:port uuid=",
                "interfaceid='1c9d1b2e-9d8b-4a53-9a43-4a5c6e0a0001'",
                "<target dev='tap1c9d1b2e-9d'/>",
                "<serial>0f0c3d3e-7d0c-4bb2-8ab7-3a61b3a30001</serial>",
                "<log file=",
                "<alias name='ua-0f0c3d3e-7d0c-4bb2-8ab7-3a61b3a30001'/>",
            ),
            1 | 4,
            ("<memory>8388608</memory>", "<memory>4194304</memory>"),
        ),
        Cloud(
            "nova-local",
            "instance-00000001",
            NOVA_LOCAL,
            ("<target dev='tap88dae9fa-0d'/>", "<nova:owner/>", "freePageReporting='on'"),
            1 | 4,
            ("<memory>524288</memory>", "<memory>262144</memory>"),
        ),
        Cloud(
            "zstack",
            "3f1c9a2be5a4431cb6d1d6e5b5c0a001",
            ZSTACK,
            (
                "<zs:internalId>12</zs:internalId>",
                "<serial>5c9a8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>",
                "<target dev='vnic12.0'/>",
                "<memory unit='KiB'>4194304</memory>",
                "name='zwatch.vm'",
            ),
            1 | 2 | 4,
            ("<description>vm-of-a-tenant</description>", "<description>renamed</description>"),
        ),
        Cloud(
            "zstack-desktop",
            "4a2d0b3cf6b5542dc7e2e7f6c6d1b002",
            ZSTACK_DESKTOP,
            (
                "<zs:hostManagementIp>192.0.2.41</zs:hostManagementIp>",
                "<serial>7d1b8d5e7f4b4f0e8a4d1a2b3c4d5e6f</serial>",
                "<target dev='vnic13.0'/>",
                "<link state='down'/>",
                "<vendor_id state='on' value='example'/>",
                "<streaming mode='off'/>",
            ),
            1 | 2 | 4,
            ("<description>desktop</description>", "<description>renamed</description>"),
        ),
        Cloud(
            "cloudstack",
            "i-2-14-VM",
            CLOUDSTACK,
            (
                "<description>Debian GNU/Linux 12 (64-bit)</description>",
                "<serial>9d1f2c3a0b5c4e6d8f7a</serial>",
                "<source bridge='brbond0-100'/>",
                "<boot dev='cdrom'/>",
            ),
            0,
            ("<currentMemory>2097152</currentMemory>", "<currentMemory>1048576</currentMemory>"),
        ),
        Cloud(
            "vdsm",
            "vm-el9",
            VDSM,
            (
                "ovirt-vm:clusterVersion>4.7<",
                "<alias name='ua-77aa'/>",
                "mac_address=",
                "<lockspace>8f9c</lockspace>",
            ),
            4,
            ("<ovirt-vm:clusterVersion>4.7", "<ovirt-vm:clusterVersion>4.8"),
        ),
        Cloud(
            "opennebula",
            "one-42",
            OPENNEBULA,
            ("one:uname>oneadmin<", "<target dev='one-42-0'/>", "name='org.qemu.guest_agent.0'"),
            1 | 2,
            ("<title>web</title>", "<title>web-2</title>"),
        ),
        Cloud(
            "terraform",
            "terraform-metal",
            TERRAFORM,
            (
                "<source pool='default' volume='terraform-metal.qcow2'/>",
                "<mac address='52:54:00:8b:65:01'/>",
                "<wwn>05abcd0123456789</wwn>",
            ),
            4,
            ('<memory unit="MiB">2048</memory>', '<memory unit="MiB">1024</memory>'),
        ),
    )
}
