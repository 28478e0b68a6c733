"""What a `<filter>` document says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element


@dataclass(frozen=True, slots=True)
class FilterDef:
    """A parsed, checked and normalised `<filter>`. `uuid` is None where the document names none;
    `priority`: where its chain stands among the others; `references` are the names of the filters that it
    refers to; `tree` is the whole document."""

    name: str
    uuid: bytes | None
    chain: str
    priority: int
    references: tuple[str, ...]
    tree: Element
