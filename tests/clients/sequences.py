"""A cloud's calls in its order: which must succeed, and which it copes with when they are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import libvirt

#: What a cloud takes for "this driver cannot": code 3, 84 operation unsupported, 74 argument unsupported,
#: 67 configuration unsupported, 86 no agent answers, 146 no agent is there.
CANNOT = frozenset({3, 84, 74, 67, 86, 146})


@dataclass
class Sequence:
    """`wrong` collects what must not be: a sentence each."""

    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def must(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except libvirt.libvirtError as failed:
            self.wrong.append(f"{what}: {failed.get_error_code()} {failed}")
        return None

    def may(self, what: str, call: Callable[[], Any], codes: frozenset[int] = CANNOT) -> Any:
        try:
            return call()
        except libvirt.libvirtError as failed:
            self.refused.append(what)
            if failed.get_error_code() not in codes:
                self.wrong.append(f"{what} is refused with {failed.get_error_code()}: {failed}")
        return None

    def done(self) -> None:
        assert not self.wrong, "\n".join(self.wrong)
