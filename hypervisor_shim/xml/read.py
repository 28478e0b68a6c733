"""Text to elements, for documents that strangers send.

No DTD, hence no entity of any kind but XML's own five; bounded length, depth and number of nodes. Names keep
their prefixes as written: metadata goes back as it came, and only `namespaces` looks at what they mean.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element
from xml.parsers import expat

from hypervisor_shim.errors import Code, LibvirtError, Origin

DOCUMENT_MAX = 4 * 1024 * 1024  # bytes
DEPTH_MAX = 256
NODES_MAX = 100_000  # elements and attributes together


class _Refused(Exception):
    pass


def read_document(text: str, what: str = "domain_definition", origin: Origin = Origin.DOMAIN) -> Element:
    """The root element. LibvirtError XML_DETAIL (35) says line and reason; `what` and `origin` are the name
    libvirtd gives to such a document there, and the part of it that speaks."""

    def detail(message: str, line: int) -> LibvirtError:
        return LibvirtError(Code.XML_DETAIL, f"({what}):{line}: {message}", origin=origin)

    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > DOCUMENT_MAX:
        raise detail(f"document of {len(raw)} bytes is larger than {DOCUMENT_MAX}", 1)
    if not raw.strip():
        raise detail("Document is empty", 1)
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as bad:
        raise detail(expat.errors.messages[bad.code], bad.lineno) from None
    except (_Refused, ValueError, LookupError) as bad:
        raise detail(str(bad), parser.CurrentLineNumber) from None
    assert builder.root is not None
    return builder.root


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._nodes = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._nodes += 1 + len(attributes)
        if self._nodes > NODES_MAX:
            raise _Refused(f"more than {NODES_MAX} elements and attributes")
        if len(self._open) >= DEPTH_MAX:
            raise _Refused(f"elements nested deeper than {DEPTH_MAX}")
        element = Element(name, attributes)
        if self._open:
            self._open[-1].append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, name: str) -> None:
        element = self._open.pop()
        if len(element) and not any(map(str.strip, (element.text or "", *(c.tail or "" for c in element)))):
            element.text = None  # indentation between elements
            for child in element:
                child.tail = None

    def text(self, data: str) -> None:
        parent = self._open[-1]
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + data
        else:
            parent.text = (parent.text or "") + data

    def doctype(self, *ignored: object) -> None:
        raise _Refused("a document type declaration is not accepted")


def namespace_of(element: Element, scope: dict[str, str]) -> str | None:
    """The URI of the element's own namespace, None if it has none. `scope`: prefixes declared further out."""
    prefix = element.tag.rpartition(":")[0]
    declared = element.get(f"xmlns:{prefix}" if prefix else "xmlns")
    return declared if declared is not None else scope.get(prefix)


def declarations(element: Element) -> dict[str, str]:
    """The prefixes an element declares ("" for the default namespace)."""
    found = {}
    for name, value in element.attrib.items():
        if name == "xmlns":
            found[""] = value
        elif name.startswith("xmlns:"):
            found[name[6:]] = value
    return found
