"""Users, roles and permissions, small enough to be obviously right: what each committed command may do.

Knows the commands that the simulated administrator uses and the writes that simulated users make, and shares no code
with the store. Like it, it limits nobody while authentication is off, nor the control plane's own commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command

__all__ = ["AuthModel"]


@dataclass(slots=True)
class AuthModel:
    """Who may do what, by what was committed."""

    enabled: bool = False
    #: Counts changes of what anybody may do, from 1.
    revision: int = 1
    #: User -> roles; role -> the intervals of keys that it may read and write.
    users: dict[str, set[str]] = field(default_factory=dict)
    roles: dict[str, set[tuple[bytes, bytes]]] = field(default_factory=dict)

    def permits(self, command: Command) -> bool:
        """Whether the command may be applied now."""
        if not self.enabled or not command.auth_revision:
            return True
        user, op = command.auth_user, command.WhichOneof("op") or ""
        if op.startswith("auth_"):
            return "root" in self.users.get(user, ())
        if command.auth_revision < self.revision or user not in self.users:
            return False
        key = command.put.key if op == "put" else command.delete_range.key
        intervals = [interval for role in self.users[user] for interval in self.roles.get(role, ())]
        return any(low <= key < high for low, high in intervals)

    def change(self, command: Command) -> bool:
        """Do what an administrator asked for; False: it is refused."""
        match command.WhichOneof("op"):
            case "auth_enable":
                if "root" not in self.users.get("root", ()):
                    return False
                self.enabled = True
                return True  # which changes nothing of what anybody would be allowed
            case "auth_disable":
                if not self.enabled:
                    return True
                self.enabled = False
            case "auth_user_add":
                if command.auth_user_add.name in self.users:
                    return False
                self.users[command.auth_user_add.name] = set()
            case "auth_role_add":
                if command.auth_role_add.name in self.roles:
                    return False
                self.roles[command.auth_role_add.name] = set()
            case "auth_user_grant_role":
                user, role = command.auth_user_grant_role.user, command.auth_user_grant_role.role
                if user not in self.users or role not in {"root", *self.roles}:
                    return False
                if role in self.users[user]:
                    return True
                self.users[user].add(role)
            case "auth_role_grant_permission":
                grant = command.auth_role_grant_permission
                if grant.name not in self.roles:
                    return False
                self.roles[grant.name].add((grant.perm.key, grant.perm.range_end))
            case "auth_role_revoke_permission":
                revoke = command.auth_role_revoke_permission
                if (revoke.key, revoke.range_end) not in self.roles.get(revoke.role, ()):
                    return False
                self.roles[revoke.role].remove((revoke.key, revoke.range_end))
        self.revision += 1
        return True
