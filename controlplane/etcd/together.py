"""Running the halves of a bidirectional stream together, without leaving one behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["together"]


async def together(*halves: Coroutine[Any, Any, None]) -> None:
    """Run all until all have ended. The first failure cancels the rest and is raised as it is; so does our own
    cancellation. When this returns or raises, none of them runs any more."""
    tasks = [asyncio.ensure_future(half) for half in halves]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
