"""A long range read in steps, so that nothing else on the loop waits for all of it.

Owns one read's place: it shows the keyspace as it was when it began, however many writes, compactions or restores come
between two steps. Only for ranges in key order without filters, at the current revision (:func:`worth_it`). Must not
know who waits, or for how long.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.keyspan import span
from controlplane.store.mvcc import Keyspace
from controlplane.store.query import in_key_order
from controlplane.store.wire import varint, without_value

__all__ = ["Scan", "worth_it"]

#: Fewer keys are read at once.
_KEYS_MIN: Final = 1_000


def worth_it(keyspace: Keyspace, request: e.RangeRequest) -> bool:
    """Whether a range is long enough to be read in steps, and plain enough."""
    if not request.range_end or request.count_only or 0 < request.limit < _KEYS_MIN or not in_key_order(request):
        return False
    if request.revision not in (0, keyspace.revision):
        return False
    return keyspace.count(span(request.key, request.range_end)) > _KEYS_MIN


class Scan:
    """One read. Call :meth:`step` until it returns None, then :meth:`end`; :meth:`close` when done or given up."""

    def __init__(self, keyspace: Keyspace, request: e.RangeRequest) -> None:
        keys = span(request.key, request.range_end)
        #: What it shows.
        self.revision = keyspace.revision
        self._keyspace = keyspace
        self._pin = keyspace.pin()
        self._count = keyspace.count(keys)
        self._more = 0 < request.limit < self._count
        self._keys_only = request.keys_only
        found = keyspace.scan_at(keys, self.revision)
        self._versions = islice(found, request.limit) if self._more else found

    def step(self, keys_max: int) -> bytes | None:
        """The next keys as serialized fields of a RangeResponse; None: there are no more."""
        versions = list(islice(self._versions, keys_max))
        if not versions:
            return None
        if self._keys_only:
            return b"".join([without_value(version.frame) for version in versions])
        return b"".join([version.frame for version in versions])

    def end(self) -> bytes:
        """The fields after the keys."""
        return (b"\x18\x01" if self._more else b"") + b"\x20" + varint(self._count)

    def close(self) -> None:
        """Let compaction go on. Safe to call twice."""
        self._keyspace.unpin(self._pin)
