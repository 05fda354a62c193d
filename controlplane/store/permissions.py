"""What a user may do: intervals of keys, and the rule for each kind of request.

Owns the arithmetic of intervals and etcd's rules of which permission a request needs. Pure: reads an ``Auth`` and the
leases, decides, changes nothing. Calls are asked before they touch the keyspace, so a refused transaction has no
effect.

The rules (etcd server/etcdserver/apply/apply_auth.go):

* A put needs WRITE on its key, READ too for ``prev_kv``, and, when it attaches a lease, WRITE on every key of that
  lease: who cannot revoke a lease must not hang other keys on it.
* A delete needs WRITE on its range, READ too for ``prev_kv``. A transaction needs READ for its compares and what each
  operation needs in both branches, at any depth, whichever branch would run.
* Revoking or renewing a lease needs WRITE on all its keys; listing its keys READ.
* Granting a lease and compacting need a user, any. (etcd asks for none to compact.)
* What the control plane keeps for itself (``OWN_PREFIXES``) only root may write, whatever a role says: no admission,
  no validation and no fence stands between these keys and the cluster. (Ours: etcd knows no such keys.)
* Changing the auth store needs role root. A user may read its own entry and its own roles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd.auth_pb2 import Permission as PermissionMessage
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store import auth_errors as errors
from controlplane.store.keyspan import Span, prefix_end, span
from controlplane.store.leases import Leases

if TYPE_CHECKING:
    from controlplane.store.auth import Auth

__all__ = [
    "OWN_PREFIXES",
    "Grants",
    "check_lease_read",
    "check_lease_write",
    "check_read",
    "check_root",
    "check_txn",
    "check_write",
    "covers",
    "merge",
    "permit",
]

# Looked up once: protobuf's enum wrappers resolve a name in Python on every access.
_READ, _WRITE, _READWRITE = PermissionMessage.READ, PermissionMessage.WRITE, PermissionMessage.READWRITE

#: Where the control plane keeps its objects, and what else it remembers.
OWN_PREFIXES: Final = (b"/quarterdeck/", b"/registry/")
_OWN: Final = tuple(Span(prefix, prefix_end(prefix)) for prefix in OWN_PREFIXES)


class _Permission(Protocol):
    @property
    def kind(self) -> PermissionMessage.Type.ValueType: ...
    @property
    def key(self) -> bytes: ...
    @property
    def range_end(self) -> bytes: ...


class Grants(NamedTuple):
    """What somebody may read and write: disjoint intervals, in order, none touching the next."""

    read: tuple[Span, ...]
    write: tuple[Span, ...]


def merge(permissions: Iterable[_Permission]) -> Grants:
    """What several permissions add up to."""
    read: list[Span] = []
    write: list[Span] = []
    for permission in permissions:
        keys = span(permission.key, permission.range_end)
        if permission.kind in (_READ, _READWRITE):
            read.append(keys)
        if permission.kind in (_WRITE, _READWRITE):
            write.append(keys)
    return Grants(_union(read), _union(write))


def _union(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for keys in sorted(spans, key=lambda keys: keys.low):
        last = merged[-1] if merged else None
        if last is None or (last.high is not None and last.high < keys.low):
            merged.append(keys)
        elif last.high is not None and (keys.high is None or keys.high > last.high):
            merged[-1] = Span(last.low, keys.high)
    return tuple(merged)


def covers(spans: tuple[Span, ...], wanted: Span) -> bool:
    """Whether every key of ``wanted`` is in ``spans`` (disjoint and in order)."""
    at = bisect_right(spans, wanted.low, key=lambda keys: keys.low) - 1
    if at < 0:
        return False
    high = spans[at].high
    if high is None:
        return True
    return wanted.low < high and wanted.high is not None and wanted.high <= high


def check_read(auth: Auth, user: str, key: bytes, range_end: bytes = b"") -> None:
    """Raises:
    StatusError: user name is empty, permission denied.
    """
    _check(auth, user, key, range_end, write=False)


def check_write(auth: Auth, user: str, key: bytes, range_end: bytes = b"") -> None:
    """Raises:
    StatusError: user name is empty, permission denied.
    """
    _check(auth, user, key, range_end, write=True)


def _check(auth: Auth, user: str, key: bytes, range_end: bytes, *, write: bool) -> None:
    if not user:
        raise errors.user_empty()
    if auth.is_root(user):
        return
    grants, wanted = auth.grants(user), span(key, range_end)
    if grants is None or not covers(grants.write if write else grants.read, wanted):
        raise errors.permission_denied()
    if write and any(_overlap(wanted, own) for own in _OWN):
        raise errors.permission_denied()


def _overlap(one: Span, other: Span) -> bool:
    return (other.high is None or one.low < other.high) and (one.high is None or other.low < one.high)


def check_root(auth: Auth, user: str) -> None:
    """Raises:
    StatusError: user name is empty, user name not found, permission denied.
    """
    if not user:
        raise errors.user_empty()
    if auth.user(user) is None:
        raise errors.user_not_found()
    if not auth.is_root(user):
        raise errors.permission_denied()


def check_lease_write(auth: Auth, leases: Leases, user: str, id: int) -> None:
    """To revoke or renew a lease, or to hang a key on it. Raises: StatusError."""
    lease = leases.get(id)
    if lease is not None and not auth.is_root(user):
        for key in lease.keys:
            check_write(auth, user, key)


def check_lease_read(auth: Auth, leases: Leases, user: str, id: int) -> None:
    """To list the keys of a lease. Raises: StatusError."""
    lease = leases.get(id)
    if lease is not None and not auth.is_root(user):
        for key in lease.keys:
            check_read(auth, user, key)


def permit(auth: Auth, leases: Leases, command: Command) -> None:
    """Whether a client's command may be applied now, authentication being enabled.

    Raises:
        StatusError: user name is empty, revision of auth store is old, permission denied.
    """
    user = command.auth_user
    if not user:
        raise errors.user_empty()
    kind = command.WhichOneof("op")
    if kind is not None and kind.startswith("auth_"):
        check_root(auth, user)
        return
    if command.auth_revision < auth.revision:
        raise errors.old_revision()
    match kind:
        case "put":
            _check_put(auth, leases, user, command.put)
        case "delete_range":
            _check_delete(auth, user, command.delete_range)
        case "txn":
            check_txn(auth, leases, user, command.txn)
        case "lease_revoke":
            check_lease_write(auth, leases, user, command.lease_revoke.ID)


def check_txn(auth: Auth, leases: Leases, user: str, request: e.TxnRequest) -> None:
    """Raises: StatusError."""
    for compare in request.compare:
        check_read(auth, user, compare.key, compare.range_end)
    for op in (*request.success, *request.failure):
        match op.WhichOneof("request"):
            case "request_range":
                check_read(auth, user, op.request_range.key, op.request_range.range_end)
            case "request_put":
                _check_put(auth, leases, user, op.request_put)
            case "request_delete_range":
                _check_delete(auth, user, op.request_delete_range)
            case "request_txn":
                check_txn(auth, leases, user, op.request_txn)


def _check_put(auth: Auth, leases: Leases, user: str, request: e.PutRequest) -> None:
    check_write(auth, user, request.key)
    if request.lease:
        check_lease_write(auth, leases, user, request.lease)
    if request.prev_kv:
        check_read(auth, user, request.key)


def _check_delete(auth: Auth, user: str, request: e.DeleteRangeRequest) -> None:
    check_write(auth, user, request.key, request.range_end)
    if request.prev_kv:
        check_read(auth, user, request.key, request.range_end)
