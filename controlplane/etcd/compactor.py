"""Automatic compaction: who drops old history, and when.

Owns the pace only. Compaction is logged, so it happens on all replicas at once; memory is given back in slices, some
with each later entry. Compaction of what somebody compacted already is no error.

* :class:`AutoCompactor`, on replicas of ours: etcd's ``--auto-compaction-mode`` and ``--auto-compaction-retention``.
  Runs on every replica, whatever else works, and acts only where Raft leads; each takes note of its own revisions, so
  a new leader knows what was written when.
* :class:`Compactor`, on an external etcd: what kube-apiserver does there.

Source: etcd server/etcdserver/api/v3compactor.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.retention import Retention
from controlplane.pb.etcd import rpc_pb2
from controlplane.store.kv import KVStore

__all__ = ["INTERVAL_S", "AutoCompactor", "Compactor"]

log = logging.getLogger("quarterdeck.compactor")

#: kube-apiserver's own default for etcd; also how often the mode ``revision`` looks.
INTERVAL_S: Final = 300.0
#: The mode ``periodic`` compacts at least this often, however long history is kept.
_PERIOD_S_MAX: Final = 3_600.0
#: Notes of revisions per period.
_NOTES: Final = 10


class AutoCompactor:
    """One replica's. ``leads`` says whether this replica may act."""

    def __init__(self, kv: KVStore, clock: Clock, leads: Callable[[], bool], retention: Retention) -> None:
        self._kv = kv
        self._clock = clock
        self._leads = leads
        self._retention = retention

    async def run(self) -> None:
        """Until cancelled; returns at once if nothing is ever to be compacted."""
        if self._retention.seconds is not None:
            await self._periodic(self._retention.seconds)
        elif self._retention.revisions is not None:
            await self._by_revision(self._retention.revisions)

    async def _periodic(self, retention_s: float) -> None:
        period_s = min(retention_s, _PERIOD_S_MAX)
        #: (when, what the revision was), oldest first, a little more than the retention long.
        notes: deque[tuple[float, int]] = deque()
        due_s = self._clock.monotonic() + retention_s
        while True:
            now_s = self._clock.monotonic()
            notes.append((now_s, self._kv.revision))
            while len(notes) > 1 and notes[1][0] <= now_s - retention_s:
                notes.popleft()
            due = now_s >= due_s and notes[0][0] <= now_s - retention_s and self._leads()
            if due and await compact(self._kv, notes[0][1]):
                due_s = now_s + period_s
            await self._clock.sleep(period_s / _NOTES)

    async def _by_revision(self, revisions: int) -> None:
        done = 0
        while True:
            await self._clock.sleep(INTERVAL_S)
            until = self._kv.revision - revisions
            if until > done and self._leads() and await compact(self._kv, until):
                done = until


class Compactor:
    """Compacts to the revision of one interval ago, every interval, while it runs: a new leader starts counting anew,
    so history lives between one and two intervals."""

    def __init__(self, kv: KVStore, clock: Clock, *, interval_s: float = INTERVAL_S) -> None:
        self._kv = kv
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            revision = self._kv.revision
            await self._clock.sleep(self._interval_s)
            await compact(self._kv, revision)


async def compact(kv: KVStore, revision: int) -> bool:
    """Compact; whether it is done. What failed is tried again by the caller, later."""
    try:
        await kv.compact(rpc_pb2.CompactionRequest(revision=revision))
    except StatusError as error:
        if error.code is Code.OUT_OF_RANGE:  # somebody was faster
            return True
        log.warning("event=compaction-failed revision=%d reason=%s", revision, error.message)
        return False
    log.info("event=compacted revision=%d", revision)
    return True
