"""What RemoteKV sends again, what it does not, and what it says of a write that nobody answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import grpc
import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.external.members import Failure, connected, member

TIMED_OUT = "etcdserver: request timed out"
ID = b"0123456789abcdef"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


async def test_a_read_goes_on_to_the_next_member(nobody: str) -> None:
    async with (
        member(Failure(text="etcdserver: leader changed")) as first,
        member() as second,
        connected(nobody, first.endpoint, second.endpoint) as kv,
    ):
        answer = await kv.range(e.RangeRequest(key=b"k"))
    assert answer.header.revision == kv.revision == 7
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_a_read_nobody_answers_is_unavailable_and_not_in_doubt(nobody: str) -> None:
    async with connected(nobody, timeout_ms=200) as kv:
        with pytest.raises(StatusError) as failed:
            await kv.range(e.RangeRequest(key=b"k"))
    assert failed.value.code is Code.UNAVAILABLE
    assert not failed.value.unknown_outcome


async def test_a_write_without_an_id_that_may_have_happened_is_not_sent_again() -> None:
    async with member(Failure(text=TIMED_OUT)) as only, connected(only.endpoint) as kv:
        with pytest.raises(StatusError) as failed:
            await kv.put(e.PutRequest(key=b"k"))
    assert failed.value.unknown_outcome
    assert failed.value.message == TIMED_OUT
    assert len(only.requests) == 1


async def test_a_write_that_never_left_is_sent_to_the_next_member(nobody: str) -> None:
    async with member() as second, connected(nobody, second.endpoint) as kv:
        answer = await kv.put(e.PutRequest(key=b"k"))
    assert answer.header.revision == 7
    assert len(second.requests) == 1


async def test_a_write_that_never_left_has_no_unknown_outcome(nobody: str) -> None:
    async with connected(nobody, timeout_ms=200) as kv:
        with pytest.raises(StatusError) as failed:
            await kv.put(e.PutRequest(key=b"k"))
    assert not failed.value.unknown_outcome


async def test_a_member_that_hangs_leaves_a_write_in_doubt() -> None:
    async with member(Failure(hang=True)) as only, connected(only.endpoint, timeout_ms=300) as kv:
        with pytest.raises(StatusError) as failed:
            await kv.txn(e.TxnRequest(success=[e.RequestOp(request_put=e.PutRequest(key=b"k"))]))
    assert failed.value.code is Code.DEADLINE_EXCEEDED
    assert failed.value.unknown_outcome
    assert only.endpoint in failed.value.message


async def test_a_write_with_an_id_is_repeated_as_the_same_transaction() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        await kv.put(e.PutRequest(key=b"warm"), request_id=b"w" * 16)
        only.requests.clear()
        only.answers = [Failure(text=TIMED_OUT), Failure(text="etcdserver: leader changed")]
        answer = await kv.put(e.PutRequest(key=b"k", value=b"v"), request_id=ID)
    assert answer.header.revision == 7
    assert len(only.requests) == 3
    assert only.requests[0] == only.requests[1] == only.requests[2]
    (absent,) = only.requests[0].compare
    assert absent.key.endswith(ID.hex().encode())


async def test_a_repeated_write_that_stays_unanswered_is_in_doubt_though_the_last_try_never_left() -> None:
    async with member() as only, connected(only.endpoint, timeout_ms=600) as kv:
        await kv.put(e.PutRequest(key=b"warm"), request_id=b"w" * 16)
        refused = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
        only.answers = [Failure(text=TIMED_OUT), refused]
        with pytest.raises(StatusError) as failed:
            await kv.put(e.PutRequest(key=b"k"), request_id=ID)
    assert failed.value.code is Code.RESOURCE_EXHAUSTED
    assert failed.value.unknown_outcome


async def test_a_refusal_keeps_etcds_code_and_words_and_is_certain() -> None:
    full = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    async with member(full) as only, connected(only.endpoint) as kv:
        with pytest.raises(StatusError) as failed:
            await kv.put(e.PutRequest(key=b"k"))
    assert (failed.value.code, failed.value.message) == (Code.RESOURCE_EXHAUSTED, full.text)
    assert not failed.value.unknown_outcome
    assert len(only.requests) == 1


async def test_markers_share_a_lease_and_a_lost_one_is_replaced() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        await kv.put(e.PutRequest(key=b"a"), request_id=b"a" * 16)
        await kv.put(e.PutRequest(key=b"b"), request_id=b"b" * 16)
        grants = [r for r in only.requests if isinstance(r, e.LeaseGrantRequest)]
        assert len(grants) == 1
        only.answers = [Failure(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")]
        await kv.put(e.PutRequest(key=b"c"), request_id=b"c" * 16)
        grants = [r for r in only.requests if isinstance(r, e.LeaseGrantRequest)]
    assert len(grants) == 2
    assert grants[0].ID != grants[1].ID


async def test_a_grant_that_turns_out_to_have_happened_is_answered() -> None:
    exists = Failure(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
    async with member(Failure(text=TIMED_OUT), exists) as only, connected(only.endpoint) as kv:
        granted = await kv.lease_grant(e.LeaseGrantRequest(TTL=5))
    assert granted.TTL == 5
    assert granted.ID == only.requests[0].ID == only.requests[1].ID


# -- authentication ------------------------------------------------------------------------------------------------


async def test_calls_carry_a_token_and_a_stale_one_is_renewed() -> None:
    stale = Failure(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")
    async with member(e.PutResponse(), stale) as only:
        only.password = "secret"
        async with connected(only.endpoint, user="root", password="secret") as kv:
            await kv.put(e.PutRequest(key=b"k"))
            await kv.put(e.PutRequest(key=b"k"))
    assert [m.get("token") for m in only.metadata] == ["token-1", "token-1", "token-2"]


async def test_however_many_calls_want_a_token_one_is_asked_for() -> None:
    """A password costs etcd a good part of a second: a herd of requests would keep it from answering any."""
    async with member() as only:
        only.password = "secret"
        only.passwords_checked = asyncio.Event()
        async with connected(only.endpoint, user="root", password="secret") as kv:
            calls = [asyncio.ensure_future(kv.put(e.PutRequest(key=b"k"))) for _ in range(20)]
            await only.asked_for_token.wait()
            only.passwords_checked.set()
            await asyncio.gather(*calls)
    assert only.asked_for_tokens == 1
    assert {m.get("token") for m in only.metadata} == {"token-1"}


async def test_a_slow_check_of_the_password_outlives_the_call_that_began_it() -> None:
    async with member() as only:
        only.password = "secret"
        only.passwords_checked = asyncio.Event()
        async with connected(only.endpoint, user="root", password="secret") as kv:
            with pytest.raises(StatusError) as failed:
                await kv.put(e.PutRequest(key=b"k"), timeout_ms=100)
            assert failed.value.code is Code.DEADLINE_EXCEEDED
            assert not failed.value.unknown_outcome
            only.passwords_checked.set()
            await kv.put(e.PutRequest(key=b"k"))
    assert only.asked_for_tokens == 1


async def test_a_late_failure_of_an_old_token_does_not_cost_the_new_one() -> None:
    async with member() as only:
        only.password = "secret"
        async with connected(only.endpoint, user="root", password="secret") as kv:
            connection = kv._connection
            await kv.put(e.PutRequest(key=b"k"))
            assert connection.forget_stale("etcdserver: invalid auth token", "token-1")
            await kv.put(e.PutRequest(key=b"k"))
            assert connection.forget_stale("etcdserver: invalid auth token", "token-1"), "that one is stale"
            await kv.put(e.PutRequest(key=b"k"))
    assert [m.get("token") for m in only.metadata] == ["token-1", "token-2", "token-2"]


async def test_a_wrong_password_is_said_without_repeating_it() -> None:
    async with member() as only:
        only.password = "right"
        async with connected(only.endpoint, user="root", password="wrong-one") as kv:
            with pytest.raises(StatusError) as failed:
                await kv.put(e.PutRequest(key=b"k"))
    assert failed.value.code is Code.INVALID_ARGUMENT
    assert not failed.value.unknown_outcome
    assert "wrong-one" not in failed.value.message
