"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is empty where nothing has to be done."""

    verdict: Verdict
    subject: str
    finding: str
    mend: str = ""
