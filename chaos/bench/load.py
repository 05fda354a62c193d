"""Load on one cluster: closed loops of N clients, open loops at a rate, watchers, keep-alives.

Owns the generators and their latencies (seconds, one monotonic clock). Each client is one connection with one call
outstanding, as etcd's own `check perf` has it. An open loop measures from the moment a call *should* have begun, so
that a stall counts for every call it delayed. What the generator itself costs, and how late it was, is measured too:
it must not be what is measured.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from chaos.bench.h2client import H2Client, connect
from chaos.bench.peers import PUT, RANGE
from controlplane.pb.etcd import rpc_pb2

__all__ = [
    "Call",
    "Sample",
    "closed_loop",
    "count",
    "fill",
    "keep_alives",
    "list_of",
    "mixed",
    "open_loop",
    "put_of",
    "range_of",
    "watchers",
]

TXN: Final = "/etcdserverpb.KV/Txn"
WATCH: Final = "/etcdserverpb.Watch/Watch"
GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"

#: How long the last answers of a load may take.
_OUTSTANDING_S: Final = 60.0

#: (path, message) of the n-th call.
Call = Callable[[int], tuple[str, bytes]]


@dataclass
class Sample:
    """What a load saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    #: Processor time of this process meanwhile; of one core, as it has one loop.
    generator_cpu_s: float = 0.0
    #: How late each call of an open loop began: its time had come, and the generator was busy with others.
    late_s: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    @property
    def generator_share(self) -> float:
        """Of one core, 0 to 1."""
        return self.generator_cpu_s / self.seconds if self.seconds else 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The load is what happens in here."""
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds, self.generator_cpu_s = time.perf_counter() - begin, time.process_time() - cpu


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


def list_of(prefix: bytes) -> Call:
    """Reads of everything under a prefix."""
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    message = rpc_pb2.RangeRequest(key=prefix, range_end=end).SerializeToString()
    return lambda _n: (RANGE, message)


def mixed(reads_share: float, keys: int, value_bytes: int, seed: int) -> Call:
    """Linearizable reads and puts."""
    rng = random.Random(seed)  # noqa: S311
    put, get = put_of(keys, value_bytes, seed), range_of(keys, serializable=False, seed=seed)
    return lambda n: (get if rng.random() < reads_share else put)(n)


@asynccontextmanager
async def connected(
    endpoints: Sequence[str], count: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[H2Client]]:
    """``count`` connections, spread over the endpoints."""
    clients: list[H2Client] = []
    try:
        for i in range(count):
            clients.append(await connect(endpoints[i % len(endpoints)], tls))  # noqa: PERF401 - those made are closed if one fails
        yield clients
    finally:
        for client in clients:
            client.close()


async def closed_loop(
    endpoints: Sequence[str], clients: int, seconds: float, call: Call, tls: ssl.SSLContext | None = None
) -> Sample:
    """``clients`` connections, each with one call outstanding, for ``seconds``."""
    sample = Sample()
    finished = asyncio.get_running_loop().create_future()
    numbers = iter(range(1 << 60))
    open_calls = clients
    end = 0.0

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

    async with connected(endpoints, clients, tls) as connections:
        with sample.measured():
            end = time.perf_counter() + seconds
            for client in connections:
                start(client)
            async with asyncio.timeout(seconds + _OUTSTANDING_S):
                await finished
    return sample


async def open_loop(
    endpoints: Sequence[str], clients: int, rate: float, seconds: float, call: Call, seed: int
) -> Sample:
    """Calls at random times, ``rate`` a second on average, whatever the answers take."""
    rng = random.Random(seed)  # noqa: S311
    sample = Sample()
    pending = 0
    idle = asyncio.Event()
    idle.set()

    def start(client: H2Client, n: int, due: float) -> None:
        nonlocal pending
        pending += 1
        idle.clear()

        def done(error: str | None, _count: int, _first: bytes) -> None:
            nonlocal pending
            pending -= 1
            if pending == 0:
                idle.set()
            if error is None:
                sample.latencies_s.append(time.perf_counter() - due)
            else:
                sample.errors.append(error)

        path, message = call(n)
        sample.late_s.append(time.perf_counter() - due)
        client.call(path, message, done)

    async with connected(endpoints, clients) as connections:
        with sample.measured():
            begin = due = time.perf_counter()
            n = 0
            while due < begin + seconds:
                delay = due - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                start(connections[n % clients], n, due)
                n += 1
                due += rng.expovariate(rate)
            async with asyncio.timeout(_OUTSTANDING_S):
                await idle.wait()
    return sample


async def fill(endpoints: Sequence[str], keys: int, value_bytes: int) -> None:
    """Write ``keys`` keys, 100 in a transaction, 8 transactions outstanding."""
    rng = random.Random(keys)  # noqa: S311
    numbers = list(range(0, keys, 100))

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

    async with connected(endpoints, 8) as connections:
        await asyncio.gather(*(feed(client) for client in connections))


async def count(endpoint: str, prefix: bytes) -> int:
    """Keys under a prefix, linearizably."""
    request = rpc_pb2.RangeRequest(key=prefix, range_end=prefix[:-1] + bytes([prefix[-1] + 1]), count_only=True)
    async with connected([endpoint], 1) as (client,):
        return rpc_pb2.RangeResponse.FromString(await client.unary(RANGE, request.SerializeToString())).count


async def watchers(endpoints: Sequence[str], count: int, writes: int, rate: float) -> Sample:
    """One writer, ``count`` watchers of the key. Each latency is an event's: from the write's beginning to its arrival
    at one watcher."""
    key = b"bench/watched"
    begun: dict[bytes, float] = {}
    sample = Sample()
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
        sample.latencies_s.extend(now - begun[event.kv.value] for event in response.events)
        if len(sample.latencies_s) >= count * writes:
            all_seen.set()

    request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key)).SerializeToString()
    async with (
        connected(endpoints, min(count, 30)) as connections,
        connected(endpoints, 1) as (writer,),
        asyncio.timeout(120),
    ):
        for i in range(count):
            connections[i % len(connections)].open(WATCH, request, on_message, lambda *_: None)
        await all_created.wait()
        with sample.measured():
            begin = time.perf_counter()
            for n in range(writes):
                value = b"%d" % n
                delay = begin + n / rate - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                begun[value] = time.perf_counter()
                await writer.unary(PUT, rpc_pb2.PutRequest(key=key, value=value).SerializeToString())
            await all_seen.wait()
    return sample


async def keep_alives(endpoints: Sequence[str], leases: int, seconds: float) -> Sample:
    """``leases`` leases, each on a stream of its own, renewed as fast as the answers come."""
    sample = Sample()
    grant = rpc_pb2.LeaseGrantRequest(TTL=600).SerializeToString()
    async with connected(endpoints, min(leases, 30)) as connections:
        granted: list[tuple[H2Client, int]] = []
        for n in range(leases):
            client = connections[n % len(connections)]
            answer = await client.unary(GRANT, grant)
            granted.append((client, rpc_pb2.LeaseGrantResponse.FromString(answer).ID))
        with sample.measured():
            end = time.perf_counter() + seconds
            for client, lease in granted:
                _renew(client, rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString(), sample, end)
            await asyncio.sleep(seconds)
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
