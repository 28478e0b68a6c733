"""What libvirtd refuses in a domain document, with its codes and sentences (measured against 9.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml import graphics
from hypervisor_shim.xml.sizes import scaled


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Attributes with a closed set of values: (path of the element below <domain>, attribute) → values.
_VALUES: dict[tuple[str, str], frozenset[str]] = {
    (path, name): _words(values)
    for path, name, values in (
        ("os/boot", "dev", "fd hd cdrom network"),
        ("devices/disk", "type", "file block dir network volume nvme vhostuser vhostvdpa"),
        ("devices/disk", "device", "disk cdrom floppy lun"),
        ("devices/disk/target", "bus", "ide fdc scsi virtio xen usb uml sata sd nvme"),
        ("devices/disk/driver", "cache", "default none writethrough writeback directsync unsafe"),
        ("devices/disk/driver", "io", "default native threads io_uring"),
        ("devices/disk/driver", "discard", "default unmap ignore"),
        ("devices/disk/driver", "detect_zeroes", "default off on unmap"),
        (
            "devices/interface",
            "type",
            "user ethernet server client mcast network bridge internal direct hostdev udp vdpa vhostuser",
        ),
        ("devices/memballoon", "model", "virtio xen none virtio-transitional virtio-non-transitional"),
    )
}
_REQUIRED = (("os/boot", "dev"), ("devices/memballoon", "model"))
_VIRT_TYPES = _words("qemu kvm xen lxc uml openvz test vmware hyperv vbox phyp parallels bhyve vz hvf")
_OS_TYPES = _words("hvm xen linux exe uml xenpvh")
_ARCHES = _words(
    "alpha armv6l armv7l armv7b aarch64 cris i686 ia64 lm32 loongarch64 m68k microblaze microblazeel "
    "mips mipsel mips64 mips64el or32 parisc parisc64 ppc ppc64 ppc64le ppcemb riscv32 riscv64 s390 "
    "s390x sh4 sh4eb sparc sparc64 unicore32 x86_64 xtensa xtensaeb"
)
_CHAR_TYPES = _words("null vc pty dev file pipe stdio udp tcp unix spicevmc spiceport nmdm qemu-vdagent dbus")
_CONSOLE_TARGETS = _words("none serial xen uml virtio lxc openvz sclp sclplm")
_CLOCKS = _words("utc localtime variable timezone absolute")
_POWER_ACTIONS = _words("destroy restart rename-restart preserve")
_ACTIONS = {
    "on_poweroff": _POWER_ACTIONS,
    "on_reboot": _POWER_ACTIONS,
    "on_crash": _POWER_ACTIONS | {"coredump-destroy", "coredump-restart"},
}
_NEEDS_SOURCE = {"network": "network", "bridge": "bridge", "direct": "dev", "internal": "name"}
_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_CPU_SET = re.compile(r"\s*\^?\d+(-\d+)?(\s*,\s*\^?\d+(-\d+)?)*\s*")
_MODEL = re.compile(r"[A-Za-z0-9_-]+")
_DISK_NAME = re.compile(r"((?:fd|hd|vd|sd|xvd|ubd)([a-z]+)|nvme[0-9]+n[1-9][0-9]*)[0-9]*")


def xml_error(detail: str) -> LibvirtError:
    return error(Code.XML_ERROR, detail, origin=Origin.DOMAIN)


def _unsupported(detail: str) -> LibvirtError:
    return error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN)


def _attribute_error(element: str, attribute: str, value: str) -> LibvirtError:
    detail = f"Invalid value for attribute '{attribute}' in element '{element}': {value}"
    return error(Code.XML_ERROR, detail, origin=Origin.XML)


def text_of(root: Element, path: str) -> str | None:
    """The text at `path`, None where the element is missing or empty."""
    return root.findtext(path) or None


def memory_kib(root: Element, tag: str) -> int:
    """The size in KiB, rounded up; 0 where the element is missing."""
    element = root.find(tag)
    if element is None or not element.text:
        return 0
    return memory_size_kib(element.text, element.get("unit", "KiB"), f"./{tag}[1]")


def memory_size_kib(number: str, unit: str, where: str) -> int:
    """A size in a unit of libvirt's, in KiB, rounded up. `where`: the place, for the sentence of an error."""
    size = scaled(number, unit)
    if size is None:
        detail = f"Invalid value '{number}' for element or attribute '{where}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    return -(-size // 1024)


def parse_uuid(text: str) -> bytes | None:
    """16 bytes; hyphens and blanks between digits are ignored, as libvirt does. None if malformed."""
    digits = re.sub(r"[-\s]", "", text)
    return bytes.fromhex(digits) if re.fullmatch(r"[0-9a-fA-F]{32}", digits) else None


def disk_index(target: str) -> int | None:
    """vda → 0, sdab → 27; 0 for NVMe names; None if it is no disk name."""
    found = _DISK_NAME.fullmatch(target)
    if found is None:
        return None
    index = 0
    for letter in found[2] or "":
        index = index * 26 + ord(letter) - ord("a") + 1
    return max(index - 1, 0)


def check_domain(root: Element) -> None:
    """Raise what libvirtd would raise for a document as the client sent it."""
    if root.tag != "domain":
        detail = f"expecting root element of 'domain', not '{root.tag}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    virt_type = root.get("type")
    if virt_type is None:
        raise error(Code.INTERNAL_ERROR, "missing domain type attribute", origin=Origin.DOMAIN)
    if virt_type not in _VIRT_TYPES:
        raise _unsupported(f"invalid domain type {virt_type}")
    uuid = root.findtext("uuid")
    if uuid is not None and parse_uuid(uuid) is None:
        raise error(Code.INTERNAL_ERROR, "malformed uuid element", origin=Origin.DOMAIN)
    _check_name(text_of(root, "name"))
    _check_sizes(root)
    _check_os(root)
    for tag, actions in _ACTIONS.items():
        action = text_of(root, tag)
        if action is not None and action not in actions:
            raise _unsupported(f"unknown {tag} action: {action}")
    offset = _get(root.find("clock"), "offset")
    if offset is not None and offset not in _CLOCKS:
        raise _unsupported(f"unknown clock offset '{offset}'")
    _check_values(root)
    for disk in root.iterfind("devices/disk"):
        _check_disk(disk)
    _check_disk_names(root)
    for interface in root.iterfind("devices/interface"):
        _check_interface(interface)
    for screen in root.iterfind("devices/graphics"):
        graphics.check(screen)
    _check_characters(root)
    _check_boot_orders(root)


def _get(element: Element | None, name: str) -> str | None:
    return None if element is None else element.get(name)


def _check_name(name: str | None) -> None:
    if name is None:
        raise LibvirtError(Code.NO_NAME, "missing name information", origin=Origin.DOMAIN)
    if "/" in name:
        raise xml_error(f"name {name} cannot contain '/'")
    if "\n" in name:
        raise LibvirtError(Code.XML_DETAIL, "invalid char in name: \n", origin=Origin.XML)


def _check_sizes(root: Element) -> None:
    if memory_kib(root, "memory") == 0 and root.find("cpu/numa/cell") is None:
        raise xml_error("Memory size must be specified via <memory> or in the <numa> configuration")
    memory_kib(root, "currentMemory")
    vcpu = root.find("vcpu")
    if vcpu is None:
        return
    cpus = vcpu.get("cpuset")
    if cpus and _CPU_SET.fullmatch(cpus) is None:
        raise error(Code.INVALID_ARG, f"Failed to parse bitmap '{cpus}'", origin=Origin.NONE)
    maximum = (vcpu.text or "1").strip()
    if not maximum.isascii() or not maximum.isdigit() or int(maximum) >= 1 << 32:
        raise xml_error("maximum vcpus count must be an integer")
    if int(maximum) == 0:
        raise error(Code.INTERNAL_ERROR, "CPU IDs in <numa> exceed the <vcpu> count", origin=Origin.DOMAIN)
    current = vcpu.get("current", maximum)
    if not current.isascii() or not current.isdigit():
        raise xml_error("current vcpus count must be an integer")
    if int(current) > int(maximum):
        raise _unsupported("maximum vCPU count must not be less than current vCPU count")


def _check_os(root: Element) -> None:
    if root.find("bootloader") is not None and root.find("os/type") is None:
        return
    os_type = text_of(root, "os/type")
    if os_type is None:
        raise xml_error("an os <type> must be specified")
    if os_type not in _OS_TYPES:
        raise _unsupported(f"unknown OS type '{os_type}'")
    arch = _get(root.find("os/type"), "arch")
    if arch is not None and arch not in _ARCHES:
        raise _unsupported(f"Unknown architecture {arch}")


def _check_values(root: Element) -> None:
    for path, name in _REQUIRED:
        if any(name not in element.attrib for element in root.iterfind(path)):
            tag = path.rpartition("/")[2]
            detail = f"Missing required attribute '{name}' in element '{tag}'"
            raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    for (path, name), values in _VALUES.items():
        for element in root.iterfind(path):
            value = element.get(name)
            if value is not None and value not in values:
                raise _attribute_error(element.tag, name, f"'{value}'.")


def source_name(disk: Element) -> str | None:
    """What libvirt calls a disk in its sentences: its file, device or volume."""
    source = disk.find("source")
    for name in ("file", "dev", "dir", "name", "volume"):
        if (value := _get(source, name)) is not None:
            return value
    return None


def _check_disk(disk: Element) -> None:
    target = _get(disk.find("target"), "dev")
    source = disk.find("source")
    if target is None:
        shown = source_name(disk) or ""
        raise LibvirtError(
            Code.NO_TARGET, f"missing target information for device {shown}", origin=Origin.DOMAIN
        )
    if (
        disk.get("type") == "volume"
        and source is not None
        and (source.get("pool") is None) != (source.get("volume") is None)
    ):
        raise xml_error("'pool' and 'volume' must be specified together for 'pool' type source")
    if source_name(disk) is None and disk.get("device", "disk") in ("disk", "lun"):
        raise LibvirtError(
            Code.NO_SOURCE, f"missing source information for device {target}", origin=Origin.DOMAIN
        )
    if disk_index(target) is None and disk.find("address") is None:
        raise xml_error(f"Unknown disk name '{target}' and no address specified")


def _check_disk_names(root: Element) -> None:
    seen: dict[str, str | None] = {}
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        assert target is not None
        name, source = target.attrib["dev"], source_name(disk)
        if name in seen:
            raise xml_error(f"target '{name}' duplicated for disk sources '{seen[name]}' and '{source}'")
        seen[name] = source


def _check_interface(interface: Element) -> None:
    type_ = interface.get("type", "user")
    needed = _NEEDS_SOURCE.get(type_)
    if needed is not None:
        source = interface.find("source")
        if source is None:
            raise xml_error(f"interface type='{type_}' requires a 'source' element")
        if not source.get(needed):
            raise xml_error(f"No <source> '{needed}' attribute specified with <interface type='{type_}'/>")
    mac = _get(interface.find("mac"), "address")
    if mac is not None:
        if _MAC.fullmatch(mac) is None:
            raise xml_error(f"unable to parse mac address '{mac}'")
        if int(mac.partition(":")[0], 16) & 1:
            raise xml_error(f"expected unicast mac address, found multicast '{mac}'")
    model = _get(interface.find("model"), "type")
    if model is not None and _MODEL.fullmatch(model) is None:
        raise error(Code.INVALID_ARG, "Model name contains invalid characters", origin=Origin.DOMAIN)
    link = _get(interface.find("link"), "state")
    if link is not None and link not in ("up", "down"):
        raise _unsupported(f"unknown interface link state '{link}'")
    mtu = _get(interface.find("mtu"), "size")
    if mtu is not None and not (mtu.isascii() and mtu.isdigit()):
        raise xml_error("malformed mtu size")


def _check_characters(root: Element) -> None:
    for kind in ("serial", "parallel", "console", "channel"):
        for device in root.iterfind(f"devices/{kind}"):
            type_ = device.get("type")
            if type_ is not None and type_ not in _CHAR_TYPES:
                raise _unsupported(f"unknown type presented to host for character device: {type_}")
    for target in root.iterfind("devices/console/target"):
        type_ = target.get("type")
        if type_ is not None and type_ not in _CONSOLE_TARGETS:
            raise _unsupported(f"unknown target type '{type_}' specified for character device")


def _boot_orders(root: Element) -> Iterator[str]:
    for tag in ("disk", "interface", "hostdev", "redirdev"):
        for boot in root.iterfind(f"devices/{tag}/boot"):
            yield boot.get("order", "")


def _check_boot_orders(root: Element) -> None:
    seen: set[int] = set()
    for order in _boot_orders(root):
        if not order.isascii() or not order.isdigit():
            raise _attribute_error("boot", "order", f"Expected positive integer value, got '{order}'")
        if int(order) == 0:
            raise _attribute_error("boot", "order", "Zero is not permitted")
        if int(order) in seen:
            raise _unsupported(f"boot order '{int(order)}' used for more than one device")
        seen.add(int(order))
    if seen and root.find("os/boot") is not None:
        raise _unsupported("per-device boot elements cannot be used together with os/boot elements")
