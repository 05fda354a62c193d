"""The log as pysyncobj's engine sees it, with one rule of Raft put back: truncation only on conflict.

Owns the entries in memory and what of them goes to the write-ahead log. Knows nothing of messages or the driver.

pysyncobj deletes everything behind ``prevLogIdx`` on every AppendEntries, matching or not, and then adds the
message's entries. Between the two, entries that this replica has acknowledged would be gone; when the message is a
resend of a prefix, they would stay gone. Here, instead (Ongaro's dissertation, figure 3.1, AppendEntries step 3):

- :meth:`RaftJournal.deleteEntriesFrom` sets the tail *aside*: hidden, not deleted;
- adding an entry with the same index and term takes it back from there, without a write;
- adding one with a different term drops the rest of the aside for good: that is the conflict, and the only time
  that a truncation is recorded;
- :meth:`RaftJournal.handler_ended` puts back what is left.

The aside must stay hidden until the handler ends, since the engine commits up to the last index it sees and would
commit an unverified tail. For the same reason the engine lowers its commit index to the shortened log; the journal
keeps the highest one ever set (:attr:`RaftJournal.commit_index`), for the adapter to restore.

Positions (``item``, ``entryFrom``, ``entryTo``) are list positions; indices are Raft's. The engine sends what is
behind position 0, never position 0 itself: after a snapshot at index N was installed, a placeholder for N is there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from pysyncobj.journal import Journal

from controlplane.base.errors import CorruptStateError
from controlplane.raft.metrics import LOG_BYTES, WAL_TRUNCATED_ENTRIES
from controlplane.raft.wal import Entry, Flush, HardState, Recovered, Wal

__all__ = ["Base", "RaftJournal"]

_log = logging.getLogger("quarterdeck.journal")

#: The engine's value for "nothing but the first entry is committed".
_FIRST_COMMIT_INDEX = 1
#: The engine's command that does nothing.
_NO_OP = b"\x01"


@dataclass(frozen=True, slots=True)
class Base:
    """Where a snapshot leaves the log: everything up to ``index``, an entry of ``term``, is in the snapshot."""

    index: int
    term: int

    def placeholder(self) -> Entry:
        """What stands at position 0 for the entry at ``index``. Only its index and term are ever looked at."""
        return _NO_OP, self.index, self.term


class RaftJournal(Journal):  # type: ignore[misc] # pysyncobj has no types
    """The engine's journal over a :class:`Wal`.

    Args:
        wal: the open log.
        recovered: what opening it found; None for a log just created empty.
        base: the snapshot the state machine was restored from, if any.

    Raises:
        CorruptStateError: log and snapshot leave a gap between them, contradict each other, or end before an entry
            that was committed.
    """

    def __init__(self, wal: Wal, recovered: Recovered | None = None, base: Base | None = None) -> None:
        self._wal = wal
        #: What the engine sees.
        self._entries: list[Entry] = list(recovered.entries) if recovered else []
        #: Hidden tail, last entry first, so that taking the next one back is a pop.
        self._aside: list[Entry] = []
        self._commit_index = wal.hard_state.commit_index
        self._commit_hint_due = False
        first = recovered.first_index if recovered else 1
        if base is not None:
            self._begin_at(base, first)
        elif first != 1:
            raise CorruptStateError(
                f"the log begins at entry {first} and there is no usable snapshot of what was before. "
                "Replace this member"
            )
        self._commit_index = max(_FIRST_COMMIT_INDEX, self._commit_index)
        if self._commit_index > max(_FIRST_COMMIT_INDEX, self.last_index):
            # The hint is written with or after the entries it speaks of, so no crash leaves it without them.
            raise CorruptStateError(
                f"the log ends at entry {self.last_index}, before entry {self._commit_index}, which was committed: "
                "this data directory has lost acknowledged entries and nothing of it is served. Replace this member"
            )
        self._bytes = 0
        self._account(_bytes_of(self._entries))

    def _begin_at(self, base: Base, first: int) -> None:
        """Make the log go on from the snapshot. Entries it also holds stay, for followers that are behind."""
        end = first + len(self._entries)
        if first > base.index + 1:
            raise CorruptStateError(
                f"the log begins at entry {first}, the newest usable snapshot ends at {base.index}: the entries "
                "between are missing. Replace this member"
            )
        if first == base.index + 1:
            self._entries.insert(0, base.placeholder())
        elif end <= base.index:
            # The leader sent the snapshot, and we stopped before the log was told.
            self._restart_at(base)
        elif self._entries[base.index - first][2] != base.term:
            if self._commit_index >= base.index:
                raise CorruptStateError(
                    f"committed entry {base.index} has term {self._entries[base.index - first][2]} in the log and "
                    f"{base.term} in the snapshot. Replace this member"
                )
            # As above, and what we had there was never committed: a snapshot holds committed entries only.
            self._restart_at(base)
        self._commit_index = max(self._commit_index, base.index)

    def _restart_at(self, base: Base) -> None:
        self._entries = [base.placeholder()]
        self._wal.restart_after(base.index, base.term)

    # -- pysyncobj's interface (its names) --------------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry, or take it back from the aside if it is the one that was there.

        Raises:
            CorruptStateError: the engine breaks Raft's rules: a gap, or another entry in a committed one's place.
        """
        if self._aside and self._take_back(idx, term):
            return
        if self._entries and idx != self._entries[-1][1] + 1:
            raise CorruptStateError(f"the engine adds entry {idx} behind entry {self._entries[-1][1]}")
        self._wal.append_entry(command, idx, term)
        self._entries.append((command, idx, term))
        self._account(len(command))

    def _take_back(self, idx: int, term: int) -> bool:
        """Whether the aside had this entry. If not, it is a conflict, and the aside is gone."""
        _, hidden_index, hidden_term = self._aside[-1]
        if idx != hidden_index:
            raise CorruptStateError(f"the engine adds entry {idx} where entry {hidden_index} was")
        if term == hidden_term:
            self._entries.append(self._aside.pop())
            return True
        if idx <= self._commit_index:
            raise CorruptStateError(
                f"committed entry {idx} of term {hidden_term} would be replaced by one of term {term}"
            )
        _log.info("conflicting tail dropped from=%d entries=%d new_term=%d", idx, len(self._aside), term)
        WAL_TRUNCATED_ENTRIES.inc(len(self._aside))
        self._wal.truncate_from(idx)
        self._account(-_bytes_of(self._aside))
        self._aside.clear()
        return False

    def clear(self) -> None:
        """The library clears the log to load a dump of its own, which never happens here: see :meth:`install`."""
        raise CorruptStateError("the engine wants to clear the log")

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - the engine's names
        """Hide entries from this position on, until :meth:`handler_ended`."""
        self._aside.extend(reversed(self._entries[entryFrom:]))
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        """Forget entries before this position in memory: a durable snapshot has them.

        On disk they go segment by segment with :meth:`Wal.compact_to`, so there is nothing that could be torn.
        """
        self._account(-_bytes_of(self._entries[:entryTo]))
        del self._entries[:entryTo]

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Remember the highest; a lower one is the engine looking at a shortened log."""
        self._commit_index = max(self._commit_index, raftCommitIndex)

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Record term and vote.

        Raises:
            CorruptStateError: the term goes back, or a second vote in one term.
        """
        known = self._wal.hard_state
        if (term, votedForNodeId) == (known.term, known.voted_for):
            return
        if term == known.term and known.voted_for is not None:
            raise CorruptStateError(f"second vote in term {term}: {known.voted_for}, then {votedForNodeId}")
        self._wal.record_hard_state(HardState(term, votedForNodeId, self._commit_index))

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._wal.hard_state.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._wal.hard_state.voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Let an idle replica's commit index reach the disk, so that a restart applies up to there at once."""
        self._commit_hint_due = True

    def _destroy(self) -> None:
        """Nothing: the driver, which has the last flush to make, closes the log."""

    # -- for the adapter and the driver -----------------------------------------------------------------------------

    def handler_ended(self) -> None:
        """Put back what is left of the hidden tail. Call after every message handler of the engine."""
        if self._aside:
            if self._aside[-1][1] != self.last_index + 1:
                raise CorruptStateError(f"entry {self.last_index} and hidden entry {self._aside[-1][1]} do not meet")
            self._entries.extend(reversed(self._aside))
            self._aside.clear()

    def install(self, index: int, term: int) -> None:
        """A snapshot from the leader, durable already, replaces the log, which goes on behind ``index``.

        If the log holds that very entry it only becomes the first one: what follows it may be acknowledged.

        Raises:
            CorruptStateError: the snapshot is older than what is committed here.
        """
        if index < self._commit_index:
            raise CorruptStateError(
                f"a snapshot that ends at {index} would replace a log committed up to {self._commit_index}"
            )
        if self.term_at(index) == term:
            self.deleteEntriesTo(index - self.first_index)
        else:
            self._restart_at(Base(index, term))
            self._bytes = 0
            self._account(_bytes_of(self._entries))
        self._commit_index = index

    def take_dirty(self) -> Flush | None:
        """What this turn must make durable before anything it produced may leave; None if nothing.

        Carry it to :meth:`Wal.write_and_sync` off the loop; see there.
        """
        if self._aside:
            raise CorruptStateError("handler_ended() was not called: part of the log is still hidden")
        known = self._wal.hard_state
        if known.commit_index < self._commit_index and (self._wal.dirty or self._commit_hint_due):
            self._wal.record_hard_state(HardState(known.term, known.voted_for, self._commit_index))
        self._commit_hint_due = False
        return self._wal.take_dirty()

    @property
    def wal(self) -> Wal:
        return self._wal

    @property
    def first_index(self) -> int:
        """Index of the entry at position 0; the engine can send what is behind it. 1 in an empty log."""
        return self._entries[0][1] if self._entries else 1

    @property
    def last_index(self) -> int:
        """Index of the last visible entry; 0 when there is none."""
        return self._entries[-1][1] if self._entries else 0

    @property
    def commit_index(self) -> int:
        """The highest commit index ever set. Durable only as a hint."""
        return self._commit_index

    @property
    def bytes_in_log(self) -> int:
        """Bytes of the commands held in memory, hidden ones included."""
        return self._bytes

    def term_at(self, index: int) -> int | None:
        """Term of a visible entry, or None if it is not held."""
        position = index - self.first_index
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def _account(self, delta_bytes: int) -> None:
        self._bytes += delta_bytes
        LOG_BYTES.set(self._bytes)


def _bytes_of(entries: Sequence[Entry]) -> int:
    return sum(len(command) for command, _, _ in entries)
