"""Watches of users: what they may be created on, and that they end when it may no longer be read."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.pb.etcd import auth_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import AuthEnable, Command
from tests.unit.etcd.fakes import Replica, put, settle
from tests.unit.etcd.test_watch_service import Client

DENIED_TEXT = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
EMPTY_TEXT = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"


@pytest.fixture
def replica() -> Replica:
    return Replica()


async def apply(replica: Replica, **operation: Any) -> None:
    """A change of the auth store, from the log."""
    await replica.raft.propose(Command(**operation).SerializeToString(), request_id=b"", timeout_ms=1_000)


async def enable_auth(replica: Replica) -> str:
    """root, and alice who may read and write a/; alice's token."""
    await apply(replica, auth_role_add=e.AuthRoleAddRequest(name="r"))
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=b"a/", range_end=b"a0")
    await apply(replica, auth_role_grant_permission=e.AuthRoleGrantPermissionRequest(name="r", perm=permission))
    for name, role in (("root", "root"), ("alice", "r")):
        await apply(replica, auth_user_add=e.AuthUserAddRequest(name=name, hashedPassword="hash"))
        await apply(replica, auth_user_grant_role=e.AuthUserGrantRoleRequest(user=name, role=role))
    await apply(replica, auth_enable=AuthEnable(token_key=b"key"))
    alice = replica.store.auth.user("alice")
    assert alice is not None
    return replica.tokens.issue(alice)


@pytest.mark.parametrize(
    ("key", "range_end", "reason"),
    [
        (b"a/1", b"", ""),
        (b"a/", b"a0", ""),
        (b"b", b"", DENIED_TEXT),
        (b"a/", b"b", DENIED_TEXT),
        (b"a/", b"\0", DENIED_TEXT),  # to the last key there is
        (b"", b"\0", DENIED_TEXT),
    ],
)
async def test_a_watch_needs_leave_to_read_all_of_its_range(
    replica: Replica, key: bytes, range_end: bytes, reason: str
) -> None:
    client = Client(replica, {"token": await enable_auth(replica)})
    client.create(key=key, range_end=range_end)
    created = await client.next()
    assert (created.created, created.canceled, created.cancel_reason) == (True, bool(reason), reason)
    assert created.watch_id == (-1 if reason else 0)
    await client.end()


async def test_a_watch_of_nobody_is_refused_and_the_stream_goes_on(replica: Replica) -> None:
    await enable_auth(replica)
    client = Client(replica)
    for _ in range(2):
        client.create(key=b"a/1")
        assert (await client.next()).cancel_reason == EMPTY_TEXT
    await client.end()


async def test_a_revoked_permission_cuts_the_watch_and_nothing_after_it_is_sent(replica: Replica) -> None:
    client = Client(replica, {"token": await enable_auth(replica)})
    client.create(key=b"a/", range_end=b"a0")
    client.create(key=b"a/1")
    assert (await client.next()).created
    assert (await client.next()).created
    await put(replica.kv, b"a/1", b"before")
    for _ in range(2):
        assert (await client.next()).events[0].kv.value == b"before"
    await apply(replica, auth_role_add=e.AuthRoleAddRequest(name="of no concern"))
    await put(replica.kv, b"a/1", b"still")
    for _ in range(2):
        assert (await client.next()).events[0].kv.value == b"still"
    await apply(replica, auth_user_revoke_role=e.AuthUserRevokeRoleRequest(name="alice", role="r"))
    await put(replica.kv, b"a/1", b"secret")
    cut = [await client.next() for _ in range(2)]
    assert {(it.watch_id, it.canceled, it.cancel_reason) for it in cut} == {
        (0, True, DENIED_TEXT),
        (1, True, DENIED_TEXT),
    }
    await put(replica.kv, b"a/1", b"secret")
    await settle()
    assert client.context.written.empty()
    assert len(replica.store.watches) == 0
    await client.end()


async def test_an_idle_watch_is_cut_without_waiting_for_an_event(replica: Replica) -> None:
    client = Client(replica, {"token": await enable_auth(replica)})
    client.create(key=b"a/1")
    assert (await client.next()).created
    await apply(replica, auth_user_delete=e.AuthUserDeleteRequest(name="alice"))
    assert (await client.next()).cancel_reason == DENIED_TEXT
    await client.end()


async def test_a_watch_of_nobody_is_cut_when_authentication_is_enabled(replica: Replica) -> None:
    client = Client(replica)
    client.create(key=b"a/1")
    assert (await client.next()).created
    await enable_auth(replica)
    assert (await client.next()).cancel_reason == EMPTY_TEXT
    await client.end()


async def test_a_stream_that_ended_listens_no_more(replica: Replica) -> None:
    client = Client(replica)
    client.create(key=b"a/1")
    assert (await client.next()).created
    await client.end()
    assert not replica.store.auth._listeners
