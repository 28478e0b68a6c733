"""Documents that clients send: a long one is parsed in a thread, so that it holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

INLINE_MAX = 64 * 1024  # characters


async def parsed(parse: Callable[..., T], text: str, **options: Any) -> T:
    """What `parse` makes of `text`. Raises what it raises."""
    if len(text) <= INLINE_MAX:
        return parse(text, **options)
    return await asyncio.to_thread(parse, text, **options)


async def parsed_all(parse: Callable[[str], T], texts: Sequence[str]) -> list[T]:
    """The same of each; it is their length together that counts."""

    def work() -> list[T]:
        return [parse(text) for text in texts]

    return work() if sum(map(len, texts)) <= INLINE_MAX else await asyncio.to_thread(work)
