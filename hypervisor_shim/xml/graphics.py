"""A domain's `<graphics>`: what libvirtd refuses, what it makes of the rest, where a running one is shown.

The rules were measured against libvirtd 9.0 (tests/differential/test_graphics.py).
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from xml.etree.ElementTree import Element

from hypervisor_shim.errors import Code, LibvirtError, Origin, error
from hypervisor_shim.xml.domain_def import Graphics

_TYPES = ("sdl", "vnc", "rdp", "desktop", "spice", "egl-headless", "dbus")
_LISTENS = ("none", "address", "network", "socket")
_VALUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vnc": {
        "sharePolicy": ("allow-exclusive", "force-shared", "ignore"),
        "powerControl": ("yes", "no"),
    },
    "spice": {"defaultMode": ("any", "secure", "insecure")},
}
_CONNECTED = ("default", "fail", "disconnect", "keep")
_NUMBER = re.compile(r"[ \t\n]*[+-]?[0-9]{1,20}")
_DATE = re.compile(r"[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+")
#: What libvirtd writes for a time that no calendar has.
_NO_TIME = "1970-01-01T00:00:00"
#: Of a VNC server's attributes; libvirtd writes them so.
_ORDER = (
    "type", "port", "autoport", "websocket", "listen", "keymap", "sharePolicy", "powerControl",
    "passwd", "passwdValidTo", "connected",
)  # fmt: skip
#: What of them may change while it is shown, and what may not, by what libvirtd calls it.
_MOVABLE = ("sharePolicy", "passwd", "passwdValidTo", "connected")
_FIXED = (
    (("port", "autoport", "websocket"), "port settings"),
    (("listen",), "listen address setting"),
    (("keymap",), "keymap setting"),
    (("powerControl",), "power control"),
)


def check(graphics: Element) -> None:
    """Raise what libvirtd would raise for a `<graphics>` as the client sent it."""
    kind = _one_of(graphics, "type", _TYPES, required=True)
    assert kind is not None
    for name, values in _VALUES.get(kind, {}).items():
        _one_of(graphics, name, values)
    if kind in ("vnc", "spice"):
        _check_listens(graphics)
        _check_password(graphics, kind)
    for name in ("port", "tlsPort") if kind == "spice" else ("websocket",) if kind == "vnc" else ():
        number = graphics.get(name)
        if number is not None and not _is_number(number):
            raise _attribute(name, "graphics", f"{number}'. Expected integer value", quoted=False)
    port = graphics.get("port")
    if kind in ("vnc", "rdp") and port is not None and not _is_number(port):
        raise error(Code.INTERNAL_ERROR, f"cannot parse {kind} port {port}", origin=Origin.DOMAIN)


def _one_of(element: Element, name: str, values: tuple[str, ...], *, required: bool = False) -> str | None:
    value = element.get(name)
    if value is None and required:
        detail = f"Missing required attribute '{name}' in element '{element.tag}'"
        raise error(Code.XML_ERROR, detail, origin=Origin.XML)
    if value is not None and value not in values:
        raise _attribute(name, element.tag, value)
    return value


def _attribute(name: str, tag: str, value: str, *, quoted: bool = True) -> LibvirtError:
    detail = f"Invalid value for attribute '{name}' in element '{tag}': '{value}"
    return error(Code.XML_ERROR, detail + ("'." if quoted else ""), origin=Origin.XML)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(int(text)) < 1 << 31


def _check_listens(graphics: Element) -> None:
    listens = graphics.findall("listen")
    for listen in listens:
        how = _one_of(listen, "type", _LISTENS, required=True)
        if how == "network" and not listen.get("network"):
            detail = "'network' attribute is required for listen type 'network'"
            raise error(Code.XML_ERROR, detail, origin=Origin.DOMAIN)
    if listens and listens[0].get("type") == "address" and graphics.get("listen"):
        found = listens[0].get("address")
        if found and found != graphics.get("listen"):
            detail = f"graphics 'listen' attribute '{graphics.get('listen')}' must match 'address' "
            detail += f"attribute of first listen element (found '{found}')"
            raise error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN)


def _check_password(graphics: Element, kind: str) -> None:
    if "passwd" not in graphics.attrib:
        return
    until = graphics.get("passwdValidTo")
    if until is not None and _DATE.fullmatch(until) is None:
        detail = f"cannot parse password validity time '{until}', expect YYYY-MM-DDTHH:MM:SS"
        raise error(Code.INTERNAL_ERROR, detail, origin=Origin.DOMAIN)
    connected = graphics.get("connected")
    if connected is not None and connected not in _CONNECTED:
        detail = f"unknown connected value {connected}"
        raise error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN)
    if kind == "vnc" and connected not in (None, "keep"):
        detail = "VNC supports connected='keep' only"
        raise error(Code.CONFIG_UNSUPPORTED, detail, origin=Origin.DOMAIN)


# ---- as libvirtd writes it -----------------------------------------------------------------------


def normalise(graphics: Element) -> None:
    """Where it is to be shown, said as libvirtd says it; a password's conditions go with the password."""
    kind = graphics.get("type")
    how_ports = _PORTS.get(kind or "")
    if kind is None or how_ports is None:
        return
    if "passwd" not in graphics.attrib:
        graphics.attrib.pop("passwdValidTo", None)
        graphics.attrib.pop("connected", None)
    elif (until := graphics.get("passwdValidTo")) is not None and _seconds(until) is None:
        graphics.set("passwdValidTo", _NO_TIME)
    listen = graphics.find("listen")
    if listen is None:
        listen = Element("listen", _listen_of(graphics, kind))
        graphics.insert(0, listen)
    place = _place(graphics, listen, how_ports(graphics))
    hidden = ("type", "port", "tlsPort", "autoport", "websocket", "listen", "socket")
    graphics.attrib = {"type": kind} | place | {k: v for k, v in graphics.attrib.items() if k not in hidden}


def _listen_of(graphics: Element, kind: str) -> dict[str, str]:
    """The `<listen>` that is meant where none is written."""
    if "socket" in graphics.attrib:
        return {"type": "socket", "socket": graphics.attrib["socket"]}
    ports = [graphics.get(name, "0") for name in ("port", "tlsPort")]
    if kind == "spice" and ports == ["0", "0"] and graphics.get("autoport") != "yes":
        return {"type": "none"}
    return {"type": "address"} | ({"address": graphics.attrib["listen"]} if graphics.get("listen") else {})


def _place(graphics: Element, listen: Element, ports: dict[str, str]) -> dict[str, str]:
    """At a port, at a socket, or nowhere outside."""
    how = listen.get("type", "address")
    if how == "none":
        return {}
    if how == "socket":
        return {"socket": listen.attrib["socket"]} if "socket" in listen.attrib else {}
    if how == "network":
        return ports
    address = graphics.get("listen") or listen.get("address")
    if not address:
        return ports
    listen.set("address", address)
    return ports | {"listen": address}


def _ports_of_vnc(graphics: Element) -> dict[str, str]:
    asked, auto = graphics.get("port"), graphics.get("autoport")
    port = int(asked) if asked is not None else 0
    # A document of old says -1 for "any", and says nothing at all for that, too.
    if auto == "yes" or (auto != "no" and (port == -1 or asked is None)):
        ports = {"port": "-1", "autoport": "yes"}
    else:
        ports = ({"port": str(port)} if port not in (0, -1) else {}) | {"autoport": "no"}
    return ports | ({"websocket": graphics.attrib["websocket"]} if "websocket" in graphics.attrib else {})


def _ports_of_spice(graphics: Element) -> dict[str, str]:
    given = {name: graphics.get(name) for name in ("port", "tlsPort")}
    ports = {name: str(int(port)) for name, port in given.items() if port is not None}
    auto = graphics.get("autoport")
    if auto == "yes" or (auto != "no" and list(ports.values()) == ["-1", "-1"]):
        return {"autoport": "yes"}
    return {name: port for name, port in ports.items() if port != "0"} | {"autoport": "no"}


def _ports_of_rdp(graphics: Element) -> dict[str, str]:
    if graphics.get("autoport") == "yes" or graphics.get("port", "-1") == "-1":
        return {"port": "0", "autoport": "yes"}
    return {} if graphics.get("port") == "0" else {"port": graphics.attrib["port"]}


_PORTS: Mapping[str, Callable[[Element], dict[str, str]]] = {
    "vnc": _ports_of_vnc,
    "spice": _ports_of_spice,
    "rdp": _ports_of_rdp,
}


# ---- read, shown, hidden -------------------------------------------------------------------------


def describe(root: Element) -> Iterator[Graphics]:
    """The typed view of a normalised domain's screens."""
    for each in root.iterfind("devices/graphics"):
        listen = each.find("listen")
        port = each.get("port")
        until = each.get("passwdValidTo")
        yield Graphics(
            type=each.get("type", ""),
            listen="address" if listen is None else listen.get("type", "address"),
            address=each.get("listen"),
            port=int(port) if port is not None and port != "-1" and _is_number(port) else None,
            autoport=each.get("autoport") == "yes",
            password=each.get("passwd"),
            valid_to=None if until is None else _seconds(until) or 0,
            share_policy=each.get("sharePolicy"),
            websocket=each.get("websocket"),
            power_control=each.get("powerControl") == "yes",
        )


def show(root: Element, address: str, port: int) -> None:
    """Say in a running domain's document where its VNC server listens, as libvirtd does."""
    graphics = root.find("devices/graphics[@type='vnc']")
    listen = None if graphics is None else graphics.find("listen")
    if graphics is None or listen is None:
        return
    graphics.set("port", str(port))
    graphics.set("listen", address)
    listen.set("address", address)
    graphics.attrib = {name: graphics.attrib[name] for name in _ORDER if name in graphics.attrib}


def updated(old: Element, wanted: Element) -> Element:
    """A running domain's screen as a client wants it; both normalised. Raises OPERATION_UNSUPPORTED for what
    stays as it is while it is shown: nearly all.
    """
    kind = old.get("type")
    if kind != "vnc":
        detail = f"unable to change config on '{kind}' graphics type"
        raise error(Code.OPERATION_UNSUPPORTED, detail)
    for names, what in _FIXED:
        if any(wanted.get(name) != old.get(name) for name in names if name != "listen" or old.get(name)):
            raise error(Code.OPERATION_UNSUPPORTED, f"cannot change {what} on vnc graphics")
    new = deepcopy(old)
    for name in _MOVABLE:
        new.attrib.pop(name, None)
    new.attrib |= {name: wanted.attrib[name] for name in _MOVABLE if name in wanted.attrib}
    new.attrib = {name: new.attrib[name] for name in _ORDER if name in new.attrib}
    return new


def hide_passwords(root: Element) -> None:
    """Take out what only a client with the right to secrets may read."""
    for graphics in root.iterfind("devices/graphics"):
        graphics.attrib.pop("passwd", None)


def has_passwords(root: Element) -> bool:
    """Whether there is any to be hidden."""
    return root.find("devices/graphics[@passwd]") is not None


def _seconds(text: str) -> float | None:
    """A time in UTC as Unix seconds; None for one that no calendar has."""
    try:
        return float(timegm(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timetuple()))
    except ValueError:
        return None
