"""A journal in memory: the real one, on a disk that is a dictionary."""

from __future__ import annotations

from controlplane.base.clock import ManualClock
from controlplane.raft.journal import RaftJournal
from controlplane.raft.wal import Identity, Wal
from tests.sim.disk import SimDisk


def memory_journal() -> RaftJournal:
    return RaftJournal(Wal.create(SimDisk(1), Identity(1, 1), clock=ManualClock()))
