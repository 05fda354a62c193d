"""Small asyncio helpers on an injected clock. Owns waiting; knows nothing of what is waited for."""

from __future__ import annotations

import asyncio

from controlplane.base.clock import Clock

__all__ = ["wait_event"]


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
