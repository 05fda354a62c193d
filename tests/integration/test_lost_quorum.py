"""Two of three replicas are gone for good: the third goes on alone after `qd recover`; old ones cannot come back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from controlplane import quarantine
from controlplane.base.clock import SystemClock
from controlplane.base.failpoints import FAILPOINTS, VARIABLE
from controlplane.lost_quorum import TERM_BUMP, inspect, plan, recover
from tests.integration.test_crash_points import REPOSITORY, Cluster, patience


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


#: What `qd recover --yes` does, as a process that a failpoint can kill.
_RECOVER = """
import sys
from pathlib import Path
from controlplane.base import failpoints
from controlplane.base.clock import SystemClock
from controlplane.lost_quorum import inspect, plan, recover
failpoints.arm_from_environment()
recover(plan([inspect(Path(name)) for name in sys.argv[1:]]), clock=SystemClock())
"""


async def recovering(*directories: Path, failpoint: str = "") -> int:
    """Recover from these; the exit code."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RECOVER, *map(str, directories), cwd=REPOSITORY, env={**os.environ, VARIABLE: failpoint}
    )
    return await asyncio.wait_for(process.wait(), 60)


@pytest.mark.slow
@pytest.mark.timeout(280)
async def test_a_kill_at_every_step_of_a_recovery_loses_nothing_and_lets_nobody_start_half_of_it(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path)
    a, _, c = cluster.members
    found, survivors = tmp_path / "found", (tmp_path / "a", tmp_path / "c")
    try:
        for member in cluster.members:
            await member.start()
        await cluster.leader(cluster.members)
        for _ in range(60):
            await cluster.put(a)
        await cluster.converge()
        for member in cluster.members:
            await member.kill()
        shutil.rmtree(tmp_path / "b")
        for survivor in survivors:
            shutil.copytree(survivor, found / survivor.name)
        chosen = plan([inspect(survivor) for survivor in survivors]).chosen.name
        for name in (name for name in FAILPOINTS if name.startswith("recover.")):
            for hit in (1, 2, 3, 4) if name == "recover.new.after" else (1, 3) if name == "recover.old.after" else (1,):
                for survivor in survivors:
                    shutil.rmtree(survivor)
                    shutil.copytree(found / survivor.name, survivor)
                if name == "recover.undo.after":
                    assert await recovering(*survivors, failpoint="recover.new.after=kill@2") == -signal.SIGKILL
                assert await recovering(*survivors, failpoint=f"{name}=kill@{hit}") == -signal.SIGKILL, name
                left = a if chosen == "a" else c
                if quarantine.reason(left.data_dir) is not None:
                    await left.start()
                    assert await left.ended() == 1, f"{name}@{hit}: half of a recovery was started from"
                if name != "recover.lift.after":  # of which nothing is left to do
                    assert await recovering(*survivors) == 0, f"{name}@{hit}"
                await left.start()
                assert await cluster.leader([left]) is left
                keys = (await left.ask("keys"))["keys"]
                assert cluster.acknowledged.items() <= keys.items(), f"{name}@{hit}"
                await left.kill()
                assert inspect(left.data_dir).current_term > TERM_BUMP
    finally:
        for member in cluster.members:
            await member.kill()
