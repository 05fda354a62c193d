"""EtcdClient: which of the three outcomes a write has, and under which request id it is repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.client.etcd_client import Acknowledged, EtcdClient, Failed, Unknown, prefix_end
from controlplane.client.interface import ApiError, UnavailableError
from controlplane.pb.etcd import rpc_pb2
from tests.unit.client.replicas import Replica, unavailable
from tests.unit.client.test_grpc_client import FirstRand

Start = Callable[..., Awaitable[Replica]]


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


def connect(*replicas: Replica, timeout_ms: int = 2_000, retry_writes: bool = True) -> EtcdClient:
    endpoints = [replica.endpoint for replica in replicas]
    return EtcdClient(
        endpoints, timeout_ms=timeout_ms, attempt_timeout_ms=200, retry_writes=retry_writes, rand=FirstRand(1)
    )


async def test_an_acknowledged_write_has_its_revision_and_who_said_so(start: Start) -> None:
    replica = await start()
    async with connect(replica) as client:
        outcome = await client.put(b"k", b"v")
    assert isinstance(outcome, Acknowledged)
    assert (outcome.revision, outcome.endpoint) == (12, replica.endpoint)


async def test_a_refused_write_failed_and_is_not_repeated(start: Start) -> None:
    replica = await start(StatusError(Code.INVALID_ARGUMENT, "etcdserver: key is not provided"))
    async with connect(replica) as client:
        outcome = await client.put(b"", b"v")
    assert outcome == Failed(Code.INVALID_ARGUMENT, "etcdserver: key is not provided", replica.endpoint)
    assert len(replica.requests) == 1


async def test_a_write_of_unknown_fate_is_repeated_elsewhere_under_the_same_id(start: Start) -> None:
    first, second = await start(unavailable(unknown=True)), await start()
    async with connect(first, second) as client:
        assert isinstance(await client.put(b"k", b"v"), Acknowledged)
        assert isinstance(await client.put(b"k", b"v"), Acknowledged)
    ids = [m["qd-request-id"] for m in (*first.metadata, *second.metadata)]
    assert ids[0] == ids[1] != ids[2]
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)


async def test_a_retry_elsewhere_says_how_old_the_write_is(start: Start) -> None:
    first, second = await start(0.0, 5.0), await start(unavailable(unknown=True))
    first.log_index, second.log_index = 100, 900
    async with connect(first, second) as client:
        await client.put(b"k", b"v")
        first.log_index = 500
        await client.put(b"k", b"v")
    assert [m.get("qd-log-index") for m in first.metadata] == [None, None, "500"]
    assert [m.get("qd-log-index") for m in second.metadata] == ["500"]


async def test_a_retry_whose_first_replica_said_nothing_names_what_was_heard_before(start: Start) -> None:
    first, second = await start(0.0, 5.0), await start()
    first.log_index = 100
    async with connect(first, second) as client:
        await client.put(b"k", b"v")
        first.log_index = 0
        await client.put(b"k", b"v")
    assert [m.get("qd-log-index") for m in second.metadata] == ["100"]


async def test_without_retries_an_unknown_fate_is_the_outcome(start: Start) -> None:
    first, second = await start(unavailable(unknown=True)), await start()
    async with connect(first, second, retry_writes=False) as client:
        outcome = await client.put(b"k", b"v")
    assert isinstance(outcome, Unknown)
    assert second.requests == []


async def test_without_retries_a_write_that_surely_did_not_happen_is_still_tried_elsewhere(start: Start) -> None:
    first, second = await start(unavailable(unknown=False)), await start()
    async with connect(first, second, retry_writes=False) as client:
        assert isinstance(await client.put(b"k", b"v"), Acknowledged)


@pytest.mark.parametrize("unknown", [False, True])
async def test_when_the_time_is_up_the_outcome_is_as_sure_as_the_attempts_were(start: Start, unknown: bool) -> None:
    replica = await start(
        *[unavailable(unknown=False)] * 3, unavailable(unknown=unknown), *[unavailable(unknown=False)] * 999
    )
    async with connect(replica, timeout_ms=400) as client:
        outcome = await client.put(b"k", b"v")
    assert isinstance(outcome, Unknown if unknown else Failed)


async def test_a_refusal_after_an_unknown_fate_does_not_make_it_known(start: Start) -> None:
    replica = await start(
        unavailable(unknown=True), StatusError(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
    )
    async with connect(replica) as client:
        outcome = await client.put(b"k", b"v")
    assert isinstance(outcome, Unknown)


async def test_reads_go_on_to_the_next_replica(start: Start) -> None:
    first, second = await start(unavailable(unknown=False)), await start()
    async with connect(first, second) as client:
        assert await client.get(b"k") is None
        assert (await client.get_prefix(b"a")).header.revision == 12
    assert second.requests[1] == rpc_pb2.RangeRequest(key=b"a", range_end=b"b")


async def test_a_failed_read_raises(start: Start) -> None:
    replica = await start(StatusError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"))
    async with connect(replica) as client:
        with pytest.raises(ApiError, match="compacted"):
            await client.get(b"k")


async def test_status_of_a_replica_that_is_gone_raises_at_once(start: Start) -> None:
    replica = await start()
    await replica.stop()
    async with connect(replica) as client:
        with pytest.raises(UnavailableError):
            await client.status(replica.endpoint)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"ab", b"ac"), (b"\xff", b"\0"), (b"", b"\0")]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


async def test_a_grant_of_unknown_fate_is_repeated_under_the_same_lease_and_id(start: Start) -> None:
    first, second = await start(unavailable(unknown=True)), await start()
    async with connect(first, second) as client:
        outcome = await client.lease_grant(77, 5)
    assert isinstance(outcome, Acknowledged)
    assert (outcome.response.ID, outcome.response.TTL) == (77, 5)
    assert [request.ID for request in (*first.requests, *second.requests)] == [77, 77]
    assert first.metadata[0]["qd-request-id"] == second.metadata[0]["qd-request-id"]


async def test_a_lease_is_renewed_once_and_a_failure_leaves_it_open_whether_it_was(start: Start) -> None:
    replica = await start(0.0, unavailable(unknown=True))
    async with connect(replica) as client:
        assert (await client.lease_keep_alive(77)).TTL == 9
        with pytest.raises(UnavailableError) as raised:
            await client.lease_keep_alive(77)
    assert raised.value.unknown_outcome
    assert len(replica.requests) == 2


async def test_progress_is_asked_for_on_the_stream_of_the_watch_and_refused_when_that_is_over(start: Start) -> None:
    replica = await start()
    async with connect(replica) as client, client.watch(b"k", prev_kv=True) as stream:
        responses = aiter(stream)
        assert (await anext(responses)).created
        with pytest.raises(UnavailableError):
            await anext(responses)
        with pytest.raises(UnavailableError):
            await stream.request_progress()
    assert replica.requests[0].create_request.prev_kv
