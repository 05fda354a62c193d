"""Taking a snapshot over from one leader after another."""

from __future__ import annotations

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage, SnapshotAck, SnapshotChunk
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core
from controlplane.raft.snapshot_format import SnapshotEncoder
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
