"""Small asyncio helpers on an injected clock. Owns waiting; knows nothing of what is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from controlplane.base.clock import Clock

__all__ = ["run_until_first", "wait_event"]


async def wait_event(event: asyncio.Event, clock: Clock, timeout_s: float) -> bool:
    """Wait until ``event`` is set or ``timeout_s`` seconds of ``clock`` have passed; True if it is set.

    The standard library's timeouts run on the loop's own clock; this one also works in virtual time.
    """
    if event.is_set() or timeout_s <= 0:
        return event.is_set()
    waiter = asyncio.ensure_future(event.wait())
    sleeper = asyncio.ensure_future(clock.sleep(timeout_s))
    try:
        await asyncio.wait({waiter, sleeper}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        sleeper.cancel()
    return event.is_set()


async def run_until_first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them together until one ends, then cancel the others and wait for them.

    Raises: what the first to fail raised, as it is (not in a group); CancelledError when cancelled itself.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
