"""Two of three replicas are gone for good: the third goes on alone after `qd recover`; old ones cannot come back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from controlplane.base.clock import SystemClock
from controlplane.lost_quorum import inspect, plan, recover
from tests.integration.test_crash_points import Cluster, patience


@pytest.mark.slow
async def test_a_survivor_goes_on_alone_with_everything_and_old_members_are_sent_away(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    a, b, c = cluster.members
    try:
        for member in cluster.members:
            await member.start()
        await cluster.leader(cluster.members)
        for _ in range(60):
            await cluster.put(a)
        await cluster.converge()
        acknowledged = len(cluster.acknowledged)
        assert acknowledged
        for member in cluster.members:
            await member.kill()
        # b's machine comes back one day, with its old disk; a's does not.
        shutil.rmtree(tmp_path / "a")
        decided = plan([inspect(tmp_path / "c")])
        assert [m.name for m in decided.lost] == ["a", "b"]
        recover(decided, clock=SystemClock())
        await c.start()
        assert await cluster.leader([c]) is c
        for _ in patience("a write to the one that is left"):
            if await cluster.put(c):
                break
        keys = (await c.ask("keys"))["keys"]
        assert cluster.acknowledged.items() <= keys.items()
        assert len(cluster.acknowledged) > acknowledged
        await b.start()
        async with asyncio.timeout(20):
            await b.ended()
        assert "was removed from the cluster" in b.log.read_text()
    finally:
        for member in cluster.members:
            await member.kill()
