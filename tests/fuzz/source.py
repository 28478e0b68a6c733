"""Choices made from bytes: who varies the bytes (hypothesis, atheris, a kept file) varies the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Reads its bytes once, front to back; when they are used up every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def __bool__(self) -> bool:
        """Whether there is anything left."""
        return self._pos < len(self._data)

    def take(self, size: int) -> bytes:
        """At most `size` bytes."""
        taken = self._data[self._pos : self._pos + size]
        self._pos += len(taken)
        return taken

    def below(self, limit: int) -> int:
        """0 to limit - 1."""
        return int.from_bytes(self.take(1 if limit <= 256 else 2), "big") % limit

    def one_in(self, chances: int) -> bool:
        """True once in a while; False when the bytes are used up."""
        return self.below(chances) == chances - 1

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def blob(self) -> bytes:
        """Some bytes, at most 255."""
        return self.take(self.below(256))

    def rest(self) -> bytes:
        return self.take(len(self._data))
