"""A real process is killed at every failpoint there is, under writes, and nothing acknowledged is ever lost.

One cluster of three lives through all of them, one after another: each failpoint meets what those before it left.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane import quarantine
from controlplane.base.failpoints import FAILPOINTS, VARIABLE
from tests.integration.etcd_rig import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
_PATIENCE_S = 20.0
_WRITERS = 1
#: Log entries that a replica must miss so that only a snapshot brings it up (see CONFIG in crash_replica.py).
_MISSED_WRITES = 300


class DiedError(Exception):
    """The process ended before it answered."""


class Member:
    """One replica's process, whatever becomes of it."""

    def __init__(self, name: str, folder: Path, cluster: str) -> None:
        self.name = name
        self._cluster = cluster
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.log = folder / f"{name}.log"
        self.data_dir = folder / name

    async def start(self, failpoint: str = "") -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.crash_replica", self.name, str(self.data_dir),
                self._cluster,
                cwd=REPOSITORY, env={**os.environ, VARIABLE: failpoint},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, limit=1 << 24,
            )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = json.loads(line)
            waiter = self._waiting.pop(answer["id"], None)
            if waiter is not None and not waiter.done():
                waiter.set_result(answer)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(DiedError(self.name))

    async def ask(self, op: str, **request: str) -> dict[str, Any]:
        """Raises DiedError."""
        process = self._process
        if process is None or process.returncode is not None or self._reader is None or self._reader.done():
            raise DiedError(self.name)
        assert process.stdin is not None
        number = next(self._ids)
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        process.stdin.write(json.dumps({"id": number, "op": op, **request}).encode() + b"\n")
        answer: dict[str, Any] = await waiter
        return answer

    async def ended(self) -> int:
        """Wait for its death; the exit code."""
        assert self._process is not None
        assert self._reader is not None
        code = await self._process.wait()
        await self._reader
        return code

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self.ended()


class Cluster:
    """Three members, the writes that go on, and what was acknowledged of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("a", "b", "c")
        cluster = json.dumps([(name, f"127.0.0.1:{free_port()}") for name in names])
        self.members = [Member(name, folder, cluster) for name in names]
        self.acknowledged: dict[str, str] = {}
        self._numbers = itertools.count()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Writes go on, a writer at each member, as long as it lives."""
        writers = [asyncio.create_task(self._write(m)) for m in self.members for _ in range(_WRITERS)]
        try:
            yield
        finally:
            for writer in writers:
                writer.cancel()
            failures = await asyncio.gather(*writers, return_exceptions=True)
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure

    async def _write(self, member: Member) -> None:
        while True:
            await self.put(member)

    async def put(self, member: Member) -> bool:
        number = next(self._numbers)
        key, value = f"key-{number}", f"value-{number}-" + os.urandom(60).hex()
        try:
            answer = await member.ask("put", key=key, value=value)
        except DiedError:
            await asyncio.sleep(0.02)
            return False
        if answer["acknowledged"]:
            self.acknowledged[key] = value
        return bool(answer["acknowledged"])

    async def leader(self, among: list[Member]) -> Member:
        """Somebody all of them follow."""
        for _ in patience("a leader"):
            names = {(await member.ask("status"))["leader"] for member in among}
            if len(names) == 1 and None not in names:
                found = [m for m in among if m.name in names]
                if found:
                    return found[0]
            await asyncio.sleep(0.02)
        raise AssertionError

    async def converge(self) -> None:
        """All three stand at one revision, with one hash."""
        for _ in patience("three equal replicas"):
            states = [await member.ask("status") for member in self.members]
            if all(s["ready"] for s in states) and len({(s["applied"], s["revision"], s["hash"]) for s in states}) == 1:
                return
            await asyncio.sleep(0.02)

    async def lose_nothing(self) -> None:
        for member in self.members:
            keys = (await member.ask("keys"))["keys"]
            lost = {key for key, value in self.acknowledged.items() if keys.get(key) != value}
            assert not lost, f"{member.name} lost {len(lost)} acknowledged writes, such as {min(lost)}"


def patience(what: str) -> Iterator[None]:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        yield
    raise AssertionError(f"waited {_PATIENCE_S:g} s for {what}")


async def at_start(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Steps of opening what is on disk."""
    await victim.kill()
    await victim.start(failpoint)


async def far_behind(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Steps of taking a snapshot over from the leader."""
    await victim.kill()
    others = [member for member in cluster.members if member is not victim]
    leader = await cluster.leader(others)
    for _ in range(_MISSED_WRITES // 4):
        await asyncio.gather(*(cluster.put(leader) for _ in range(2)))
    await victim.start(failpoint)


async def at_an_election(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Steps of voting: the victim's leader dies."""
    leader = await cluster.leader(cluster.members)
    if leader is victim:
        # It will follow whoever is elected meanwhile, and vote when that one goes in turn.
        await victim.kill()
        leader = await cluster.leader([member for member in cluster.members if member is not victim])
        await victim.start()
        await cluster.converge()
    await victim.ask("arm", spec=failpoint)
    await leader.kill()
    await leader.start()


async def under_writes(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Everything that comes along when there are writes."""
    await victim.ask("arm", spec=failpoint)


async def at_the_first_start(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Steps of founding: nothing is on disk yet."""
    await victim.start(failpoint)


async def condemned(cluster: Cluster, victim: Member, failpoint: str) -> None:
    """Steps of marking a directory that must not be started from."""
    await victim.ask("arm", spec=failpoint)
    with pytest.raises(DiedError):
        await victim.ask("condemn")


#: These replicas have a log and a state, and nothing to schedule. Nobody recovers them: ``test_lost_quorum.py`` does.
STEPS = tuple(name for name in FAILPOINTS if not name.startswith(("bind.", "recover.")))


def provocation(name: str) -> Any:
    if name.startswith("founding."):
        return at_the_first_start
    if name.startswith("quarantine."):
        return condemned
    if name.startswith("wal.open."):
        return at_start
    if name.startswith(("snapshot.receive.", "snapshot.install.")):
        return far_behind
    if name.startswith("term."):
        return at_an_election
    return under_writes


@pytest.mark.slow
@pytest.mark.timeout(280)
async def test_a_kill_at_every_failpoint_loses_nothing_acknowledged(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first = cluster.members[0]
    founding = [name for name in STEPS if name.startswith("founding.")]
    try:
        for name in founding:
            await killed_at(cluster, first, name)
        for member in cluster.members:
            await member.start()
        await cluster.leader(cluster.members)
        for turn, name in enumerate(name for name in STEPS if name not in founding):
            victim = cluster.members[turn % 3]
            if name == "raft.ahead.after":
                victim = await cluster.leader(cluster.members)  # whose entries are elsewhere before they are here
            await killed_at(cluster, victim, name)
            await victim.start()
            if quarantine.reason(victim.data_dir) is not None:
                assert await victim.ended() == 1, f"{name}: it started from a directory that is marked"
                assert "condemned by the test" in victim.log.read_text()
                quarantine.lift(victim.data_dir)
                await victim.start()
            await cluster.converge()
            await cluster.lose_nothing()
        logs = "".join(member.log.read_text() for member in cluster.members)
        assert "snapshot goes on arriving" in logs, "a half-received snapshot was begun anew after the restart"
        assert "condemned by the test" in logs
        assert len(cluster.acknowledged) > len(STEPS)
    finally:
        for member in cluster.members:
            await member.kill()


async def killed_at(cluster: Cluster, victim: Member, name: str) -> None:
    """The victim meets a failpoint while the others write, and dies of it."""
    # A transfer is stopped in its middle, so that there is something to go on with.
    spec = f"{name}=kill" + ("@3" if name == "snapshot.receive.write.after" else "")
    await provocation(name)(cluster, victim, spec)
    async with cluster.writing():
        try:
            async with asyncio.timeout(_PATIENCE_S):
                code = await victim.ended()
        except TimeoutError:
            raise AssertionError(f"{name} was not met in {_PATIENCE_S:g} s of writes") from None
    assert code == -signal.SIGKILL, f"{name}: {victim.name} ended with {code}: {victim.log.read_text()[-2000:]}"
    assert f"failpoint kills this process name={name}" in victim.log.read_text()
