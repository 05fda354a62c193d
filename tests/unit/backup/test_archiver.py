"""What was acknowledged an interval ago is in the archive, through failures and changes of leader, or a gap is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import pytest
from prometheus_client import Counter

from controlplane.backup import archiver, metrics
from controlplane.backup.archiver import Archiver
from controlplane.backup.materialize import Materialized, materialize
from controlplane.backup.objects import ObjectStore, Stored, open_objects
from controlplane.backup.repository import Repository
from controlplane.backup.saving import Saver
from controlplane.base.clock import ManualClock
from controlplane.base.errors import NotCoveredError, StorageError
from controlplane.lost_quorum import TERM_BUMP
from controlplane.raft.snapshot_format import read_snapshot_file
from controlplane.store.store import Store
from tests.unit.backup.support import CLUSTER, T0_MS, FakeLog, InlineWorker, Life


class Killed(BaseException):
    """The process ends here."""


class Objects:
    """A folder that counts what is done to it, and refuses or ends the process on order."""

    def __init__(self, root: Path) -> None:
        self.inner: ObjectStore = open_objects(str(root))
        self.url = self.inner.url
        self.refuse = False
        self.kill_at: int | None = None
        self.steps = 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.kill_at:
            raise Killed
        if self.refuse:
            raise StorageError("the archive is away")

    def listing(self, folder: str) -> list[Stored]:
        self._step()
        return self.inner.listing(folder)

    def folders(self) -> list[str]:
        return self.inner.folders()

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def fetch(self, name: str, target: Path) -> None:
        self.inner.fetch(name, target)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        self._step()
        with self.inner.writing(name) as file:
            yield file
            self._step()  # written, not published
        self._step()  # published, nobody told

    def remove(self, name: str) -> None:
        self._step()
        self.inner.remove(name)

    def locate(self, name: str) -> str:
        return self.inner.locate(name)


class Rig:
    """An archiver over a life, in virtual time."""

    def __init__(self, tmp_path: Path, life: Life | None = None) -> None:
        self.tmp_path = tmp_path
        self.life = life or Life(tmp_path / "archive")
        self.log = FakeLog(self.life)
        self.clock = ManualClock(wall_ms=T0_MS)
        self.objects = Objects(self.life.root)
        self.archiver = self.another(self.log, self.objects)

    def another(self, log: FakeLog, objects: Objects, name: str = "r1") -> Archiver:
        repository, worker = Repository(objects, CLUSTER), InlineWorker()
        saver = Saver(log, repository, worker, scratch=self.tmp_path / f"scratch-{name}", name=name, clock=self.clock)
        return Archiver(log, log.note, repository, saver, worker, name=name, interval_s=1.0, clock=self.clock)

    @asynccontextmanager
    async def running(self, archiver: Archiver | None = None) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task((archiver or self.archiver).run())
        try:
            await self.passes(0.5)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def passes(self, seconds: float, step_s: float = 0.25) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            for _ in range(20):
                await asyncio.sleep(0)

    def found(self, revision: int | None = None) -> Materialized:
        return materialize(str(self.life.root), to_revision=revision, scratch=self.tmp_path / "found")

    def check_every_revision(self, sample: int = 1) -> None:
        """Whatever the archive gives is what the store was; and it gives all since its first snapshot. ``sample``: try
        only each so many."""
        first = min(name.revision for name in self.life.repository.snapshots())
        for revision, chain in self.life.chains.items():
            if revision < first or revision % sample:
                continue
            _, chunks = read_snapshot_file(self.found(revision).path)
            store = Store()
            store.restore(chunks)
            assert (store.revision, store.hash_at(store.applied_index)) == (revision, chain)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def count(counter: Counter) -> float:
    return float(counter._value.get())


async def test_what_was_written_is_archived_within_the_interval(rig: Rig) -> None:
    async with rig.running():
        for number in range(20):
            rig.life.put(b"k%d" % number)
            await rig.passes(0.25)
        await rig.passes(0.75)
        assert rig.found().state_hash == rig.life.store.state_hash()
        assert rig.archiver.lag_s() == 0
    rig.check_every_revision()


async def test_a_follower_archives_nothing_and_goes_on_when_it_leads(rig: Rig) -> None:
    async with rig.running():
        rig.life.put(b"a")
        await rig.passes(1)
    log = FakeLog(rig.life, leads=False)
    async with rig.running(rig.another(log, rig.objects, "r2")):
        rig.life.put(b"b")
        await rig.passes(2)
        assert rig.found().revision == 2
        log.leads = True
        await rig.passes(1)
    found = rig.found()
    assert found.revision == 3
    assert len(rig.life.repository.snapshots()) == 1


async def test_two_that_archive_at_once_do_no_harm(rig: Rig) -> None:
    rig.life.put(b"before")
    other = rig.another(FakeLog(rig.life), Objects(rig.life.root), "r2")
    async with rig.running(), rig.running(other):
        for number in range(8):
            rig.life.put(b"k%d" % number)
            await rig.passes(0.5)
        await rig.passes(1)
    rig.check_every_revision()


async def test_while_the_archive_is_away_its_lag_shows_and_nothing_is_lost(rig: Rig) -> None:
    async with rig.running():
        rig.objects.refuse = True
        failures = count(metrics.ARCHIVE_FAILURES)
        rig.life.now_ms = rig.clock.wall_ms()
        for number in range(50):
            rig.life.put(b"k%d" % number)
        await rig.passes(60, step_s=0.5)
        assert rig.archiver.lag_s() > 50
        assert 3 < count(metrics.ARCHIVE_FAILURES) - failures < 12  # ever slower
        rig.objects.refuse = False
        await rig.passes(31)
        assert rig.archiver.lag_s() == 0
    rig.check_every_revision()


async def test_a_log_that_no_longer_reaches_back_begins_anew_with_a_snapshot_and_says_so(rig: Rig) -> None:
    async with rig.running():
        gaps = count(metrics.ARCHIVE_GAPS)
        rig.objects.refuse = True
        for number in range(5):
            rig.life.put(b"k%d" % number)
        await rig.passes(5)
        rig.log.begins = rig.life.index  # compacted meanwhile
        rig.life.put(b"last")
        rig.objects.refuse = False
        await rig.passes(31)
        assert count(metrics.ARCHIVE_GAPS) == gaps + 1
    assert rig.found().revision == rig.life.store.revision
    with pytest.raises(NotCoveredError, match="revision 4 is not covered"):
        rig.found(4)


async def test_a_first_snapshot_is_gone_on_from_even_if_a_later_one_is_there(rig: Rig) -> None:
    """The clock's snapshot may come between the archive's first one and its first segment."""
    gaps = count(metrics.ARCHIVE_GAPS)
    rig.life.save()
    rig.life.put(b"between")
    rig.life.save()
    rig.life.put(b"after")
    async with rig.running():
        await rig.passes(1)
    assert [name.first for name in rig.life.repository.segments()] == [2]
    assert count(metrics.ARCHIVE_GAPS) == gaps
    rig.check_every_revision()


async def test_behind_a_gap_it_goes_on_from_a_snapshot_that_is_there(rig: Rig) -> None:
    gaps = count(metrics.ARCHIVE_GAPS)
    rig.life.save()
    rig.life.put(b"archived")
    rig.life.archive(2, 2)
    rig.life.put(b"lost")
    rig.life.put(b"kept")
    rig.life.save()
    rig.life.put(b"later")
    rig.life.save()
    rig.log.begins = 4
    async with rig.running():
        await rig.passes(1)
    assert [name.first for name in rig.life.repository.segments()] == [2, 5]
    assert len(rig.life.repository.snapshots()) == 3
    assert count(metrics.ARCHIVE_GAPS) == gaps + 1


async def test_another_history_is_not_gone_on_with(tmp_path: Path) -> None:
    old = Life(tmp_path / "archive")
    old.save()
    old.put(b"a")
    old.put(b"lost with the majority")
    old.archive(2, 3)
    rig = Rig(tmp_path, Life(tmp_path / "archive"))
    rig.life.put(b"a")
    rig.life.term = 7
    rig.life.put(b"written after the recovery")
    async with rig.running():
        await rig.passes(1)
        rig.life.put(b"and more")
        await rig.passes(1)
    found = rig.found()
    assert (found.revision, found.term, found.state_hash) == (4, 7, rig.life.store.state_hash())


async def test_a_recovered_history_is_told_from_the_lost_one_that_went_further(tmp_path: Path) -> None:
    """The lost majority had moved on to a term and to entries that the survivor had not heard of."""
    survivors_term = 6
    old = Life(tmp_path / "archive", term=survivors_term)
    old.put(b"a")
    old.term = survivors_term + 2
    for number in range(4):
        old.put(b"lost with the majority %d" % number)
    old.save()
    old.archive(2, old.index)
    rig = Rig(tmp_path, Life(tmp_path / "archive", term=survivors_term))
    rig.life.put(b"a")
    rig.life.term = survivors_term + TERM_BUMP + 1  # where it begins, and the election
    rig.life.put(b"written after the recovery")
    async with rig.running():
        await rig.passes(1)
        rig.life.put(b"and more")
        await rig.passes(1)
    found = rig.found()
    assert found.state_hash == rig.life.store.state_hash()


async def test_what_is_not_durable_is_not_archived(rig: Rig) -> None:
    rig.log.undurable = 1
    rig.life.put(b"a")
    async with rig.running():
        await rig.passes(1)
        assert rig.life.repository.snapshots() == []
        rig.log.undurable = 0
        await rig.passes(1)
        assert rig.found().revision == 2
        rig.log.undurable = 1
        rig.life.put(b"b")
        await rig.passes(2)
        assert rig.found().revision == 2


async def test_small_segments_are_put_together(rig: Rig) -> None:
    async with rig.running():
        for number in range(6):
            rig.life.put(b"k%d" % number)
            await rig.passes(1)
        assert len(rig.life.repository.segments()) == 6
        await rig.passes(300, step_s=10)
        (pack,) = rig.life.repository.segments()
        assert pack.packed
        rig.life.put(b"more")
        await rig.passes(1)
    assert len(rig.life.repository.segments()) == 2
    rig.check_every_revision()


async def test_a_steady_stream_is_a_segment_a_period_and_not_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is published the next entries come: they wait for the next period."""
    save = Repository.save_segment

    def slow(*args: Any) -> Any:
        rig.life.put(b"meanwhile")
        return save(*args)

    monkeypatch.setattr(Repository, "save_segment", slow)
    async with rig.running():
        rig.life.put(b"first")
        await rig.passes(5)
        assert 5 <= len(rig.life.repository.segments()) <= 8


async def test_what_was_missed_comes_in_one_go(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "_SEGMENT_ENTRIES", 20)
    async with rig.running():
        for _ in range(45):
            rig.life.no_op()
        await rig.passes(0.75)
        assert [name.last - name.first + 1 for name in rig.life.repository.segments()] == [20, 20, 5]


async def test_a_defect_in_the_archive_does_not_end_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.running() as task:
        monkeypatch.setattr(Repository, "save_segment", lambda *_: 1 / 0)
        rig.life.put(b"a")
        await rig.passes(1)
        assert not task.done()
        monkeypatch.undo()
        await rig.passes(31)
    assert rig.found().revision == 2


async def test_killed_at_any_step_it_leaves_only_what_was(tmp_path: Path) -> None:
    """One archiver is killed at its n-th step, the next goes on; after every such death each revision is as it was."""
    step = 0
    while True:
        step += 1
        rig = Rig(tmp_path / str(step))
        random = Random(step)
        rig.objects.kill_at = step
        killed = False
        task = asyncio.create_task(rig.archiver.run())
        for _ in range(8):
            rig.life.live(random.randrange(1 << 30), 2)
            await rig.passes(0.5)
        await rig.passes(360, step_s=60)  # a pack, too
        if task.done():
            killed = isinstance(task.exception(), Killed)
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with rig.running(rig.another(rig.log, Objects(rig.life.root), "r2")):
            rig.life.live(step, 2)
            await rig.passes(2)
        rig.check_every_revision(sample=4)
        assert rig.found().state_hash == rig.life.store.state_hash()
        if not killed:
            break
    assert step > 20
