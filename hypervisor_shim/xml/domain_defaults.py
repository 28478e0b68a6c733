"""What libvirtd makes of the looser parts of a client's document, before devices are looked at one by one.

Measured against libvirtd 9.0 with the documents of clouds: one `<devices>` of several, memory told by NUMA
cells only, controllers without numbers, elements that say nothing. Every function changes one part in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from xml.etree.ElementTree import Element

from hypervisor_shim.xml.domain_check import memory_size_kib

#: Elements that are left out when nothing is in them: (path of the parent, tags).
_SAY_NOTHING: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (path, frozenset(tags.split()))
    for path, tags in (
        (".", "blkiotune memtune memoryBacking vcpus iothreadids cputune numatune resource idmap"),
        (".", "features pm perf"),
        ("os", "loader nvram"),
        ("devices/disk", "source driver iotune serial wwn vendor product"),
        ("devices/interface", "bandwidth link mtu model driver filterref"),
    )
)  # fmt: skip
_CLOCK = ("offset", "timezone", "adjustment", "basis", "start")
_CHARACTERS = ("serial", "parallel", "console", "channel")
_SWITCHES_ON = ("vmcoreinfo",)  # features that mean "on" when they are merely named
#: Devices' addresses as libvirt writes them: type → (attribute, format), each 0 unless given.
_ADDRESSES = {
    "pci": (("domain", "0x{:04x}"), ("bus", "0x{:02x}"), ("slot", "0x{:02x}"), ("function", "0x{:x}")),
    "drive": (("controller", "{}"), ("bus", "{}"), ("target", "{}"), ("unit", "{}")),
    "virtio-serial": (("controller", "{}"), ("bus", "{}"), ("port", "{}")),
}
_CHOSEN_LATER = "pci"  # the type of address that may come without numbers: which slot, is said at start
_OWN_ALIAS = "ua-"  # how names begin that clients choose; all others are given at start
#: Kilobytes of video memory, by attribute, of models that have a default.
_VIDEO_MEMORY = {
    "vga": {"vram": "16384"},
    "cirrus": {"vram": "16384"},
    "vmvga": {"vram": "16384"},
    "bochs": {"vram": "16384"},
    "qxl": {"ram": "65536", "vram": "65536"},
    "xen": {"vram": "4096"},
}
_DEFAULT_VIDEO = "cirrus"
#: The order in which libvirt writes what is otherwise kept as it came: path → tags.
_ORDER = {
    "memoryBacking": "hugepages nosharepages locked source access allocation discard",
    "cputune": "shares global_period global_quota period quota emulator_period emulator_quota "
    "iothread_period iothread_quota vcpupin emulatorpin iothreadpin emulatorsched vcpusched iothreadsched "
    "cachetune memorytune",
    "features": "acpi apic pae hap viridian privnet hyperv kvm xen pvspinlock capabilities pmu vmport gic "
    "smm ioapic hpt vmcoreinfo htm nested-hv msrs ccf-assist cfpc sbbc ibs tcg",
    "features/hyperv": "relaxed vapic spinlocks vpindex runtime synic stimer reset vendor_id frequencies "
    "reenlightenment tlbflush ipi evmcs avic",
    "cpu": "model vendor topology cache maxphysaddr feature numa",
    "pm": "suspend-to-mem suspend-to-disk",
    "sysinfo": "bios system baseBoard chassis oemStrings",
    "devices/interface/bandwidth": "inbound outbound",
    "devices/lease": "lockspace key target",
}
_SYSTEM = "manufacturer product version serial uuid sku family"  # entries' names


def one_devices(root: Element) -> Element:
    """`<devices>` may come in several pieces; they are read as one. Returns it, made if there is none."""
    first, *others = root.findall("devices") or [Element("devices")]
    for other in others:
        first.extend(other)
    if others:
        root[:] = [child for child in root if child.tag != "devices" or child is first]
    return first


def numa_memory_kib(root: Element) -> int:
    """What the guest's NUMA cells add up to, each put into KiB and numbered; 0 where there are none."""
    total = 0
    for number, cell in enumerate(root.iterfind("cpu/numa/cell")):
        size = memory_size_kib(cell.get("memory", "0"), cell.get("unit", "KiB"), "memory")
        given = {k: v for k, v in cell.attrib.items() if k not in ("id", "cpus", "memory", "unit")}
        cpus = {"cpus": cell.attrib["cpus"]} if "cpus" in cell.attrib else {}
        cell.attrib = (
            {"id": cell.get("id", str(number))} | cpus | {"memory": str(size), "unit": "KiB"} | given
        )
        total += size
    return total


def fill_cpu(root: Element) -> None:
    """A named model means mode custom; without one neither the match nor a fallback means anything."""
    cpu = root.find("cpu")
    if cpu is None:
        return
    model = cpu.find("model")
    if model is not None and not model.text and "vendor_id" not in model.attrib:
        cpu.remove(model)
        model = None
    if model is not None and "fallback" not in model.attrib:
        model.attrib = {"fallback": "allow", **model.attrib}
    if cpu.get("mode", "custom") == "custom" and model is not None:
        cpu.attrib = {"mode": "custom", "match": "exact"} | cpu.attrib
    elif not cpu.findall("feature"):
        cpu.attrib.pop("match", None)
    topology = cpu.find("topology")
    if topology is not None and "dies" not in topology.attrib:
        given = dict(topology.attrib)
        topology.attrib = {"sockets": given.pop("sockets", "1"), "dies": "1", **given}
    if not len(cpu) and "mode" not in cpu.attrib:
        root.remove(cpu)


def fill_clock(clock: Element) -> None:
    given = {name: clock.attrib[name] for name in _CLOCK if name in clock.attrib}
    clock.attrib = {"offset": "utc"} | given
    if clock.get("offset") == "variable":
        clock.attrib = {"offset": "variable", "adjustment": "0", "basis": "utc"} | clock.attrib


def switch_features(root: Element) -> None:
    for name in _SWITCHES_ON:
        feature = root.find(f"features/{name}")
        if feature is not None:
            feature.attrib.setdefault("state", "on")
    hyperv = root.find("features/hyperv")
    if hyperv is not None:
        hyperv.attrib.setdefault("mode", "custom")


def drop_what_says_nothing(root: Element) -> None:
    for source in root.iterfind("devices/disk/source"):
        for name in ("file", "dev"):
            if source.get(name) == "":
                del source.attrib[name]
        for label in source.iterfind("seclabel"):
            label.attrib.pop("type", None)
    for path, tags in _SAY_NOTHING:
        for parent in root.iterfind(path):
            if any(_says_nothing(child, tags) for child in parent):
                parent[:] = [child for child in parent if not _says_nothing(child, tags)]


def _says_nothing(element: Element, tags: frozenset[str]) -> bool:
    return (
        element.tag in tags and not element.attrib and not len(element) and not (element.text or "").strip()
    )


def put_in_order(root: Element) -> None:
    for path, tags in _ORDER.items():
        for parent in root.iterfind(path):
            _sort(parent, tags.split(), [child.tag for child in parent])
    for system in root.iterfind("sysinfo/system"):
        _sort(system, _SYSTEM.split(), [entry.get("name", "") for entry in system])


def _sort(parent: Element, order: Sequence[str], names: Sequence[str]) -> None:
    """The children by their names' place in `order`; others behind, as they stood."""
    place = {name: i for i, name in enumerate(order)}
    places = [place.get(name, len(place)) for name in names]
    parent[:] = [parent[i] for i in sorted(range(len(places)), key=places.__getitem__)]


def drop_aliases(devices: Element) -> None:
    """Of names of devices only those that a client has chosen belong to a definition."""
    for device in devices:
        alias = device.find("alias")
        if alias is not None and not alias.get("name", "").startswith(_OWN_ALIAS):
            device.remove(alias)


def drop_snapshot_of_readonly(devices: Element) -> None:
    """That a disk which cannot change is in no snapshot goes without saying."""
    for disk in devices.iterfind("disk"):
        if disk.get("snapshot") == "no" and disk.find("readonly") is not None:
            del disk.attrib["snapshot"]


def tidy_characters(devices: Element) -> None:
    """A definition names no terminal, which is of a run, and no socket without a path."""
    for device in _of_kinds(devices, _CHARACTERS):
        kind = device.get("type", "pty")
        gone = set()
        for source in device.iterfind("source"):
            source.attrib.pop("type", None)
            if kind == "pty" or (kind == "unix" and not source.get("path")):
                gone.add(source)
        if gone:
            device[:] = [child for child in device if child not in gone]
        target = device.find("target")
        if device.tag == "channel" and target is not None:
            target.attrib.pop("state", None)


def number_controllers(devices: Element) -> None:
    """Those without an index get the lowest that is free among their type, in the order they stand."""
    taken: dict[str, set[str]] = {}
    for controller in devices.iterfind("controller"):
        taken.setdefault(controller.get("type", ""), set()).add(controller.get("index", ""))
    numbers = {kind: _unused(indices) for kind, indices in taken.items()}
    for controller in devices.iterfind("controller"):
        kind = controller.get("type", "")
        index = controller.get("index")
        if index is None:
            index = next(numbers[kind])
        rest = {k: v for k, v in controller.attrib.items() if k not in ("type", "index")}
        controller.attrib = {"type": kind, "index": index} | rest


def write_out_addresses(devices: Element) -> None:
    """Numbers of addresses in libvirt's own way; what is no number stays as it came."""
    for address in devices.iterfind("*/address"):
        kind = address.get("type", "")
        if kind not in _ADDRESSES or (kind == _CHOSEN_LATER and len(address.attrib) == 1):
            continue
        given = dict(address.attrib)
        written = {"type": given.pop("type")}
        for name, form in _ADDRESSES[kind]:
            value = given.pop(name, "0")
            try:
                written[name] = form.format(int(value, 0))
            except ValueError:
                written[name] = value
        address.attrib = written | given


def _unused(taken: set[str]) -> Iterator[str]:
    return (str(number) for number in count() if str(number) not in taken)


def fill_videos(devices: Element) -> None:
    for video in devices.iterfind("video"):
        model = video.find("model")
        if model is None:
            model = Element("model", type=_DEFAULT_VIDEO)
            video.insert(0, model)
        kind = model.get("type", _DEFAULT_VIDEO)
        if kind == "none":
            continue
        rest = {k: v for k, v in model.attrib.items() if k not in ("type", "ram", "vram", "heads", "primary")}
        memory = _VIDEO_MEMORY.get(kind, {}) | {
            name: model.attrib[name] for name in ("ram", "vram") if name in model.attrib
        }
        model.attrib = {"type": kind} | memory | rest | {"heads": model.get("heads", "1")}
    first = devices.find("video/model")
    if first is not None and first.get("type") != "none":
        first.set("primary", "yes")


def _of_kinds(devices: Element, kinds: tuple[str, ...]) -> Iterator[Element]:
    return (device for device in devices if device.tag in kinds)
