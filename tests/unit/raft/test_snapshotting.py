"""Taking a snapshot over from one leader after another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage, SnapshotAck, SnapshotChunk
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core
from controlplane.raft.snapshot_format import SnapshotEncoder
from controlplane.raft.snapshots import SnapshotRef, SnapshotSource
from controlplane.raft.snapshotting import Snapshotting
from controlplane.raft.storage import create_storage
from controlplane.raft.types import Member
from controlplane.raft.wal import Identity
from tests.sim.disk import SimDisk
from tests.sim.node import at_once, run_now
from tests.unit.raft.toy import ToyMachine

MEMBERS = [Member(n, f"r{n}", "", "") for n in (1, 2, 3)]
INDEX, TERM = 40, 0


def snapshot_file(created_at_ms: int) -> bytes:
    """A leader's file. Two leaders' files of the same entry hold the same state and need not be the same bytes."""
    machine = ToyMachine()
    for index in range(1, INDEX + 1):
        machine.apply(index, TERM, [])
    header = SnapshotHeader(cluster_id=1, index=INDEX, term=TERM, created_at_ms=created_at_ms)
    encoder = SnapshotEncoder(header)
    return b"".join([encoder.begin(), *(encoder.chunk(c) for c in machine.snapshot()), encoder.finish()])


class Follower:
    """A replica that needs a snapshot; its peers' chunks come by hand."""

    def __init__(self) -> None:
        clock = ManualClock()
        storage = create_storage(SimDisk(1), Identity(1, 1), clock=clock)
        self.machine = ToyMachine()
        self.core = Core(
            config=RaftConfig(),
            me=MEMBERS[0],
            members=MEMBERS,
            journal=storage.journal,
            state_machine=self.machine,
            clock=clock,
            rand=SeededRand(1),
        )
        self.snapshotting = Snapshotting(
            cluster_id=1,
            core=self.core,
            journal=storage.journal,
            store=storage.snapshots,
            state_machine=self.machine,
            newest=None,
            clock=clock,
            io=at_once,
        )

    def offer(self, leader: int, file: bytes, offset: int, size: int) -> SnapshotAck:
        chunk = SnapshotChunk(
            index=INDEX,
            snapshot_term=TERM,
            total_bytes=len(file),
            offset=offset,
            data=file[offset : offset + size],
        )
        run_now(self.snapshotting.handle(leader, RaftMessage(term=self.core.engine.term, snapshot_chunk=chunk)))
        (answer,) = [m.snapshot_ack for _, m in self.core.step().messages if m.HasField("snapshot_ack")]
        return answer

    def take(self, leader: int, file: bytes, size: int = 100) -> bool:
        """Send what the follower asks for, as a leader does; whether it has it in the end."""
        answer = self.offer(leader, file, 0, 0)
        for _ in range(2 * len(file) // size + 10):
            if answer.installed:
                return True
            answer = self.offer(leader, file, answer.offset, size)
        return False


def test_a_snapshot_arrives_in_pieces() -> None:
    follower = Follower()
    assert follower.take(2, snapshot_file(1))
    assert follower.machine.applied_index == INDEX


def test_the_next_leaders_snapshot_of_the_same_entry_is_taken_from_its_start_even_if_its_file_is_another() -> None:
    for longer, shorter in ((2, 3), (3, 2)):
        files = {longer: snapshot_file(1_700_000_000_000), shorter: snapshot_file(1)}
        assert len(files[longer]) > len(files[shorter])
        follower = Follower()
        begun = follower.offer(2, files[2], 0, 100)
        assert begun.offset == 100
        assert follower.offer(3, files[3], 0, 0).offset == 0, "a piece of another leader's file would be joined to it"
        assert follower.take(3, files[3])
        assert follower.machine.applied_index == INDEX


def test_a_broken_link_to_the_same_leader_costs_one_piece() -> None:
    follower = Follower()
    file = snapshot_file(1)
    assert follower.offer(2, file, 0, 100).offset == 100
    assert follower.offer(2, file, 0, 0).offset == 100


class FakeEngine:
    """As much of a leader's engine as a transfer asks for."""

    def __init__(self, *behind: int) -> None:
        self.is_leader, self.term, self.first_index = True, 7, INDEX
        self.behind = set(behind)

    def peer_alive(self, peer_id: int) -> None: ...


class Leader:
    """A replica with a snapshot that followers need; their answers come by hand."""

    def __init__(self, *behind: int, bytes_per_s: int = 1 << 20) -> None:
        self.clock = ManualClock()
        self.sent: list[tuple[int, SnapshotChunk]] = []
        disk = SimDisk(1)
        storage = create_storage(disk, Identity(1, 1), clock=self.clock)
        self.file = snapshot_file(1)
        ref = SnapshotRef(INDEX, TERM)
        receiver = storage.snapshots.receive(SnapshotSource(ref, len(self.file), self.file[-32:]))
        receiver.append(0, self.file)
        receiver.commit()
        core: Any
        core = self.core = SimpleNamespace(
            engine=FakeEngine(*behind),
            config=replace(RaftConfig(), snapshot_chunk_bytes=50, catch_up_bytes_per_s=bytes_per_s),
            send=lambda peer_id, message: self.sent.append((peer_id, message.snapshot_chunk)),
        )
        self.snapshotting = Snapshotting(
            cluster_id=1,
            core=core,
            journal=storage.journal,
            store=storage.snapshots,
            state_machine=ToyMachine(),
            newest=ref,
            clock=self.clock,
            io=at_once,
        )

    def hears(self, peer_id: int, offset: int) -> list[SnapshotChunk]:
        """What it sends on being asked for this offset."""
        self.sent.clear()
        ack = SnapshotAck(index=INDEX, snapshot_term=TERM, offset=offset)
        run_now(self.snapshotting.handle(peer_id, RaftMessage(term=7, snapshot_ack=ack)))
        return [chunk for _, chunk in self.sent]

    def is_asked(self, peer_id: int, offset: int) -> asyncio.Task[None]:
        """It handles the question at once; the task ends when what it has begun has."""
        ack = SnapshotAck(index=INDEX, snapshot_term=TERM, offset=offset)
        beside = run_now(self.snapshotting.handle(peer_id, RaftMessage(term=7, snapshot_ack=ack)))

        async def end() -> None:
            if beside is not None:
                await beside

        return asyncio.create_task(end())


def test_a_slow_follower_has_one_piece_on_its_way_however_often_it_asks() -> None:
    leader = Leader(2)
    leader.snapshotting.offer()
    assert [c.offset for c in leader.hears(2, 0)] == [0]
    assert leader.hears(2, 0) == [], "the answer to a reminder asked for a piece that was on its way"
    assert [c.offset for c in leader.hears(2, 50)] == [50]
    assert leader.hears(2, 50) == []


def test_a_piece_that_was_lost_is_sent_again_after_a_reminder() -> None:
    leader = Leader(2)
    leader.snapshotting.offer()
    leader.hears(2, 0)
    leader.clock.advance(0.6)
    leader.sent.clear()
    leader.snapshotting.offer()
    assert [(p, c.data) for p, c in leader.sent] == [(2, b"")]
    leader.clock.advance(0.001)
    assert [c.offset for c in leader.hears(2, 0)] == [0]


def test_every_follower_that_is_behind_gets_its_own_stream() -> None:
    leader = Leader(2, 3)
    leader.snapshotting.offer()
    assert sorted(p for p, _ in leader.sent) == [2, 3]
    assert [c.offset for c in leader.hears(3, 0)] == [0]
    assert [c.offset for c in leader.hears(3, 50)] == [50]
    assert [c.offset for c in leader.hears(2, 0)] == [0], "a silent follower keeps nobody waiting"


async def test_followers_together_get_so_many_bytes_a_second_in_the_order_in_which_they_ask() -> None:
    leader = Leader(2, 3, bytes_per_s=100)
    leader.snapshotting.offer()
    leader.sent.clear()

    first, second = leader.is_asked(2, 0), leader.is_asked(3, 0)
    await asyncio.sleep(0)
    assert leader.sent == []
    leader.clock.advance(0.45)  # fifty bytes, less the moment's worth that may leave at once
    await first
    assert [(p, c.offset, len(c.data)) for p, c in leader.sent] == [(2, 0, 50)]
    leader.clock.advance(0.4)
    await asyncio.sleep(0)
    assert len(leader.sent) == 1
    leader.clock.advance(0.1)
    await second
    assert [(p, c.offset, len(c.data)) for p, c in leader.sent[1:]] == [(3, 0, 50)]


async def test_a_piece_that_waits_for_its_share_keeps_no_message_of_anybody_waiting() -> None:
    """At ten bytes a second it waits five seconds, and answers to reminders say meanwhile that the follower lives."""
    leader = Leader(2, 3, bytes_per_s=10)
    leader.snapshotting.offer()
    leader.sent.clear()
    piece = leader.is_asked(2, 0)
    installed = SnapshotAck(index=INDEX, snapshot_term=TERM, installed=True)
    leader.core.engine.peer_installed = lambda peer_id, index: leader.core.engine.behind.discard(peer_id)
    assert run_now(leader.snapshotting.handle(3, RaftMessage(term=7, snapshot_ack=installed))) is None
    assert leader.core.engine.behind == {2}, "another follower is heard at once"
    for _ in range(9):
        await asyncio.sleep(0)
        leader.clock.advance(0.5)
        leader.snapshotting.offer()
        assert leader.is_asked(2, 0).done() is False
    assert not any(chunk.data for _, chunk in leader.sent), "it is asked for again and again, and sent once"
    leader.clock.advance(0.5)
    await piece
    assert [(p, c.offset, len(c.data)) for p, c in leader.sent if c.data] == [(2, 0, 50)]


async def test_a_piece_that_waits_is_not_sent_once_somebody_else_leads() -> None:
    leader = Leader(2, bytes_per_s=10)
    leader.snapshotting.offer()
    piece = leader.is_asked(2, 0)
    await asyncio.sleep(0)
    leader.core.engine.is_leader = False
    leader.snapshotting.offer()
    leader.sent.clear()
    leader.clock.advance(6.0)
    await piece
    assert leader.sent == []
