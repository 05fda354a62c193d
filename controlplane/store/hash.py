"""A rolling hash of everything applied, so that replicas can compare themselves all the time.

Each applied proposal is chained: ``chain = H(chain, request id, reply, versions written)``. What is published is the
chain as it was when the current revision was made, so two replicas at one revision publish the same value exactly when
they applied the same log prefix with the same effects; what does not make a revision (leases, checkpoints, rejections)
shows in the value of the next one. Beside it the chain at recent log indexes is kept, which shows everything at once:
that is what replicas compare (``etcd.integrity``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Final

__all__ = ["StateHash"]

#: Recent revisions, and recent log indexes, whose hash is kept, for comparing with a replica that is a little behind.
_RECENT_MAX: Final = 1024
_LENGTHS: Final = Struct(">II")


class StateHash:
    """The chain, and its value at recent revisions."""

    def __init__(self, chain: bytes = b"\0" * 16, revision: int = 1, published: bytes = b"\0" * 16) -> None:
        self.chain = chain
        self.published = published
        self._recent = OrderedDict({revision: published})
        self._marks: OrderedDict[int, bytes] = OrderedDict()

    def fold(self, request_id: bytes, reply: bytes, frames: Sequence[bytes]) -> None:
        """Chain one applied proposal and the framed versions it wrote."""
        lengths = _LENGTHS.pack(len(request_id), len(reply))
        self.chain = blake2b(b"".join((self.chain, lengths, request_id, reply, *frames)), digest_size=16).digest()

    def publish(self, revision: int) -> None:
        """The chain's value now is the hash of this revision."""
        self.published = self._recent[revision] = self.chain
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    def mark(self, index: int) -> None:
        """The chain's value now is the hash of the state after the entry at this log index."""
        self._marks[index] = self.chain
        if len(self._marks) > _RECENT_MAX:
            self._marks.popitem(last=False)

    def at_index(self, index: int) -> bytes | None:
        """The hash after a recent log entry; None when it is too old, not reached, or from before a restore."""
        return self._marks.get(index)

    def at(self, revision: int) -> bytes | None:
        """The hash of a recent revision; None when it is too old, not reached, or from before a restore."""
        return self._recent.get(revision)
