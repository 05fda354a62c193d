"""Users, roles and permissions: etcd's rules for changing them, and for what they allow at apply."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.base import limits
from controlplane.base.errors import Code, CorruptStateError, StatusError
from controlplane.pb.etcd import auth_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import AuthEnable, Command, Proposal, Reply
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import AuthRecord
from controlplane.store import auth as auth_module
from controlplane.store import auth_records
from controlplane.store.auth import Auth, Permission
from controlplane.store.keyspan import span
from controlplane.store.permissions import check_read, check_write, covers, merge
from controlplane.store.snapshot import load
from controlplane.store.store import Store, restored_state
from tests.unit.store.support import Driver, delete_op, put_op, range_op

P = auth_pb2.Permission
DENIED = "etcdserver: permission denied"
OLD = "etcdserver: revision of auth store is old"
EMPTY = "etcdserver: user name is empty"
OK = ""


class Users:
    """A driver whose commands come from users."""

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        self.store = self.driver.store
        self.auth = self.store.auth

    def told(self, command: Command, by: str | None = None, revision: int | None = None) -> str:
        """Apply, on behalf of ``by`` (None: the control plane); the reason it was refused for, or nothing."""
        if by is not None:
            command.auth_user = by
            command.auth_revision = self.auth.revision if revision is None else revision
        return self.driver.run(command).rejection.message

    def add(self, name: str, *roles: str, password: str = "hash", by: str | None = None) -> str:
        told = self.told(Command(auth_user_add=e.AuthUserAddRequest(name=name, hashedPassword=password)), by)
        for role in roles:
            assert self.grant(name, role) == OK
        return told

    def grant(self, user: str, role: str, by: str | None = None) -> str:
        return self.told(Command(auth_user_grant_role=e.AuthUserGrantRoleRequest(user=user, role=role)), by)

    def revoke(self, user: str, role: str) -> str:
        return self.told(Command(auth_user_revoke_role=e.AuthUserRevokeRoleRequest(name=user, role=role)))

    def remove(self, name: str) -> str:
        return self.told(Command(auth_user_delete=e.AuthUserDeleteRequest(name=name)))

    def password(self, name: str, password: str) -> str:
        request = e.AuthUserChangePasswordRequest(name=name, hashedPassword=password)
        return self.told(Command(auth_user_change_password=request))

    def role(self, name: str, *permissions: tuple[int, bytes, bytes]) -> str:
        told = self.told(Command(auth_role_add=e.AuthRoleAddRequest(name=name)))
        for permission in permissions:
            assert self.allow(name, *permission) == OK
        return told

    def remove_role(self, name: str) -> str:
        return self.told(Command(auth_role_delete=e.AuthRoleDeleteRequest(role=name)))

    def allow(self, role: str, kind: Any, key: bytes, range_end: bytes = b"") -> str:
        permission = P(permType=kind, key=key, range_end=range_end)
        request = e.AuthRoleGrantPermissionRequest(name=role, perm=permission)
        return self.told(Command(auth_role_grant_permission=request))

    def disallow(self, role: str, key: bytes, range_end: bytes = b"") -> str:
        request = e.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=range_end)
        return self.told(Command(auth_role_revoke_permission=request))

    def enable(self, key: bytes = b"secret", by: str | None = None) -> str:
        return self.told(Command(auth_enable=AuthEnable(token_key=key)), by)

    def disable(self, by: str | None = None) -> str:
        return self.told(Command(auth_disable=e.AuthDisableRequest()), by)

    def put(self, key: bytes, by: str | None, *, revision: int | None = None, **fields: Any) -> str:
        return self.told(Command(put=e.PutRequest(key=key, **fields)), by, revision)


def ready() -> Users:
    """Enabled: root, and alice who may write [a, c) and read [b, d)."""
    users = Users()
    users.role("r", (P.WRITE, b"a", b"c"), (P.READ, b"b", b"d"))
    users.add("alice", "r")
    users.add("root", "root")
    assert users.enable() == OK
    return users


# -- changing users and roles


def test_enabling_needs_a_root_user_with_role_root() -> None:
    users = Users()
    assert users.enable() == "etcdserver: root user does not exist"
    users.add("root")
    assert users.enable() == "etcdserver: root user does not have root role"
    assert not users.auth.enabled
    assert users.grant("root", "root") == OK  # although nobody added a role of that name
    assert users.enable(b"first") == OK
    assert (users.auth.enabled, users.auth.token_key) == (True, b"first")
    assert users.enable(b"second") == OK
    assert users.auth.token_key == b"first", "enabling what is enabled changes nothing"


def test_while_enabled_nobody_locks_root_out() -> None:
    users = ready()
    users.role("root")
    refused = "etcdserver: invalid auth management"
    assert users.remove("root") == refused
    assert users.revoke("root", "root") == refused
    assert users.remove_role("root") == refused
    assert users.disable() == OK
    assert users.remove_role("root") == OK
    assert users.remove("root") == OK


def test_users_come_and_go() -> None:
    users = Users()
    assert users.add("u") == OK
    assert users.add("u") == "etcdserver: user name already exists"
    assert users.add("") == EMPTY
    assert users.grant("u", "r") == "etcdserver: role name not found"
    assert users.grant("v", "r") == "etcdserver: user name not found"
    assert users.revoke("u", "r") == "etcdserver: role is not granted to the user"
    assert users.password("v", "x") == "etcdserver: user name not found"
    assert users.remove("v") == "etcdserver: user name not found"
    assert users.remove("u") == OK
    assert users.auth.users == []


def test_roles_come_and_go() -> None:
    users = Users()
    assert users.role("r") == OK
    assert users.role("r") == "etcdserver: role name already exists"
    assert users.role("") == "etcdserver: role name is empty"
    assert users.allow("s", P.READ, b"k") == "etcdserver: role name not found"
    assert users.disallow("s", b"k") == "etcdserver: role name not found"
    assert users.disallow("r", b"k") == "etcdserver: permission is not granted to the role"
    assert users.remove_role("s") == "etcdserver: role name not found"
    users.add("u", "r")
    assert users.remove_role("r") == OK
    user = users.auth.user("u")
    assert user is not None
    assert user.roles == (), "a role that is gone is gone from its users"


def test_listings_are_in_order_of_name() -> None:
    users = Users()
    for name in ("b", "a", "c"):
        users.role(name)
        users.add(name, "b", *(["a"] if name == "c" else []))
    assert [user.name for user in users.auth.users] == ["a", "b", "c"]
    assert [role.name for role in users.auth.roles] == ["a", "b", "c"]
    user = users.auth.user("c")
    assert user is not None
    assert user.roles == ("a", "b")


@pytest.mark.parametrize(("key", "range_end"), [(b"", b""), (b"b", b"a"), (b"b", b"b"), (b"", b"\0")])
def test_a_permission_on_nothing_is_refused(key: bytes, range_end: bytes) -> None:
    users = Users()
    users.role("r")
    assert users.allow("r", P.READ, key, range_end) == "etcdserver: invalid auth management"


def test_a_permission_must_be_given() -> None:
    users = Users()
    users.role("r")
    request = e.AuthRoleGrantPermissionRequest(name="r")
    assert users.told(Command(auth_role_grant_permission=request)) == "etcdserver: permission not given"


def test_granting_an_interval_again_replaces_what_it_allows() -> None:
    users = Users()
    users.role("r", (P.READ, b"k", b"m"), (P.READ, b"k", b"l"), (P.READ, b"a", b""))
    users.allow("r", P.WRITE, b"k", b"l")
    role = users.auth.role("r")
    assert role is not None
    assert role.permissions == ((P.READ, b"a", b""), (P.READ, b"k", b"m"), (P.WRITE, b"k", b"l"))


def test_the_revision_counts_changes_and_only_them() -> None:
    users = Users()
    assert users.auth.revision == 1
    users.role("r")
    users.add("root", "root")
    assert users.auth.revision == 4
    users.grant("root", "root")
    users.enable()
    users.enable()
    assert users.auth.revision == 4, "a role granted twice and enabling are no change of what anybody may do"
    users.disable()
    users.disable()
    assert users.auth.revision == 5
    users.role("r")
    assert users.auth.revision == 5


def test_a_new_password_makes_new_credentials_and_a_new_role_does_not() -> None:
    users = Users()
    users.role("r")
    users.add("u")
    first = users.auth.user("u")
    users.grant("u", "r")
    second = users.auth.user("u")
    users.password("u", "other")
    third = users.auth.user("u")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.credential_revision == second.credential_revision < third.credential_revision
    assert (third.password_hash, third.roles) == ("other", ("r",))
    users.remove("u")
    users.add("u")
    again = users.auth.user("u")
    assert again is not None
    assert again.credential_revision > third.credential_revision


def test_a_user_made_without_a_password_does_not_get_one() -> None:
    users = Users()
    users.add("u", password="")
    users.password("u", "hash")
    user = users.auth.user("u")
    assert user is not None
    assert user.password_hash == ""


def test_names_are_bounded() -> None:
    users = Users()
    longest = "n" * limits.AUTH_NAME_CHARS_MAX
    assert users.add(longest) == OK
    assert users.role(longest) == OK
    assert "the limit is 1024 characters" in users.add(longest + "n")
    assert "the limit is 1024 characters" in users.role(longest + "n")


def test_what_was_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTH_USERS_MAX", "AUTH_ROLES_MAX", "AUTH_PERMISSIONS_PER_ROLE_MAX"):
        assert getattr(auth_module, name) == getattr(limits, name)
        monkeypatch.setattr(auth_module, name, 2)
    users = Users()
    for name in ("a", "b"):
        assert users.add(name) == OK
        assert users.role(name) == OK
        assert users.allow("a", P.READ, name.encode()) == OK
    assert "too many users" in users.add("c")
    assert "too many roles" in users.role("c")
    assert "too many permissions" in users.allow("a", P.READ, b"c")
    assert users.allow("a", P.WRITE, b"b") == OK, "changing one is not adding one"


def test_a_password_that_was_not_hashed_is_never_proposed() -> None:
    for command in (
        Command(auth_user_add=e.AuthUserAddRequest(name="u", password="cleartext")),
        Command(auth_user_change_password=e.AuthUserChangePasswordRequest(name="u", password="cleartext")),
    ):
        with pytest.raises(StatusError, match="must be hashed") as refusal:
            Store().check(command)
        assert "cleartext" not in str(refusal.value)


# -- intervals


PERMISSIONS = st.lists(
    st.tuples(
        st.sampled_from([P.READ, P.WRITE, P.READWRITE]),
        st.binary(min_size=1, max_size=2),
        st.one_of(st.just(b""), st.just(b"\0"), st.binary(min_size=1, max_size=2)),
    ).filter(lambda it: it[2] in (b"", b"\0") or it[1] < it[2]),
    max_size=6,
)


@given(PERMISSIONS, st.binary(min_size=1, max_size=2), st.one_of(st.just(b""), st.binary(min_size=1, max_size=2)))
def test_merged_intervals_allow_what_one_of_them_allows_and_nothing_else(
    permissions: list[tuple[Any, bytes, bytes]], key: bytes, range_end: bytes
) -> None:
    """An interval is allowed if each key of it is. Every boundary, and what comes right after it, stands for all."""
    wanted = span(key, range_end)
    if wanted.high is not None and wanted.high <= wanted.low:
        return
    readable = [span(it[1], it[2]) for it in permissions if it[0] != P.WRITE]
    ends = [point for keys in [*readable, wanted] for point in keys if point is not None]
    probes = [point + suffix for point in [*ends, b"\xff\xff\xff"] for suffix in (b"", b"\0", b"\xff")]
    expected = all(any(probe in keys for keys in readable) for probe in probes if probe in wanted)
    grants = merge(Permission(*it) for it in permissions)
    assert covers(grants.read, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ((b"a", b""), True),
        ((b"a", b"c"), True),
        ((b"b", b"d"), True),
        ((b"a", b"d"), True),  # two permissions that touch add up
        ((b"a", b"d\0"), False),
        ((b"d", b""), False),
        ((b"A", b"b"), False),
        ((b"x", b"\0"), True),
        ((b"y", b"\0"), True),
        ((b"w", b"\0"), False),
        ((b"zz", b"zzz"), True),
    ],
)
def test_an_interval_must_be_covered_whole(wanted: tuple[bytes, bytes], allowed: bool) -> None:
    grants = merge([Permission(P.READ, b"a", b"c"), Permission(P.READ, b"c", b"d"), Permission(P.READ, b"x", b"\0")])
    assert covers(grants.read, span(*wanted)) is allowed
    assert grants.write == ()


def test_a_kind_this_version_does_not_know_allows_nothing() -> None:
    unknown: Any = 7
    assert merge([Permission(unknown, b"a", b"")]) == ((), ())


# -- permissions at apply


def test_nobody_is_asked_while_authentication_is_disabled() -> None:
    users = Users()
    assert users.put(b"k", by="") == OK
    assert users.put(b"k", by="nobody") == OK


def test_the_control_plane_itself_may_do_everything() -> None:
    assert ready().put(b"z", by=None) == OK


def test_who_says_no_name_is_refused_once_authentication_is_enabled() -> None:
    users = ready()
    assert users.put(b"a", by="") == EMPTY
    for command in (
        Command(compact=e.CompactionRequest(revision=1)),
        Command(lease_grant=e.LeaseGrantRequest(ID=1, TTL=5)),
        Command(auth_role_add=e.AuthRoleAddRequest(name="x")),
    ):
        assert users.told(command, by="") == EMPTY
    assert users.told(Command(lease_grant=e.LeaseGrantRequest(ID=1, TTL=5)), by="alice") == OK


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (Command(put=e.PutRequest(key=b"a")), OK),
        (Command(put=e.PutRequest(key=b"a", prev_kv=True)), DENIED),  # may write it, not read it
        (Command(put=e.PutRequest(key=b"b", prev_kv=True)), OK),
        (Command(put=e.PutRequest(key=b"c")), DENIED),
        (Command(delete_range=e.DeleteRangeRequest(key=b"a", range_end=b"c")), OK),
        (Command(delete_range=e.DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True)), DENIED),
        (Command(delete_range=e.DeleteRangeRequest(key=b"b", range_end=b"c", prev_kv=True)), OK),
        (Command(delete_range=e.DeleteRangeRequest(key=b"a", range_end=b"d")), DENIED),
        (Command(delete_range=e.DeleteRangeRequest(key=b"a", range_end=b"\0")), DENIED),
        (Command(txn=e.TxnRequest(success=[put_op(b"a")], failure=[range_op(b"c")])), OK),
        (Command(txn=e.TxnRequest(success=[put_op(b"a")], failure=[put_op(b"z")])), DENIED),
        (Command(txn=e.TxnRequest(success=[put_op(b"a"), range_op(b"a")])), DENIED),
        (Command(txn=e.TxnRequest(success=[delete_op(b"a", b"z")])), DENIED),
        (Command(txn=e.TxnRequest(compare=[e.Compare(key=b"a")], success=[put_op(b"a")])), DENIED),
        (Command(txn=e.TxnRequest(compare=[e.Compare(key=b"b", range_end=b"d")], success=[put_op(b"a")])), OK),
        (Command(txn=e.TxnRequest(compare=[e.Compare(key=b"b", range_end=b"e")], success=[put_op(b"a")])), DENIED),
    ],
)
def test_each_request_needs_what_it_touches(command: Command, told: str) -> None:
    users = ready()
    before = users.store.revision
    for key in (b"a", b"b", b"c", b"z"):
        users.put(key, by=None)
    assert users.told(command, by="alice") == told
    if told:
        assert users.store.revision == before + 4, "a refused request has no effect"


def test_a_nested_transaction_needs_what_all_of_it_touches() -> None:
    users = ready()
    inner = e.TxnRequest(failure=[e.RequestOp(request_txn=e.TxnRequest(failure=[put_op(b"z")]))])
    outer = e.TxnRequest(success=[put_op(b"a"), e.RequestOp(request_txn=inner)])
    assert users.told(Command(txn=outer), by="alice") == DENIED


def test_a_lease_is_its_users_who_may_write_all_its_keys() -> None:
    users = ready()
    users.driver.grant(7)
    users.put(b"a", by=None, lease=7)
    assert users.put(b"b", by="alice", lease=7) == OK
    users.put(b"z", by=None, lease=7)
    assert users.put(b"b", by="alice", lease=7) == DENIED
    assert users.told(Command(lease_revoke=e.LeaseRevokeRequest(ID=7)), by="alice") == DENIED
    users.driver.delete(b"z")
    assert users.told(Command(lease_revoke=e.LeaseRevokeRequest(ID=7)), by="alice") == OK


@pytest.mark.parametrize("key", [b"/registry/pods/a", b"/quarterdeck/leader"])
def test_what_the_control_plane_keeps_is_written_by_root_alone(key: bytes) -> None:
    users = ready()
    users.allow("r", P.READWRITE, b"/", b"\0")
    assert users.put(key, by="alice") == DENIED
    for low, high in ((b"/", b"\0"), (key, b""), (key[:-1], key + b"x")):
        assert users.told(Command(delete_range=e.DeleteRangeRequest(key=low, range_end=high)), by="alice") == DENIED
    assert users.put(b"/registry", by="alice") == OK
    assert users.put(b"/registry0", by="alice") == OK
    check_read(users.auth, "alice", key)
    assert users.put(key, by="root") == OK
    assert users.put(key, by=None) == OK


def test_only_root_changes_the_auth_store() -> None:
    users = ready()
    assert users.add("mallory", by="alice") == DENIED
    assert users.grant("alice", "root", by="alice") == DENIED
    assert users.disable(by="alice") == DENIED
    assert users.disable(by="stranger") == "etcdserver: user name not found"
    assert users.add("bob", by="root") == OK
    users.grant("bob", "root")
    assert users.disable(by="bob") == OK, "the role makes root, not the name"


def test_a_permission_that_is_taken_has_no_effect_from_that_entry_on() -> None:
    users = ready()
    seen = users.auth.revision
    assert users.put(b"a", by="alice", revision=seen) == OK
    users.disallow("r", b"a", b"c")
    assert users.put(b"a", by="alice", revision=seen) == OLD, "proposed when it was allowed, applied when it is not"
    assert users.put(b"a", by="alice") == DENIED


def test_what_was_refused_for_an_old_revision_may_be_proposed_again_under_its_id() -> None:
    """Also if it was proposed twice by a network that repeats itself: it is applied once."""
    users = ready()

    def put(revision: int) -> Reply:
        command = Command(put=e.PutRequest(key=b"a"), auth_user="alice", auth_revision=revision)
        payload = command.SerializeToString()
        return users.driver.propose(Proposal(request_id=b"one", born_index=users.driver.index, payload=payload))

    old = users.auth.revision
    users.add("somebody")
    assert put(old).rejection.message == OLD
    assert put(old).rejection.message == OLD
    first = put(users.auth.revision).put.header.revision
    assert first == 2
    assert put(users.auth.revision).put.header.revision == put(old).put.header.revision == first
    assert users.store.revision == first


def test_changes_are_told_to_listeners() -> None:
    users = Users()
    told: list[int] = []
    stop = users.auth.listen(lambda: told.append(users.auth.revision))
    users.role("r")
    users.role("r")
    assert told == [2]
    stop()
    users.role("s")
    assert told == [2]


def test_reads_are_checked_by_the_same_intervals() -> None:
    users = ready()
    check_read(users.auth, "alice", b"b", b"d")
    check_write(users.auth, "alice", b"a", b"c")
    for user, key, code in (("alice", b"a", Code.PERMISSION_DENIED), ("", b"b", Code.INVALID_ARGUMENT)):
        with pytest.raises(StatusError) as refusal:
            check_read(users.auth, user, key)
        assert refusal.value.code is code
    with pytest.raises(StatusError, match=DENIED):
        check_read(users.auth, "nobody", b"b")
    check_read(users.auth, "root", b"anything", b"\0")


# -- snapshots


def test_a_snapshot_holds_the_auth_store() -> None:
    users = ready()
    users.role("root")
    users.add("bob", password="")
    stream = users.driver.snapshot()
    other = Store()
    told: list[bool] = []
    other.auth.listen(lambda: told.append(other.auth.enabled))
    other.restore([stream])
    assert told == [True]
    auth = other.auth
    assert (auth.enabled, auth.revision, auth.token_key) == (True, users.auth.revision, b"secret")
    assert (auth.users, auth.roles) == (users.auth.users, users.auth.roles)
    assert b"".join(other.snapshot()) == stream
    again = Users(Driver(other))
    assert again.put(b"a", by="alice") == OK
    assert again.put(b"z", by="alice") == DENIED


def test_a_cluster_restored_from_a_snapshot_keeps_its_users() -> None:
    users = ready()
    store = Store()
    store.restore(restored_state(load(users.store.snapshot()), revision_bump=1_000, applied_index=1))
    assert (store.auth.enabled, store.auth.users) == (True, users.auth.users)


def test_a_store_that_never_had_users_has_no_records_of_them() -> None:
    assert auth_records.dump(Auth()) == []
    assert auth_records.load([]).revision == 1


@pytest.mark.parametrize(
    "records",
    [
        [(ord("U"), b"")],
        [(ord("A"), b""), (ord("A"), b"")],
        [(ord("A"), AuthRecord(enabled=True, revision=3).SerializeToString())],
    ],
    ids=["no-head", "two-heads", "enabled-without-root"],
)
def test_an_auth_store_that_cannot_be_is_refused(records: list[tuple[int, bytes]]) -> None:
    with pytest.raises(CorruptStateError):
        auth_records.load(records)
