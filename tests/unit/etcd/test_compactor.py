"""Automatic compaction, on a clock that moves when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controlplane.base.errors import ConfigError
from controlplane.base.retention import Retention, parse_retention
from controlplane.etcd.compactor import AutoCompactor
from tests.unit.etcd.fakes import Replica, put, settle


@asynccontextmanager
async def compacting(replica: Replica, retention: Retention, *, leads: bool = True) -> AsyncIterator[None]:
    task = asyncio.ensure_future(AutoCompactor(replica.kv, replica.clock, lambda: leads, retention).run())
    await settle()
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def pass_time(replica: Replica, seconds: float, *, writes_each: int = 1, step_s: float = 6) -> None:
    for _ in range(int(seconds / step_s)):
        for _ in range(writes_each):
            await put(replica.kv, b"k")
        replica.clock.advance(step_s)
        await settle()


async def test_history_older_than_the_retention_goes_and_younger_stays() -> None:
    replica = Replica()
    async with compacting(replica, Retention(seconds=60)):
        await pass_time(replica, 54)
        assert replica.store.compact_revision == 0
        await pass_time(replica, 120)
        assert replica.store.compact_revision > 1
        # Ten writes a minute: a minute's worth is kept, and what one period more has made.
        assert 10 <= replica.store.revision - replica.store.compact_revision <= 20


async def test_by_revision_so_many_revisions_stay() -> None:
    replica = Replica()
    async with compacting(replica, Retention(revisions=25)):
        await pass_time(replica, 300, writes_each=2)
        assert replica.store.compact_revision == replica.store.revision - 25
        before = replica.store.compact_revision
        await pass_time(replica, 300, writes_each=0)
        assert replica.store.compact_revision == before


async def test_only_the_leader_compacts_and_a_new_one_knows_what_is_old() -> None:
    replica = Replica()
    leads = False
    compactor = AutoCompactor(replica.kv, replica.clock, lambda: leads, Retention(seconds=60))
    task = asyncio.ensure_future(compactor.run())
    await settle()
    await pass_time(replica, 180)
    assert replica.store.compact_revision == 0
    leads = True
    await pass_time(replica, 12)
    assert replica.store.compact_revision > 10
    task.cancel()


async def test_a_compaction_that_fails_is_tried_again() -> None:
    replica = Replica()
    async with compacting(replica, Retention(seconds=60)):
        await pass_time(replica, 54)
        replica.raft.set_leader(None)
        for _ in range(3):
            replica.clock.advance(6)
            await settle()
        assert replica.store.compact_revision == 0
        replica.raft.set_leader("r1")
        await pass_time(replica, 12)
        assert replica.store.compact_revision > 0


async def test_zero_keeps_everything() -> None:
    replica = Replica()
    await AutoCompactor(replica.kv, replica.clock, lambda: True, parse_retention("periodic", "0")).run()


@pytest.mark.parametrize(
    ("mode", "text", "wanted"),
    [
        ("periodic", "5m", Retention(seconds=300)),
        ("periodic", "1h30m", Retention(seconds=5_400)),
        ("periodic", "72", Retention(seconds=72 * 3_600)),
        ("periodic", "0", Retention()),
        ("periodic", "0s", Retention()),
        ("revision", "1000", Retention(revisions=1_000)),
        ("revision", "0", Retention()),
    ],
)
def test_retention_is_said_as_etcds_flags_say_it(mode: str, text: str, wanted: Retention) -> None:
    assert parse_retention(mode, text) == wanted


@pytest.mark.parametrize(
    ("mode", "text"), [("periodic", ""), ("periodic", "soon"), ("periodic", "5 m"), ("revision", "5m"), ("never", "1")]
)
def test_a_wrong_retention_says_what_is_wanted(mode: str, text: str) -> None:
    with pytest.raises(ConfigError, match="want"):
        parse_retention(mode, text)
