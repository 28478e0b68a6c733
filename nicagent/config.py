"""nicagent.toml → Config: every key, its default, its unit, its check.

Decoded by msgspec into frozen structs that refuse unknown keys, so that a typing mistake is an error with the
path of the key and not a silent default. Cross-checks (names that refer to each other) follow in `check`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from nicagent.errors import Kind, NicagentError
from nicagent.inventory import Inventory, contradictions
from nicagent.model import Transport
from nicagent.strict import Strict as Strict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
MAC = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"
NETDEV = r"^[^\s/:]{1,15}$"

Name = Annotated[str, Meta(pattern=NAME)]
Mac = Annotated[str, Meta(pattern=MAC)]
Netdev = Annotated[str, Meta(pattern=NETDEV)]
TcpPort = Annotated[int, Meta(ge=1, le=65535)]
Vni = Annotated[int, Meta(ge=1, le=(1 << 24) - 1)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Wrong = Callable[[str, str, str], NicagentError]  # key, what is wrong, hint → the error to raise


class Line(Strict, frozen=True, kw_only=True):
    """A GPIO line: its offset on the chip and which level means "asserted"."""

    offset: Annotated[int, Meta(ge=0, le=511)]
    active_high: bool = True
    # Active-low relays fire while a board boots (field notes), so they are refused unless the wiring is
    # declared safe at the level that the board has from ROM on.
    boot_level_safe: bool = False


class GpioPower(Strict, frozen=True, kw_only=True, tag="gpio", tag_field="driver"):
    """Power by front-panel lines. The default offsets are firmware/raspberrypi's wiring table."""

    pins: str = "auto"  # "auto" | a gpiozero factory name ("lgpio") | "socket:/path" of an emulated chassis
    power_button: Line = Line(offset=23)
    reset: Line = Line(offset=27)
    power_led: Line = Line(offset=24)
    press_seconds: Seconds = 0.2
    hold_seconds: Seconds = 5.5  # ATX cuts power at 4 s; the margin is for slow boards
    reset_seconds: Seconds = 0.5
    debounce_seconds: Seconds = 0.1
    holdoff_seconds: Seconds = 1.0  # between two presses
    off_on_gap_seconds: Seconds = 2.0  # from power-good gone to the next press


class IpmiPower(Strict, frozen=True, kw_only=True, tag="ipmi", tag_field="driver"):
    """Power by a BMC that speaks IPMI 2.0 over LAN."""

    address: str
    port: TcpPort = 623
    user: str = "admin"
    password_file: str  # first line is the password; never in this file, never in an argument
    poll_seconds: Seconds = 5.0  # BMCs run out of sessions when polled faster
    command_seconds: Seconds = 10.0  # deadline of one command; then the worker is replaced


class Storage(Strict, frozen=True, kw_only=True):
    """How this host gets its disks."""

    transport: Transport
    slot: str = ""  # virtio: the directory that is the host's PCIe slot
    port: TcpPort = 4420  # nvme-tcp, on the agent's address of the provision link
    discovery_port: TcpPort = 8009
    secret: str = ""  # nvme-tcp: what the host proves itself with; a libvirt secret, or "fresh"
    controller_secret: str = ""  # what its exports prove themselves with


class Provision(Strict, frozen=True, kw_only=True):
    """The provision link: one per host, never shared."""

    device: Netdev  # the agent's end
    mac: Mac  # of the host's NIC at the other end
    agent_address: str = "172.31.0.1/30"
    host_address: str = "172.31.0.2"


class Nic(Strict, frozen=True, kw_only=True):
    """A NIC of the host that can carry a port."""

    device: Netdev  # the agent's netdev that leads to it
    mac: Mac


class Console(Strict, frozen=True, kw_only=True):
    """The host's serial console: a tty, or the unix socket of an emulated chassis."""

    path: str
    baud: Literal[9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600] = 115200
    log_bytes: Annotated[int, Meta(ge=4096, le=1 << 30)] = (
        1 << 20
    )  # kept on disk, twice: current and previous


class GuestAgent(Strict, frozen=True, kw_only=True):
    """The channel to the qemu-guest-agent in the host's OS: a tty (a USB gadget's), or a unix socket."""

    path: str


class Screen(Strict, frozen=True, kw_only=True):
    """What captures the host's screen: the unix socket of a server that answers GET /snapshot (ustreamer)."""

    path: str
    rfb: str = ""  # the unix socket of an RFB (VNC) server that shows the same screen; empty: pictures only


class Keyboard(Strict, frozen=True, kw_only=True):
    """A keyboard plugged into the host: a USB HID gadget (/dev/hidg0), or a socket that takes its reports."""

    path: str


class Host(Strict, frozen=True, kw_only=True):
    """A physical server beside this agent."""

    power: GpioPower | IpmiPower
    storage: Storage
    provision: Provision | None = None
    nics: tuple[Nic, ...] = ()
    console: Console | None = None
    guest_agent: GuestAgent | None = None
    screen: Screen | None = None
    keyboard: Keyboard | None = None
    memory_mib: Annotated[int, Meta(ge=64)] = 1024
    cpus: Annotated[int, Meta(ge=1, le=4096)] = 1
    cpu_model: str = "x86_64"
    arch: str = "x86_64"
    inventory: Inventory = Inventory()  # what it is made of, as far as stage-1 does not tell
    pgood_seconds: Seconds = 8.0  # power-good must follow a power-on within this
    shutdown_seconds: Seconds = 300.0  # a graceful shutdown may take this long; then it is reported failed


class Segment(Strict, frozen=True, kw_only=True):
    """An overlay network: a VXLAN VNI, and the part of its addresses that this agent may allot."""

    vni: Vni
    cidr: str
    range: tuple[str, str]  # first and last address that this agent allots; disjoint between agents
    mtu: Annotated[int, Meta(ge=576, le=9000)] = 1450
    bridges: tuple[str, ...] = ()  # patterns of bridges (or taps) by which clients mean this one


class Overlay(Strict, frozen=True, kw_only=True):
    """This agent as a VTEP."""

    local: str  # its underlay address
    peers: tuple[str, ...] = ()  # the other VTEPs: static flood list
    port: TcpPort = 4789
    device: str = ""  # underlay netdev; empty: by route
    # What a client's network without a VNI is given one of: first and last, disjoint between agents.
    vnis: tuple[Vni, Vni] = (100_000, 199_999)


class LibvirtTls(Strict, frozen=True, kw_only=True):
    """TLS for libvirt clients, who show a certificate, too. `nicagent libvirt certs` makes the files."""

    listen: str = "0.0.0.0:16514"
    ca: str = "{state_dir}/pki/cacert.pem"
    certificate: str = "{state_dir}/pki/servercert.pem"
    key: str = "{state_dir}/pki/serverkey.pem"
    crl: str = ""  # certificates that were revoked; empty: none
    allowed: tuple[str, ...] = ()  # patterns of distinguished names; empty: every certificate of the CA


class LibvirtSasl(Strict, frozen=True, kw_only=True):
    """Where libvirt clients log in (SCRAM-SHA-256), and who can. Plain TCP is no place for it: libvirt's
    clients refuse to log in where others may read along."""

    at: tuple[Literal["unix", "tls"], ...] = ("unix", "tls")
    users: str = "{state_dir}/libvirt-users"  # `nicagent libvirt passwd` writes it


class LibvirtAccess(Strict, frozen=True, kw_only=True):
    """A rule: who may do what, on which domains."""

    who: Annotated[tuple[str, ...], Meta(min_length=1)]
    may: tuple[Literal["read", "operate", "configure"], ...]
    domains: tuple[str, ...] = ("*",)  # patterns of names
    tenants: tuple[str, ...] | None = None  # patterns of whose they say they are; without it: anybody's
    # On what is no domain; without it: what `may` says where the rule is for every domain, else nothing.
    shared: tuple[Literal["read", "operate", "configure"], ...] | None = None


class Libvirt(Strict, frozen=True, kw_only=True):
    """Where libvirt clients are served. On TCP nobody is asked who he is, so it is off unless asked for."""

    socket: str = "{run_dir}/libvirt-sock"
    socket_ro: str = "{run_dir}/libvirt-sock-ro"
    group: str = ""  # group that may use the read-write socket; empty: only the agent's own user
    tcp: str = ""  # "address:port"; empty: off
    tls: LibvirtTls | None = None
    sasl: LibvirtSasl | None = None
    access: tuple[LibvirtAccess, ...] = ()  # without a rule whoever gets in may do everything
    pool_roots: tuple[str, ...] = ("/var/lib/libvirt/images", "/srv", "/mnt")  # where clients may have pools


class Graphics(Strict, frozen=True, kw_only=True):
    """Where the screens of domains that have a `<graphics>` are shown, on hosts whose screen streams.

    RFB is not encrypted and its passwords are weak, so by default only this board itself is listened to.
    """

    listen: str = "127.0.0.1"  # where a definition names no address
    allow: tuple[str, ...] = ("127.0.0.1", "::1")  # the addresses that a definition may name
    ports: tuple[TcpPort, TcpPort] = (5900, 5999)  # first and last that a screen may have
    viewers: Annotated[int, Meta(ge=1, le=256)] = 16  # at most, of one screen


class Agent(Strict, frozen=True, kw_only=True):
    """The agent itself."""

    name: Name = "nicagent"
    state_dir: str = "/var/lib/nicagent"
    run_dir: str = "/run/nicagent"
    artefacts: str = "/usr/share/nicagent/boot"  # vmlinuz and stage1.img for the provision link


class Pool(Strict, frozen=True, kw_only=True):
    """Where disk contents live: a directory."""

    path: str


class Config(Strict, frozen=True, kw_only=True):
    """The whole file."""

    hosts: dict[Name, Host]
    agent: Agent = Agent()
    libvirt: Libvirt = Libvirt()
    graphics: Graphics = Graphics()
    pools: dict[Name, Pool] = msgspec.field(default_factory=dict)
    segments: dict[Name, Segment] = msgspec.field(default_factory=dict)
    overlay: Overlay | None = None


ENTRIES: Mapping[str, type[Strict]] = {"hosts": Host, "pools": Pool, "segments": Segment}


def load(path: Path) -> Config:
    """Read and check a config file. Raises INVALID with file, key and what is wrong."""
    try:
        text = path.read_bytes().decode()
    except OSError as e:
        raise NicagentError(
            Kind.INVALID, f"cannot read the config file {path}: {e.strerror}", "name it with --config FILE"
        ) from None
    except UnicodeDecodeError:
        raise NicagentError(Kind.INVALID, f"{path} is not UTF-8 text", "save it as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, origin: str = "config") -> Config:
    """Decode and check TOML text; `origin` names it in errors."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise NicagentError(Kind.INVALID, f"{origin}: not valid TOML: {e}", "mend that line") from None
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as e:
        key, message = _name_the_entry(raw, str(e))
        raise NicagentError(
            Kind.INVALID, f"{origin}: {key}: {readable(message)}", _nearest(message, key)
        ) from None
    config = _expand(config)
    check(config, origin)
    return config


def _name_the_entry(raw: dict[str, object], error: str) -> tuple[str, str]:
    """Key and message of a decoding error. msgspec writes `$.hosts[...].power`: which host it was is found
    by decoding them one by one.
    """
    message, _, where = error.partition(" - at ")
    key = where.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    for table, kind in ENTRIES.items():
        entries = raw.get(table)
        if not key.startswith(table) or not isinstance(entries, dict):
            continue
        for name, entry in entries.items():
            try:
                msgspec.convert({name: entry}, dict[Name, kind])  # type: ignore[valid-type]
            except msgspec.ValidationError:
                key = key.replace("[...]", f".{name}", 1) if "[...]" in key else f"{table}.{name}"
                break
    return key or "the top level", message


# What msgspec says → what it means to whoever wrote the file.
WORDS: Mapping[str, str] = {
    r"Object contains unknown field `(.+)`": r"no key is called '\1' here",
    r"Object missing required field `(.+)`": r"the key '\1' is missing",
    r"Expected `object`, got .*": "a table is expected here",
    r"Invalid (?:enum )?value (.+)": r"\1 is none of the values it may have",
    f"Expected `str` matching regex '{re.escape(NAME)}'": "a name is 1 to 63 letters, digits, '_', '.', '-'",
    f"Expected `str` matching regex '{re.escape(MAC)}'": "a MAC is written 52:54:00:12:34:56, in lower case",
    f"Expected `str` matching regex {re.escape(repr(NETDEV))}": "a netdev has at most 15 signs, no / or :",
}


def readable(message: str) -> str:
    """A decoding error of msgspec in words for whoever wrote the file."""
    for pattern, words in WORDS.items():
        if re.fullmatch(pattern, message):
            return re.sub(pattern, words, message)
    return message


def _nearest(message: str, key: str) -> str:
    """The hint of a decoding error; for a key that does not exist, the one that was probably meant."""
    unknown = re.search(r"unknown field `(.+)`", message)
    if unknown:
        near = difflib.get_close_matches(unknown[1], _keys_at(key), 1)
        if near:
            return f"did you mean {near[0]}? docs/config.md lists every key"
    return "docs/config.md lists every key with its unit"


def _keys_at(key: str) -> list[str]:
    """The keys that the table `key` may hold."""
    kinds: list[type[Strict]] = [Config]
    for part in [] if key == "the top level" else re.sub(r"\[\d+\]", "", key).split("."):
        fields = [field for kind in kinds for field in msgspec.structs.fields(kind) if field.name == part]
        if fields:  # otherwise it is the name of an entry, whose kind the table before it has told
            kinds = [kind for field in fields for kind in structs_in(field.type)]
    return [field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)]


def structs_in(annotation: object) -> list[type[Strict]]:
    """The tables that a type annotation speaks of: `dict[Name, Host]` → Host, `Gpio | Ipmi` → both."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in structs_in(part)]


def _expand(config: Config) -> Config:
    """Fill `{run_dir}` and `{state_dir}` in the paths of the libvirt face."""
    places = {"run_dir": config.agent.run_dir, "state_dir": config.agent.state_dir}

    def fill(value: str) -> str:
        for key, path in places.items():
            value = value.replace("{" + key + "}", path)
        return value

    def filled(table: Strict) -> dict[str, object]:
        """The fields of `table` that change."""
        changed: dict[str, object] = {}
        for name in table.__struct_fields__:
            value = getattr(table, name)
            if isinstance(value, str):
                changed[name] = fill(value)
            elif isinstance(value, Strict):
                changed[name] = msgspec.structs.replace(value, **filled(value))
        return changed

    libvirt = msgspec.structs.replace(config.libvirt, **filled(config.libvirt))
    return msgspec.structs.replace(config, libvirt=libvirt)


def check(config: Config, origin: str) -> None:
    """Checks that need more than one key. Raises INVALID naming the key."""

    def wrong(key: str, what: str, hint: str) -> NicagentError:
        return NicagentError(Kind.INVALID, f"{origin}: {key}: {what}", hint)

    if not config.hosts:
        raise wrong("hosts", "no host is wired", "add a [hosts.NAME] table")
    if config.segments and config.overlay is None:
        raise wrong(
            "overlay", "segments need a VTEP", "add [overlay] with local = this agent's underlay address"
        )
    if config.overlay is not None:
        _check_overlay(config.overlay, wrong)
    vnis: dict[int, str] = {}
    bridges: dict[str, str] = {}
    for name, segment in config.segments.items():
        other = vnis.setdefault(segment.vni, name)
        if other != name:
            raise wrong(f"segments.{name}.vni", f"VNI {segment.vni} is taken by {other}", "give each its own")
        for bridge in segment.bridges:
            other = bridges.setdefault(bridge, name)
            if other != name:
                raise wrong(f"segments.{name}.bridges", f"'{bridge}' is {other} already", "name it once")
        _check_segment(name, segment, wrong)
    devices: dict[str, str] = {}
    for name, host in config.hosts.items():
        _check_host(name, host, devices, wrong)
    _check_libvirt(config.libvirt, wrong)
    _check_graphics(config.graphics, wrong)


def _check_graphics(graphics: Graphics, wrong: Wrong) -> None:
    for key, address in [("listen", graphics.listen), *(("allow", each) for each in graphics.allow)]:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise wrong(f"graphics.{key}", f"{address!r} is no IP address", 'write "127.0.0.1"') from None
    if graphics.ports[0] > graphics.ports[1]:
        raise wrong("graphics.ports", f"{graphics.ports[0]} is above {graphics.ports[1]}", "first, then last")


WHO = re.compile(r"(user|group|uid|gid|x509|sasl|tcp|tls):.+")


def _check_libvirt(libvirt: Libvirt, wrong: Wrong) -> None:
    places = {"libvirt.tcp": (libvirt.tcp, "127.0.0.1:16509")}
    if libvirt.tls is not None:
        places["libvirt.tls.listen"] = (libvirt.tls.listen, "0.0.0.0:16514")
    for key, (place, example) in places.items():
        if place and not re.fullmatch(r".+:\d{1,5}", place):
            raise wrong(key, f"{place!r} is no address", f'write "{example}"')
    if libvirt.sasl is not None and libvirt.sasl.at == ("tls",) and libvirt.tls is None:
        raise wrong("libvirt.sasl.at", "there is no TLS to log in at", "add [libvirt.tls]")
    for index, rule in enumerate(libvirt.access):
        for who in rule.who:
            if not WHO.fullmatch(who):
                raise wrong(
                    f"libvirt.access[{index}].who",
                    f"{who!r} is no identity",
                    'write "user:nova", "group:libvirt", "x509:CN=…", "sasl:alice" or "tcp:anonymous"',
                )


def _check_overlay(overlay: Overlay, wrong: Wrong) -> None:
    for key, address in [("local", overlay.local), *(("peers", peer) for peer in overlay.peers)]:
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise wrong(f"overlay.{key}", f"{address!r} is no IPv4 address", "write 192.0.2.1") from None
    if overlay.vnis[0] > overlay.vnis[1]:
        raise wrong("overlay.vnis", f"{overlay.vnis[0]} is above {overlay.vnis[1]}", "first, then last")
    if overlay.local in overlay.peers:
        raise wrong("overlay.peers", f"{overlay.local} is this agent itself", "name only the others")


def _check_segment(name: str, segment: Segment, wrong: Wrong) -> None:
    key = f"segments.{name}"
    try:
        network = ipaddress.IPv4Network(segment.cidr)
        first, last = (ipaddress.IPv4Address(end) for end in segment.range)
    except ValueError as e:
        raise wrong(key, str(e), "write cidr as 10.100.0.0/24 and range as two addresses in it") from None
    if first not in network or last not in network or first > last:
        raise wrong(f"{key}.range", f"{first} to {last} does not lie in {network}", "mend the range")


def _check_host(name: str, host: Host, devices: dict[str, str], wrong: Wrong) -> None:
    key = f"hosts.{name}"
    if host.storage.transport is Transport.VIRTIO and not host.storage.slot:
        raise wrong(f"{key}.storage.slot", "virtio needs the host's PCIe slot", "set slot to its directory")
    _check_secrets(f"{key}.storage", host.storage, wrong)
    if host.storage.transport is Transport.NVME_TCP and host.provision is None:
        raise wrong(f"{key}.provision", "nvme-tcp needs a provision link", f"add [{key}.provision]")
    used = [nic.device for nic in host.nics] + ([host.provision.device] if host.provision else [])
    for device in used:
        other = devices.setdefault(device, name)
        if other != name or used.count(device) > 1:
            raise wrong(key, f"netdev {device} is wired twice (also {other})", "one device, one cable")
    if host.provision is not None:
        _check_provision(key, host.provision, wrong)
    if isinstance(host.power, GpioPower):
        _check_lines(key, host.power, wrong)
    _check_inventory(key, host, wrong)


def _check_secrets(key: str, storage: Storage, wrong: Wrong) -> None:
    if storage.secret and storage.transport is not Transport.NVME_TCP:
        raise wrong(f"{key}.secret", f"{storage.transport.value} is a slot of the host's own", "leave it out")
    if storage.controller_secret and storage.secret in ("", "fresh"):
        raise wrong(
            f"{key}.controller_secret",
            "exports prove themselves to a host that does so too, and fresh keys are for both already",
            "name the host's secret, or leave this one out",
        )
    if storage.secret and storage.secret == storage.controller_secret:
        raise wrong(f"{key}.controller_secret", "is the host's own secret", "give each side its own")


def _check_inventory(key: str, host: Host, wrong: Wrong) -> None:
    for part, what in contradictions(host.inventory):
        raise wrong(f"{key}.inventory.{part}", what, "each device once, below its own bridge")
    cpu = host.inventory.cpu
    threads = (cpu.sockets or 1) * (cpu.cores or 1) * (cpu.threads or 1)
    declared = any(each is not None for each in (cpu.sockets, cpu.cores, cpu.threads))
    if declared and threads != host.cpus:
        raise wrong(
            f"{key}.inventory.cpu",
            f"sockets × cores × threads are {threads}, not the host's {host.cpus} cpus",
            "mend one of them",
        )


def _check_provision(key: str, link: Provision, wrong: Wrong) -> None:
    try:
        agent = ipaddress.IPv4Interface(link.agent_address)
        host = ipaddress.IPv4Address(link.host_address)
    except ValueError as e:
        raise wrong(f"{key}.provision", str(e), "write agent_address as 172.31.0.1/30") from None
    if host not in agent.network or host == agent.ip:
        raise wrong(
            f"{key}.provision.host_address", f"{host} is no other address of {agent.network}", "mend it"
        )


def _check_lines(key: str, power: GpioPower, wrong: Wrong) -> None:
    lines = {"power_button": power.power_button, "reset": power.reset, "power_led": power.power_led}
    if len({line.offset for line in lines.values()}) < len(lines):
        raise wrong(f"{key}.power", "two lines have the same offset", "each line has a pin of its own")
    for name in ("power_button", "reset"):
        line = lines[name]
        if not line.active_high and not line.boot_level_safe:
            raise wrong(
                f"{key}.power.{name}",
                "an active-low line may fire while the board boots",
                "pull it up from ROM on (see firmware/raspberrypi), then set boot_level_safe = true",
            )
