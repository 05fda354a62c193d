"""Authentication and permissions as clients meet them: at every service, on every replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.auth_service import AuthService
from controlplane.etcd.concurrency_service import ElectionService, LockService
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.kv_service import KVService
from controlplane.etcd.lease_service import LeaseService
from controlplane.etcd.passwords import Passwords
from controlplane.etcd.tokens import TOKEN_TTL_S
from controlplane.pb.etcd import auth_pb2, v3election_pb2, v3lock_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.raft.types import Outcome
from tests.unit.etcd.fakes import FakeContext, InlineExecutor, Replica, put, settle

P = auth_pb2.Permission
NOBODY: Any = FakeContext()
DENIED = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
EMPTY = (Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
BAD_TOKEN = (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
FAILED = (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")


class Desk:
    """The services of one replica, and the tokens of who logged in there."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.kv = replica.kv
        self.auth = replica.store.auth
        authorizer, guard = replica.authorizer, LeaderGuard(replica.raft, replica.clock, election_timeout_ms=1_000)
        passwords = Passwords(SeededRand(replica.name), log2_cost=1, executor=InlineExecutor())
        self.users = AuthService(self.kv, self.auth, authorizer, replica.tokens, passwords, SeededRand("keys"))
        self.keys = KVService(self.kv, guard, authorizer)
        self.leases = LeaseService(self.kv, guard, authorizer)
        self.locks = LockService(self.kv, authorizer, replica.clock)
        self.elections = ElectionService(self.kv, authorizer, replica.clock)

    async def login(self, name: str, password: str = "pw") -> Any:
        """A context that shows the user's token."""
        answer = await self.users.Authenticate(e.AuthenticateRequest(name=name, password=password), NOBODY)
        return FakeContext({"token": answer.token})

    async def put(self, key: bytes, context: Any) -> int:
        return (await self.keys.Put(e.PutRequest(key=key), context)).header.revision

    async def get(self, key: bytes, context: Any, range_end: bytes = b"") -> int:
        return (await self.keys.Range(e.RangeRequest(key=key, range_end=range_end), context)).count


async def grant(desk: Desk, role: str, kind: Any, key: bytes, range_end: bytes = b"", by: Any = NOBODY) -> None:
    permission = P(permType=kind, key=key, range_end=range_end)
    await desk.users.RoleGrantPermission(e.AuthRoleGrantPermissionRequest(name=role, perm=permission), by)


async def populate(desk: Desk) -> None:
    """root, and alice who may read and write a/."""
    await desk.users.RoleAdd(e.AuthRoleAddRequest(name="r"), NOBODY)
    await grant(desk, "r", P.READWRITE, b"a/", b"a0")
    for name, role in (("root", "root"), ("alice", "r")):
        await desk.users.UserAdd(e.AuthUserAddRequest(name=name, password="pw"), NOBODY)
        await desk.users.UserGrantRole(e.AuthUserGrantRoleRequest(user=name, role=role), NOBODY)


@pytest.fixture
async def desk() -> Desk:
    """Authentication is enabled."""
    desk = Desk(Replica())
    await populate(desk)
    await desk.users.AuthEnable(e.AuthEnableRequest(), NOBODY)
    return desk


async def refused(call: Awaitable[Any]) -> tuple[Code, str]:
    with pytest.raises(StatusError) as refusal:
        await call
    return refusal.value.code, refusal.value.message


# -- logging in


async def test_a_password_buys_a_token_and_a_token_opens_what_the_user_may(desk: Desk) -> None:
    alice = await desk.login("alice")
    assert await desk.put(b"a/1", alice) == 2
    assert await desk.get(b"a/", alice, b"a0") == 1
    assert await refused(desk.put(b"b", alice)) == DENIED
    assert await refused(desk.get(b"a/", alice, b"b")) == DENIED
    root = await desk.login("root")
    assert await desk.put(b"b", root) == 3


async def test_who_cannot_log_in_is_not_told_why(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await desk.users.UserAdd(
        e.AuthUserAddRequest(name="cert-only", options=auth_pb2.UserAddOptions(no_password=True)),
        await desk.login("root"),
    )
    for name, password in (("alice", "wrong"), ("nobody", "pw"), ("cert-only", ""), ("alice", ""), ("", "")):
        assert await refused(desk.login(name, password)) == FAILED
    assert "event=login-refused user='alice'" in caplog.text
    assert "wrong" not in caplog.text


async def test_there_is_no_logging_in_while_authentication_is_disabled() -> None:
    desk = Desk(Replica())
    await populate(desk)
    told = await refused(desk.login("alice"))
    assert told == (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
    assert await desk.put(b"k", FakeContext({"token": "anything"})) == 2, "and a token is not looked at"


async def test_who_shows_nothing_or_something_else_is_turned_away_unlogged(desk: Desk) -> None:
    before = len(desk.replica.raft.proposals)
    assert await refused(desk.put(b"a/1", NOBODY)) == EMPTY
    assert await refused(desk.put(b"a/1", FakeContext({"token": "forged"}))) == BAD_TOKEN
    assert await refused(desk.get(b"a/1", NOBODY)) == EMPTY
    assert len(desk.replica.raft.proposals) == before


async def test_the_json_clients_way_of_showing_a_token_is_accepted(desk: Desk) -> None:
    token = dict((await desk.login("alice")).invocation_metadata())["token"]
    assert await desk.put(b"a/1", FakeContext({"authorization": token})) == 2
    assert await desk.put(b"a/1", FakeContext({"authorization": f"Bearer {token}"})) == 3


async def test_a_new_password_ends_the_old_tokens(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    await desk.users.UserChangePassword(e.AuthUserChangePasswordRequest(name="alice", password="new"), root)
    assert await refused(desk.put(b"a/1", alice)) == BAD_TOKEN
    assert await refused(desk.login("alice")) == FAILED
    await desk.put(b"a/1", await desk.login("alice", "new"))


async def test_a_deleted_users_token_does_not_serve_the_next_of_that_name(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    await desk.users.UserDelete(e.AuthUserDeleteRequest(name="alice"), root)
    await desk.users.UserAdd(e.AuthUserAddRequest(name="alice", password="pw"), root)
    await desk.users.UserGrantRole(e.AuthUserGrantRoleRequest(user="alice", role="r"), root)
    assert await refused(desk.put(b"a/1", alice)) == BAD_TOKEN


async def test_an_expired_token_is_refused(desk: Desk) -> None:
    alice = await desk.login("alice")
    desk.replica.clock.advance(TOKEN_TTL_S + 1)
    assert await refused(desk.put(b"a/1", alice)) == BAD_TOKEN


async def test_status_is_for_everybody(desk: Desk) -> None:
    status = await desk.users.AuthStatus(e.AuthStatusRequest(), NOBODY)
    assert (status.enabled, status.authRevision) == (True, desk.auth.revision)


# -- secrets


async def test_a_password_is_nowhere_but_in_the_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    desk = Desk(Replica())
    await populate(desk)
    canary = "canary-5e1f"
    await desk.users.UserAdd(e.AuthUserAddRequest(name="u", password=canary), NOBODY)
    await desk.users.UserChangePassword(e.AuthUserChangePasswordRequest(name="u", password=canary + "2"), NOBODY)
    await desk.users.AuthEnable(e.AuthEnableRequest(), NOBODY)
    await desk.login("u", canary + "2")
    logged = b"".join(proposal.payload for proposal in desk.replica.raft.proposals)
    snapshot = b"".join(desk.replica.store.snapshot())
    assert b"scrypt$" in logged
    assert b"scrypt$" in snapshot
    for where in (logged, snapshot, caplog.text.encode()):
        assert canary.encode() not in where
    assert "scrypt" not in caplog.text
    assert desk.auth.token_key not in caplog.text.encode()


async def test_every_change_is_in_the_audit_log_with_who_and_what(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quarterdeck.auth")
    root = await desk.login("root")
    await grant(desk, "r", P.READ, b"x", b"y", by=root)
    await desk.users.UserRevokeRole(e.AuthUserRevokeRoleRequest(name="alice", role="r"), root)
    lines = [record.getMessage() for record in caplog.records if record.name == "quarterdeck.auth"]
    assert lines == [
        "event=auth-changed by='root' revision=8 change=role-grant-permission name='r' key=b'x' range_end=b'y' kind=0",
        "event=auth-changed by='root' revision=9 change=user-revoke-role name='alice' role='r'",
    ]


async def test_while_authentication_is_disabled_the_audit_log_names_the_certificate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "quarterdeck.auth")
    desk = Desk(Replica())
    monkeypatch.setattr("controlplane.etcd.authorizer.caller_of", lambda context: Certified("ops"))
    await desk.users.RoleAdd(e.AuthRoleAddRequest(name="r"), NOBODY)
    assert caplog.messages == ["event=auth-changed by='ops' revision=2 change=role-add name='r'"]


async def test_a_refused_change_is_not_in_the_audit_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quarterdeck.auth")
    assert await refused(grant(desk, "r", P.READ, b"x", by=await desk.login("alice"))) == DENIED
    assert not caplog.records


async def test_a_hash_from_outside_is_not_accepted(desk: Desk) -> None:
    request = e.AuthUserChangePasswordRequest(name="alice", hashedPassword="scrypt$1$8$1$AAAA$AAAA")
    code, _ = await refused(desk.users.UserChangePassword(request, await desk.login("root")))
    assert code is Code.INVALID_ARGUMENT
    add = e.AuthUserAddRequest(name="mine", password="pw", hashedPassword="scrypt$1$8$1$AAAA$AAAA")
    await desk.users.UserAdd(add, await desk.login("root"))
    await desk.login("mine")


# -- who may see and change users


async def test_users_see_themselves_and_their_roles_and_root_sees_all(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    users = desk.users
    assert (await users.UserGet(e.AuthUserGetRequest(name="alice"), alice)).roles == ["r"]
    assert (await users.RoleGet(e.AuthRoleGetRequest(role="r"), alice)).perm[0].key == b"a/"
    assert await refused(users.UserGet(e.AuthUserGetRequest(name="root"), alice)) == DENIED
    assert await refused(users.RoleGet(e.AuthRoleGetRequest(role="root"), alice)) == DENIED
    assert await refused(users.UserList(e.AuthUserListRequest(), alice)) == DENIED
    assert await refused(users.RoleList(e.AuthRoleListRequest(), alice)) == DENIED
    assert await refused(users.UserList(e.AuthUserListRequest(), NOBODY)) == EMPTY
    assert (await users.UserList(e.AuthUserListRequest(), root)).users == ["alice", "root"]
    assert (await users.RoleList(e.AuthRoleListRequest(), root)).roles == ["r"]
    assert (await refused(users.UserGet(e.AuthUserGetRequest(name="x"), root)))[1] == "etcdserver: user name not found"
    assert (await refused(users.RoleGet(e.AuthRoleGetRequest(role="x"), root)))[1] == "etcdserver: role name not found"


async def test_only_root_passes_the_guard_of_administration(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    guard = desk.replica.authorizer
    await guard.require_root(root)
    await guard.require_user(alice)
    assert await refused(guard.require_root(alice)) == DENIED
    assert await refused(guard.require_root(NOBODY)) == EMPTY
    assert await refused(guard.require_user(NOBODY)) == EMPTY
    await desk.users.AuthDisable(e.AuthDisableRequest(), root)
    await guard.require_root(NOBODY)
    await guard.require_user(NOBODY)


# -- the other services


async def test_reading_transactions_are_checked_like_reads(desk: Desk) -> None:
    alice = await desk.login("alice")
    ops = [e.RequestOp(request_range=e.RangeRequest(key=key)) for key in (b"a/1", b"b")]
    await desk.keys.Txn(e.TxnRequest(success=ops[:1]), alice)
    assert await refused(desk.keys.Txn(e.TxnRequest(success=ops[:1], failure=ops[1:]), alice)) == DENIED
    assert await refused(desk.keys.Txn(e.TxnRequest(success=ops[:1]), NOBODY)) == EMPTY


async def test_compaction_needs_some_user(desk: Desk) -> None:
    await put(desk.kv, b"k")
    assert await refused(desk.keys.Compact(e.CompactionRequest(revision=2), NOBODY)) == EMPTY
    await desk.keys.Compact(e.CompactionRequest(revision=2), await desk.login("alice"))


async def test_leases_are_guarded_by_their_keys(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    desk.kv.start()
    leases = desk.leases
    assert await refused(leases.LeaseGrant(e.LeaseGrantRequest(ID=7, TTL=60), NOBODY)) == EMPTY
    await leases.LeaseGrant(e.LeaseGrantRequest(ID=7, TTL=60), alice)
    await put(desk.kv, b"b", lease=7)

    async def renew(context: Any) -> Any:
        async def requests() -> Any:
            yield e.LeaseKeepAliveRequest(ID=7)

        await leases.LeaseKeepAlive(requests(), context)
        return context.written.get_nowait()

    ask = e.LeaseTimeToLiveRequest(ID=7, keys=True)
    assert await refused(renew(alice)) == DENIED
    assert await refused(leases.LeaseTimeToLive(ask, alice)) == DENIED
    assert (await leases.LeaseTimeToLive(e.LeaseTimeToLiveRequest(ID=7), alice)).TTL == 60
    assert await refused(leases.LeaseLeases(e.LeaseLeasesRequest(), alice)) == DENIED
    assert await refused(leases.LeaseRevoke(e.LeaseRevokeRequest(ID=7), alice)) == DENIED
    for call in (
        leases.LeaseTimeToLive(ask, NOBODY),
        leases.LeaseLeases(e.LeaseLeasesRequest(), NOBODY),
        leases.LeaseRevoke(e.LeaseRevokeRequest(ID=7), NOBODY),
        renew(FakeContext()),
    ):
        assert await refused(call) == EMPTY
    assert (await renew(root)).TTL == 60
    assert (await leases.LeaseTimeToLive(ask, root)).keys == [b"b"]
    assert len((await leases.LeaseLeases(e.LeaseLeasesRequest(), root)).leases) == 1
    await leases.LeaseRevoke(e.LeaseRevokeRequest(ID=7), root)
    await desk.kv.stop()


async def test_locks_and_elections_act_as_their_caller(desk: Desk) -> None:
    alice = await desk.login("alice")
    assert (await desk.locks.Lock(v3lock_pb2.LockRequest(name=b"a/lock"), alice)).key.startswith(b"a/lock/")
    assert await refused(desk.locks.Lock(v3lock_pb2.LockRequest(name=b"lock"), alice)) == DENIED
    assert await refused(desk.locks.Lock(v3lock_pb2.LockRequest(name=b"lock"), NOBODY)) == EMPTY
    assert await refused(desk.locks.Unlock(v3lock_pb2.UnlockRequest(key=b"lock/1"), alice)) == DENIED
    campaign = v3election_pb2.CampaignRequest(name=b"a/job", value=b"me")
    led = (await desk.elections.Campaign(campaign, alice)).leader
    leader = await desk.elections.Leader(v3election_pb2.LeaderRequest(name=b"a/job"), alice)
    assert leader.kv.value == b"me"
    assert await refused(desk.elections.Leader(v3election_pb2.LeaderRequest(name=b"a/job"), NOBODY)) == EMPTY
    assert await refused(desk.elections.Resign(v3election_pb2.ResignRequest(leader=led), NOBODY)) == EMPTY
    await desk.elections.Resign(v3election_pb2.ResignRequest(leader=led), alice)
    await settle()


async def test_an_observer_who_may_no_longer_read_is_told(desk: Desk) -> None:
    alice, root = await desk.login("alice"), await desk.login("root")
    observing = desk.elections.Observe(v3election_pb2.LeaderRequest(name=b"a/job"), alice)
    next_one = asyncio.ensure_future(anext(observing))
    await settle()
    revoke = e.AuthRoleRevokePermissionRequest(role="r", key=b"a/", range_end=b"a0")
    await desk.users.RoleRevokePermission(revoke, root)
    await put(desk.kv, b"a/job/1", b"secret")
    assert await refused(next_one) == DENIED


# -- replicas that are behind


async def test_a_token_of_one_replica_opens_another() -> None:
    first = Desk(Replica())
    second = Desk(Replica("r2", join=first.replica))
    await populate(first)
    await first.users.AuthEnable(e.AuthEnableRequest(), NOBODY)
    alice = await first.login("alice")
    assert await second.put(b"a/1", alice) == 2
    second.replica.raft.set_leader("r2")
    assert await second.put(b"a/1", alice) == 3


class Behind:
    """A caller whose replica learns of a change of the auth store only while the write is on its way."""

    def __init__(self, desk: Desk, changes: list[Command], names: list[str | None]) -> None:
        self.desk = desk
        self.changes = changes
        self.names = names
        self.asked = 0
        propose = desk.replica.raft.propose

        async def overtaken(payload: bytes, *, request_id: bytes, timeout_ms: int, born_index: int = 0) -> Outcome:
            if self.changes:
                await propose(self.changes.pop(0).SerializeToString(), request_id=b"", timeout_ms=timeout_ms)
            return await propose(payload, request_id=request_id, timeout_ms=timeout_ms, born_index=born_index)

        desk.replica.raft.propose = overtaken  # type: ignore[method-assign]

    async def user(self) -> str | None:
        self.asked += 1
        return self.names[min(self.asked, len(self.names)) - 1]


def role_added(number: int) -> Command:
    return Command(auth_role_add=e.AuthRoleAddRequest(name=f"new-{number}"))


async def test_a_write_overtaken_by_a_change_of_the_auth_store_is_proposed_anew(desk: Desk) -> None:
    caller = Behind(desk, [role_added(1), role_added(2)], ["alice"])
    answer = await desk.kv.put(e.PutRequest(key=b"a/1"), request_id=b"i" * 16, caller=caller)
    assert answer.header.revision == 2
    assert caller.asked == 3
    again = await desk.kv.put(e.PutRequest(key=b"a/1"), request_id=b"i" * 16, caller=caller)
    assert again.header.revision == 2, "it is one write, however often it was proposed"


async def test_a_write_overtaken_by_a_revocation_is_denied(desk: Desk) -> None:
    revoke = Command(auth_user_revoke_role=e.AuthUserRevokeRoleRequest(name="alice", role="r"))
    caller = Behind(desk, [revoke], ["alice"])
    assert await refused(desk.kv.put(e.PutRequest(key=b"a/1"), caller=caller)) == DENIED
    assert desk.kv.revision == 1


async def test_a_write_overtaken_for_ever_gives_up(desk: Desk) -> None:
    caller = Behind(desk, [role_added(number) for number in range(50)], ["alice"])
    told = await refused(desk.kv.put(e.PutRequest(key=b"a/1"), caller=caller))
    assert told == (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")


async def test_a_user_of_a_cluster_that_just_enabled_authentication_is_recognised() -> None:
    """The replica asked does not know yet: the first proposal is in nobody's name, the second in the user's."""
    desk = Desk(Replica())
    await populate(desk)
    enable = Command()
    enable.auth_enable.token_key = b"key"
    caller = Behind(desk, [enable], [None, "alice"])
    assert (await desk.kv.put(e.PutRequest(key=b"a/1"), caller=caller)).header.revision == 2


async def test_nobody_is_turned_away_for_what_is_news_to_this_replica(desk: Desk) -> None:
    """Disabled elsewhere, or a user unknown here: it catches up with the quorum before it says no."""
    replica = desk.replica
    disable = Command(auth_disable=e.AuthDisableRequest()).SerializeToString()
    barrier = replica.raft.read_barrier

    async def catching_up(*, timeout_ms: int) -> int:
        await replica.raft.propose(disable, request_id=b"", timeout_ms=timeout_ms)
        return await barrier(timeout_ms=timeout_ms)

    replica.raft.read_barrier = catching_up  # type: ignore[method-assign]
    assert await desk.put(b"k", NOBODY) == 2


# -- certificates


class Certified:
    """Stands for a verified client certificate of that common name and those organizations."""

    def __init__(self, common_name: str, *organizations: str) -> None:
        self.common_name = common_name
        self.is_admin = "system:masters" in organizations


async def test_a_certificate_names_the_user_unless_a_token_does(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    root_token = await desk.login("root")
    certified: list[Certified | None] = [None]
    monkeypatch.setattr("controlplane.etcd.authorizer.caller_of", lambda context: certified[0])

    def showing(*subject: str) -> Any:
        certified[0] = Certified(*subject)
        return FakeContext()

    assert await desk.put(b"a/1", showing("alice")) == 2
    assert await refused(desk.put(b"b", showing("alice"))) == DENIED
    assert await refused(desk.put(b"a/1", showing("stranger"))) == DENIED
    assert await desk.put(b"b", showing("admin", "system:masters")) == 3, "administrators of the cluster are root"
    assert await refused(desk.put(b"a/1", showing("system:node:n1", "system:nodes"))) == DENIED
    showing("stranger")
    assert await desk.put(b"b", root_token) == 4
