"""Clients of shared keys: what they record is what was asked and answered, and a right store passes every checker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.checkers import check_all
from chaos.findings import Verdict
from chaos.history import Recorder, load
from chaos.records import Header, History, Listing, Row
from chaos.workload.keys import Keys
from chaos.workload.leases import TTL_S, LeaseHolder, LockUser
from chaos.workload.pace import Pace, Process
from chaos.workload.shared import Appender, Fighter, Lists, Newest
from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client import etcd_client as etcd
from tests.unit.chaos.fake_etcd import FakeEtcd
from tests.unit.chaos.fakes import ENDPOINTS, JumpingClock

BASE = "/chaos/run-shared/"


class Rig:
    """Clients on one fake etcd."""

    def __init__(self, path: Path) -> None:
        self.clock = JumpingClock()
        self.path = path
        self.recorder = Recorder(path, Header("run", "/chaos/run/", "now", ENDPOINTS), self.clock)
        self.etcd = FakeEtcd()
        self.newest = Newest()
        self.keys = Keys("txn", self.etcd, Process("p", self.recorder))

    def history(self) -> History:
        rows = [
            Row(kv.key.decode(), kv.value.decode(), kv.create_revision, kv.mod_revision, kv.version)
            for kv in self.etcd.kvs.values()
        ]
        self.recorder.listing(Listing("shared", 0, self.etcd.revision, self.recorder.now_ns(), rows))
        self.recorder.close()
        return load(self.path)

    def fighter(self, number: int = 1) -> Fighter:
        pace, rand = Pace(10, self.clock), SeededRand(f"f{number}")
        return Fighter(number, BASE, 2, self.etcd, self.newest, self.recorder, pace, rand)

    def appender(self, number: int, lists: Lists) -> Appender:
        pace, rand = Pace(10, self.clock), SeededRand(f"a{number}")
        return Appender(number, lists, self.etcd, self.newest, self.recorder, pace, rand)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "h.jsonl")
    yield made
    made.recorder.close()


async def test_a_transaction_is_recorded_with_its_branches_and_what_it_saw(rig: Rig) -> None:
    await rig.keys.put("k", "v1")
    await rig.keys.txn([("k", "value", "v1")], [("put", "k", "v2")], [("get", "k")])
    await rig.keys.txn([("k", "mod", 1)], [("put", "k", "v3")], [("get", "k")])
    _, first, second = rig.history().ops
    assert (first.succeeded, first.revision, first.results) == (True, 7, (None,))
    assert (second.succeeded, second.revision, second.results) == (False, 7, (("v2", 6, 7, 2),))
    assert second.compares == (("k", "mod", 1),)
    assert (second.then, second.otherwise) == ((("put", "k", "v3"),), (("get", "k"),))
    assert (second.member, second.term) == ("ab", 3)


async def test_a_delete_says_whether_there_was_anything(rig: Rig) -> None:
    await rig.keys.put("k", "v")
    await rig.keys.delete("k")
    await rig.keys.delete("k")
    _, first, second = rig.history().ops
    assert (first.succeeded, second.succeeded) == (True, False)


async def test_a_read_says_all_there_is_of_the_key(rig: Rig) -> None:
    await rig.keys.put("k", "v1")
    await rig.keys.put("k", "v2")
    await rig.keys.get("k")
    await rig.keys.get("none", serializable=True)
    rig.etcd.fail_reads = True
    await rig.keys.get("k")
    *_, there, gone, failed = rig.history().ops
    assert (there.value, there.create_revision, there.mod_revision, there.version) == ("v2", 6, 7, 2)
    assert (gone.value, gone.serializable, gone.revision) == (None, True, 7)
    assert (failed.outcome, failed.error) == ("fail", "UNAVAILABLE: nobody there")


async def test_an_unknown_outcome_keeps_what_may_have_been_written_and_ends_the_process(rig: Rig) -> None:
    rig.etcd.next_outcome = etcd.Unknown("UNAVAILABLE: gone", ENDPOINTS[1])
    await rig.keys.txn([("k", "create", 0)], [("put", "k", "v")])
    await rig.keys.put("k", "w")
    first, second = rig.history().ops
    assert (first.outcome, first.then, first.succeeded, first.endpoint) == (
        "info", (("put", "k", "v"),), None, ENDPOINTS[1],
    )  # fmt: skip
    assert (first.process, second.process) == ("p", "p.1")


async def test_a_client_stopped_in_an_operation_leaves_its_outcome_unknown(rig: Rig) -> None:
    asked = asyncio.Event()

    async def never(key: bytes, value: bytes, *, lease: int = 0) -> etcd.Outcome[object]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    rig.etcd.put = never  # type: ignore[method-assign]
    task = asyncio.create_task(rig.keys.put("k", "v"))
    await asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (op,) = rig.history().ops
    assert (op.outcome, op.value, op.error) == ("info", "v", "stopped")


async def test_a_contest_on_a_right_store_passes_every_checker(rig: Rig) -> None:
    fighters = [rig.fighter(n) for n in (1, 2, 3)]
    lists = Lists(BASE)
    appenders = [rig.appender(n, lists) for n in (1, 2)]
    for n in range(120):
        if n % 17 == 0:
            rig.etcd.next_outcome = etcd.Unknown("UNAVAILABLE: gone")
        if n % 23 == 0:
            rig.etcd.next_outcome = etcd.Failed(Code.RESOURCE_EXHAUSTED, "full")
        for act in (*(one.act for one in fighters), *(one.act for one in appenders)):
            rig.clock.advance(0.001)
            await act()
    history = rig.history()
    kinds = {(op.kind, op.part) for op in history.ops}
    assert {("put", "txn"), ("get", "txn"), ("delete", "txn"), ("txn", "txn"), ("txn", "append")} == kinds
    findings = {finding.rule: finding for finding in check_all(history)}
    assert not [f for f in findings.values() if f.verdict is Verdict.FAIL]
    assert findings["shared keys: compares are judged by the state they met"].checked > 50
    assert findings["lists: no append lost, done twice or seen though refused"].checked > 50


async def test_a_store_that_answers_stale_reads_is_caught(rig: Rig) -> None:
    fighters = [rig.fighter(n) for n in (1, 2)]
    right = rig.etcd.range
    seen = []

    async def stale(request: object) -> object:
        answer = await right(request)  # type: ignore[arg-type]
        seen.append(answer)
        return seen[-8] if len(seen) > 40 and len(seen) % 10 == 0 else answer

    rig.etcd.range = stale  # type: ignore[method-assign,assignment]
    for _ in range(100):
        for one in fighters:
            rig.clock.advance(0.001)
            await one.act()
    broken = {finding.rule for finding in check_all(rig.history()) if finding.verdict is Verdict.FAIL}
    assert "shared keys: revisions follow real time" in broken


async def test_lists_that_are_long_are_left_alone(rig: Rig) -> None:
    lists = Lists(BASE)
    before = lists.names()
    lists.seen(before[0], 59)
    assert lists.names() == before
    lists.seen(before[0], 60)
    after = lists.names()
    assert not set(before) & set(after)
    lists.seen(before[1], 60)
    assert lists.names() == after


async def test_a_lease_is_granted_given_keys_renewed_and_ended(rig: Rig) -> None:
    holder = LeaseHolder(
        1, BASE, rig.etcd, rig.newest, rig.recorder, rig.clock, SeededRand("lease")
    )  # fmt: skip
    for _ in range(6):
        await holder.cycle()
    ops = rig.history().ops
    assert {op.kind for op in ops} == {"grant", "put", "keepalive", "revoke"}
    assert {op.ttl_s for op in ops if op.kind in {"grant", "keepalive"}} == {TTL_S}
    leases = [op.lease for op in ops if op.kind == "grant"]
    assert len(set(leases)) == 6
    assert all(op.lease in leases and op.part == "lease" for op in ops)


async def test_a_renewal_that_nobody_answered_is_of_unknown_outcome(rig: Rig) -> None:
    holder = LeaseHolder(1, BASE, rig.etcd, rig.newest, rig.recorder, rig.clock, SeededRand("lease"))
    rig.etcd.fail_reads = True
    for _ in range(3):
        await holder.cycle()
    renewals = [op for op in rig.history().ops if op.kind == "keepalive"]
    assert renewals
    assert {op.outcome for op in renewals} == {"info"}


async def test_lock_users_take_turns_and_write_under_the_token_they_got(rig: Rig) -> None:
    users = [
        LockUser(n, BASE, rig.etcd, rig.newest, rig.recorder, rig.clock, SeededRand(f"k{n}")) for n in (1, 2)
    ]  # fmt: skip
    stopping = asyncio.Event()
    for _ in range(6):
        for user in users:
            await user.turn(stopping)
    history = rig.history()
    findings = {finding.rule: finding for finding in check_all(history)}
    assert not [f for f in findings.values() if f.verdict is Verdict.FAIL]
    assert findings["locks: one holder at a time, by fencing token"].checked >= 12
    assert [hold.token for hold in history.holds] == sorted({hold.token for hold in history.holds})
