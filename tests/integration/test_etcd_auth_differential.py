"""The same auth calls to the real etcd and to ours, in random order by random users: every answer must be the same.

Not compared, because etcd 3.4 is not what later ones are: permissions on an empty interval (it takes them), two
permissions that begin at one key (it may store one twice), tokens while authentication is disabled (it refuses void
ones even then), and compaction, leases and their lists without a user (it
asks for none).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.pb.etcd import auth_pb2, rpc_pb2_grpc
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.transport.channel import new_channel
from tests.integration.etcd_rig import ours, real_etcd
from tests.integration.test_etcd_differential import comparable

pytestmark = [pytest.mark.needs("etcd", "etcd-server"), pytest.mark.slow]

USERS = ["root", "root", "u1", "u2", "u3"]
ROLES = ["root", "r1", "r2", "r3"]
PASSWORDS = ["p", "p", "p", "q"]
KEYS = [b"a", b"ab", b"b", b"ba", b"c", b"d"]
#: A permission of each beginning: a key, a prefix, an interval, and everything from a key on.
INTERVALS = [(b"a", b""), (b"ab", b"ac"), (b"b", b"bb"), (b"bb", b"d"), (b"c", b"\0")]
FAILED = "INVALID_ARGUMENT: etcdserver: authentication failed, invalid user ID or password"
ENDS = [b"", b"", b"", b"b", b"c", b"d", b"\0"]


class Client:
    """Calls of many users: each who logged in keeps the token, also when it is void by now."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stubs = {
            "KV": rpc_pb2_grpc.KVStub(channel),
            "Lease": rpc_pb2_grpc.LeaseStub(channel),
            "Auth": rpc_pb2_grpc.AuthStub(channel),
        }
        self.tokens: dict[str, str] = {}
        self._enabled = False

    async def call(self, name: str, request: Any, by: str) -> str:
        """The answer, or the error, as text that can be compared. ``by`` nobody shows nothing."""
        service, method = name.split(".")
        metadata = (("token", self.tokens[by]),) if self._enabled and by in self.tokens else None
        try:
            response = await getattr(self._stubs[service], method)(request, timeout=10, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if "password was given for no password user" in (error.details() or ""):
                return FAILED  # etcd tells who tries that there is such a user
            return f"{error.code().name}: {error.details()}"
        if name in ("Auth.AuthEnable", "Auth.AuthDisable"):
            self._enabled = name == "Auth.AuthEnable"
        if name == "Auth.Authenticate":
            self.tokens[request.name] = response.token
            response.token = "token"
        return f"{comparable(response)}"


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


async def same(pair: tuple[Client, Client], name: str, request: Any, by: str = "") -> str:
    """Call both; the answer they agree on."""
    theirs, mine = [await client.call(name, request, by) for client in pair]
    assert mine == theirs, f"{name} by {by!r}: {request}"
    return theirs


def any_change(rng: random.Random) -> tuple[str, Any]:
    """A call that only root may make once authentication is enabled."""
    user, role = rng.choice(USERS), rng.choice(ROLES)
    other = rng.choice(["u1", "u2", "u3"])  # root keeps its password, or the rest of the run would be refusals
    key, range_end = rng.choice(INTERVALS)
    permission = auth_pb2.Permission(
        permType=rng.randrange(3),  # type: ignore[arg-type]
        key=key,
        range_end=range_end,
    )
    return rng.choice(
        [
            ("Auth.UserAdd", e.AuthUserAddRequest(name=user, password="p")),
            ("Auth.UserAdd", e.AuthUserAddRequest(name=other, options=auth_pb2.UserAddOptions(no_password=True))),
            ("Auth.UserDelete", e.AuthUserDeleteRequest(name=user)),
            ("Auth.UserChangePassword", e.AuthUserChangePasswordRequest(name=other, password=rng.choice(PASSWORDS))),
            ("Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user=user, role=role)),
            ("Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user=user, role=role)),
            ("Auth.UserRevokeRole", e.AuthUserRevokeRoleRequest(name=user, role=role)),
            ("Auth.UserList", e.AuthUserListRequest()),
            ("Auth.RoleAdd", e.AuthRoleAddRequest(name=role if rng.random() < 0.95 else "")),
            ("Auth.RoleAdd", e.AuthRoleAddRequest(name=role)),
            ("Auth.RoleDelete", e.AuthRoleDeleteRequest(role=role)),
            ("Auth.RoleList", e.AuthRoleListRequest()),
            ("Auth.RoleGrantPermission", e.AuthRoleGrantPermissionRequest(name=role, perm=permission)),
            ("Auth.RoleGrantPermission", e.AuthRoleGrantPermissionRequest(name=role, perm=permission)),
            (
                "Auth.RoleRevokePermission",
                e.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=range_end),
            ),
            ("Auth.AuthEnable", e.AuthEnableRequest()),
            ("Auth.AuthEnable", e.AuthEnableRequest()),
            ("Auth.AuthDisable", e.AuthDisableRequest()),
        ]
    )


def any_op(rng: random.Random) -> e.RequestOp:
    key, range_end = rng.choice(KEYS), rng.choice(ENDS)
    prev_kv = rng.random() < 0.3
    match rng.randrange(3):
        case 0:
            return e.RequestOp(request_put=e.PutRequest(key=key, value=b"v", prev_kv=prev_kv))
        case 1:
            return e.RequestOp(request_delete_range=e.DeleteRangeRequest(key=key, prev_kv=prev_kv))
    return e.RequestOp(request_range=e.RangeRequest(key=key, range_end=range_end))


def any_use(rng: random.Random) -> tuple[str, Any]:
    """A call that needs a permission."""
    key, range_end = rng.choice(KEYS), rng.choice(ENDS)
    if range_end and range_end != b"\0" and range_end <= key:
        range_end = b""
    prev_kv = rng.random() < 0.3
    txn = e.TxnRequest(
        compare=[e.Compare(key=rng.choice(KEYS), target=e.Compare.VERSION)] if rng.random() < 0.5 else [],
        success=[any_op(rng)],
        failure=[any_op(rng)] if rng.random() < 0.5 else [],
    )
    return rng.choice(
        [
            ("KV.Put", e.PutRequest(key=key, value=b"v", prev_kv=prev_kv, lease=rng.choice([0, 0, 7]))),
            ("KV.Range", e.RangeRequest(key=key, range_end=range_end, serializable=rng.random() < 0.3)),
            ("KV.DeleteRange", e.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)),
            ("KV.Txn", txn),
            ("Lease.LeaseRevoke", e.LeaseRevokeRequest(ID=7)),
            ("Auth.UserGet", e.AuthUserGetRequest(name=rng.choice(USERS))),
            ("Auth.RoleGet", e.AuthRoleGetRequest(role=rng.choice(ROLES))),
        ]
    )


async def login(rng: random.Random, pair: tuple[Client, Client]) -> None:
    user = rng.choice(USERS)
    await same(pair, "Auth.Authenticate", e.AuthenticateRequest(name=user, password=rng.choice(PASSWORDS)))


async def enable(pair: tuple[Client, Client]) -> None:
    """Whatever came before, and whoever may do it by now: root is there, authentication on, and everybody logged in."""
    await same(pair, "Auth.UserAdd", e.AuthUserAddRequest(name="root", password="p"), "root")
    await same(pair, "Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user="root", role="root"), "root")
    await same(pair, "Auth.AuthEnable", e.AuthEnableRequest(), "root")
    for name in ("root", "u1", "u2", "u3"):
        await same(pair, "Auth.Authenticate", e.AuthenticateRequest(name=name, password="p"))


@pytest.mark.parametrize("seed", range(4))
async def test_random_calls_of_random_users_are_answered_alike(pair: tuple[Client, Client], seed: int) -> None:
    rng = random.Random(seed)
    said: set[str] = set()
    for name in ("root", "u1", "u2", "u3"):
        await same(pair, "Auth.UserAdd", e.AuthUserAddRequest(name=name, password="p"))
    await same(pair, "Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user="root", role="root"))
    for step in range(500):
        if step % 100 == 20:
            await enable(pair)
        if step % 10 == 0:
            await login(rng, pair)
            if "root" in pair[0].tokens:
                await same(pair, "Lease.LeaseGrant", e.LeaseGrantRequest(ID=7, TTL=600), "root")
        if rng.random() < 0.35:
            name, request = any_change(rng)
            by = "root" if rng.random() < 0.8 else rng.choice(["", "u1", "u2"])
        else:
            name, request = any_use(rng)
            by = rng.choice(["", "root", "u1", "u1", "u2", "u3"])
            if name == "Lease.LeaseRevoke" and by not in pair[0].tokens:
                by = "root"
        answer = await same(pair, name, request, by)
        if "INVALID_ARGUMENT: etcdserver: " in answer or "DENIED" in answer or "UNAUTHENTICATED" in answer:
            said.add(answer.rpartition(": ")[2])
        if name == "Auth.AuthEnable":
            await login(rng, pair)
            await same(pair, "Auth.Authenticate", e.AuthenticateRequest(name="root", password="p"))
    assert said >= {"permission denied", "user name is empty"}, "a test that asks for little"


async def test_what_makes_a_token_void_is_the_same(pair: tuple[Client, Client]) -> None:
    void = "UNAUTHENTICATED: etcdserver: invalid auth token"

    async def login(name: str, password: str = "p") -> None:
        assert "token" in await same(pair, "Auth.Authenticate", e.AuthenticateRequest(name=name, password=password))

    async def alice_reads() -> str:
        return await same(pair, "KV.Range", e.RangeRequest(key=b"a"), "alice")

    for name in ("root", "alice"):
        await same(pair, "Auth.UserAdd", e.AuthUserAddRequest(name=name, password="p"))
    await same(pair, "Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user="root", role="root"))
    await same(pair, "Auth.RoleAdd", e.AuthRoleAddRequest(name="r"))
    await same(pair, "Auth.AuthEnable", e.AuthEnableRequest())
    await login("root")
    await login("alice")
    assert "DENIED" in await alice_reads()
    permission = auth_pb2.Permission(key=b"a")
    await same(pair, "Auth.RoleGrantPermission", e.AuthRoleGrantPermissionRequest(name="r", perm=permission), "root")
    await same(pair, "Auth.UserGrantRole", e.AuthUserGrantRoleRequest(user="alice", role="r"), "root")
    assert "revision" in await alice_reads()
    await same(pair, "Auth.UserChangePassword", e.AuthUserChangePasswordRequest(name="alice", password="q"), "root")
    assert await alice_reads() == void
    await login("alice", "q")
    assert "revision" in await alice_reads()
    await same(pair, "Auth.UserDelete", e.AuthUserDeleteRequest(name="alice"), "root")
    assert await alice_reads() == void
    await same(pair, "Auth.UserAdd", e.AuthUserAddRequest(name="alice", password="p"), "root")
    assert await alice_reads() == void
    await login("alice")
    assert "DENIED" in await alice_reads()
    await same(pair, "Auth.AuthDisable", e.AuthDisableRequest(), "root")
    await same(pair, "Auth.AuthEnable", e.AuthEnableRequest())
    assert await alice_reads() == void
