"""GrpcClient against real gRPC: which replica, how long, what is repeated and what the errors say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.client.endpoints import EndpointPool
from controlplane.client.grpc_client import GrpcClient
from controlplane.client.interface import (
    ApiError,
    ConflictError,
    ExpiredError,
    FencedError,
    FieldCause,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WatchEvent,
    WatchType,
)
from controlplane.client.kinds import wrap
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.client.fakes import pod
from tests.unit.client.replicas import DeafProxy, Replica, Silent, detailed, unavailable

Connect = Callable[..., GrpcClient]
Start = Callable[..., Awaitable[Replica]]


class FirstRand(SeededRand):
    """Draws the first endpoint, and no jitter worth waiting for."""

    def randint(self, low: int, high: int) -> int:
        return low


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Replica] = []

    async def start(*answers: StatusError | float) -> Replica:
        replica = await Replica(*answers).start()  # type: ignore[abstract]  # only what the tests call
        started.append(replica)
        return replica

    yield start
    for replica in started:
        await replica.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[GrpcClient] = []

    def connect(*endpoints: str, timeout_ms: int = 2_000, attempt_timeout_ms: int = 200) -> GrpcClient:
        client = GrpcClient(endpoints, timeout_ms=timeout_ms, attempt_timeout_ms=attempt_timeout_ms, rand=FirstRand(1))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.close()


async def test_a_read_returns_the_object(start: Start, connect: Connect) -> None:
    replica = await start()
    assert await connect(replica.endpoint).get(Pod, "a", namespace="default") == pod("a", 7)
    assert replica.requests == [api_pb2.GetRequest(resource="pods", namespace="default", name="a")]


async def test_a_dead_replica_is_left_at_once_and_not_returned_to(start: Start, connect: Connect) -> None:
    dead, alive = await start(), await start()
    await dead.stop()
    client = connect(dead.endpoint, alive.endpoint)
    await client.get(Pod, "a", namespace="default")
    await client.get(Pod, "a", namespace="default")
    assert client.pool.current == alive.endpoint
    assert len(alive.requests) == 2


async def test_a_replica_that_never_answers_costs_one_attempt(start: Start, connect: Connect) -> None:
    silent, alive = await Silent().start(), await start()
    client = connect(silent.endpoint, alive.endpoint)
    started = time.monotonic()
    await client.get(Pod, "a", namespace="default")
    assert time.monotonic() - started < 1.0
    await silent.stop()


async def test_a_slow_answer_is_not_cut_off_for_ever(start: Start, connect: Connect) -> None:
    # 0.5 s is more than the first attempt's 0.2 s: later rounds are given longer.
    replica = await start(0.5, 0.5, 0.5, 0.5)
    await connect(replica.endpoint, timeout_ms=5_000).get(Pod, "a", namespace="default")
    assert len(replica.requests) == 3


async def test_a_write_of_unknown_fate_is_repeated_under_its_own_request_id(start: Start, connect: Connect) -> None:
    first, second = await start(unavailable(unknown=True)), await start()
    client = connect(first.endpoint, second.endpoint)
    await client.create(pod("a", 0))
    await client.create(pod("b", 0))
    ids = [request.options.request_id for request in (*first.requests, *second.requests)]
    assert ids[0] == ids[1]
    assert ids[2] != ids[1]
    assert [len(i) for i in ids] == [16, 16, 16]


async def test_a_retry_elsewhere_says_how_old_the_write_is(start: Start, connect: Connect) -> None:
    first, second = await start(0.0, 5.0), await start()
    first.log_index, second.log_index = 100, 900
    client = connect(first.endpoint, second.endpoint)
    await client.create(pod("a", 0))
    first.log_index = 500
    await client.create(pod("b", 0))
    assert [r.options.born_index for r in (*first.requests, *second.requests)] == [0, 0, 500]


async def test_a_retry_whose_first_replica_said_nothing_names_what_was_heard_before(
    start: Start, connect: Connect
) -> None:
    first, second = await start(0.0, 5.0), await start()
    first.log_index = 100
    client = connect(first.endpoint, second.endpoint)
    await client.create(pod("a", 0))
    first.log_index = 0
    await client.create(pod("b", 0))
    assert [r.options.born_index for r in (*first.requests, *second.requests)] == [0, 0, 100]


async def test_when_the_time_is_up_the_error_says_whether_the_write_may_have_happened(
    start: Start, connect: Connect
) -> None:
    for unknown in (False, True):
        replica = await start(*[unavailable(unknown=unknown)] * 1_000)
        with pytest.raises(UnavailableError, match=r"Create: no answer within 0\.3 s") as caught:
            await connect(replica.endpoint, timeout_ms=300).create(pod("a", 0))
        assert caught.value.unknown_outcome is unknown


async def test_a_replica_that_takes_requests_and_answers_none_is_said_to_lack_a_quorum_perhaps(
    start: Start, connect: Connect
) -> None:
    stuck = await start(*[30.0] * 20)
    with pytest.raises(UnavailableError, match=r"not answered in time.*quorum"):
        await connect(stuck.endpoint, timeout_ms=600).get(Pod, "a", namespace="default")


async def test_a_write_that_found_no_replica_did_not_happen(start: Start, connect: Connect) -> None:
    replica = await start()
    await replica.stop()
    with pytest.raises(UnavailableError) as caught:
        await connect(replica.endpoint, timeout_ms=200).create(pod("a", 0))
    assert not caught.value.unknown_outcome


async def test_a_write_whose_connection_broke_may_have_happened(start: Start, connect: Connect) -> None:
    replica = await start(30.0)
    with pytest.raises(UnavailableError) as caught:
        await connect(replica.endpoint, timeout_ms=150).create(pod("a", 0))
    assert caught.value.unknown_outcome


async def test_a_refusal_after_an_attempt_of_unknown_fate_says_so(start: Start, connect: Connect) -> None:
    replica = await start(unavailable(unknown=True), detailed(ConflictError(Code.ABORTED, "changed")))
    with pytest.raises(ConflictError) as caught:
        await connect(replica.endpoint).create(pod("a", 0))
    assert caught.value.unknown_outcome


@pytest.mark.parametrize(
    "sent",
    [
        NotFoundError(Code.NOT_FOUND, 'pods "a" not found', reason="NotFound"),
        ConflictError(Code.ABORTED, "changed", reason="Conflict"),
        FencedError(Code.FAILED_PRECONDITION, "another leads", reason="Fenced"),
        InvalidError(
            Code.INVALID_ARGUMENT, "bad", reason="Invalid", causes=[FieldCause("spec.x", "required", "Required")]
        ),
        ExpiredError(Code.OUT_OF_RANGE, "compacted", reason="Expired"),
        ApiError(Code.PERMISSION_DENIED, "no", reason="Forbidden"),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_an_answer_is_not_repeated_and_keeps_its_type_reason_and_causes(
    start: Start, connect: Connect, sent: ApiError
) -> None:
    replica = await start(detailed(sent))
    with pytest.raises(ApiError) as caught:
        await connect(replica.endpoint).create(pod("a", 0))
    got = caught.value
    assert (type(got), got.code, got.message, got.reason, got.causes, got.unknown_outcome) == (
        type(sent),
        sent.code,
        sent.message,
        sent.reason,
        sent.causes,
        False,
    )
    assert len(replica.requests) == 1


async def test_a_watch_yields_events_and_ends_with_an_error_that_moves_the_client_on(
    start: Start, connect: Connect
) -> None:
    first, second = await start(), await start()
    client = connect(first.endpoint, second.endpoint)
    first.events.put_nowait(
        api_pb2.WatchEvent(type=api_pb2.WatchEvent.ADDED, object=wrap(pod("a", 9)), resource_version="9")
    )
    first.events.put_nowait(api_pb2.WatchEvent(type=api_pb2.WatchEvent.BOOKMARK, resource_version="10"))
    async with client.watch(Pod, namespace="default", resource_version="8") as events:
        got = [await anext(events), await anext(events)]
        await first.stop()
        with pytest.raises(UnavailableError):
            await anext(events)
    assert got == [WatchEvent(WatchType.ADDED, pod("a", 9), "9"), WatchEvent(WatchType.BOOKMARK, None, "10")]
    assert first.requests[0].resource_version == "8"
    assert first.requests[0].bookmarks
    assert client.pool.current == second.endpoint


async def test_an_expired_watch_raises_expired(start: Start, connect: Connect) -> None:
    replica = await start()
    replica.events.put_nowait(ExpiredError(Code.OUT_OF_RANGE, "compacted"))
    async with connect(replica.endpoint).watch(Pod, resource_version="1") as events:
        with pytest.raises(ExpiredError):
            await anext(events)


@pytest.mark.slow
async def test_a_watch_on_a_replica_that_went_deaf_ends_within_three_seconds(start: Start, connect: Connect) -> None:
    proxy = await DeafProxy((await start()).endpoint).start()
    client = connect(proxy.endpoint)
    await client.get(Pod, "a", namespace="default")
    started = time.monotonic()
    async with client.watch(Pod, resource_version="1") as events:
        proxy.go_deaf()
        with pytest.raises(UnavailableError):
            await anext(events)
    assert time.monotonic() - started < 3.0
    await proxy.stop()


@pytest.mark.slow
async def test_an_idle_watch_is_left_alone_by_the_keepalive(start: Start, connect: Connect) -> None:
    """Our pings are frequent: the server must not take them for abuse (it would after three)."""
    replica = await start()
    async with connect(replica.endpoint).watch(Pod, resource_version="1") as events:
        await asyncio.sleep(4.5)  # real pings on a real connection: there is no clock to inject
        replica.events.put_nowait(api_pb2.WatchEvent(type=api_pb2.WatchEvent.BOOKMARK, resource_version="10"))
        assert (await anext(events)).resource_version == "10"


async def test_kinds_and_logs(start: Start, connect: Connect) -> None:
    client = connect((await start()).endpoint)
    assert [kind.kind for kind in await client.kinds()] == ["Pod"]
    assert b"".join([chunk async for chunk in client.logs(api_pb2.LogsRequest(pod="a"))]) == b"one\ntwo\n"


def test_clients_spread_over_the_replicas() -> None:
    firsts = {EndpointPool(["a:1", "b:1", "c:1"], rand=SeededRand(i)).current for i in range(50)}
    assert firsts == {"a:1", "b:1", "c:1"}
