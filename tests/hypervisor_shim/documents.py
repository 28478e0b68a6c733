"""Domain documents for the differential test: GOOD ones are defined, BAD ones refused."""

# ruff: noqa: E501 -- a document a line, as clients send them

from __future__ import annotations

GOOD: dict[str, str] = {}
GOOD["minimal"] = (
    "<domain type='test'><name>min</name><memory>1024</memory><os><type>hvm</type></os></domain>"
)
GOOD["units"] = (
    "<domain type='test'><name>units</name><title>A title</title><description>Long\ntext &lt;x&gt;</description><memory unit='GiB'>2</memory><currentMemory unit='MiB'>512</currentMemory><vcpu current='2'>4</vcpu><os><type>hvm</type></os></domain>"
)
GOOD["full"] = """<domain type='test'>
  <name>full</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata><a:x xmlns:a='http://a.example/1'>one<a:y z='1'/></a:x><b xmlns='urn:b'>two</b></metadata>
  <memory unit='KiB'>1048576</memory><vcpu placement='static'>2</vcpu>
  <unknown>drop</unknown>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><bootmenu enable='yes' timeout='3000'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'><topology sockets='1' cores='2' threads='1'/></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
  <pm><suspend-to-mem enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk' foo='bar'><driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/><source file='/a/b.qcow2'/><target dev='vda' bus='virtio'/><serial>abc</serial><boot order='1'/><bogus/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='p' volume='v'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/img'><host name='10.0.0.1' port='6789'/><host name='10.0.0.2' port='6789'/></source><auth username='u'><secret type='ceph' uuid='4dea22b3-1d52-d8f3-2516-782e98ab3fa1'/></auth><target dev='sda' bus='scsi'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdz'/><target dev='sdb' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='hda' bus='ide'/></disk>
    <controller type='usb' index='0' model='qemu-xhci'/>
    <interface type='network'><source network='default' portgroup='x'/><model type='virtio'/><mtu size='1450'/><boot order='2'/></interface>
    <interface type='bridge'><mac address='52:54:00:AA:BB:CC'/><source bridge='br0'/><target dev='tap7'/><virtualport type='openvswitch'><parameters interfaceid='4dea22b3-1d52-d8f3-2516-782e98ab3fa2'/></virtualport><filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.1'/><parameter name='IP' value='10.0.0.2'/><parameter name='GW' value='x'/></filterref><link state='down'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <input type='tablet' bus='usb'/><input type='mouse' bus='ps2'/>
    <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='secret'><listen type='address' address='127.0.0.1'/></graphics>
    <video><model type='vga' vram='16384' heads='1' primary='yes'/></video>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <watchdog model='i6300esb' action='reset'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <sound model='ich9'/>
  </devices>
  <seclabel type='none'/>
</domain>"""
GOOD["mirrored"] = (
    "<domain type='test'><name>mir</name><memory>1024</memory><os><type>hvm</type></os><devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='/x'/><mirror type='file' file='/y' format='raw' job='copy' ready='yes'><format type='raw'/><source file='/y'/></mirror><target dev='vda'/></disk></devices></domain>"
)
GOOD["console"] = (
    "<domain type='test'><name>cons</name><memory>1024</memory><os><type>hvm</type></os><devices><console type='pty'/></devices></domain>"
)
GOOD["serial"] = (
    "<domain type='test'><name>ser</name><memory>1024</memory><os><type>hvm</type></os><devices><serial type='pty'/><disk type='file'><source file='/x'/><target dev='hda'/></disk><interface type='network'><source network='default'/></interface><interface type='user'/></devices></domain>"
)
GOOD["serial2"] = (
    "<domain type='test'><name>ser2</name><memory>1024</memory><os><type>hvm</type></os><devices><serial type='unix'><source mode='bind' path='/tmp/s'/><target port='1'/></serial><serial type='tcp'><source mode='connect' host='1.2.3.4' service='99'/><protocol type='telnet'/></serial><console type='pty'><target type='virtio'/></console></devices></domain>"
)
GOOD["nova"] = (
    """<domain type="test"><uuid>d51d9ab3-6d79-4bd8-9b47-8b2a9b64b6b5</uuid><name>instance-00000001</name><memory>524288</memory><vcpu>1</vcpu><metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:package version="27.0.0"/><nova:name>vm</nova:name><nova:flavor name="m1"><nova:memory>512</nova:memory></nova:flavor></nova:instance></metadata><sysinfo type="smbios"><system><entry name="manufacturer">OpenStack</entry><entry name="uuid">d51d9ab3-6d79-4bd8-9b47-8b2a9b64b6b5</entry></system></sysinfo><os><type>hvm</type><boot dev="hd"/><smbios mode="sysinfo"/></os><features><acpi/><apic/></features><cputune><shares>1024</shares></cputune><clock offset="utc"><timer name="pit" tickpolicy="delay"/><timer name="rtc" tickpolicy="catchup"/><timer name="hpet" present="no"/></clock><cpu mode="custom" match="exact"><model>Nehalem</model><topology sockets="1" cores="1" threads="1"/></cpu><devices><disk type="file" device="disk"><driver type="qcow2" cache="none"/><source file="/var/lib/nova/instances/x/disk"/><target bus="virtio" dev="vda"/></disk><interface type="bridge"><mac address="fa:16:3e:11:22:33"/><model type="virtio"/><driver name="vhost" rx_queue_size="512"/><source bridge="br-int"/><mtu size="1450"/><target dev="tap1"/><virtualport type="openvswitch"><parameters interfaceid="d51d9ab3-6d79-4bd8-9b47-8b2a9b64b6b6"/></virtualport></interface><serial type="pty"><log file="/x/console.log" append="off"/></serial><graphics type="vnc" autoport="yes" listen="0.0.0.0"/><video><model type="virtio"/></video><rng model="virtio"><backend model="random">/dev/urandom</backend></rng><controller type="usb" index="0"/><memballoon model="virtio"><stats period="10"/></memballoon></devices></domain>"""
)
GOOD["direct"] = (
    "<domain type='test'><name>direct</name><memory>2048</memory><os><type>hvm</type><kernel>/k</kernel><initrd>/i</initrd><cmdline>console=ttyS0 a=b</cmdline></os><devices><emulator>/bin/true</emulator><interface type='direct'><source dev='eth0' mode='bridge'/></interface><interface type='ethernet'><target dev='veth5'/></interface><hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='1' slot='2' function='3'/></source></hostdev><filesystem type='mount'><source dir='/a'/><target dir='b'/></filesystem></devices></domain>"
)
GOOD["order"] = (
    "<domain type='test'><devices><interface type='network'><source network='n'/></interface><disk type='block'><target dev='vda'/><source dev='/dev/x'/></disk></devices><os><boot dev='cdrom'/><type>hvm</type></os><vcpu>3</vcpu><memory unit='b'>1048577</memory><name>order</name><memoryBacking><hugepages/></memoryBacking><on_crash>preserve</on_crash></domain>"
)
BAD: dict[str, str] = {}
BASE = "<domain type='test'><name>x</name><memory>1024</memory><os><type>hvm</type></os>%s</domain>"
BAD["noname"] = "<domain type='test'><memory>1024</memory><os><type>hvm</type></os></domain>"
BAD["emptyname"] = BASE.replace("<name>x</name>", "<name></name>") % ""
BAD["slashname"] = BASE.replace("<name>x</name>", "<name>a/b</name>") % ""
BAD["nlname"] = BASE.replace("<name>x</name>", "<name>a\nb</name>") % ""
BAD["notype"] = "<domain><name>x</name><memory>1024</memory><os><type>hvm</type></os></domain>"
BAD["badtype"] = "<domain type='foo'><name>x</name><memory>1024</memory><os><type>hvm</type></os></domain>"
BAD["kvmtype"] = "<domain type='kvm'><name>x</name><memory>1024</memory><os><type>hvm</type></os></domain>"
BAD["badroot"] = "<network><name>x</name></network>"
BAD["nomem"] = "<domain type='test'><name>x</name><os><type>hvm</type></os></domain>"
BAD["zeromem"] = BASE.replace("1024", "0") % ""
BAD["badmem"] = BASE.replace("1024", "abc") % ""
BAD["negmem"] = BASE.replace("1024", "-1") % ""
BAD["badunit"] = BASE.replace("<memory>", "<memory unit='foo'>") % ""
BAD["hugemem"] = BASE.replace("1024", "99999999999999999999") % ""
BAD["curmem"] = BASE % "<currentMemory>2048</currentMemory>"
BAD["noos"] = "<domain type='test'><name>x</name><memory>1024</memory></domain>"
BAD["badostype"] = "<domain type='test'><name>x</name><memory>1024</memory><os><type>foo</type></os></domain>"
BAD["linux"] = "<domain type='test'><name>x</name><memory>1024</memory><os><type>linux</type></os></domain>"
BAD["badarch"] = (
    "<domain type='test'><name>x</name><memory>1024</memory><os><type arch='foo'>hvm</type></os></domain>"
)
BAD["badboot"] = (
    "<domain type='test'><name>x</name><memory>1024</memory><os><type>hvm</type><boot dev='foo'/></os></domain>"
)
BAD["bootnodev"] = (
    "<domain type='test'><name>x</name><memory>1024</memory><os><type>hvm</type><boot/></os></domain>"
)
BAD["baduuid"] = BASE % "<uuid>zzz</uuid>"
BAD["zerovcpu"] = BASE % "<vcpu>0</vcpu>"
BAD["badvcpu"] = BASE % "<vcpu>a</vcpu>"
BAD["vcpucur"] = BASE % "<vcpu current='5'>2</vcpu>"
BAD["badclock"] = BASE % "<clock offset='foo'/>"
BAD["badcrash"] = BASE % "<on_crash>foo</on_crash>"
BAD["dtd"] = "<!DOCTYPE d [<!ENTITY a 'x'>]>" + BASE % "<title>&a;</title>"
BAD["xxe"] = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/hostname'>]>" + BASE % "<title>&a;</title>"
BAD["undefent"] = BASE % "<title>&a;</title>"
BAD["lol"] = (
    "<!DOCTYPE d [<!ENTITY a0 'lol'>"
    + "".join(f"<!ENTITY a{i} '" + f"&a{i - 1};" * 10 + "'>" for i in range(1, 10))
    + "]>"
    + BASE % "<title>&a9;</title>"
)
BAD["empty"] = ""
BAD["text"] = "hello"
BAD["mismatch"] = "<domain></foo>"
BAD["two"] = "<domain/><domain/>"


def dev(devices: str) -> str:
    return BASE % f"<devices>{devices}</devices>"


BAD["disknotarget"] = dev("<disk type='file'><source file='/x'/></disk>")
BAD["diskbadtype"] = dev("<disk type='foo'><target dev='vda'/></disk>")
BAD["diskbaddevice"] = dev("<disk type='file' device='foo'><target dev='vda'/></disk>")
BAD["diskbadbus"] = dev("<disk type='file'><source file='/x'/><target dev='vda' bus='foo'/></disk>")
BAD["disknvmebus"] = dev("<disk type='file'><source file='/x'/><target dev='nvme0n1' bus='nvme'/></disk>")
BAD["diskdup"] = dev("<disk type='file'><source file='/x'/><target dev='vda'/></disk>" * 2)
BAD["disknosrc"] = dev("<disk type='file'><target dev='vda'/></disk>")
BAD["diskbadtarget"] = dev("<disk type='file'><source file='/x'/><target dev='zzz9'/></disk>")
BAD["diskbadcache"] = dev(
    "<disk type='file'><driver cache='foo'/><source file='/x'/><target dev='vda'/></disk>"
)
BAD["diskbadboot"] = dev("<disk type='file'><source file='/x'/><target dev='vda'/><boot order='0'/></disk>")
BAD["bootdup"] = dev(
    "<disk type='file'><source file='/x'/><target dev='vda'/><boot order='1'/></disk><disk type='file'><source file='/x'/><target dev='vdb'/><boot order='1'/></disk>"
)
BAD["bootboth"] = (
    "<domain type='test'><name>x</name><memory>1024</memory><os><type>hvm</type><boot dev='hd'/></os><devices><disk type='file'><source file='/x'/><target dev='vda'/><boot order='1'/></disk></devices></domain>"
)
BAD["diskvolnopool"] = dev("<disk type='volume'><source volume='v'/><target dev='vda'/></disk>")
BAD["ifbadtype"] = dev("<interface type='foo'/>")
BAD["ifnotype"] = dev("<interface/>")
BAD["ifnosource"] = dev("<interface type='network'/>")
BAD["ifbrnosource"] = dev("<interface type='bridge'/>")
BAD["ifbadmac"] = dev("<interface type='network'><mac address='zz'/><source network='n'/></interface>")
BAD["ifmcastmac"] = dev(
    "<interface type='network'><mac address='01:00:5e:00:00:01'/><source network='n'/></interface>"
)
BAD["ifdupmac"] = dev(
    "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='n'/></interface>" * 2
)
BAD["ifbadmodel"] = dev("<interface type='network'><source network='n'/><model type='a b;'/></interface>")
BAD["ifbadlink"] = dev("<interface type='network'><source network='n'/><link state='foo'/></interface>")
BAD["ifbadmtu"] = dev("<interface type='network'><source network='n'/><mtu size='foo'/></interface>")
BAD["serialbadtype"] = dev("<serial type='foo'/>")
BAD["consolebadtarget"] = dev("<console type='pty'><target type='foo'/></console>")
BAD["badid"] = (
    "<domain type='test' id='foo'><name>x</name><memory>1024</memory><os><type>hvm</type></os></domain>"
)
BAD["badns"] = BASE % "<metadata><x>1</x></metadata>"
BAD["dupns"] = BASE % "<metadata><x xmlns='a'>1</x><y xmlns='a'>2</y></metadata>"
BAD["badmemballoon"] = dev("<memballoon model='foo'/>")
BAD["undeclaredns"] = BASE % "<metadata><x:a>1</x:a></metadata>"
GOOD["scsi"] = (
    "<domain type='test'><name>scsi</name><memory>1024</memory><os><type>hvm</type></os><devices><disk type='file'><source file='/x'/><target dev='sda'/></disk><disk type='file'><source file='/x'/><target dev='sdj' bus='sata'/></disk><disk type='file'><source file='/x'/><target dev='hdc' bus='ide'/><readonly/></disk><disk type='file' device='floppy'><source file='/x'/><target dev='fda'/></disk><disk type='file'><source file='/x'/><target dev='vdc' bus='virtio'/><shareable/><transient/></disk><disk type='file'><source file='/x'/><target dev='sdz' bus='usb'/><wwn>5000c50015ea71ac</wwn><vendor>V</vendor><product>P</product></disk></devices></domain>"
)
GOOD["iotune"] = (
    "<domain type='test'><name>iotune</name><memory>1024</memory><os><type>hvm</type></os><iothreads>2</iothreads><devices><disk type='file'><driver name='qemu' type='raw' iothread='1' detect_zeroes='on' error_policy='stop' rerror_policy='report' queues='4'/><source file='/x'/><target dev='vda'/><iotune><total_bytes_sec>100</total_bytes_sec></iotune><blockio logical_block_size='512' physical_block_size='4096'/><geometry cyls='16' heads='16' secs='16' trans='lba'/><alias name='ua-disk1'/><address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/></disk><interface type='network'><source network='n'/><bandwidth><inbound average='100'/><outbound average='200' peak='300' burst='5'/></bandwidth><ip address='10.0.0.5' prefix='24'/><route address='0.0.0.0' gateway='10.0.0.1'/><alias name='ua-n'/><rom bar='off'/><teaming type='persistent'/><guest dev='eth9'/><backend tap='/dev/net/tun'/><script path='/s'/><coalesce><rx><frames max='7'/></rx></coalesce><port isolated='yes'/><vlan><tag id='42'/></vlan><tune><sndbuf>1600</sndbuf></tune></interface></devices></domain>"
)

#: Documents that libvirtd 9.0 takes otherwise, and why that is right here.
SEEN_DIFFERENTLY = {
    "direct": "host devices and file systems are kept as the client wrote them, without defaults",
    "dtd": "no document type declaration is accepted, so that there is nothing to get wrong in one",
    "xxe": "the same",
    "disknvmebus": "bus nvme came to libvirt later; metal has NVMe disks",
}
GOOD["controllers"] = (
    "<domain type='test'><name>controllers</name><memory>1024</memory><os><type>hvm</type></os><devices><controller type='pci' model='pcie-root'/><controller type='pci' model='pcie-root-port'/><controller type='usb' index='0'/><controller type='usb' model='ehci'/><controller type='scsi' model='virtio-scsi'/><controller type='scsi' index='5'/><controller type='sata'/></devices><devices><video/><video><model type='qxl'/></video></devices></domain>"
)
