"""Which backups are kept, and what goes. Pure, but for :func:`prune`, which does what was decided.

The newest snapshot always stays. A segment of the log goes when every entry in it is in the oldest snapshot that stays:
from there on, every revision can still be restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from controlplane.backup.names import SegmentName, SnapshotName
from controlplane.backup.repository import Repository
from controlplane.base.errors import ConfigError

__all__ = ["Keep", "Removal", "decide", "parse_age_s", "prune"]

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
#: A snapshot without a manifest that is so old was left by a writer that was killed.
_UNPUBLISHED_MS: Final = _HOUR_MS
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d+)([smhdw])")


@dataclass(frozen=True, slots=True)
class Keep:
    """A snapshot stays if one of these keeps it; without any of them, every one does that ``older_than_s`` does not
    take.

    Attributes:
        last: so many of the newest.
        hourly, daily: the newest of each of the last so many hours, or days (UTC), that have one.
        older_than_s: nothing younger goes. None: age alone protects nothing.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    older_than_s: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``last=24,hourly=48,daily=7``. Raises ConfigError."""
        numbers: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = part.partition("=")
            if name not in ("last", "hourly", "daily") or not number.isdecimal():
                raise ConfigError(f"retention {text!r}: want last=N,hourly=N,daily=N, any of them")
            numbers[name] = int(number)
        keep = cls(**numbers)
        keep.validate()
        return keep

    def validate(self) -> None:
        """Raises ConfigError: it says nothing."""
        if not (self.last or self.hourly or self.daily) and self.older_than_s is None:
            raise ConfigError("say what to keep: so many of the last, hourly or daily ones, or what is younger than …")


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes, and the snapshots that stay."""

    snapshots: tuple[SnapshotName, ...]
    segments: tuple[SegmentName, ...]
    unpublished: tuple[SnapshotName, ...]
    kept: tuple[SnapshotName, ...]


def parse_age_s(text: str) -> int:
    """``30d``, ``1h30m`` in seconds. Raises ConfigError."""
    if not text or _AGE.sub("", text):
        raise ConfigError(f"age {text!r}: want a duration such as 30d, 12h or 1h30m")
    return sum(int(number) * _UNITS_S[unit] for number, unit in _AGE.findall(text))


def decide(
    snapshots: Iterable[SnapshotName],
    segments: Iterable[SegmentName],
    unpublished: Iterable[SnapshotName],
    keep: Keep,
    now_ms: int,
) -> Removal:
    """What goes by these rules."""
    keep.validate()
    newest_first = sorted(snapshots, reverse=True)
    kept = set(newest_first[: max(1, keep.last)])
    kept |= _newest_of_each(newest_first, keep.hourly, _HOUR_MS) | _newest_of_each(newest_first, keep.daily, _DAY_MS)
    if keep.older_than_s is not None:
        kept |= {name for name in newest_first if now_ms - name.created_at_ms <= 1000 * keep.older_than_s}
    oldest = min((name.index for name in kept), default=0)
    return Removal(
        snapshots=tuple(name for name in reversed(newest_first) if name not in kept),
        segments=tuple(name for name in sorted(segments) if name.last <= oldest),
        unpublished=tuple(name for name in unpublished if now_ms - name.created_at_ms > _UNPUBLISHED_MS),
        kept=tuple(name for name in newest_first if name in kept),
    )


def _newest_of_each(newest_first: Sequence[SnapshotName], count: int, span_ms: int) -> set[SnapshotName]:
    newest: dict[int, SnapshotName] = {}
    for name in newest_first:
        if len(newest) == count and name.created_at_ms // span_ms not in newest:
            break
        newest.setdefault(name.created_at_ms // span_ms, name)
    return set(newest.values()) if count else set()


def prune(
    repository: Repository,
    keep: Keep,
    now_ms: int,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Removal:
    """Decide and remove. Killed in between, it leaves more than it should, never less.

    Raises:
        StorageError: the store refused.
    """
    removal = decide(repository.snapshots(), repository.segments(), repository.unpublished(), keep, now_ms)
    if dry_run:
        return removal
    # Segments last, and snapshots from the oldest on: what is left can be restored without a gap at any moment.
    for snapshot in (*removal.unpublished, *removal.snapshots):
        repository.remove_snapshot(snapshot)
        say(f"removed {repository.locate(snapshot)}")
    for segment in removal.segments:
        repository.remove_segment(segment)
    if removal.segments:
        say(f"removed {len(removal.segments)} segments of the log")
    return removal
