"""Closed transports close their sockets in a later turn of the loop: give it that before the loop ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest


@pytest.fixture(autouse=True)
async def _let_sockets_close() -> AsyncIterator[None]:
    yield
    for _ in range(5):
        await asyncio.sleep(0)
