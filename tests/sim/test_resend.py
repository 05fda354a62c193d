"""The resend that loses acknowledged writes: red with the plain library, green with our journal.

The script, the same for both: C is cut off; A leads and B holds everything A has acknowledged to its clients. A frame
to B is lost with a connection, so B answers heartbeats with a rewind; A sends the missing range again once per rewind,
in pieces. B takes the whole range, A commits it and its clients are told. Then A dies between two pieces of a second
copy. B and C elect a leader: is everything there that clients were told?
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as library
import pytest
from pysyncobj.journal import MemoryJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine
from controlplane.raft.journal import RaftJournal
from controlplane.raft.wal import Identity, Wal
from tests.sim.disk import SimDisk

_PIECE_BYTES = 64 * 1024
_WRITE_BYTES = 20 * 1024
_A, _B, _C = 1, 2, 3


class _Replica:
    """What the script needs of a replica, whichever library version is inside."""

    def tick(self) -> None:
        raise NotImplementedError

    def receive(self, peer: int, message: Any) -> None:
        raise NotImplementedError

    def connected(self, peer: int, up: bool) -> None:
        raise NotImplementedError

    def append(self, data: bytes) -> None:
        raise NotImplementedError

    def take(self) -> list[tuple[int, Any]]:
        raise NotImplementedError

    def commands(self) -> list[bytes]:
        """Commands in the log, no-ops left out."""
        raise NotImplementedError

    @property
    def commit_index(self) -> int:
        raise NotImplementedError

    @property
    def leads(self) -> bool:
        raise NotImplementedError

    def stand(self) -> None:
        """Its election timeout has passed."""
        raise NotImplementedError


class _PlainLinks(Transport):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.out: list[tuple[int, Any]] = []

    def send(self, node: Node, message: Any) -> bool:
        self.out.append((int(node.id), message))
        return True


class _PlainSyncObj(library.SyncObj):  # type: ignore[misc]
    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        """The library's own needs a pickled command; what it does with the log is the same."""


class _Plain(_Replica):
    """The library as it comes: its own journal, its own handling, its default piece size."""

    def __init__(self, me: int, clock: ManualClock, rand: SeededRand) -> None:
        self._clock, self._rand = clock, rand
        self._bind()
        self.journal = MemoryJournal()
        library.createJournal = lambda _file: self.journal
        library.createPoller = lambda _type: _NoPoller()
        library.PIPE_NOTIFIER_ENABLED = False
        conf = library.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            raftMinTimeout=0.5,
            raftMaxTimeout=1.0,
            appendEntriesPeriod=0.05,
            appendEntriesBatchSizeBytes=_PIECE_BYTES,
            commandsWaitLeader=False,
            useFork=False,
        )
        self._nodes = {n: Node(str(n)) for n in (_A, _B, _C)}
        self._links = _PlainLinks()
        others = [node for n, node in self._nodes.items() if n != me]
        self._sync: Any = _PlainSyncObj(self._nodes[me], others, conf, nodeClass=Node, transport=self._links)

    def _bind(self) -> None:
        library.monotonicTime = self._clock.monotonic
        library.random = self._rand

    def tick(self) -> None:
        self._bind()
        self._sync.doTick(0.0)

    def receive(self, peer: int, message: Any) -> None:
        self._bind()
        self._links._onMessageReceived(self._nodes[peer], message)

    def connected(self, peer: int, up: bool) -> None:
        (self._links._onNodeConnected if up else self._links._onNodeDisconnected)(self._nodes[peer])

    def append(self, data: bytes) -> None:
        self._sync._applyCommand(data, None, 0)

    def take(self) -> list[tuple[int, Any]]:
        out, self._links.out = self._links.out, []
        return out

    def commands(self) -> list[bytes]:
        return [command[1:] for command, _, _ in self.journal[0:] if command[:1] == b"\x00"]

    @property
    def commit_index(self) -> int:
        return int(self._sync.raftCommitIndex)

    @property
    def leads(self) -> bool:
        return bool(self._sync._isLeader())

    def stand(self) -> None:
        self._sync._SyncObj__raftElectionDeadline = 0


class _NoPoller:
    def poll(self, timeout: float) -> None: ...


class _Ours(_Replica):
    """Our engine and journal, with pieces as small as the library's, so that only the journal makes the difference."""

    def __init__(self, me: int, clock: ManualClock, rand: SeededRand) -> None:
        wal = Wal.create(SimDisk(me), Identity(1, me), clock=clock)
        self.journal = RaftJournal(wal)
        self.engine = Engine(
            config=RaftConfig(append_bytes=_PIECE_BYTES),
            member_id=me,
            peer_ids=[n for n in (_A, _B, _C) if n != me],
            journal=self.journal,
            clock=clock,
            rand=rand,
            apply=lambda index, term, data: None,
            applied_index=0,
        )

    def tick(self) -> None:
        self.engine.tick()

    def receive(self, peer: int, message: raft_pb2.RaftMessage) -> None:
        self.engine.receive(peer, message)

    def connected(self, peer: int, up: bool) -> None:
        (self.engine.connected if up else self.engine.disconnected)(peer)

    def append(self, data: bytes) -> None:
        self.engine.append(data)

    def take(self) -> list[tuple[int, raft_pb2.RaftMessage]]:
        return self.engine.take_messages()

    def commands(self) -> list[bytes]:
        entries = self.engine.entries(1, self.engine.last_index + 1)
        return [command[1:] for command, _, _ in entries if command[:1] == b"\x00"]

    @property
    def commit_index(self) -> int:
        return self.engine.commit_index

    @property
    def leads(self) -> bool:
        return self.engine.is_leader

    def stand(self) -> None:
        self.engine._elections.pull_in(0, 0)


Maker = Callable[[int, ManualClock, SeededRand], _Replica]


class _Script:
    """Three replicas whose messages move only when the script says so."""

    def __init__(self, make: Maker) -> None:
        self.clock = ManualClock()
        self.replicas = {n: make(n, self.clock, SeededRand(n)) for n in (_A, _B, _C)}
        self.wires: dict[tuple[int, int], deque[Any]] = {
            (a, b): deque() for a in (1, 2, 3) for b in (1, 2, 3) if a != b
        }

    def link(self, a: int, b: int, up: bool) -> None:
        for here, there in ((a, b), (b, a)):
            self.wires[here, there].clear()
            self.replicas[here].connected(there, up)

    def tick(self, n: int) -> None:
        self.replicas[n].tick()
        self._collect(n)

    def _collect(self, n: int) -> None:
        for peer, message in self.replicas[n].take():
            self.wires[n, peer].append(message)

    def deliver(self, a: int, b: int, count: int = 1_000_000) -> int:
        """Up to ``count`` messages from a to b; b's answers wait on its own wire."""
        wire = self.wires[a, b]
        done = 0
        while wire and done < count:
            self.replicas[b].receive(a, wire.popleft())
            self._collect(b)
            done += 1
        return done

    def exchange(self, a: int, b: int, rounds: int = 4) -> None:
        for _ in range(rounds):
            self.clock.advance(0.06)
            self.tick(a)
            self.deliver(a, b)
            self.deliver(b, a)

    def lost_writes(self) -> int:
        """Play the script; how many of the acknowledged writes the next leader does not have."""
        a, b = self.replicas[_A], self.replicas[_B]
        for pair in ((_A, _B), (_A, _C), (_B, _C)):
            self.link(*pair, True)
        a.stand()
        self.tick(_A)
        for _ in range(3):
            self.exchange(_A, _B)
            self.exchange(_A, _C)
        assert a.leads
        self.link(_A, _C, False)
        self.link(_B, _C, False)

        # Writes go to B, and the connection dies with them in flight.
        for n in range(10):
            a.append(bytes([n]) * _WRITE_BYTES)
            self.tick(_A)
        self.link(_A, _B, False)
        self.link(_A, _B, True)
        # B was slow for a moment: it answers two heartbeats, each with a rewind, and A answers each with a resend.
        for _ in range(2):
            self.clock.advance(0.06)
            self.tick(_A)
        self.deliver(_A, _B)
        rewinds = len(self.wires[_B, _A])
        assert rewinds >= 2
        resends = []
        for _ in range(rewinds):
            self.deliver(_B, _A, 1)
            self.clock.advance(0.06)
            self.tick(_A)
            resends.append(len(self.wires[_A, _B]))
        # The first copy arrives whole, A commits it, its clients are told.
        self.deliver(_A, _B, resends[0])
        self.deliver(_B, _A)
        self.tick(_A)
        acknowledged = a.commands()
        assert len(acknowledged) == 10
        assert a.commit_index >= 11
        # Of whatever A still sends, B gets the first piece. Then A is gone.
        self.deliver(_A, _B, 1)
        self.link(_A, _B, False)

        self.link(_B, _C, True)
        self.clock.advance(0.6)
        for _ in range(3):
            b.stand()
            self.tick(_B)
            self.exchange(_B, _C)
        assert b.leads
        return len([w for w in acknowledged if w not in b.commands()])


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="pysyncobj")


def test_the_plain_library_loses_acknowledged_writes_when_the_leader_dies_during_a_resend() -> None:
    assert _Script(_Plain).lost_writes() > 0


def test_our_engine_keeps_acknowledged_writes_when_the_leader_dies_during_a_resend() -> None:
    assert _Script(_Ours).lost_writes() == 0
