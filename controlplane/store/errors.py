"""What the store answers when it refuses: etcd's codes and texts, which real clients match on.

Source: etcd api/v3rpc/rpctypes/error.go. Constants are factories, so that no traceback is shared between requests.
"""

from __future__ import annotations

from typing import Final

from controlplane.base.errors import Code, QuarterdeckError, StatusError

__all__ = [
    "FORGOTTEN_TEXT",
    "CompactedError",
    "compacted",
    "corrupt",
    "duplicate_key",
    "empty_key",
    "forgotten",
    "future_revision",
    "invalid_sort_option",
    "key_not_found",
    "lease_exists",
    "lease_not_found",
    "lease_provided",
    "lease_ttl_too_large",
    "malformed",
    "no_space",
    "no_such_restore",
    "not_leader",
    "request_too_large",
    "restore_refused",
    "restore_under_way",
    "too_many_ops",
    "value_provided",
]

#: The store may have forgotten the request's id: its outcome is unknown. etcd clients treat this text as a timeout.
FORGOTTEN_TEXT: Final = "etcdserver: request timed out"


class CompactedError(QuarterdeckError):
    """A watcher needs events that compaction removed. ``compact_revision`` is where a new watch may start."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"required revision has been compacted, compact_revision={compact_revision}")
        self.compact_revision = compact_revision


def empty_key() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: key is not provided")


def key_not_found() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: key not found")


def value_provided() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: value is provided")


def lease_provided() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: lease is provided")


def too_many_ops() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")


def duplicate_key() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")


def invalid_sort_option() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")


def request_too_large() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: request is too large")


def lease_not_found() -> StatusError:
    return StatusError(Code.NOT_FOUND, "etcdserver: requested lease not found")


def lease_exists() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")


def lease_ttl_too_large() -> StatusError:
    return StatusError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")


def compacted() -> StatusError:
    return StatusError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")


def future_revision() -> StatusError:
    return StatusError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


def not_leader() -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, "etcdserver: not leader")


def no_space() -> StatusError:
    return StatusError(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


def corrupt() -> StatusError:
    return StatusError(Code.DATA_LOSS, "etcdserver: corrupt cluster")


def malformed(what: str) -> StatusError:
    """A command no proposer of ours makes."""
    return StatusError(Code.INVALID_ARGUMENT, f"quarterdeck: malformed command: {what}")


def forgotten() -> StatusError:
    """The request id may have been applied and forgotten: refused, because a second application would be worse."""
    return StatusError(Code.UNAVAILABLE, FORGOTTEN_TEXT, unknown_outcome=True)


def restore_under_way(id: bytes, revision: int) -> StatusError:
    return StatusError(
        Code.FAILED_PRECONDITION,
        f"quarterdeck: restore {id.hex()} of a snapshot of revision {revision} is under way; it ends by itself when "
        "nothing of it comes for a minute",
    )


def no_such_restore(id: bytes) -> StatusError:
    return StatusError(Code.NOT_FOUND, f"quarterdeck: there is no restore {id.hex()} under way: it was given up")


def restore_refused(why: str) -> StatusError:
    """The stage is cleared; the state is what it was."""
    return StatusError(Code.ABORTED, f"quarterdeck: the restore was given up and nothing was changed: {why}")
