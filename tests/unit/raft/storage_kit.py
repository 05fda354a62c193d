"""What the storage tests share: an identity, a log to write, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.raft.disk import Disk
from controlplane.raft.wal import Entry, HardState, Identity, Wal

ME = Identity(cluster_id=0xC1, member_id=0xA1)


def entry(index: int, term: int = 1, size: int = 20) -> Entry:
    """An entry that can be told from every other one."""
    return f"{index}/{term}/".encode().ljust(size, b"."), index, term


@dataclass
class Written:
    """A log being written, and what of it was synced."""

    wal: Wal
    synced: list[Entry] = field(default_factory=list)
    synced_state: HardState = field(default_factory=HardState)
    given: list[Entry] = field(default_factory=list)

    def append(self, count: int, *, term: int = 1, size: int = 20) -> None:
        first = self.given[-1][1] + 1 if self.given else 1
        for index in range(first, first + count):
            self.given.append(entry(index, term, size))
            self.wal.append_entry(*self.given[-1])

    def vote(self, term: int, voted_for: str | None = None) -> None:
        self.wal.record_hard_state(HardState(term, voted_for))

    def truncate(self, index: int) -> None:
        self.wal.truncate_from(index)
        del self.given[index - 1 :]

    def flush(self) -> None:
        self.wal.flush()
        self.synced = list(self.given)
        self.synced_state = self.wal.hard_state


def new_log(disk: Disk, *, segment_bytes: int = 1 << 20) -> Written:
    return Written(Wal.create(disk, ME, segment_bytes=segment_bytes))
