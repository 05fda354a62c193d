"""The auth store in the snapshot stream: which records it is made of.

``A`` an AuthRecord, then ``U`` a UserRecord each, then ``R`` a RoleRecord each, both in order of name. None at all
while nothing was ever set, so that a cluster without users has the snapshot it always had.
"""

from __future__ import annotations

from controlplane.base.errors import CorruptStateError
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import AuthRecord, RoleRecord, UserRecord
from controlplane.store.auth import ROOT, Auth, Permission, Role, User

__all__ = ["dump", "load"]


def dump(auth: Auth) -> list[tuple[bytes, bytes]]:
    """Kind and payload of each record, in order."""
    if auth.revision == 1 and not auth.enabled:
        return []
    head = AuthRecord(enabled=auth.enabled, revision=auth.revision, token_key=auth.token_key)
    users = [
        UserRecord(
            name=user.name,
            password_hash=user.password_hash,
            credential_revision=user.credential_revision,
            roles=user.roles,
        )
        for user in auth.users
    ]
    roles = [
        RoleRecord(name=role.name, permissions=[permission.message() for permission in role.permissions])
        for role in auth.roles
    ]
    return [
        (b"A", head.SerializeToString()),
        *((b"U", record.SerializeToString()) for record in users),
        *((b"R", record.SerializeToString()) for record in roles),
    ]


def load(records: list[tuple[int, bytes]]) -> Auth:
    """The auth store that :func:`dump` made these of.

    Raises:
        CorruptStateError: not a state that auth can have.
        DecodeError: a record is not what its kind says.
    """
    auth = Auth()
    if not records:
        return auth
    heads = [AuthRecord.FromString(payload) for kind, payload in records if kind == ord("A")]
    if len(heads) != 1:
        raise CorruptStateError(f"snapshot: {len(heads)} heads of the auth store")
    users = [_user(UserRecord.FromString(payload)) for kind, payload in records if kind == ord("U")]
    roles = [_role(RoleRecord.FromString(payload)) for kind, payload in records if kind == ord("R")]
    auth.load(heads[0].enabled, heads[0].revision, heads[0].token_key, users, roles)
    if auth.enabled and not auth.is_root(ROOT):
        raise CorruptStateError("snapshot: authentication is enabled and nobody is root")
    return auth


def _user(record: UserRecord) -> User:
    return User(record.name, record.password_hash, record.credential_revision, tuple(record.roles))


def _role(record: RoleRecord) -> Role:
    return Role(record.name, tuple(Permission(it.permType, it.key, it.range_end) for it in record.permissions))
