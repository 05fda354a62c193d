"""Damage to the data directory of a replica that is not running, as disks do it. For chaos and tests.

Owns where to damage what, so that nobody else has to know the files; every function says what it did, in words that
undo it. What was never synced may be lost or torn; what was synced may only rot, and then must be found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controlplane.base.errors import ConfigError
from controlplane.raft.snapshots import SNAPSHOT_DIR, SNAPSHOT_SUFFIX
from controlplane.raft.wal_format import read_frames
from controlplane.raft.wal_recovery import SEGMENT_SUFFIX, WAL_DIR

__all__ = ["Flipped", "Tail", "flip", "last_frame", "restore", "rot_target"]


@dataclass(frozen=True, slots=True)
class Tail:
    """The last frame of the log: what one flush wrote. ``start`` and ``end`` are offsets in the file."""

    path: Path
    start: int
    end: int

    def cut(self, keep: int) -> int:
        """Lose all of it but the first ``keep`` bytes; returns how many bytes were lost."""
        with self.path.open("r+b") as file:
            file.truncate(self.start + keep)
        return self.end - self.start - keep


@dataclass(frozen=True, slots=True)
class Flipped:
    """One bit turned: ``before`` and ``after`` are the byte."""

    path: Path
    offset: int
    before: int
    after: int


def last_frame(data_dir: Path) -> Tail | None:
    """The last frame of the last segment; None if it has no second one: the first says whose log it is.

    Raises:
        ConfigError: there is no log, or it is damaged already.
    """
    segments = sorted((data_dir / WAL_DIR).glob(f"*{SEGMENT_SUFFIX}"))
    if not segments:
        raise ConfigError(f"{data_dir} holds no log")
    path = segments[-1]
    data = path.read_bytes()
    scan = read_frames(data, int(path.stem, 16), None)
    if scan.damage is not None:
        raise ConfigError(f"{path} is damaged already: {scan.damage}")
    return Tail(path, scan.frames[-1][0], len(data)) if len(scan.frames) > 1 else None


def rot_target(data_dir: Path, where: str) -> tuple[Path, int, int]:
    """Where rot shall be found out: a file, and the offsets between which a bit may turn.

    Args:
        where: ``wal``: the log before its last frame, or ``snapshot``: the newest one.

    Raises:
        ConfigError: there is none.
    """
    if where == "snapshot":
        snapshots = sorted((data_dir / SNAPSHOT_DIR).glob(f"*{SNAPSHOT_SUFFIX}"))
        if not snapshots:
            raise ConfigError(f"{data_dir} holds no snapshot yet")
        return snapshots[-1], 0, snapshots[-1].stat().st_size - 1
    tail = last_frame(data_dir)
    if tail is None:
        raise ConfigError(f"{data_dir}: the last segment has one frame only: too young to rot")
    return tail.path, 0, tail.start - 1


def flip(path: Path, offset: int, bit: int) -> Flipped:
    """Turn one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([before ^ (1 << bit)]))
    return Flipped(path, offset, before, before ^ (1 << bit))


def restore(path: Path, offset: int, byte: int) -> None:
    """Put a byte back; a file that is gone meanwhile needs none."""
    if path.exists() and offset < path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([byte]))
