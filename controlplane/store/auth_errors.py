"""What the auth store answers when it refuses: etcd's codes and texts, which real clients match on.

Source: etcd api/v3rpc/rpctypes/error.go. Constants are factories, so that no traceback is shared between requests.
"""

from __future__ import annotations

from typing import Final

from controlplane.base.errors import Code, StatusError

__all__ = [
    "OLD_REVISION_TEXT",
    "USER_EMPTY_TEXT",
    "authentication_failed",
    "invalid_management",
    "invalid_token",
    "name_too_long",
    "not_enabled",
    "old_revision",
    "permission_denied",
    "permission_not_given",
    "permission_not_granted",
    "role_empty",
    "role_exists",
    "role_not_found",
    "role_not_granted",
    "root_role_missing",
    "root_user_missing",
    "too_many",
    "user_empty",
    "user_exists",
    "user_not_found",
]

#: These two say that the proposer did not know the auth store as it is now. They are never an answer to be remembered.
OLD_REVISION_TEXT: Final = "etcdserver: revision of auth store is old"
USER_EMPTY_TEXT: Final = "etcdserver: user name is empty"


def user_empty() -> StatusError:
    """Authentication is on and the caller said no name; or a user is to be made without one."""
    return StatusError(Code.INVALID_ARGUMENT, USER_EMPTY_TEXT)


def old_revision() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, OLD_REVISION_TEXT)


def permission_denied() -> StatusError:
    return StatusError(Code.PERMISSION_DENIED, "etcdserver: permission denied")


def invalid_token() -> StatusError:
    return StatusError(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")


def authentication_failed() -> StatusError:
    """The same for an unknown user, a user without a password, and a wrong password."""
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")


def not_enabled() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")


def invalid_management() -> StatusError:
    """It would lock the last administrator out, or the range of a permission is empty."""
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: invalid auth management")


def role_empty() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: role name is empty")


def permission_not_given() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: permission not given")


def root_user_missing() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: root user does not exist")


def root_role_missing() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role")


def user_exists() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: user name already exists")


def user_not_found() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: user name not found")


def role_exists() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: role name already exists")


def role_not_found() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: role name not found")


def role_not_granted() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user")


def permission_not_granted() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: permission is not granted to the role")


def name_too_long(limit: int) -> StatusError:
    """Ours: etcd has no such limit."""
    return StatusError(Code.INVALID_ARGUMENT, f"quarterdeck: the name is too long, the limit is {limit} characters")


def too_many(what: str, limit: int) -> StatusError:
    """Ours: etcd has no such limits."""
    return StatusError(Code.RESOURCE_EXHAUSTED, f"quarterdeck: too many {what}, the limit is {limit}")
