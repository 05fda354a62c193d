"""Load on one cluster: closed loops of N clients, open loops at a rate, watchers, keep-alives, and a gap detector.

Owns the generators and their latencies (seconds, one monotonic clock). Each client is one connection with one call
outstanding, as etcd's own `check perf` has it. An open loop measures from the moment a call *should* have begun, so
that a stall counts for every call it delayed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.bench.h2client import H2Client, connect
from chaos.bench.peers import PUT, RANGE
from controlplane.pb.etcd import rpc_pb2

__all__ = ["Sample", "closed_loop", "fill", "keep_alives", "longest_gap", "open_loop", "put_of", "range_of", "watchers"]

TXN: Final = "/etcdserverpb.KV/Txn"
WATCH: Final = "/etcdserverpb.Watch/Watch"
GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"

#: (path, message) of the n-th call.
Call = Callable[[int], tuple[str, bytes]]


@dataclass
class Sample:
    """What a load saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0


def put_of(keys: int, value_bytes: int, seed: int) -> Call:
    """Puts of random values on random keys out of ``keys``."""
    rng = random.Random(seed)  # noqa: S311
    values = [rng.randbytes(value_bytes) for _ in range(64)]

    def make(n: int) -> tuple[str, bytes]:
        key = b"bench/%08d" % rng.randrange(keys)
        return PUT, rpc_pb2.PutRequest(key=key, value=values[n % 64]).SerializeToString()

    return make


def range_of(keys: int, *, serializable: bool, seed: int) -> Call:
    """Reads of one random key."""
    rng = random.Random(seed)  # noqa: S311

    def make(_n: int) -> tuple[str, bytes]:
        key = b"bench/%08d" % rng.randrange(keys)
        return RANGE, rpc_pb2.RangeRequest(key=key, serializable=serializable).SerializeToString()

    return make


def mixed(reads_share: float, keys: int, value_bytes: int, seed: int) -> Call:
    """Linearizable reads and puts."""
    rng = random.Random(seed)  # noqa: S311
    put, get = put_of(keys, value_bytes, seed), range_of(keys, serializable=False, seed=seed)
    return lambda n: (get if rng.random() < reads_share else put)(n)


async def _clients(endpoints: Sequence[str], count: int) -> list[H2Client]:
    return [await connect(endpoints[i % len(endpoints)]) for i in range(count)]


async def closed_loop(endpoints: Sequence[str], clients: int, seconds: float, call: Call) -> Sample:
    """``clients`` connections, each with one call outstanding, for ``seconds``."""
    sample = Sample()
    connections = await _clients(endpoints, clients)
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    numbers = iter(range(1 << 60))
    open_calls = clients
    begin = time.perf_counter()
    end = begin + seconds

    def start(client: H2Client) -> None:
        called = time.perf_counter()
        path, message = call(next(numbers))

        def done(error: str | None, _count: int, _first: bytes) -> None:
            nonlocal open_calls
            now = time.perf_counter()
            if error is None:
                sample.latencies_s.append(now - called)
            else:
                sample.errors.append(error)
            # A client whose call failed leaves: a benchmark of errors is none, and the caller will say so.
            if now < end and error is None:
                start(client)
                return
            open_calls -= 1
            if open_calls == 0 and not finished.done():
                finished.set_result(None)

        client.call(path, message, done)

    for client in connections:
        start(client)
    await finished
    sample.seconds = time.perf_counter() - begin
    for client in connections:
        client.close()
    return sample


async def open_loop(
    endpoints: Sequence[str], clients: int, rate: float, seconds: float, call: Call, seed: int
) -> Sample:
    """Calls at random times, ``rate`` a second on average, whatever the answers take."""
    rng = random.Random(seed)  # noqa: S311
    sample = Sample()
    connections = await _clients(endpoints, clients)
    begin = due = time.perf_counter()
    pending = 0
    idle = asyncio.Event()
    idle.set()
    n = 0
    while due < begin + seconds:
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        pending += 1
        idle.clear()

        def done(error: str | None, _count: int, _first: bytes, due: float = due) -> None:
            nonlocal pending
            pending -= 1
            if pending == 0:
                idle.set()
            if error is None:
                sample.latencies_s.append(time.perf_counter() - due)
            else:
                sample.errors.append(error)

        path, message = call(n)
        connections[n % clients].call(path, message, done)
        n += 1
        due += rng.expovariate(rate)
    async with asyncio.timeout(60):
        await idle.wait()
    sample.seconds = time.perf_counter() - begin
    for client in connections:
        client.close()
    return sample


async def fill(endpoints: Sequence[str], keys: int, value_bytes: int) -> None:
    """Write ``keys`` keys, 100 in a transaction, 8 transactions outstanding."""
    rng = random.Random(keys)  # noqa: S311
    numbers = list(range(0, keys, 100))
    connections = await _clients(endpoints, 8)

    async def feed(client: H2Client) -> None:
        while numbers:
            first = numbers.pop()
            puts = [
                rpc_pb2.RequestOp(
                    request_put=rpc_pb2.PutRequest(key=b"fill/%08d" % n, value=rng.randbytes(value_bytes))
                )
                for n in range(first, min(first + 100, keys))
            ]
            await client.unary(TXN, rpc_pb2.TxnRequest(success=puts).SerializeToString())

    await asyncio.gather(*(feed(client) for client in connections))
    for client in connections:
        client.close()


async def watchers(endpoints: Sequence[str], count: int, writes: int, rate: float) -> tuple[float, list[float]]:
    """One writer, ``count`` watchers of the key. Returns events delivered per second, and each delay in seconds from
    the write's beginning to the event's arrival."""
    key = b"bench/watched"
    begun: dict[bytes, float] = {}
    delays: list[float] = []
    created = 0
    all_created, all_seen = asyncio.Event(), asyncio.Event()

    def on_message(message: bytes) -> None:
        nonlocal created
        now = time.perf_counter()
        response = rpc_pb2.WatchResponse.FromString(message)
        if response.created:
            created += 1
            if created == count:
                all_created.set()
        delays.extend(now - begun[event.kv.value] for event in response.events)
        if len(delays) >= count * writes:
            all_seen.set()

    connections = await _clients(endpoints, min(count, 30))
    request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key)).SerializeToString()
    for i in range(count):
        connections[i % len(connections)].open(WATCH, request, on_message, lambda *_: None)
    writer = await connect(endpoints[0])
    try:
        async with asyncio.timeout(120):
            await all_created.wait()
            begin = time.perf_counter()
            for n in range(writes):
                value = b"%d" % n
                delay = begin + n / rate - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                begun[value] = time.perf_counter()
                await writer.unary(PUT, rpc_pb2.PutRequest(key=key, value=value).SerializeToString())
            await all_seen.wait()
        return len(delays) / (time.perf_counter() - begin), delays
    finally:
        for client in (*connections, writer):
            client.close()


async def keep_alives(endpoints: Sequence[str], leases: int, seconds: float) -> Sample:
    """``leases`` leases, each on a stream of its own, renewed as fast as the answers come."""
    sample = Sample()
    connections = await _clients(endpoints, min(leases, 30))
    begin = time.perf_counter()
    end = begin + seconds

    for n in range(leases):
        client = connections[n % len(connections)]
        answer = await client.unary(GRANT, rpc_pb2.LeaseGrantRequest(TTL=600).SerializeToString())
        lease = rpc_pb2.LeaseGrantResponse.FromString(answer).ID
        _renew(client, rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString(), sample, end)
    begin = time.perf_counter() if begin > end else begin
    await asyncio.sleep(max(0.0, end - time.perf_counter()))
    sample.seconds = time.perf_counter() - begin
    for client in connections:
        client.close()
    return sample


def _renew(client: H2Client, message: bytes, sample: Sample, end: float) -> None:
    asked = time.perf_counter()
    stream = 0

    def on_message(_message: bytes) -> None:
        nonlocal asked
        now = time.perf_counter()
        sample.latencies_s.append(now - asked)
        if now < end:
            asked = now
            client.send(stream, message)

    stream = client.open(KEEP_ALIVE, message, on_message, lambda *_: None)


async def longest_gap(endpoints: Sequence[str], strike: Callable[[], object], after_s: float, for_s: float) -> float:
    """One writer per endpoint, each writing again as soon as it was answered or 0.2 s have passed; ``strike`` after
    ``after_s``. The longest time between two acknowledged writes, seconds, by whoever."""
    acknowledged: list[float] = []
    stop = asyncio.Event()

    async def write(endpoint: str, who: int) -> None:
        client: H2Client | None = None
        n = 0
        while not stop.is_set():
            try:
                # One write at a time; a deadline far above what a healthy cluster takes, as a client would have.
                async with asyncio.timeout(0.25):
                    if client is None or client.closed.done():
                        client = await connect(endpoint)
                    n += 1
                    key = b"bench/gap/%d" % who
                    await client.unary(PUT, rpc_pb2.PutRequest(key=key, value=b"%d" % n).SerializeToString())
                acknowledged.append(time.perf_counter())
            except Exception:  # noqa: BLE001 - whatever it is, the write was not acknowledged: that is what is measured
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.002)
        if client is not None:
            client.close()

    tasks = [asyncio.create_task(write(endpoint, i)) for i, endpoint in enumerate(endpoints)]
    await asyncio.sleep(after_s)
    result = strike()
    if asyncio.iscoroutine(result):
        await result
    struck = time.perf_counter()
    await asyncio.sleep(for_s)
    stop.set()
    await asyncio.gather(*tasks)
    before = [t for t in acknowledged if t <= struck]
    if len(before) < 10:
        raise RuntimeError("hardly a write before the fault: this trial measures nothing")
    times = [before[-1], *(t for t in acknowledged if t > struck), struck + for_s]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
