"""Several cores in virtual time over wires that can be cut in one direction; members come, go and die."""

from __future__ import annotations

from collections import deque

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core
from controlplane.raft.journal import RaftJournal
from controlplane.raft.types import Applied, Member, MemberChange, Outcome
from tests.unit.raft.memory import memory_journal
from tests.unit.raft.toy import ToyMachine


def member(n: int, *, learner: bool = False) -> Member:
    return Member(n, f"r{n}", f"h:{n}", "", learner=learner)


class Fleet:
    """Cores by member id. A step of time is 10 ms; a message takes none."""

    def __init__(self, size: int, *, seed: int = 1) -> None:
        self.clock = ManualClock()
        self.seed = seed
        self.cores: dict[int, Core] = {}
        self.machines: dict[int, ToyMachine] = {}
        self.journals: dict[int, RaftJournal] = {}
        self.cut: set[tuple[int, int]] = set()
        self.wires: dict[tuple[int, int], deque[RaftMessage]] = {}
        self.led: list[tuple[int, int]] = []
        self.attempts = 0
        founders = [member(n) for n in range(1, size + 1)]
        for founder in founders:
            self.join(founder, founders)

    # -- members -----------------------------------------------------------------------------------------------

    def join(self, me: Member, members: list[Member]) -> Core:
        """A new replica, with links to and from everybody."""
        self.machines[me.id] = ToyMachine()
        self.journals[me.id] = memory_journal()
        core = Core(
            config=RaftConfig(),
            me=me,
            members=members,
            journal=self.journals[me.id],
            state_machine=self.machines[me.id],
            clock=self.clock,
            rand=SeededRand(100 * self.seed + me.id),
        )
        for other_id, other in self.cores.items():
            self.wires[me.id, other_id], self.wires[other_id, me.id] = deque(), deque()
            core.link_up(other_id)
            other.link_up(me.id)
        self.cores[me.id] = core
        return core

    def kill(self, n: int) -> None:
        """kill -9: links break, the address refuses."""
        del self.cores[n]
        self.wires = {pair: wire for pair, wire in self.wires.items() if n not in pair}
        for core in self.cores.values():
            core.link_down(n)
            core.peer_died(n)

    def change(self, change: MemberChange, attempt: bytes | None = None) -> int | None:
        self.attempts += 1
        leader = self.cores[self.leader()]
        return leader.change_members(change, attempt_id=attempt or self.attempts.to_bytes(16, "big"))

    # -- time --------------------------------------------------------------------------------------------------

    def settle(self, rounds: int = 4) -> None:
        for _ in range(rounds):
            for (a, b), wire in self.wires.items():
                while wire:
                    message = wire.popleft()
                    if (a, b) not in self.cut:
                        self.cores[b].receive(a, message)
            for n in sorted(self.cores):
                self._step(n)

    def _step(self, n: int) -> None:
        core = self.cores[n]
        turn = core.step()
        for peer, message in (*turn.ahead, *turn.messages):
            if (n, peer) in self.wires:
                self.wires[n, peer].append(message)
        for done, outcome in turn.outcomes:
            done(outcome)
        for read_done, result in turn.reads:
            read_done(result)
        for moved, error in turn.transfers:
            moved(error)
        if core.engine.is_leader and (n, core.engine.term) not in self.led:
            self.led.append((n, core.engine.term))

    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.clock.advance(0.01)
            self.settle()

    # -- faults ------------------------------------------------------------------------------------------------

    def cut_both(self, a: int, b: int) -> None:
        self.cut |= {(a, b), (b, a)}

    def isolate(self, n: int) -> None:
        self.cut |= {pair for pair in self.wires if n in pair}

    # -- what is seen ------------------------------------------------------------------------------------------

    def leader(self) -> int:
        """The leader of the highest term."""
        return max((c.engine.term, n) for n, c in self.cores.items() if c.engine.is_leader)[1]

    def elect(self) -> int:
        self.pass_time(1.5)
        return self.leader()

    def put(self, n: int, payload: bytes, timeout_s: float = 10.0) -> list[Outcome]:
        told: list[Outcome] = []
        deadline = self.clock.monotonic() + timeout_s
        self.cores[n].propose(payload, request_id=payload.ljust(16), deadline=deadline, done=told.append)
        return told

    def acknowledged(self, n: int, payload: bytes) -> None:
        """Write, and insist that it is applied within two virtual seconds."""
        told = self.put(n, payload)
        self.pass_time(2.0 if not told else 0)
        assert told, payload
        assert isinstance(told[0], Applied), told
