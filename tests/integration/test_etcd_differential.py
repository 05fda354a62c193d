"""The same calls to the real etcd and to ours: every answer must be the same, errors and watch events included.

What may differ is cleared: ids of cluster and members and the Raft term in headers, and the lease ids servers pick.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import rpc_pb2_grpc
from controlplane.transport.channel import new_channel
from tests.integration.etcd_rig import ours, real_etcd

pytestmark = [pytest.mark.needs("etcd", "etcd-server"), pytest.mark.slow]

KEYS = [b"a", b"ab", b"b", b"ba", b"c", b"\xff\xff"]
ENDS = [b"", b"", b"\x00", b"b", b"c", b"a"]
#: etcd's check for puts inside a deleted range overlooks ranges "to the end"; ours does not. So none in transactions.
TXN_DELETE_ENDS = [b"", b"", b"\xff\xff\xff"]


class Client:
    """Calls by name; an answer or an error becomes text that can be compared."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stubs = {
            "KV": rpc_pb2_grpc.KVStub(channel),
            "Lease": rpc_pb2_grpc.LeaseStub(channel),
            "Watch": rpc_pb2_grpc.WatchStub(channel),
        }

    def method(self, name: str) -> Any:
        service, method = name.split(".")
        return getattr(self._stubs[service], method)

    async def call(self, name: str, request: Any) -> str:
        try:
            response = await self.method(name)(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return f"{comparable(response)}"


def comparable(message: Any) -> Any:
    """The message without what may differ between two clusters."""
    for field, value in message.ListFields():
        if field.name == "header":
            value.cluster_id = value.member_id = value.raft_term = 0
        elif field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                comparable(item)
    return message


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    """(the real etcd, ours), both empty."""
    async with (
        real_etcd(tmp_path / "etcd") as theirs,
        ours() as mine,
        new_channel(theirs) as their_channel,
        new_channel(mine.endpoint) as our_channel,
    ):
        yield Client(their_channel), Client(our_channel)


async def same(pair: tuple[Client, Client], name: str, request: Any) -> str:
    """Call both; the answer they agree on."""
    theirs, mine = [await client.call(name, request) for client in pair]
    assert mine == theirs, f"{name} {request}"
    return theirs


def any_range(rng: random.Random, revision: int) -> e.RangeRequest:
    return e.RangeRequest(
        key=rng.choice([*KEYS, b"\x00", b""]) if rng.random() < 0.5 else rng.choice(KEYS),
        range_end=rng.choice(ENDS),
        limit=rng.choice([0, 0, 1, 2]),
        revision=rng.choice([0, 0, 0, max(0, revision - rng.randrange(6)), revision + 2]),
        sort_order=rng.choice([0, 1, 2]),  # type: ignore[arg-type]
        sort_target=rng.randrange(5),  # type: ignore[arg-type]
        serializable=rng.random() < 0.3,
        keys_only=rng.random() < 0.2,
        count_only=rng.random() < 0.2,
        min_mod_revision=rng.choice([0, 0, 0, revision - 3 if revision > 3 else 0]),
        max_mod_revision=rng.choice([0, 0, 0, revision]),
        min_create_revision=rng.choice([0, 0, 0, 3]),
        max_create_revision=rng.choice([0, 0, 0, revision]),
    )


def any_put(rng: random.Random) -> e.PutRequest:
    """At most one thing is wrong with it: which of two errors is reported first is nobody's contract."""
    ignore_value, ignore_lease = rng.random() < 0.1, rng.random() < 0.1
    return e.PutRequest(
        key=rng.choice(KEYS) if rng.random() < 0.97 else b"",
        value=b"" if ignore_value and rng.random() < 0.7 else b"v%d" % rng.randrange(5),
        lease=rng.choice([0, 0, 0, 7, 8, 99]) if not ignore_value else 0,
        prev_kv=rng.random() < 0.5,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def any_delete(rng: random.Random, ends: Sequence[bytes] = tuple(ENDS)) -> e.DeleteRangeRequest:
    key = rng.choice(KEYS)
    return e.DeleteRangeRequest(key=key, range_end=rng.choice(ends), prev_kv=rng.random() < 0.5)


def any_compare(rng: random.Random, revision: int) -> e.Compare:
    compare = e.Compare(
        result=rng.randrange(4),  # type: ignore[arg-type]
        key=rng.choice(KEYS),
        range_end=rng.choice([b"", b"", b"c", b"\x00"]),
    )
    match rng.randrange(5):
        case 0:
            compare.target, compare.version = e.Compare.VERSION, rng.randrange(4)
        case 1:
            compare.target, compare.create_revision = e.Compare.CREATE, rng.choice([0, revision])
        case 2:
            compare.target, compare.mod_revision = e.Compare.MOD, rng.choice([0, revision])
        case 3:
            compare.target, compare.value = e.Compare.VALUE, b"v%d" % rng.randrange(5)
        case 4:
            compare.target, compare.lease = e.Compare.LEASE, rng.choice([0, 7])
    return compare


def any_txn(rng: random.Random, revision: int) -> e.TxnRequest:
    puts_may_fail = rng.random() < 0.5  # else reads may

    def op(depth: int) -> e.RequestOp:
        match rng.randrange(4 if depth < 2 else 3):
            case 0:
                read = any_range(rng, revision)
                if puts_may_fail:
                    read.revision = 0
                return e.RequestOp(request_range=read)
            case 1:
                if puts_may_fail:
                    return e.RequestOp(request_put=any_put(rng))
                value = b"v%d" % rng.randrange(5)
                return e.RequestOp(request_put=e.PutRequest(key=rng.choice(KEYS), value=value, prev_kv=True))
            case 2:
                return e.RequestOp(request_delete_range=any_delete(rng, TXN_DELETE_ENDS))
            case _:
                return e.RequestOp(request_txn=txn(depth + 1))

    def txn(depth: int) -> e.TxnRequest:
        return e.TxnRequest(
            compare=[any_compare(rng, revision) for _ in range(rng.randrange(3))],
            success=[op(depth) for _ in range(rng.randrange(3))],
            failure=[op(depth) for _ in range(rng.randrange(3))],
        )

    return txn(0)


def any_call(rng: random.Random, revision: int) -> tuple[str, Any]:
    kind = rng.randrange(100)
    if kind < 35:
        return "KV.Put", any_put(rng)
    if kind < 60:
        return "KV.Range", any_range(rng, revision)
    if kind < 70:
        return "KV.DeleteRange", any_delete(rng)
    if kind < 90:
        return "KV.Txn", any_txn(rng, revision)
    if kind < 93:
        return "KV.Compact", e.CompactionRequest(revision=max(1, revision - rng.randrange(8) + 1), physical=True)
    if kind < 96:
        return "Lease.LeaseGrant", e.LeaseGrantRequest(ID=rng.choice([7, 8]), TTL=rng.choice([1000, 9_000_000_001]))
    if kind < 98:
        return "Lease.LeaseRevoke", e.LeaseRevokeRequest(ID=rng.choice([7, 8, 99]))
    return "Lease.LeaseTimeToLive", e.LeaseTimeToLiveRequest(ID=99, keys=True)


@pytest.mark.parametrize("seed", range(4))
async def test_random_calls_are_answered_alike(pair: tuple[Client, Client], seed: int) -> None:
    rng = random.Random(seed)
    revision = 1
    for _ in range(400):
        name, request = any_call(rng, revision)
        answer = await same(pair, name, request)
        if "revision:" in answer:
            revision = max(revision, int(answer.split("revision: ")[1].split()[0]))
    await same(pair, "KV.Range", e.RangeRequest(key=b"\x00", range_end=b"\x00"))


async def test_errors_are_worded_alike(pair: tuple[Client, Client]) -> None:
    put = e.RequestOp(request_put=e.PutRequest(key=b"k"))
    big = b"x" * (1536 * 1024 + 1)
    for name, request in (
        ("KV.Range", e.RangeRequest()),
        ("KV.Range", e.RangeRequest(key=b"k", revision=99)),
        ("KV.Put", e.PutRequest()),
        ("KV.Put", e.PutRequest(key=b"k", value=big)),
        ("KV.Put", e.PutRequest(key=b"k", lease=5)),
        ("KV.Put", e.PutRequest(key=b"k", ignore_value=True)),
        ("KV.Put", e.PutRequest(key=b"k", ignore_value=True, value=b"v")),
        ("KV.Put", e.PutRequest(key=b"k", ignore_lease=True, lease=1)),
        ("KV.DeleteRange", e.DeleteRangeRequest()),
        ("KV.Txn", e.TxnRequest(success=[put, put])),
        ("KV.Txn", e.TxnRequest(success=[put] * 129)),
        ("KV.Txn", e.TxnRequest(success=[put] * 128)),
        ("KV.Txn", e.TxnRequest(compare=[e.Compare()])),
        ("KV.Compact", e.CompactionRequest(revision=99)),
        ("KV.Compact", e.CompactionRequest(revision=1)),
        ("KV.Compact", e.CompactionRequest(revision=1)),
        ("KV.Compact", e.CompactionRequest(revision=0)),
        ("Lease.LeaseGrant", e.LeaseGrantRequest(ID=1, TTL=9_000_000_001)),
        ("Lease.LeaseGrant", e.LeaseGrantRequest(ID=1, TTL=1)),
        ("Lease.LeaseGrant", e.LeaseGrantRequest(ID=1, TTL=5)),
        ("Lease.LeaseRevoke", e.LeaseRevokeRequest(ID=2)),
        ("Lease.LeaseTimeToLive", e.LeaseTimeToLiveRequest(ID=2)),
    ):
        await same(pair, name, request)


async def watch_script(client: Client, steps: list[Any]) -> list[str]:
    """Play requests and calls; a number says how many responses to read before going on."""
    call = client.method("Watch.Watch")(timeout=20)
    seen: list[str] = []
    for step in steps:
        if isinstance(step, int):
            seen += [str(comparable(await call.read())) for _ in range(step)]
        elif isinstance(step, e.WatchRequest):
            await call.write(step)
        else:
            await client.call(*step)
    call.cancel()
    return seen


def create(**fields: Any) -> e.WatchRequest:
    return e.WatchRequest(create_request=e.WatchCreateRequest(**fields))


def put(key: bytes, value: bytes) -> tuple[str, e.PutRequest]:
    return "KV.Put", e.PutRequest(key=key, value=value)


WATCH_SCRIPTS: dict[str, list[Any]] = {
    "live": [create(key=b"a"), 1, put(b"a", b"1"), 1, put(b"z", b"0"), put(b"a", b"2"), 1],
    "history": [put(b"a", b"1"), put(b"a", b"2"), create(key=b"a", start_revision=2), 2],
    "prefix_prev_kv": [
        put(b"p1", b"1"),
        create(key=b"p", range_end=b"q", prev_kv=True),
        1,
        put(b"p1", b"2"),
        1,
        put(b"p2", b"1"),
        1,
        ("KV.DeleteRange", e.DeleteRangeRequest(key=b"p", range_end=b"q")),
        1,
    ],
    "filters": [
        create(key=b"a", filters=[e.WatchCreateRequest.NOPUT]),
        1,
        put(b"a", b"1"),
        ("KV.DeleteRange", e.DeleteRangeRequest(key=b"a")),
        1,
    ],
    "cancel": [
        create(key=b"a"),
        1,
        e.WatchRequest(cancel_request=e.WatchCancelRequest(watch_id=9)),
        e.WatchRequest(cancel_request=e.WatchCancelRequest(watch_id=0)),
        1,
    ],
    "own_ids": [create(key=b"a", watch_id=5), 1, create(key=b"b"), 1, put(b"a", b"1"), 1, put(b"b", b"1"), 1],
    "compacted": [
        put(b"a", b"1"),
        put(b"a", b"2"),
        put(b"a", b"3"),
        ("KV.Compact", e.CompactionRequest(revision=3, physical=True)),
        create(key=b"a", start_revision=2),
        2,
    ],
    "empty_key_watches_from_the_start": [create(range_end=b"\x00"), 1, put(b"a", b"1"), 1],
    "future": [create(key=b"a", start_revision=4), 1, put(b"a", b"1"), put(b"a", b"2"), put(b"a", b"3"), 1],
    "one_txn_is_one_response": [
        create(key=b"a", range_end=b"z"),
        1,
        (
            "KV.Txn",
            e.TxnRequest(
                success=[
                    e.RequestOp(request_put=e.PutRequest(key=b"b", value=b"1")),
                    e.RequestOp(request_put=e.PutRequest(key=b"a", value=b"1")),
                ]
            ),
        ),
        1,
    ],
}


@pytest.mark.parametrize("name", WATCH_SCRIPTS)
async def test_watches_deliver_alike(pair: tuple[Client, Client], name: str) -> None:
    theirs, mine = [await watch_script(client, WATCH_SCRIPTS[name]) for client in pair]
    assert mine == theirs
