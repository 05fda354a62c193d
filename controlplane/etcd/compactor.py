"""Automatic compaction: the leader drops history older than a while, as kube-apiserver does for etcd.

Owns the pace only. Runs during a reign; a new leader starts counting anew, so history lives between one and two
intervals. Compaction of what somebody compacted already is no error.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.pb.etcd import rpc_pb2
from controlplane.store.kv import KVStore

__all__ = ["INTERVAL_S", "Compactor"]

log = logging.getLogger("quarterdeck.compactor")

#: kube-apiserver's own default for etcd.
INTERVAL_S: Final = 300.0


class Compactor:
    """Compacts to the revision of one interval ago, every interval."""

    def __init__(self, kv: KVStore, clock: Clock, *, interval_s: float = INTERVAL_S) -> None:
        self._kv = kv
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            revision = self._kv.revision
            await self._clock.sleep(self._interval_s)
            try:
                await self._kv.compact(rpc_pb2.CompactionRequest(revision=revision))
            except StatusError as error:
                # OUT_OF_RANGE: somebody was faster. Anything else is tried again at the next interval.
                if error.code is not Code.OUT_OF_RANGE:
                    log.warning("event=compaction-failed revision=%d reason=%s", revision, error.message)
