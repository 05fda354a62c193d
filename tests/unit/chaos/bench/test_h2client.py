"""The load generator's client against a real gRPC server: what it counts is what the server did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from chaos.bench import load
from chaos.bench.h2client import CallFailedError, connect
from chaos.bench.peers import PUT, RANGE
from controlplane.pb.etcd import rpc_pb2 as e
from tests.integration.etcd_rig import Ours, ours


@dataclass
class Target:
    replica: Ours

    @property
    def endpoints(self) -> list[str]:
        return [self.replica.endpoint]


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with ours() as replica:
        yield Target(replica)


async def test_calls_on_one_connection_change_paths_and_sizes(target: Target) -> None:
    client = await connect(target.endpoints[0])
    value = bytes(100_000)  # more than a frame, and more than the connection's first window
    for n in range(3):
        await client.unary(PUT, e.PutRequest(key=b"k%d" % n, value=value).SerializeToString())
        answer = e.RangeResponse.FromString(
            await client.unary(RANGE, e.RangeRequest(key=b"k%d" % n).SerializeToString())
        )
        assert answer.kvs[0].value == value
    client.close()


async def test_a_failed_call_says_its_status(target: Target) -> None:
    client = await connect(target.endpoints[0])
    with pytest.raises(CallFailedError, match="3: etcdserver: key is not provided"):
        await client.unary(PUT, b"")
    client.close()


async def test_a_call_on_a_lost_connection_fails_and_does_not_hang(target: Target) -> None:
    client = await connect(target.endpoints[0])
    client.close()
    await client.closed
    with pytest.raises(CallFailedError, match="closed"):
        await client.unary(PUT, e.PutRequest(key=b"k").SerializeToString())


async def test_a_closed_loop_counts_what_the_server_applied(target: Target) -> None:
    sample = await load.closed_loop(target.endpoints, 4, 0.2, load.put_of(10, 16, seed=1))
    assert sample.errors == []
    assert len(sample.latencies_s) == target.replica.store.revision - 1 > 4


async def test_a_closed_loop_of_failing_calls_ends_and_reports_them(target: Target) -> None:
    sample = await load.closed_loop(target.endpoints, 2, 0.2, lambda _n: (PUT, b""))
    assert len(sample.errors) == 2
    assert sample.latencies_s == []


async def test_every_watcher_sees_every_write(target: Target) -> None:
    async with asyncio.timeout(30):
        sample = await load.watchers(target.endpoints, count=7, writes=5, rate=100)
    assert len(sample.latencies_s) == 35


async def test_an_open_loop_says_how_late_it_was_itself_and_what_it_cost(target: Target) -> None:
    sample = await load.open_loop(target.endpoints, 2, 200.0, 0.2, load.put_of(10, 16, seed=1), seed=1)
    assert len(sample.late_s) == len(sample.latencies_s) == target.replica.store.revision - 1
    assert all(
        0.0 <= late <= latency for late, latency in zip(sorted(sample.late_s), sorted(sample.latencies_s), strict=True)
    )
    assert sample.generator_share > 0.0


async def test_keys_are_filled_in_and_counted(target: Target) -> None:
    await load.fill(target.endpoints, 250, 10)
    assert await load.count(target.endpoints[0], b"fill/") == 250


async def test_keep_alives_are_counted_as_answered(target: Target) -> None:
    sample = await load.keep_alives(target.endpoints, 3, 0.2)
    assert len(sample.latencies_s) >= 3


async def test_calls_that_leave_before_the_servers_settings_arrive_are_understood(target: Target) -> None:
    """RFC 7541, 4.2: until it has acknowledged a smaller table, a client may use the default one."""
    client = await connect(target.endpoints[0])
    request = e.PutRequest(key=b"k").SerializeToString()
    async with asyncio.timeout(5):
        await asyncio.gather(*(client.unary(PUT, request) for _ in range(3)))
    client.close()
