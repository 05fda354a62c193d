"""Every bound of the system, by name and unit. A limit that a user meets says its name in the error."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANNOTATIONS_BYTES_MAX",
    "AUTH_NAME_CHARS_MAX",
    "AUTH_PERMISSIONS_PER_ROLE_MAX",
    "AUTH_ROLES_MAX",
    "AUTH_USERS_MAX",
    "BATCH_BYTES_MAX",
    "BATCH_PROPOSALS_MAX",
    "DEDUP_BYTES_MAX",
    "DEDUP_ENTRIES_MAX",
    "FRAME_BYTES_MAX",
    "GRPC_RECV_BYTES_MAX",
    "INBOX_BYTES_MAX",
    "INBOX_MESSAGES_MAX",
    "LEASE_TTL_S_MAX",
    "LIST_PAGE_MAX",
    "MIB",
    "OBJECT_BYTES_MAX",
    "PEER_QUEUE_BYTES_MAX",
    "PROPOSALS_PENDING_MAX",
    "REQUEST_BYTES_MAX",
    "TXN_OPS_MAX",
    "WATCHERS_MAX",
    "WATCH_BUFFER_EVENTS_MAX",
]

MIB: Final = 1024 * 1024

#: One client write (etcd's --max-request-bytes default).
REQUEST_BYTES_MAX: Final = 3 * MIB // 2
#: gRPC receive limit of a replica: the request limit and room for its envelope.
GRPC_RECV_BYTES_MAX: Final = 4 * MIB
#: Stored size of one API object.
OBJECT_BYTES_MAX: Final = MIB
#: Keys and values of one object's annotations together (Kubernetes' TotalAnnotationSizeLimitB).
ANNOTATIONS_BYTES_MAX: Final = 256 * 1024
#: Operations in one branch of a transaction (etcd's --max-txn-ops).
TXN_OPS_MAX: Final = 128
#: One Raft log entry (a batch of proposals). At least one request always fits.
BATCH_BYTES_MAX: Final = 4 * MIB
#: Proposals in one batch.
BATCH_PROPOSALS_MAX: Final = 512
#: Writes waiting on one replica; more are refused with ResourceExhausted.
PROPOSALS_PENDING_MAX: Final = 5_000
#: One frame between replicas.
FRAME_BYTES_MAX: Final = 16 * MIB
#: Bytes queued towards one peer before its link drops frames (Raft resends).
PEER_QUEUE_BYTES_MAX: Final = 64 * MIB
#: Messages of peers, and their bytes, that wait for one replica's next turn; more are dropped (Raft resends).
INBOX_MESSAGES_MAX: Final = 16_384
INBOX_BYTES_MAX: Final = 64 * MIB
#: Request ids (and replies) the store remembers for exactly-once retries.
DEDUP_ENTRIES_MAX: Final = 50_000
#: Bytes of those replies together.
DEDUP_BYTES_MAX: Final = 64 * MIB
#: Watches on one replica, and undelivered events one watch may hold before it is fed from history.
WATCHERS_MAX: Final = 100_000
WATCH_BUFFER_EVENTS_MAX: Final = 1_000
#: Longest lease, seconds (etcd's).
LEASE_TTL_S_MAX: Final = 9_000_000_000
#: Users and roles of the etcd API, and permissions of one role: what every replica keeps in memory and snapshots whole.
AUTH_USERS_MAX: Final = 10_000
AUTH_ROLES_MAX: Final = 10_000
AUTH_PERMISSIONS_PER_ROLE_MAX: Final = 1_000
#: Name of a user or role; a token, which travels in metadata, contains the user's.
AUTH_NAME_CHARS_MAX: Final = 1_024
#: One page of a list when the client names no limit.
LIST_PAGE_MAX: Final = 500
