"""May this replica's state be served? Not when the log has condemned it, nor read when a client declared it corrupt.

Owns the two refusals. Must not know how states are compared (``integrity``) or who asks.
"""

from __future__ import annotations

from controlplane.raft.types import RaftHandle
from controlplane.store.errors import corrupt
from controlplane.store.store import Store

__all__ = ["check_not_declared_corrupt", "check_sound"]


def check_sound(store: Store, raft: RaftHandle) -> None:
    """Refuse to serve anybody from a state that is not what the others' is.

    Raises:
        StatusError: DataLoss, this replica was condemned.
    """
    if store.alarms and raft.status().member_id in store.alarms.condemned:
        raise corrupt()


def check_not_declared_corrupt(store: Store) -> None:
    """Refuse a read as apply refuses writes.

    Raises:
        StatusError: DataLoss, a client has raised a CORRUPT alarm.
    """
    if store.alarms and store.alarms.corrupt:
        raise corrupt()
