"""Users, roles and permissions as replicated state, with etcd's rules for changing them.

Owns the tables, the auth revision and the secret that tokens are signed with. Must not know passwords (it holds their
hashes, made by the proposer and never compared here), tokens, or who is calling; what a caller may do is decided by
``permissions`` from what is here.

Invariants, the same on every replica because all changes are applied from the log:

* While authentication is enabled, user ``root`` exists and has role ``root``.
* The revision grows with every change of what anybody may do; 1 means nothing was ever set.
* A user's ``credential_revision`` is that of its last password (or of its making): a token for an older one is void.

Listeners are called synchronously, after the change, in apply; they must not write to the store.

Source of the rules: etcd server/auth/store.go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from controlplane.base.limits import AUTH_NAME_CHARS_MAX, AUTH_PERMISSIONS_PER_ROLE_MAX, AUTH_ROLES_MAX, AUTH_USERS_MAX
from controlplane.pb.etcd.auth_pb2 import Permission as PermissionMessage
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store import auth_errors as errors
from controlplane.store.permissions import Grants, merge

__all__ = ["ROOT", "Auth", "AuthListener", "Permission", "Role", "User"]

#: Name of the user and of the role that may do everything.
ROOT: Final = "root"
_EVERYTHING: Final = b"\0"

AuthListener = Callable[[], None]


class Permission(NamedTuple):
    """What a role may do in one interval of keys. ``kind`` is an authpb.Permission.Type."""

    kind: PermissionMessage.Type.ValueType
    key: bytes
    range_end: bytes

    def message(self) -> PermissionMessage:
        return PermissionMessage(permType=self.kind, key=self.key, range_end=self.range_end)


@dataclass(frozen=True, slots=True)
class User:
    """A user. ``roles`` are sorted; an empty ``password_hash`` is no password."""

    name: str
    password_hash: str
    credential_revision: int
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Role:
    """A role. ``permissions`` are in order of key; of those with one key, the oldest first."""

    name: str
    permissions: tuple[Permission, ...] = ()


class Auth:
    """The auth store of one replica. Read it freely; only apply writes it."""

    def __init__(self) -> None:
        self.enabled = False
        self.revision = 1
        #: What tokens are signed with; empty while authentication is disabled.
        self.token_key = b""
        self._users: dict[str, User] = {}
        self._roles: dict[str, Role] = {}
        #: What users' roles add up to, made when first needed and dropped at every change.
        self._grants: dict[str, Grants] = {}
        self._listeners: list[AuthListener] = []

    # -- what is there

    @property
    def users(self) -> list[User]:
        """In order of name."""
        return sorted(self._users.values(), key=lambda user: user.name)

    @property
    def roles(self) -> list[Role]:
        """In order of name."""
        return sorted(self._roles.values(), key=lambda role: role.name)

    def user(self, name: str) -> User | None:
        return self._users.get(name)

    def role(self, name: str) -> Role | None:
        return self._roles.get(name)

    def is_root(self, name: str) -> bool:
        """Whether this user exists and has the role root."""
        user = self._users.get(name)
        return user is not None and ROOT in user.roles

    def grants(self, name: str) -> Grants | None:
        """What a user's roles allow together; None: no such user."""
        found = self._grants.get(name)
        if found is None and (user := self._users.get(name)) is not None:
            roles = [self._roles[role] for role in user.roles if role in self._roles]
            found = self._grants[name] = merge(permission for role in roles for permission in role.permissions)
        return found

    def listen(self, listener: AuthListener) -> Callable[[], None]:
        """Call ``listener`` on every change from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- changes, from the log

    def change(self, command: Command) -> None:
        """Apply one of the ``auth_*`` commands.

        Raises:
            StatusError: with etcd's code and text; nothing is changed.
        """
        match command.WhichOneof("op"):
            case "auth_enable":
                self._enable(command.auth_enable.token_key)
            case "auth_disable":
                self._disable()
            case "auth_user_add":
                self._user_add(command.auth_user_add.name, command.auth_user_add.hashedPassword)
            case "auth_user_delete":
                self._user_delete(command.auth_user_delete.name)
            case "auth_user_change_password":
                asked = command.auth_user_change_password
                self._user_change_password(asked.name, asked.hashedPassword)
            case "auth_user_grant_role":
                self._user_grant_role(command.auth_user_grant_role.user, command.auth_user_grant_role.role)
            case "auth_user_revoke_role":
                self._user_revoke_role(command.auth_user_revoke_role.name, command.auth_user_revoke_role.role)
            case "auth_role_add":
                self._role_add(command.auth_role_add.name)
            case "auth_role_delete":
                self._role_delete(command.auth_role_delete.role)
            case "auth_role_grant_permission":
                grant = command.auth_role_grant_permission
                if not grant.HasField("perm"):
                    raise errors.permission_not_given()
                self._role_grant(grant.name, Permission(grant.perm.permType, grant.perm.key, grant.perm.range_end))
            case "auth_role_revoke_permission":
                revoke = command.auth_role_revoke_permission
                self._role_revoke(revoke.role, revoke.key, revoke.range_end)

    def _enable(self, token_key: bytes) -> None:
        if self.enabled:
            return
        root = self._users.get(ROOT)
        if root is None:
            raise errors.root_user_missing()
        if ROOT not in root.roles:
            raise errors.root_role_missing()
        self.enabled = True
        self.token_key = token_key
        self._tell()

    def _disable(self) -> None:
        if self.enabled:
            self.enabled = False
            self.token_key = b""
            self._changed()

    def _user_add(self, name: str, password_hash: str) -> None:
        if not name:
            raise errors.user_empty()
        if len(name) > AUTH_NAME_CHARS_MAX:
            raise errors.name_too_long(AUTH_NAME_CHARS_MAX)
        if name in self._users:
            raise errors.user_exists()
        if len(self._users) >= AUTH_USERS_MAX:
            raise errors.too_many("users", AUTH_USERS_MAX)
        self._users[name] = User(name, password_hash, self.revision + 1)
        self._changed()

    def _user_delete(self, name: str) -> None:
        if self.enabled and name == ROOT:
            raise errors.invalid_management()
        self._user(name)
        del self._users[name]
        self._changed()

    def _user_change_password(self, name: str, password_hash: str) -> None:
        user = self._user(name)
        # A user made without a password does not get one.
        password_hash = password_hash if user.password_hash else ""
        self._users[name] = replace(user, password_hash=password_hash, credential_revision=self.revision + 1)
        self._changed()

    def _user_grant_role(self, name: str, role: str) -> None:
        user = self._user(name)
        if role != ROOT:
            self._role(role)
        if role not in user.roles:
            self._users[name] = replace(user, roles=tuple(sorted((*user.roles, role))))
            self._changed()

    def _user_revoke_role(self, name: str, role: str) -> None:
        if self.enabled and name == role == ROOT:
            raise errors.invalid_management()
        user = self._user(name)
        if role not in user.roles:
            raise errors.role_not_granted()
        self._users[name] = _without(user, role)
        self._changed()

    def _role_add(self, name: str) -> None:
        if not name:
            raise errors.role_empty()
        if len(name) > AUTH_NAME_CHARS_MAX:
            raise errors.name_too_long(AUTH_NAME_CHARS_MAX)
        if name in self._roles:
            raise errors.role_exists()
        if len(self._roles) >= AUTH_ROLES_MAX:
            raise errors.too_many("roles", AUTH_ROLES_MAX)
        self._roles[name] = Role(name)
        self._changed()

    def _role_delete(self, name: str) -> None:
        if self.enabled and name == ROOT:
            raise errors.invalid_management()
        self._role(name)
        del self._roles[name]
        for user in [user for user in self._users.values() if name in user.roles]:
            self._users[user.name] = _without(user, name)
        self._changed()

    def _role_grant(self, name: str, permission: Permission) -> None:
        if not permission.key or (permission.range_end and not _is_range(permission)):
            raise errors.invalid_management()
        role = self._role(name)
        same = [old[1:] == permission[1:] for old in role.permissions]
        if any(same):
            at = same.index(True)
            permissions = (*role.permissions[:at], permission, *role.permissions[at + 1 :])
        elif len(same) >= AUTH_PERMISSIONS_PER_ROLE_MAX:
            raise errors.too_many(f"permissions of role {name!r}", AUTH_PERMISSIONS_PER_ROLE_MAX)
        else:
            at = bisect_right(role.permissions, permission.key, key=lambda old: old.key)
            permissions = (*role.permissions[:at], permission, *role.permissions[at:])
        self._roles[name] = replace(role, permissions=permissions)
        self._changed()

    def _role_revoke(self, name: str, key: bytes, range_end: bytes) -> None:
        role = self._role(name)
        left = tuple(old for old in role.permissions if (old.key, old.range_end) != (key, range_end))
        if len(left) == len(role.permissions):
            raise errors.permission_not_granted()
        self._roles[name] = replace(role, permissions=left)
        self._changed()

    def _user(self, name: str) -> User:
        user = self._users.get(name)
        if user is None:
            raise errors.user_not_found()
        return user

    def _role(self, name: str) -> Role:
        role = self._roles.get(name)
        if role is None:
            raise errors.role_not_found()
        return role

    def _changed(self) -> None:
        self.revision += 1
        self._grants.clear()
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    # -- snapshots

    def replace(self, other: Auth) -> None:
        """Take the state of a restored snapshot; listeners stay."""
        self.enabled, self.revision, self.token_key = other.enabled, other.revision, other.token_key
        self._users, self._roles, self._grants = other._users, other._roles, {}
        self._tell()

    def load(self, enabled: bool, revision: int, token_key: bytes, users: list[User], roles: list[Role]) -> None:
        """Set everything, before anybody listens."""
        self.enabled, self.revision, self.token_key = enabled, revision, token_key
        self._users = {user.name: user for user in users}
        self._roles = {role.name: role for role in roles}


def _without(user: User, role: str) -> User:
    return replace(user, roles=tuple(kept for kept in user.roles if kept != role))


def _is_range(permission: Permission) -> bool:
    """A range_end of one zero byte is every key from ``key`` on; any other must come after ``key``."""
    return permission.range_end == _EVERYTHING or permission.key < permission.range_end
