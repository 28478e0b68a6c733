"""Elements to text, laid out as libvirt does: two blanks a level, one element a line, mixed content as is."""

from __future__ import annotations

from xml.etree.ElementTree import Element

_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_ATTRIBUTE = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;", "\n": "&#xA;", "\t": "&#x9;",
     "\r": "&#xD;"}
)  # fmt: skip


def write_element(element: Element, indent: int = 0, quote: str = "'") -> str:
    """The element and everything in it, each line ended."""
    out: list[str] = []
    _write(element, out, "  " * indent, quote)
    return "".join(out)


def start_tag(element: Element, quote: str) -> str:
    parts = [element.tag]
    parts += [f"{name}={quote}{value.translate(_ATTRIBUTE)}{quote}" for name, value in element.attrib.items()]
    return "<" + " ".join(parts)


def _write(element: Element, out: list[str], indent: str, quote: str) -> None:
    head = start_tag(element, quote)
    if element.tag == "metadata" and indent == "  ":
        quote = '"'  # libvirt leaves metadata to libxml2, which quotes so
    if not len(element):
        if element.text is None:
            out.append(f"{indent}{head}/>\n")
        else:
            out.append(f"{indent}{head}>{element.text.translate(_TEXT)}</{element.tag}>\n")
    elif element.text is None and all(child.tail is None for child in element):
        out.append(f"{indent}{head}>\n")
        for child in element:
            _write(child, out, indent + "  ", quote)
        out.append(f"{indent}</{element.tag}>\n")
    else:
        out.append(f"{indent}{_inline(element, quote)}\n")


def _inline(element: Element, quote: str) -> str:
    """Mixed content: every blank counts."""
    head = start_tag(element, quote)
    if element.text is None and not len(element):
        return f"{head}/>"
    inner = [(element.text or "").translate(_TEXT)]
    for child in element:
        inner += (_inline(child, quote), (child.tail or "").translate(_TEXT))
    return f"{head}>{''.join(inner)}</{element.tag}>"
