"""Blocking work in a thread, awaited to its end.

A thread cannot be cancelled: an await that is (`asyncio.to_thread`) returns while the work goes on, after the
caller's lock has been released, and whoever takes the lock next works beside it. So whoever waits here stays
until the thread has ended, and is cancelled then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: concurrent.futures.Future[T] | asyncio.Future[T]) -> None:
    """Await blocking work through any cancellation, then let the cancellation through.

    Its result or error stays in `work`. As long as the work takes, so it must be bounded itself.
    """
    waiting = asyncio.wrap_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError as error:
            cancelled = error
    if not waiting.cancelled():
        waiting.exception()  # looked at, so that nobody complains it was not
    if cancelled is not None:
        raise cancelled


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises, run in a thread of the loop's own pool.

    If cancelled meanwhile, it is done all the same, and its outcome is lost.
    """
    running = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args, **kwargs))
    await to_the_end(running)
    return running.result()
