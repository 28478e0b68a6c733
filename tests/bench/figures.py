"""A row of the bench: one figure of ours beside a peer's, medians of what both gave in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Row(TypedDict):
    """As it stands in bench.json; without a peer that runs here, its columns are None."""

    name: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    unit: str
    higher_is_better: bool
    note: NotRequired[str]


def row(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
    unit: str,
    *,
    peer_name: str,
    more: bool,
) -> Row:
    """`more`: whether more is better. `theirs`: None where the peer cannot run here."""
    mine = statistics.median(ours)
    other = None if theirs is None else statistics.median(theirs)
    return {
        "name": name,
        "ours": _rounded(mine),
        "peer": None if other is None else _rounded(other),
        "peer_name": None if other is None else peer_name,
        "ratio": round(mine / other, 2) if other else None,
        "unit": unit,
        "higher_is_better": more,
    }


def _rounded(value: float) -> float:
    return round(value, 0 if abs(value) >= 1000 else 3)
