"""What clients of real processes saw while these were killed, stopped, cut off or full: judged by the checkers.

Three replicas on hosts of their own live through every fault, in any order. During each, the load of chaos runs (a
writer and a reader per replica, and a watch) records a history over gRPC, and a few clients share one register. The
history is judged by every rule of ``chaos.checkers``; the register by a search for an order, which trusts no revision.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chaos.availability import Window, served
from chaos.checkers import check_all
from chaos.findings import Verdict
from chaos.history import Recorder, load
from chaos.load import Load, Rates
from chaos.records import Header
from chaos.wgl import Answer, RegisterOp, linearizable
from controlplane.base.clock import SystemClock
from controlplane.base.rand import SystemRand
from controlplane.client import ApiError, EtcdClient
from controlplane.client.etcd_client import Acknowledged, Failed
from controlplane.pb.etcd.rpc_pb2 import Compare, PutRequest, RequestOp, TxnRequest
from tests.integration.hosted_fleet import Fleet, Replica, fleet_on_hosts

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

_NETWORK = 20
_STEADY_S = 0.7
_STEADY_ACKS = 15
_STEADY_TIMEOUT_S = 20.0
#: Two of the longest elections and a little.
_FAULT_S = 2.2
#: At most so many operations on the register: the search explodes on more.
_REGISTER_OPS_MAX = 160


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with fleet_on_hosts(folder, ("r1", "r2", "r3"), network=_NETWORK, small_disk="r2") as fleet:
        yield fleet


@pytest.fixture
async def fleet(standing: Fleet) -> AsyncIterator[Fleet]:
    await standing.whole()
    try:
        yield standing
    finally:
        standing.mend()


# -- load ----------------------------------------------------------------------------------------------------------


class Register:
    """Clients that write, read and compare-and-swap one key, each through another replica."""

    def __init__(self, fleet: Fleet, key: bytes) -> None:
        self._fleet = fleet
        self._key = key
        self._clock = SystemClock()
        self.ops: list[RegisterOp] = []

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        clients = [EtcdClient(self._fleet.endpoints, first=first) for first in self._fleet.endpoints]
        tasks = [asyncio.create_task(self._use(n, client)) for n, client in enumerate(clients)]
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in clients:
                await client.close()

    async def _use(self, number: int, client: EtcdClient) -> None:
        believed: str | None = None
        turn = 0
        while len(self.ops) < _REGISTER_OPS_MAX:
            turn += 1
            value = f"{number}-{turn}"
            if turn % 3 == 0:
                await self._put(client, value)
            elif turn % 3 == 1 or believed is None:
                believed = await self._get(client)
            else:
                await self._swap(client, believed, value)
            await asyncio.sleep(0.05)

    async def _put(self, client: EtcdClient, value: str) -> None:
        # Written down before it is known: whoever is stopped meanwhile leaves a write of unknown fate.
        called = self._clock.monotonic()
        at = self._begun(RegisterOp("write", value, called))
        outcome = await client.put(self._key, value.encode())
        if isinstance(outcome, Acknowledged):
            self.ops[at] = RegisterOp("write", value, called, self._clock.monotonic())
        assert not isinstance(outcome, Failed), outcome

    async def _get(self, client: EtcdClient) -> str | None:
        called = self._clock.monotonic()
        try:
            kv = await client.get(self._key)
        except ApiError:
            return None
        value = None if kv is None else kv.value.decode()
        self.ops.append(RegisterOp("read", value, called, self._clock.monotonic()))
        return value

    async def _swap(self, client: EtcdClient, expected: str, value: str) -> None:
        compare = Compare(key=self._key, target=Compare.VALUE, result=Compare.EQUAL, value=expected.encode())
        put = RequestOp(request_put=PutRequest(key=self._key, value=value.encode()))
        called = self._clock.monotonic()
        at = self._begun(RegisterOp("swap", value, called, expected=expected))
        outcome = await client.txn(TxnRequest(compare=[compare], success=[put]))
        if isinstance(outcome, Acknowledged):
            ok = outcome.response.succeeded
            self.ops[at] = RegisterOp("swap", value, called, self._clock.monotonic(), expected=expected, ok=ok)
        assert not isinstance(outcome, Failed), outcome

    def _begun(self, op: RegisterOp) -> int:
        self.ops.append(op)
        return len(self.ops) - 1


@asynccontextmanager
async def _service() -> AsyncIterator[tuple[str, int]]:
    """The Service that the load also calls: here it only has to answer."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


async def _suffer(
    fleet: Fleet, folder: Path, fault: Callable[[Fleet, Replica], Awaitable[None]], *, writes_go_on: bool = True
) -> None:
    """Load; the fault, with the leader for an argument; everything mended; load; judge."""
    run = f"{fault.__name__.strip('_')}-{SystemRand().token(4).hex()}"
    header = Header(run, f"/chaos/{run}/", datetime.now(UTC).isoformat(), list(fleet.endpoints))
    clock = SystemClock()
    register = Register(fleet, f"/register/{run}".encode())
    with Recorder(folder / "history.jsonl", header, clock) as recorder:
        async with (
            _service() as service,
            Load(
                fleet.endpoints, service, prefix=header.prefix, recorder=recorder, clock=clock, rand=SystemRand(),
                rates=Rates(writes=25, reads=25, requests=2, http_clients=1),
                parts=("kv", "watch", "http", "txn", "lease", "lock"),
            ) as traffic,
            register.used(),
        ):  # fmt: skip
            await _steady(traffic)
            before = recorder.mark(run, 1, "fault")
            await fault(fleet, await fleet.leader())
            during = recorder.mark(run, 1, "healed")
            fleet.mend()
            await fleet.whole()
            after = recorder.mark(run, 1, "recovered")
            await _steady(traffic)
            end = recorder.mark(run, 1, "end")
            await traffic.finish()
    history = load(folder / "history.jsonl")
    for finding in check_all(history):
        # Few leases begin and end within so short a time, and perhaps none.
        told_nothing = finding.verdict is Verdict.INCONCLUSIVE and finding.rule.startswith(("leases:", "locks:"))
        assert finding.verdict is Verdict.PASS or told_nothing, f"{finding.rule}: {finding.violations} {finding.note}"
    assert linearizable(register.ops) is Answer.YES, "no order of the register's operations explains what they saw"
    # The judgement is worth something only if there was something to judge.
    moments = {"before": (0, before), "during": (before.at_ns, during), "after": (after.at_ns, end)}
    for when, (begin_ns, till) in moments.items():
        acked = served(history.ops, Window(begin_ns, till.at_ns)).writes_acknowledged
        # On links that lose packets every write waits for TCP to send again: a few in that time show that it goes on.
        wanted = 10 if when != "during" else 3 if writes_go_on else 0
        assert acked >= wanted, f"{acked} writes acknowledged {when} the fault"
    assert len(register.ops) >= 20


async def _steady(traffic: Load) -> None:
    """A while of load, and on a busy machine longer: until there is something to judge."""
    wanted = traffic.board.acknowledged_total + _STEADY_ACKS
    await asyncio.sleep(_STEADY_S)
    async with asyncio.timeout(_STEADY_TIMEOUT_S):
        while traffic.board.acknowledged_total < wanted:  # noqa: ASYNC110 - the other tasks' progress
            await asyncio.sleep(0.02)


# -- faults --------------------------------------------------------------------------------------------------------


async def _a_killed_leader(fleet: Fleet, leader: Replica) -> None:
    leader.kill()
    await asyncio.sleep(1.0)


async def _a_killed_follower(fleet: Fleet, leader: Replica) -> None:
    fleet.others(leader)[0].kill()
    await asyncio.sleep(1.0)


async def _all_killed(fleet: Fleet, leader: Replica) -> None:
    for replica in fleet.replicas:
        replica.kill()


async def _a_stopped_leader(fleet: Fleet, leader: Replica) -> None:
    leader.signal(signal.SIGSTOP)
    await asyncio.sleep(_FAULT_S)


async def _an_isolated_leader(fleet: Fleet, leader: Replica) -> None:
    fleet.hosts.isolate(leader.name)
    await asyncio.sleep(_FAULT_S)
    _bit(fleet, leader)


async def _a_leader_that_is_not_heard(fleet: Fleet, leader: Replica) -> None:
    for other in fleet.others(leader):
        fleet.hosts.cut(leader.name, other.name)
    await asyncio.sleep(_FAULT_S)
    _bit(fleet, leader)


async def _a_leader_that_does_not_hear(fleet: Fleet, leader: Replica) -> None:
    for other in fleet.others(leader):
        fleet.hosts.cut(other.name, leader.name)
    await asyncio.sleep(_FAULT_S)
    _bit(fleet, *fleet.others(leader))


async def _a_chain(fleet: Fleet, leader: Replica) -> None:
    """Leader and one follower do not reach each other; the third reaches both."""
    fleet.hosts.part([leader.name], [fleet.others(leader)[0].name])
    await asyncio.sleep(_FAULT_S)
    _bit(fleet, leader)


async def _nobody_reaches_anybody(fleet: Fleet, leader: Replica) -> None:
    for replica in fleet.replicas:
        fleet.hosts.isolate(replica.name)
    await asyncio.sleep(1.5)
    _bit(fleet, *fleet.replicas)


async def _packets_lost(fleet: Fleet, leader: Replica) -> None:
    for replica in fleet.replicas:
        fleet.hosts.lossy(replica.name, 20)
    await asyncio.sleep(_FAULT_S)
    _bit(fleet, *fleet.replicas)


async def _a_full_disk(fleet: Fleet, leader: Replica) -> None:
    full = next(replica for replica in fleet.replicas if replica.data_dir.is_mount())
    hog = full.data_dir / "hog"
    try:
        with hog.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(1 << 16))
                except OSError:
                    break
        text = ""
        for _ in range(400):
            _, text = await asyncio.to_thread(full.ready)
            if "its disk is full" in text:
                break
            await asyncio.sleep(0.05)
        assert "its disk is full" in text, text
        await asyncio.sleep(0.5)
    finally:
        hog.unlink()


def _bit(fleet: Fleet, *cut: Replica) -> None:
    """Packets were lost on their way: a cut that cuts nothing proves nothing."""
    for replica in cut:
        assert fleet.hosts.dropped(replica.name) > 0, f"nothing of {replica.name} was dropped"


@pytest.mark.parametrize(
    "fault",
    [
        _a_killed_leader,
        _a_killed_follower,
        _a_stopped_leader,
        _an_isolated_leader,
        _a_leader_that_is_not_heard,
        _a_leader_that_does_not_hear,
        _a_chain,
        _packets_lost,
        _a_full_disk,
    ],
    ids=lambda fault: fault.__name__.strip("_"),
)
async def test_clients_see_one_store_that_loses_nothing_and_goes_on_while(
    fault: Any, fleet: Fleet, tmp_path: Path
) -> None:
    await _suffer(fleet, tmp_path, fault)


@pytest.mark.parametrize("fault", [_all_killed, _nobody_reaches_anybody], ids=lambda fault: fault.__name__.strip("_"))
async def test_clients_see_one_store_that_loses_nothing_after(fault: Any, fleet: Fleet, tmp_path: Path) -> None:
    await _suffer(fleet, tmp_path, fault, writes_go_on=False)
