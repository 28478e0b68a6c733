"""Sizes with a unit, as libvirt scales them."""

from __future__ import annotations

from hypervisor_shim.errors import Code, Origin, error

#: Unit, in lower case → bytes.
SUFFIXES: dict[str, int] = {"": 1, "b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 10**3} | {
    f"{letter}{tail}": (1 << bits if tail != "b" else 1000 ** (bits // 10))
    for letter, bits in (("m", 20), ("g", 30), ("t", 40), ("p", 50), ("e", 60))
    for tail in ("", "ib", "b")
}


def scaled(text: str, unit: str) -> int | None:
    """`text` times `unit` in bytes; None when `text` is no number. INVALID_ARG (8) for an unknown unit,
    OVERFLOW (82) for more than 2**63 - 1 bytes."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or int(text[:20]) >= 1 << 64 or len(text) > 20:
        return None
    factor = SUFFIXES.get(unit.lower())
    if factor is None:
        raise error(Code.INVALID_ARG, f"unknown suffix '{unit}'", origin=Origin.NONE)
    size = int(text) * factor
    if size >= 1 << 63:
        raise error(Code.OVERFLOW, f"value too large: {text}{unit}", origin=Origin.NONE)
    return size
