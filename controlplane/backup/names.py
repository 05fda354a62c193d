"""What the objects of a repository are called. Pure.

::

    <cluster id, 16 hex digits>/
      snapshots/<index>-<term>-<revision>-<created ms>.qdsnap[.age]          the snapshot file, perhaps encrypted
      snapshots/<index>-<term>-<revision>-<created ms>.qdsnap[.age].json     its manifest, written last: it is published
      log/<first>-<last>-<last term>-<revision>-<closed ms>.qdlog[.age]      a segment of the log
      log/<first>-<last>-<last term>-<revision>-<closed ms>.qdpack           many small segments, in one

Numbers are hexadecimal, ``index`` and ``first`` of 16 digits, so that names sort as the log goes. A name says enough to
go on with an archive, and to choose from it, without opening anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["AGE_SUFFIX", "LOG", "MANIFEST_SUFFIX", "SNAPSHOTS", "SegmentName", "SnapshotName", "cluster_folder"]

SNAPSHOTS: Final = "snapshots"
LOG: Final = "log"
MANIFEST_SUFFIX: Final = ".json"
AGE_SUFFIX: Final = ".age"
_SNAPSHOT_SUFFIX: Final = ".qdsnap"
_SEGMENT_SUFFIX: Final = ".qdlog"
_PACK_SUFFIX: Final = ".qdpack"


def cluster_folder(cluster_id: int) -> str:
    """The folder of a cluster."""
    return f"{cluster_id:016x}"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """A snapshot by its name. Sorts as Raft does: by term, then by index; the newest is the greatest."""

    term: int
    index: int
    created_at_ms: int
    revision: int
    encrypted: bool = False

    def __str__(self) -> str:
        end = _SNAPSHOT_SUFFIX + (AGE_SUFFIX if self.encrypted else "")
        return f"{self.index:016x}-{self.term:x}-{self.revision:x}-{self.created_at_ms:x}{end}"

    @classmethod
    def parse(cls, name: str) -> SnapshotName | None:
        """None: it is no snapshot's name."""
        numbers = _numbers(name, _SNAPSHOT_SUFFIX, 4)
        if numbers is None:
            return None
        (index, term, revision, created_at_ms), encrypted = numbers
        return cls(term, index, created_at_ms, revision, encrypted)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment by its name: the entries ``first`` to ``last``, both included.

    Attributes:
        last_term: term of the last entry.
        revision: the store's, after the last entry.
        closed_at_ms: wall clock of the archiving replica when the segment was closed.
        encrypted: the segment is. Those in a pack say so themselves.
        packed: it is a pack of segments that follow one another.
    """

    first: int
    last: int
    last_term: int
    revision: int
    closed_at_ms: int
    encrypted: bool = False
    packed: bool = False

    def __str__(self) -> str:
        end = _PACK_SUFFIX if self.packed else _SEGMENT_SUFFIX + (AGE_SUFFIX if self.encrypted else "")
        return f"{self.first:016x}-{self.last:016x}-{self.last_term:x}-{self.revision:x}-{self.closed_at_ms:x}{end}"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """None: it is no segment's name."""
        packed = name.endswith(_PACK_SUFFIX)
        numbers = _numbers(name, _PACK_SUFFIX if packed else _SEGMENT_SUFFIX, 5)
        if numbers is None:
            return None
        (first, last, last_term, revision, closed_at_ms), encrypted = numbers
        return cls(first, last, last_term, revision, closed_at_ms, encrypted, packed) if first <= last else None


def _numbers(name: str, suffix: str, count: int) -> tuple[list[int], bool] | None:
    stem = name.removesuffix(AGE_SUFFIX)
    if not stem.endswith(suffix):
        return None
    parts = stem.removesuffix(suffix).split("-")
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return None
    return (numbers, stem != name) if len(numbers) == count else None
