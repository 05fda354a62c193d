"""Who a certificate speaks for: member, node or user, written in its subject in Kubernetes' words.

===========  ================================  ======================
kind         common name                       organization
===========  ================================  ======================
member       ``system:member:<name>``          ``system:members``
node         ``system:node:<name>``            ``system:nodes``
user         ``<name>``                        any groups of the user
===========  ================================  ======================

Owns the mapping, both ways. A subject that mixes kinds belongs to nobody: a certificate is either wholly a member's,
wholly a node's, or a user's with nothing of ``system:`` in it but the group ``system:masters``, which may do anything.
Knows no certificate format. Kubernetes' convention: https://kubernetes.io/docs/reference/access-authn-authz/node/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controlplane.base.errors import ConfigError, QuarterdeckError

__all__ = ["ADMINS", "Identity", "IdentityError", "IdentityKind", "identity_of_subject", "member", "node", "user"]

#: The group of those who may do anything.
ADMINS: Final = "system:masters"

_MEMBER_PREFIX, _MEMBERS = "system:member:", "system:members"
_NODE_PREFIX, _NODES = "system:node:", "system:nodes"
_SYSTEM: Final = "system:"
#: X.520's upper bound of a common name and of an organization, characters.
_SUBJECT_CHARS_MAX: Final = 64
#: What a name or group may hold: it stands in logs, file names and etcd user names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]*")


class IdentityError(QuarterdeckError):
    """The subject is nobody's: it says neither member nor node nor user, or more than one of them."""


class IdentityKind(StrEnum):
    """What a certificate's holder is."""

    MEMBER = "member"
    NODE = "node"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate's holder. ``name`` is the member's, node's or user's own, without prefix."""

    kind: IdentityKind
    name: str
    organizations: tuple[str, ...]

    @property
    def is_admin(self) -> bool:
        """Whether it may do anything."""
        return self.kind is IdentityKind.USER and ADMINS in self.organizations

    @property
    def common_name(self) -> str:
        """The subject's CN."""
        prefix = {IdentityKind.MEMBER: _MEMBER_PREFIX, IdentityKind.NODE: _NODE_PREFIX}.get(self.kind, "")
        return prefix + self.name

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def member(name: str) -> Identity:
    """The replica of that name. Raises ConfigError if it cannot stand in a certificate."""
    return _checked(Identity(IdentityKind.MEMBER, name, (_MEMBERS,)))


def node(name: str) -> Identity:
    """The node of that name. Raises ConfigError if it cannot stand in a certificate."""
    return _checked(Identity(IdentityKind.NODE, name, (_NODES,)))


def user(name: str, groups: Sequence[str] = ()) -> Identity:
    """The user of that name. Raises ConfigError if the name or a group cannot stand in a user's certificate."""
    return _checked(Identity(IdentityKind.USER, name, tuple(dict.fromkeys(groups))))


def identity_of_subject(common_name: str, organizations: Sequence[str]) -> Identity:
    """Who a certificate with that subject speaks for.

    Raises:
        IdentityError: nobody this cluster knows; says why.
    """
    found = tuple(organizations)
    if common_name.startswith(_MEMBER_PREFIX) and found == (_MEMBERS,):
        identity = Identity(IdentityKind.MEMBER, common_name.removeprefix(_MEMBER_PREFIX), found)
    elif common_name.startswith(_NODE_PREFIX) and found == (_NODES,):
        identity = Identity(IdentityKind.NODE, common_name.removeprefix(_NODE_PREFIX), found)
    else:
        identity = Identity(IdentityKind.USER, common_name, found)
    try:
        return _checked(identity)
    except ConfigError as error:
        raise IdentityError(f"the certificate's subject is nobody's: {error}") from error


def _checked(identity: Identity) -> Identity:
    name, kind = identity.name, identity.kind
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{kind} name {name!r}: want letters, digits and . _ @ : + -, the first a letter or digit")
    if len(identity.common_name) > _SUBJECT_CHARS_MAX:
        room = _SUBJECT_CHARS_MAX - len(identity.common_name) + len(name)
        raise ConfigError(f"{kind} name {name!r}: want at most {room} characters, a certificate holds no more")
    if kind is IdentityKind.USER:
        if name.startswith(_SYSTEM):
            raise ConfigError(f"user name {name!r}: names that begin with {_SYSTEM!r} are the cluster's own")
        for group in identity.organizations:
            if not _NAME.fullmatch(group) or len(group) > _SUBJECT_CHARS_MAX:
                raise ConfigError(f"group {group!r}: want at most {_SUBJECT_CHARS_MAX} letters, digits and . _ @ : + -")
            if group.startswith(_SYSTEM) and group != ADMINS:
                raise ConfigError(f"group {group!r}: of the groups that begin with {_SYSTEM!r} users have {ADMINS}")
    return identity
