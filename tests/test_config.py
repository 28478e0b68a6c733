"""nicagent.toml: what is accepted, what is refused and how, and that docs/config.md tells all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicagent import config
from nicagent.config import Config, Strict
from nicagent.errors import Kind, NicagentError

DOCS = Path(__file__).parent.parent / "docs" / "config.md"
HOST = """
[hosts.metal-1]
power = {driver = "gpio"}
storage = {transport = "virtio", slot = "/run/slots/metal-1"}
"""
NVME = """
[hosts.metal-1]
power = {driver = "gpio"}
storage = {transport = "nvme-tcp"}
provision = {device = "prov1", mac = "52:54:00:00:01:01"}
"""
SEGMENT = """
[overlay]
local = "192.0.2.1"
[segments.blue]
vni = 100
cidr = "10.100.0.0/24"
range = ["10.100.0.10", "10.100.0.99"]
"""


def refusal(text: str) -> str:
    with pytest.raises(NicagentError) as caught:
        config.parse(text, "nicagent.toml")
    assert caught.value.kind is Kind.INVALID
    assert caught.value.message.startswith("nicagent.toml: ")
    assert caught.value.hint, "every refusal says what to do"
    return str(caught.value)


# ---- docs/config.md


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """A default as the documentation writes it."""
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is msgspec.NODEFAULT:
        return "**required**"
    if isinstance(default, Strict):
        return "as below"
    if default is None or default == {}:
        return "*none*"
    if default == "":
        return "*empty*"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{list(default)}`"
    return f"`{default}`"


def keys(kind: type[Strict], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a table and of those below it, with its default."""
    tag = kind.__struct_config__.tag_field
    if tag is not None:
        yield f"{prefix}{tag}", "**required**"
    for field in msgspec.structs.fields(kind):
        path = f"{prefix}{field.encode_name}"
        yield path, default_text(field)
        below = {"dict": ".NAME.", "tuple": "[]."}.get(getattr(field.type, "__origin__", type).__name__, ".")
        for inner in config.structs_in(field.type):
            default = field.default if isinstance(field.default, inner) else None
            for key, text in keys(inner, path + below):
                name = key.rpartition(".")[2]
                if default is not None and key == f"{path}{below}{name}":
                    text = default_text_of(getattr(default, name))
                yield key, text


def default_text_of(value: object) -> str:
    """A default that comes from the table's own default, as `reset = Line(offset=27)` does."""
    return default_text(msgspec.structs.FieldInfo(name="", encode_name="", type=object, default=value))


def test_every_key_is_documented_with_its_default_and_nothing_else_is() -> None:
    real = sorted(set(keys(Config)))
    told = re.findall(r"^\| `([^`]+)` \| (.+?) \| .+ \|$", DOCS.read_text(), re.MULTILINE)
    assert sorted(set(told)) == real
    assert len(set(real)) > 60


def test_times_are_seconds_by_name_and_in_the_docs() -> None:
    for key, default, meaning in re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", DOCS.read_text(), re.M):
        assert key.endswith("_seconds") == meaning.startswith("seconds"), f"{key} ({default}): {meaning}"


def test_the_example_of_the_docs_is_a_config() -> None:
    for example in re.findall(r"```toml\n(.+?)```", DOCS.read_text(), re.DOTALL):
        config.parse(example)


# ---- what is accepted


def test_the_smallest_config() -> None:
    parsed = config.parse(HOST)
    assert parsed.libvirt.socket == "/run/nicagent/libvirt-sock", "run_dir is filled in"
    assert parsed.libvirt.tcp == "", "nothing listens on TCP unless asked for"


def test_run_dir_is_filled_into_the_socket_paths() -> None:
    parsed = config.parse(
        HOST + "[agent]\nrun_dir = '/tmp/a'\nstate_dir = '/tmp/b'\n[libvirt]\nsocket = '{state_dir}/s'"
    )
    assert (parsed.libvirt.socket, parsed.libvirt.socket_ro) == ("/tmp/b/s", "/tmp/a/libvirt-sock-ro")


def test_a_segment_with_its_overlay() -> None:
    assert config.parse(HOST + SEGMENT).segments["blue"].mtu == 1450


# ---- what is refused, and how


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            HOST + "memory_mb = 3",
            "hosts.metal-1: no key is called 'memory_mb' here; did you mean memory_mib?",
        ),
        (
            HOST + "[hosts.metal-2]\npower={driver='gpio', reset={ofset=1}}\nstorage={transport='virtio'}",
            "hosts.metal-2.power.reset: no key is called 'ofset' here; did you mean offset?",
        ),
        (HOST + "[hostss.x]", "the top level: no key is called 'hostss' here; did you mean hosts?"),
        (HOST + "[pools.fast]\npth = '/'", "pools.fast: no key is called 'pth' here; did you mean path?"),
        (HOST + "colour = 'red'", "no key is called 'colour' here; docs/config.md"),
        (HOST.replace("gpio", "gpoi"), "hosts.metal-1.power.driver: 'gpoi' is none of the values"),
        (HOST.replace('"virtio"', '"usb"'), "hosts.metal-1.storage.transport: 'usb' is none of the values"),
        (
            HOST.replace('driver = "gpio"', 'driver = "ipmi"'),
            "hosts.metal-1.power: the key 'address' is missing",
        ),
        (
            HOST + "[hosts.metal-1.console]\npath = '/dev/ttyS0'\nbaud = 12345",
            "console.baud: 12345 is none of",
        ),
        (
            HOST + "nics = [{device = 'eth1', mac = '52:54:00:AA:00:01'}]",
            "hosts.metal-1.nics[0].mac: a MAC is written",
        ),
        (
            HOST + "nics = [{device = 'eth/1', mac = '52:54:00:aa:00:01'}]",
            "hosts.metal-1.nics[0].device: a netdev",
        ),
        (HOST + "[pools.'a b']\npath = '/'", "pools.a b: a name is 1 to 63"),
        (HOST + "pgood_seconds = 0", "hosts.metal-1.pgood_seconds: Expected `float` > 0"),
        ("", "the top level: the key 'hosts' is missing"),
        ("[hosts]", "hosts: no host is wired; add a [hosts.NAME] table"),
        ("hosts = 3", "hosts: a table is expected here"),
        ("hosts = ", "not valid TOML"),
        (HOST.replace(', slot = "/run/slots/metal-1"', ""), "hosts.metal-1.storage.slot: virtio needs"),
        (HOST.replace("virtio", "nvme-tcp"), "hosts.metal-1.provision: nvme-tcp needs a provision link"),
        (
            HOST.replace("slot =", "secret = 'x', slot ="),
            "secret: virtio is a slot of the host's own",
        ),
        (NVME.replace('"nvme-tcp"', '"nvme-tcp", controller_secret = "x"'), "to a host that does so too"),
        (
            NVME.replace('"nvme-tcp"', '"nvme-tcp", secret = "x", controller_secret = "x"'),
            "host's own secret",
        ),
        (NVME + "nics = [{device = 'prov1', mac = '52:54:00:aa:00:01'}]", "netdev prov1 is wired twice"),
        (NVME.replace("mac =", "host_address = '172.31.0.9', mac ="), "172.31.0.9 is no other address of"),
        (NVME.replace("mac =", "host_address = '172.31.0.1', mac ="), "172.31.0.1 is no other address of"),
        (NVME.replace("mac =", "agent_address = 'here', mac ="), "hosts.metal-1.provision: "),
        (HOST.replace('"gpio"', '"gpio", reset = {offset = 23}'), "two lines have the same offset"),
        (
            HOST.replace('"gpio"', '"gpio", reset = {offset = 1, active_high = false}'),
            "hosts.metal-1.power.reset: an active-low line may fire while the board boots",
        ),
        (HOST + SEGMENT.replace('[overlay]\nlocal = "192.0.2.1"', ""), "overlay: segments need a VTEP"),
        (HOST + SEGMENT.replace("192.0.2.1", "vtep-1"), "overlay.local: 'vtep-1' is no IPv4 address"),
        (
            HOST + SEGMENT.replace("[segments.blue]", "peers = ['192.0.2.1']\n[segments.blue]"),
            "this agent itself",
        ),
        (
            HOST + SEGMENT.replace("10.100.0.99", "10.101.0.99"),
            "segments.blue.range: 10.100.0.10 to 10.101.0.99",
        ),
        (HOST + SEGMENT.replace("/24", "/240"), "segments.blue: "),
        (
            HOST + SEGMENT + SEGMENT.partition("[segments")[2].join(["[segments", ""]).replace("blue", "red"),
            "segments.red.vni: VNI 100 is taken by blue",
        ),
        (HOST + "[libvirt]\ntcp = '16509'", "libvirt.tcp: '16509' is no address"),
    ],
)
def test_a_mistake_is_told_with_its_key_and_what_to_do(text: str, told: str) -> None:
    assert told in refusal(text)


def test_an_active_low_line_that_is_declared_safe_is_taken() -> None:
    safe = '"gpio", reset = {offset = 1, active_high = false, boot_level_safe = true}'
    config.parse(HOST.replace('"gpio"', safe))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(NicagentError, match=r"cannot read the config file .*nowhere\.toml: No such file"):
        config.load(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(NicagentError, match=r"binary\.toml is not UTF-8"):
        config.load(tmp_path / "binary.toml")
    with pytest.raises(NicagentError, match="Is a directory"):
        config.load(tmp_path)


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_refusal(text: str) -> None:
    try:
        config.parse(text)
    except NicagentError as e:
        assert e.kind is Kind.INVALID


@given(
    key=st.sampled_from([key for key, _ in sorted(set(keys(Config))) if "power.a" not in key]),
    value=st.sampled_from(['"x"', "-1", "[]", "{}", "true", "99999999999", "1e9", '"é\\u0000"']),
)
def test_any_value_for_any_key_is_taken_or_refused_by_name(key: str, value: str) -> None:
    """Never a traceback, and the message names a table on the way to the key."""
    path = key.replace("NAME", "x").replace("[]", "")
    try:
        config.parse(f"{path} = {value}\n")
    except NicagentError as e:
        assert e.kind is Kind.INVALID
        assert path.split(".")[0] in e.message or "hosts" in e.message
