"""Cell: this control-plane process among its peers, as the API layer sees it. Protocol only.

Implemented by Raft's handle, where the replicas hold the state themselves, and by ``external.cell.ExternalCell``, where
an etcd cluster does.
"""

from __future__ import annotations

from typing import Protocol

from controlplane.raft.types import LeadershipListener, PeerHandler, RaftStatus

__all__ = ["Cell"]


class Cell(Protocol):
    """Who is here, who leads, and a way to talk to them. Called on the process's loop."""

    def status(self) -> RaftStatus: ...

    def on_leadership(self, listener: LeadershipListener) -> None:
        """Hear of leadership won and lost, with its term; at once if this process leads now."""
        ...

    def serve(self, channel: str, handler: PeerHandler) -> None:
        """Answer peers' requests on a channel."""
        ...

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask a peer by name, itself included. Raises StatusError (Unavailable) when it cannot be reached."""
        ...

    async def read_barrier(self, *, timeout_ms: int) -> int:
        """Return once the store is known to serve linearizable reads here. Raises StatusError (Unavailable)."""
        ...
