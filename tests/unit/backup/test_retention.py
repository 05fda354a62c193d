"""Which backups stay: by number, by hour, by day, by age; and always what is needed for every state since."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.backup.materialize import materialize
from controlplane.backup.names import SegmentName, SnapshotName
from controlplane.backup.retention import Keep, decide, parse_age_s, prune
from controlplane.base.errors import ConfigError
from tests.unit.backup.support import Life

HOUR_MS = 3_600_000
NOW_MS = 1_000 * 24 * HOUR_MS
#: One every half hour for four days, oldest first.
SNAPSHOTS = [SnapshotName(1, 10 * n, NOW_MS - (192 - n) * HOUR_MS // 2, n) for n in range(1, 193)]
SEGMENTS = [SegmentName(10 * n + 1, 10 * n + 10, 1, n, 0) for n in range(193)]


def kept(keep: Keep) -> list[int]:
    return [name.revision for name in decide(SNAPSHOTS, SEGMENTS, (), keep, NOW_MS).kept]


@pytest.mark.parametrize(
    ("keep", "revisions"),
    [
        (Keep(last=3), [192, 191, 190]),
        (Keep(hourly=3), [192, 191, 189]),
        (Keep(daily=3), [192, 191, 143]),
        (Keep(last=2, daily=2), [192, 191]),
        (Keep(older_than_s=3_600), [192, 191, 190]),
        (Keep(last=1, older_than_s=1_800), [192, 191]),
        (Keep(older_than_s=0), [192]),
        (Keep(last=1_000), list(range(192, 0, -1))),
    ],
)
def test_what_a_rule_keeps(keep: Keep, revisions: list[int]) -> None:
    assert kept(keep) == revisions


def test_the_log_goes_that_the_oldest_snapshot_left_has() -> None:
    removal = decide(SNAPSHOTS, SEGMENTS, (), Keep(last=3), NOW_MS)
    assert removal.segments == tuple(SEGMENTS[:190])
    assert len(removal.snapshots) == 189


def test_nothing_goes_while_there_is_no_snapshot() -> None:
    removal = decide((), SEGMENTS, (), Keep(last=1), NOW_MS)
    assert (removal.snapshots, removal.segments) == ((), ())


def test_what_was_never_published_goes_after_an_hour() -> None:
    old, young = SNAPSHOTS[0], SNAPSHOTS[-1]
    assert decide((), (), (old, young), Keep(last=1), NOW_MS).unpublished == (old,)


def test_every_state_since_the_oldest_left_can_still_be_restored(tmp_path: Path) -> None:
    life = Life(tmp_path / "archive")
    for _ in range(4):
        life.save()
        for _ in range(3):
            life.put(b"k")
            life.archive(life.index, life.index)
    said: list[str] = []
    before = {path.name for path in life.root.rglob("*")}
    dry = prune(life.repository, Keep(last=2), life.now_ms, dry_run=True)
    assert {path.name for path in life.root.rglob("*")} == before
    assert prune(life.repository, Keep(last=2), life.now_ms, say=said.append) == dry
    assert [name.revision for name in life.repository.snapshots()] == [10, 7]
    assert said[-1] == "removed 6 segments of the log"
    for revision in range(7, 14):
        assert materialize(str(life.root), to_revision=revision, scratch=tmp_path / "s").revision == revision


@pytest.mark.parametrize("text", ["", "last=x", "weekly=3", "last=0", "last"])
def test_a_rule_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"want last=N|say what to keep"):
        Keep.parse(text)


def test_rules_and_ages_as_text() -> None:
    assert Keep.parse("last=8, hourly=24,daily=7") == Keep(8, 24, 7)
    assert (parse_age_s("1h30m"), parse_age_s("30d"), parse_age_s("2w")) == (5_400, 2_592_000, 1_209_600)
    for text in ("", "5", "3 days", "1h-2m"):
        with pytest.raises(ConfigError, match="want a duration"):
            parse_age_s(text)
