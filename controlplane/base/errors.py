"""The error tree of Quarterdeck. Third-party exceptions stop at the adapter that meets them and are chained.

::

    QuarterdeckError
    ├── StatusError            an answer a client gets: a gRPC code and a text (etcd's texts where etcd has one)
    ├── ConfigError            a setting is wrong: says which, what it is, what is allowed
    ├── CorruptStateError      bytes on disk or state in memory are not what they must be: fail-stop
    ├── StorageError           the disk refused (ENOSPC, EIO): the replica stops acknowledging
    ├── NotCoveredError        a backup does not hold what was asked for: says what it holds
    ├── RemovedError           this replica is no longer a member, or must not come back as the one it was
    └── StoppedError           the component is shutting down

Owns the names; knows nothing of who raises them.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "Code",
    "ConfigError",
    "CorruptStateError",
    "NotCoveredError",
    "QuarterdeckError",
    "RemovedError",
    "StatusError",
    "StoppedError",
    "StorageError",
]


class Code(IntEnum):
    """google.rpc.Code / gRPC status codes (same numbers), so that pure packages need not import grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class QuarterdeckError(Exception):
    """Root of everything this project raises on purpose."""


class StatusError(QuarterdeckError):
    """A request failed, for a reason its client is told.

    Args:
        code: gRPC status code.
        message: the text, which real etcd clients match on where etcd defines it.
        unknown_outcome: a write that may or may not have happened; retry only under the same request id.
    """

    def __init__(self, code: Code, message: str, *, unknown_outcome: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.unknown_outcome = unknown_outcome


class ConfigError(QuarterdeckError):
    """A setting is wrong. The message names it, its value, and what is allowed."""


class CorruptStateError(QuarterdeckError):
    """Durable or replicated state is damaged. Never caught to go on: the process stops."""


class StorageError(QuarterdeckError):
    """The disk refused a read, a write or a sync. Nothing that depended on it is acknowledged.

    Args:
        errno: what the system said; 0 when it was not the system.
    """

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class NotCoveredError(QuarterdeckError):
    """A backup does not hold the state that was asked for, or not without a doubt. The message says what it holds."""


class RemovedError(QuarterdeckError):
    """This replica does not belong to the cluster (any more): it stops for good. The message says what to do."""


class StoppedError(QuarterdeckError):
    """The component is stopped or stopping."""
