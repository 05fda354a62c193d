"""The chaos agent, on loopback: who may order, what is on record, and what heals when nobody is there any more."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from chaos.agent.config import AgentConfig
from chaos.agent.orders import Order
from chaos.agent.server import AgentServer
from controlplane.base import identity
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.client.tls import Reloader
from controlplane.local.pki import Pki
from controlplane.local.procfs import stat_of
from controlplane.pb.quarterdeck.v1 import chaos_pb2 as pb
from controlplane.pb.quarterdeck.v1.chaos_pb2_grpc import ChaosAgentStub
from controlplane.raft.snapshots import SNAPSHOT_DIR

SLEEP = "import time\nwhile True: time.sleep(1)"


class Rig:
    """One agent, and one process ``r1`` that it may break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Pki.create(folder / "pki")
        self.pid_file = folder / "r1.pid"
        start = "import subprocess,sys;p=subprocess.Popen([sys.executable,'-c',sys.argv[1]],start_new_session=True);"
        start += "open(sys.argv[2],'w').write(str(p.pid))"
        raw = {
            "version": 1, "machine": "here", "state-dir": str(folder / "agent"),
            "processes": {"r1": {
                "kind": "replica", "endpoint": "127.0.0.1:1", "pid-file": str(self.pid_file),
                "start": [sys.executable, "-c", start, SLEEP, str(self.pid_file)],
                "failpoints-file": str(folder / "r1.failpoints"), "data-dir": str(folder / "r1"),
            }},
        }  # fmt: skip
        (folder / "agent.yaml").write_text(yaml.safe_dump(raw))
        self.config = AgentConfig.load(folder / "agent.yaml")
        files = self.pki.ensure(identity.node("chaos-agent"), ["127.0.0.1"])
        self.server = AgentServer(self.config, Reloader(files), SystemClock())

    @property
    def state(self) -> str:
        stat = stat_of(int(self.pid_file.read_text()))
        return stat.state if stat is not None and stat.alive else ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Rig]:
        await self.server.start("127.0.0.1:0")
        keeping = asyncio.create_task(self.server.run())
        try:
            yield self
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self.server.stop()

    @asynccontextmanager
    async def caller(self, who: identity.Identity | None) -> AsyncIterator[Any]:
        if who is None:
            credentials = grpc.ssl_channel_credentials(self.pki.ca.read_bytes())
        else:
            names = [] if who.kind is identity.IdentityKind.USER else ["127.0.0.1"]
            credentials = Reloader(self.pki.ensure(who, names)).channel_credentials()
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.server.port}", credentials) as channel:
            yield ChaosAgentStub(channel)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "agent" / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    with running(made):
        yield made


@contextmanager
def running(rig: Rig) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    rig.pid_file.write_text(str(child.pid))
    try:
        yield
    finally:
        child.kill()
        child.wait()
        now = int(rig.pid_file.read_text())
        if now != child.pid:
            subprocess.run(["kill", "-9", str(now)], check=False)


def order(act: str, *, order_id: str = "o1", deadline_ms: int = 60_000, **fields: Any) -> pb.ChaosOrder:
    return pb.ChaosOrder(id=order_id, process="r1", act=act, deadline_ms=deadline_ms, **fields)


async def until_state(rig: Rig, *states: str) -> None:
    async with asyncio.timeout(20):
        while rig.state not in states:  # noqa: ASYNC110 - the kernel sets no event
            await asyncio.sleep(0.01)


ADMIN = identity.user("admin", (identity.ADMINS,))


async def test_an_administrator_pauses_a_process_and_continues_it(rig: Rig) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        await agent.Strike(order("pause"))
        await until_state(rig, "T")
        described = await agent.Describe(pb.ChaosDescribeRequest())
        assert [(p.name, p.state) for p in described.processes] == [("r1", "T")]
        assert [(o.id, o.act) for o in described.orders] == [("o1", "pause")]
        await agent.Heal(pb.ChaosHealRequest(id="o1"))
        await agent.Heal(pb.ChaosHealRequest(id="o1"))
        await until_state(rig, "S", "R")
    noted = [(line["event"], line.get("caller"), line.get("outcome")) for line in rig.audit()]
    assert ("strike", "user admin", "done") in noted
    assert ("heal", "user admin", "done") in noted
    struck = next(line for line in rig.audit() if line["event"] == "strike")
    assert (struck["process"], struck["act"], struck["deadline_ms"]) == ("r1", "pause", 60_000)


@pytest.mark.parametrize("who", [identity.node("node-1"), identity.member("r1"), identity.user("joe", ("people",))])
async def test_any_other_certificate_is_refused_and_on_record(rig: Rig, who: identity.Identity) -> None:
    async with rig.serving(), rig.caller(who) as agent:
        for call in (
            agent.Strike(order("kill")), agent.Heal(pb.ChaosHealRequest(id="x")),
            agent.Describe(pb.ChaosDescribeRequest()),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert rig.state in {"S", "R"}
    refusals = [line for line in rig.audit() if str(line.get("outcome", "")).startswith("refused")]
    assert len(refusals) == 3
    assert {line["caller"] for line in refusals} == {str(who)}


async def test_without_a_certificate_or_with_a_strangers_nobody_gets_in(rig: Rig, tmp_path: Path) -> None:
    stranger = Pki.create(tmp_path / "other")
    async with rig.serving():
        async with rig.caller(None) as agent:
            with pytest.raises(grpc.aio.AioRpcError):
                await agent.Strike(order("kill"), timeout=5)
        files = stranger.admin
        credentials = grpc.ssl_channel_credentials(
            rig.pki.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        async with grpc.aio.secure_channel(f"127.0.0.1:{rig.server.port}", credentials) as channel:
            strange: Any = ChaosAgentStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await strange.Strike(order("kill"), timeout=5)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.server.port}") as channel:
            plain: Any = ChaosAgentStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await plain.Strike(order("kill"), timeout=5)
    assert rig.state in {"S", "R"}


async def test_an_order_whose_deadline_passes_is_healed_by_the_agent_alone(rig: Rig) -> None:
    async with rig.serving():
        async with rig.caller(ADMIN) as agent:
            await agent.Strike(order("pause", deadline_ms=1_000))
        await until_state(rig, "T")
        await until_state(rig, "S", "R")  # nobody asked
        assert not rig.server.orders.in_force
    assert any(line.get("caller") == "agent" and line["outcome"] == "deadline: healed" for line in rig.audit())


async def test_an_order_sent_again_moves_its_deadline_and_another_under_its_name_is_refused(rig: Rig) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        await agent.Strike(order("pause", deadline_ms=1_000))
        before = rig.server.orders.in_force["o1"].until_ms
        await agent.Strike(order("pause", deadline_ms=60_000))
        assert rig.server.orders.in_force["o1"].until_ms > before + 30_000
        with pytest.raises(grpc.aio.AioRpcError, match="is another"):
            await agent.Strike(order("kill"))


async def test_a_renewal_does_not_do_again_what_was_healed_meanwhile(rig: Rig) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        await agent.Strike(order("pause"))
        await agent.Strike(order("pause", renew=True))
        await agent.Heal(pb.ChaosHealRequest(id="o1"))
        with pytest.raises(grpc.aio.AioRpcError, match="not in force"):
            await agent.Strike(order("pause", renew=True))
        assert rig.state in {"S", "R"}
        assert not rig.server.orders.in_force


@pytest.mark.parametrize("cut_short", [False, True])
async def test_who_is_slow_to_stop_is_not_taken_for_healed(rig: Rig, cut_short: bool) -> None:
    slow = "import signal,sys,time\ndef end(*_):\n time.sleep(0.5); sys.exit()\nsignal.signal(signal.SIGTERM, end)\n"
    argv = [sys.executable, "-c", f"{slow}print(flush=True)\n{SLEEP}"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)  # noqa: ASYNC220 - it is there at once
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    rig.pid_file.write_text(str(child.pid))
    orders = rig.server.orders
    keeping = asyncio.create_task(orders.keep_deadlines())
    try:
        striking = asyncio.create_task(orders.strike(Order("o1", "r1", "stop", until_ms=0)))  # over before it has ended
        await asyncio.sleep(0.1)
        if cut_short:
            striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)
        async with asyncio.timeout(20):
            while orders.in_force:  # noqa: ASYNC110 - healed on a clock of its own
                await asyncio.sleep(0.01)
        # Not taken for healed while it was still there: it was started again after it had gone.
        assert int(rig.pid_file.read_text()) != child.pid
        assert rig.state != ""
    finally:
        keeping.cancel()
        child.kill()
        child.wait()
        rig.server._audit.close()


async def test_who_began_after_the_pid_file_was_written_is_somebody_else(rig: Rig) -> None:
    long_ago = time.time() - 3_600
    os.utime(rig.pid_file, (long_ago, long_ago))
    async with rig.serving(), rig.caller(ADMIN) as agent:
        with pytest.raises(grpc.aio.AioRpcError, match="does not run"):
            await agent.Strike(order("kill"))
    assert rig.state in {"S", "R"}


async def test_a_killed_process_is_started_again(rig: Rig) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        first = rig.pid_file.read_text()
        await agent.Strike(order("kill"))
        assert rig.state == ""
        await agent.Heal(pb.ChaosHealRequest(id="o1"))
        assert rig.pid_file.read_text() != first
        assert rig.state != ""


async def test_a_bit_of_a_stopped_replicas_snapshot_is_turned_and_turned_back(rig: Rig) -> None:
    path = rig.folder / "r1" / SNAPSHOT_DIR / "0001.snap"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))
    async with rig.serving(), rig.caller(ADMIN) as agent:
        await agent.Strike(order("kill", order_id="k"))
        struck = await agent.Strike(order("flip", where="snapshot", place=500_000, bit=3))
        assert [(at, byte) for at, byte in enumerate(path.read_bytes()) if byte] == [(struck.count, 8)]
        again = order("flip", where="snapshot", place=500_000, bit=3)
        assert (await agent.Strike(again)).count == 0  # the same order: only its deadline is another
        with pytest.raises(grpc.aio.AioRpcError, match="order o1 does that"):
            await agent.Strike(order("flip", order_id="o2", where="snapshot", place=1, bit=3))
        await agent.Heal(pb.ChaosHealRequest(id="k"))
        assert rig.state != ""
        await agent.Heal(pb.ChaosHealRequest(id="o1"))
        assert path.read_bytes() == bytes(1000)
        assert rig.state != ""  # it ran on damaged data: stopped for it, and started again


async def test_memory_is_taken_of_the_machine_until_it_is_healed(rig: Rig) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        await agent.Strike(order("memory", order_id="../../escape", mib=16))
        hogs = rig.folder / "agent" / "hogs"
        assert len(list(hogs.glob("*.json"))) == 1
        assert (await agent.Heal(pb.ChaosHealRequest(id="../../escape"))).count >= 16
        assert list(hogs.iterdir()) == []
    assert not (rig.folder.parent / "escape.json").exists()


async def test_orders_of_the_format_before_are_healed_too(rig: Rig) -> None:
    rig.server._audit.close()
    old = {"id": "o1", "process": "r1", "act": "pause", "until_ms": 0, "percent": 0, "failpoints": "", "keep": 0.0}
    (rig.folder / "agent" / "orders.json").write_text(json.dumps({"version": 1, "orders": [old]}))
    files = rig.pki.ensure(identity.node("chaos-agent"), ["127.0.0.1"])
    rig.server = AgentServer(rig.config, Reloader(files), SystemClock())
    assert list(rig.server.orders.in_force) == ["o1"]
    async with rig.serving():
        async with asyncio.timeout(20):
            while rig.server.orders.in_force:  # noqa: ASYNC110 - healed on a clock of its own
                await asyncio.sleep(0.01)


async def test_what_an_agent_that_died_has_left_is_healed_by_the_next(rig: Rig) -> None:
    await rig.server.start("127.0.0.1:0")
    async with rig.caller(ADMIN) as agent:
        await agent.Strike(order("pause"))
    await until_state(rig, "T")
    assert rig.server._server is not None
    await rig.server._server.stop(grace=0)  # no farewell, no healing
    rig.server._audit.close()
    files = rig.pki.ensure(identity.node("chaos-agent"), ["127.0.0.1"])
    rig.server = AgentServer(rig.config, Reloader(files), SystemClock())
    async with rig.serving():
        await until_state(rig, "S", "R")
    assert any(line.get("outcome") == "left by an agent that ended: healed" for line in rig.audit())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (pb.ChaosOrder(id="x", process="init", act="kill", deadline_ms=5_000), "none of this agent's"),
        (pb.ChaosOrder(id="x", process="r1", act="explode", deadline_ms=5_000), "want one of kill"),
        (pb.ChaosOrder(id="x", process="r1", act="kill", deadline_ms=5), "want 1000 to"),
        (pb.ChaosOrder(id="", process="r1", act="kill", deadline_ms=5_000), "want 1 to 100 characters"),
        (pb.ChaosOrder(id="x", process="r1", act="throttle", deadline_ms=5_000), "want 1 to 90"),
        (pb.ChaosOrder(id="x", process="r1", act="failpoints", failpoints="y", deadline_ms=5_000), "no failpoints"),
        (pb.ChaosOrder(id="x", process="r1", act="cut-tail", deadline_ms=5_000), "only a stopped replica's data"),
        (pb.ChaosOrder(id="x", process="r1", act="flip", where="wal", deadline_ms=5_000), "only a stopped replica's"),
        (pb.ChaosOrder(id="x", process="r1", act="flip", where="/etc/passwd", deadline_ms=5_000), "wal or snapshot"),
        (pb.ChaosOrder(id="x", process="r1", act="memory", deadline_ms=5_000), "want 1 to"),
        (pb.ChaosOrder(id="x", process="r1", act="memory", mib=1 << 20, deadline_ms=5_000), "at most half of it"),
    ],
)
async def test_what_is_not_its_to_do_is_refused(rig: Rig, wrong: pb.ChaosOrder, says: str) -> None:
    async with rig.serving(), rig.caller(ADMIN) as agent:
        with pytest.raises(grpc.aio.AioRpcError, match=says):
            await agent.Strike(wrong)
    assert rig.state in {"S", "R"}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("version: 2", "version: 1"),
        ("version: 1\nmachine: m\nstate-dir: /tmp/x\nprocesses: {}", "nothing to do"),
        ("version: 1\nmachine: m\nstate-dir: /tmp/x\nprocesses: {r1: {kind: pod}}", "want replica or node"),
        ("version: 1\nmachine: m\nstate-dir: /tmp/x\nprocesses: {n: {kind: node, pidfile: x}}", "unknown: pidfile"),
        ("version: 1\nmachine: m\nprocesses: {n: {kind: node, pid-file: x, start: [y]}}", "state-dir is missing"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused_by_field(tmp_path: Path, raw: str, says: str) -> None:
    (tmp_path / "agent.yaml").write_text(raw)
    with pytest.raises(ConfigError, match=says):
        AgentConfig.load(tmp_path / "agent.yaml")
