"""How long nobody's write is acknowledged around a fault: three writers, one a member, and the longest time between.

Owns the writers and when a fault is over for them. Knows nothing of faults.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final

from chaos.bench.h2client import H2Client, connect
from chaos.bench.peers import PUT
from controlplane.pb.etcd import rpc_pb2

__all__ = ["longest_gap"]

#: A fault is watched for at least so long, until for so long no gap between writes was longer than the last.
_WATCH_MIN_S: Final = 2.0
_STEADY_S: Final = 1.0
_STEADY_GAP_S: Final = 0.25


async def longest_gap(
    endpoints: Sequence[str], strike: Callable[[], object], before_s: float = 0.7, max_s: float = 12.0
) -> float:
    """The longest time between two acknowledged writes around a fault, seconds, by whoever: one writer per endpoint,
    each writing again as soon as it was answered or 0.25 s have passed.

    Watched until writes have gone on for a second again, at least ``_WATCH_MIN_S`` and at most ``max_s`` after
    ``strike``, which comes after ``before_s``.
    """
    acknowledged: list[float] = []
    stop = asyncio.Event()
    tasks = [asyncio.create_task(_write_on(endpoint, i, acknowledged, stop)) for i, endpoint in enumerate(endpoints)]
    try:
        await asyncio.sleep(before_s)
        struck = time.perf_counter()
        result = strike()
        if asyncio.iscoroutine(result):
            await result
        while not _steady(acknowledged, struck) and time.perf_counter() < struck + max_s:
            await asyncio.sleep(0.05)
        end = time.perf_counter()
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    before = [t for t in acknowledged if t <= struck]
    if len(before) < 10:
        raise RuntimeError("hardly a write before the fault: this trial measures nothing")
    times = [before[-1], *(t for t in acknowledged if struck < t <= end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


async def _write_on(endpoint: str, who: int, acknowledged: list[float], stop: asyncio.Event) -> None:
    """Write, one write at a time, and note when each was acknowledged."""
    client: H2Client | None = None
    key, n = b"bench/gap/%d" % who, 0
    while not stop.is_set():
        try:
            # A deadline far above what a healthy cluster takes, as a client would have.
            async with asyncio.timeout(0.25):
                if client is None or client.closed.done():
                    client = await connect(endpoint)
                n += 1
                await client.unary(PUT, rpc_pb2.PutRequest(key=key, value=b"%d" % n).SerializeToString())
            acknowledged.append(time.perf_counter())
        except Exception:  # noqa: BLE001 - whatever it is, the write was not acknowledged: that is what is measured
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.002)
    if client is not None:
        client.close()


def _steady(acknowledged: Sequence[float], struck: float) -> bool:
    """Whether the fault is over for the writers: it is long enough ago, and for a second no gap was a long one."""
    now = time.perf_counter()
    if now - struck < _WATCH_MIN_S:
        return False
    recent = list(itertools.takewhile(lambda t: t > now - _STEADY_S, reversed(acknowledged)))
    times = [now, *recent, now - _STEADY_S]
    return max(later - earlier for later, earlier in itertools.pairwise(times)) < _STEADY_GAP_S
