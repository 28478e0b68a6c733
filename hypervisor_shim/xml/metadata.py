"""Title, description and the elements of clients in a document: as domains and networks both have them.

A client's element is kept under its namespace, every tag dressed in the client's prefix; it goes back bare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Protocol
from xml.etree.ElementTree import Element

from hypervisor_shim.driver.facts import Metadata, MetadataKind
from hypervisor_shim.xml.read import declarations, namespace_of
from hypervisor_shim.xml.write import write_element


class Described(Protocol):
    """A definition that has metadata; its elements by namespace."""

    @property
    def title(self) -> str | None: ...

    @property
    def description(self) -> str | None: ...

    @property
    def metadata(self) -> Mapping[str, Element]: ...


def find(definition: Described, kind: MetadataKind, uri: str | None) -> str | None:
    """The text of that piece, None if it is not there."""
    if kind is MetadataKind.TITLE:
        return definition.title
    if kind is MetadataKind.DESCRIPTION:
        return definition.description
    element = definition.metadata.get(uri or "")
    return None if element is None else write_element(_bare(element, uri), quote='"').rstrip("\n")


def word(definition: Described, uri: str, tag: str) -> str | None:
    """The text of the child `tag` of the element of namespace `uri`; None where there is none, or nothing
    in it. The prefix is the client's own choice."""
    element = definition.metadata.get(uri)
    if element is None:
        return None
    found = next((child.text for child in element if child.tag.rpartition(":")[2] == tag), None)
    return (found or "").strip() or None


def replaced(
    tree: Element, change: Metadata, *, order: Iterable[str], read: Callable[[str], Element]
) -> Element:
    """A copy of `tree` with that piece replaced, or removed when its text is None. An element's tags are
    given its prefix for its namespace, which `find` takes off again. `order`: the document's children as
    libvirt writes them; `read` parses the element.
    """
    kind, text, uri = change.kind, change.text, change.uri
    root = deepcopy(tree)
    if kind is not MetadataKind.ELEMENT:
        _replace(root, "title" if kind is MetadataKind.TITLE else "description", text or None, order)
        return root
    metadata = root.find("metadata")
    if metadata is None:
        metadata = place(root, "metadata", order)
    for element in list(metadata):
        if namespace_of(element, {}) == uri:
            metadata.remove(element)
    if text is not None:
        metadata.append(_dressed(read(text), change.key or "", uri or ""))
    elif not len(metadata):
        root.remove(metadata)
    return root


def place(root: Element, tag: str, order: Iterable[str]) -> Element:
    """A new child where libvirt writes it: behind those of its kind."""
    ranks = list(order)
    element = Element(tag)
    root.insert(sum(ranks.index(child.tag) <= ranks.index(tag) for child in root), element)
    return element


def _replace(root: Element, tag: str, text: str | None, order: Iterable[str]) -> None:
    element = root.find(tag)
    if text is None:
        if element is not None:
            root.remove(element)
    else:
        (place(root, tag, order) if element is None else element).text = text


def _dressed(element: Element, key: str, uri: str) -> Element:
    """Every tag that has no namespace of its own gets that of the client, by the client's prefix."""
    if "xmlns" not in element.attrib:
        for inner in element.iter():
            if ":" not in inner.tag:
                inner.tag = f"{key}:{inner.tag}"
    element.attrib = {f"xmlns:{key}": uri, **element.attrib}
    return element


def _bare(element: Element, uri: str | None) -> Element:
    """A copy whose tags do without the prefix that stands for `uri`, and without its declaration."""
    bare = deepcopy(element)
    prefixes = {prefix for prefix, declared in declarations(element).items() if declared == uri}
    for prefix in prefixes:
        del bare.attrib[f"xmlns:{prefix}" if prefix else "xmlns"]
    for inner in bare.iter():
        prefix, _, name = inner.tag.rpartition(":")
        if prefix in prefixes:
            inner.tag = name
    return bare
