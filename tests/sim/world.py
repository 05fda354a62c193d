"""A whole cluster on one thread in virtual time: faults while clients work, then peace, and it must recover.

Owns the phases of a run and its options, all drawn from the seed. The replay of a failure is its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.rpc_pb2 import CompactionRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.raft.config import RaftConfig
from controlplane.raft.types import Member
from tests.sim.checks import Checks, ViolationError
from tests.sim.clients import Client
from tests.sim.net import SimNet
from tests.sim.node import Breakage, SimNode
from tests.sim.scheduler import Scheduler
from tests.sim.watchers import SimWatcher

__all__ = ["Result", "World", "run_seed"]

_LIVENESS_S = 8.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a run was, when it went well."""

    seed: int
    trace_hash: str
    virtual_s: float
    acked: int
    reads: int
    terms: int
    crashes: int
    snapshots_installed: int
    watched: int
    events: int

    def line(self) -> str:
        return (
            f"seed={self.seed} ok acked={self.acked} reads={self.reads} terms={self.terms} crashes={self.crashes} "
            f"installs={self.snapshots_installed} watched={self.watched} virtual_s={self.virtual_s:.1f} "
            f"events={self.events} trace={self.trace_hash[:16]}"
        )


class World:
    """Nodes, network, clients and faults of one seed."""

    def __init__(
        self, seed: int, *, breakage: Breakage | None = None, faults_s: float = 6.0, size: int | None = None
    ) -> None:
        self.seed = seed
        self.scheduler = s = Scheduler(seed)
        self.checks = Checks()
        self._faults_s = faults_s
        self._breakage = breakage or Breakage()
        # Options that came later draw from here, so that the runs of seeds that are kept stay as they were.
        self._extra = extra = SeededRand(f"extra {seed}")
        drawn = 5 if s.chance(0.2) else 3
        size = size or drawn
        self.config = RaftConfig(
            snapshot_entries=s.pick([10, 20, 60, 1_000]),
            catch_up_entries=s.pick([1, 3, 9]),
            snapshot_chunk_bytes=s.pick([512, 65_536]),
            inflight_entries_max=s.pick([1, 2, 4]),
        )
        self.config.validate()
        high = s.pick([0.001, 0.005, 0.03])
        self.net = SimNet(s, delay_s=(0.0002, high), slow_share=s.pick([0.0, 0.02, 0.1]))
        self.net.duplicate_share = [0.0, 0.0, 0.02, 0.2][extra.randint(0, 3)]
        slowest_sync_s = s.pick([0.001, 0.004, 0.04])
        members = [Member(n, f"r{n}", "", "") for n in range(1, size + 1)]
        self.nodes = [
            SimNode(
                scheduler=s,
                net=self.net,
                checks=self.checks,
                config=self.config,
                me=member,
                members=members,
                sync_s=(0.0002, slowest_sync_s),
                breakage=self._breakage,
            )
            for member in members
        ]
        for node in self.nodes:
            self.net.add(node.me.id, node)
        self._intensity_s = s.pick([0.1, 0.3, 0.8])
        #: Some crashes take all replicas at once, right after an acknowledgement.
        self.whole_cluster = s.chance(0.3)
        #: Share of crashes that take the machine along, with what was not synced.
        self.power = s.pick([0.0, 0.5, 1.0])
        self.crashes = 0
        self._ambush = False
        self.checks.on_ack = self._on_ack
        self.clients: list[Client] = []
        self._calm = False

    def shorten_log(self) -> None:
        """Compact the log behind every few entries. Before :meth:`run`."""
        for node in self.nodes:
            node.config = replace(node.config, snapshot_entries=10, catch_up_entries=1)

    def slow_disks(self) -> None:
        """Syncs take longer than messages. Before :meth:`run`."""
        for node in self.nodes:
            node.sync_s = (0.005, 0.04)

    def run(self) -> Result:
        """Both phases. Raises ViolationError, or whatever a replica raised (fail-stop is a failure here)."""
        s = self.scheduler
        for node in self.nodes:
            s.after(s.between(0, 0.2), node.start)
        think_s = s.pick([0.02, 0.1])
        self.clients = [
            Client(
                n, s, self.nodes, self.checks, self._breakage, think_s=think_s, extra=SeededRand(f"{self.seed} c{n}")
            )
            for n in range(s.rand.randint(2, 6))
        ]
        for n in range(self._extra.randint(1, 4)):
            SimWatcher(n, s, self.nodes, self.checks, SeededRand(f"{self.seed} w{n}"))
        if self._extra.random() < 0.3:
            s.after(1.0, self._compact)
        s.after(s.between(0.8, 1.5), self._fault)
        s.run_until(1.0 + self._faults_s)
        self._make_peace()
        self._must_recover()
        return Result(
            self.seed,
            s.trace_hash,
            s.now,
            len(self.checks.acked),
            self.checks.reads,
            self.checks.terms,
            self.crashes,
            self.checks.installs,
            self.checks.watched,
            s.events,
        )

    # -- faults ------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self._calm:
            return
        s = self.scheduler
        kind = s.rand.randint(0, 9)
        if kind <= 3:
            self._crash_some()
        elif kind == 4:
            s.pick(self.nodes).pause(s.between(0.05, 2.0))
        elif kind <= 6:
            for _ in range(s.rand.randint(1, 3)):
                self.net.break_link(*s.pick(self.net.pairs))
        elif kind == 7:
            pair = s.pick(self.net.pairs)
            self.net.cut(*pair)
            s.after(s.between(0.1, 2.5), lambda: self.net.heal(*pair))
        else:
            self._isolate(s.pick(self.nodes))
        s.after(s.between(0.2, 2) * self._intensity_s, self._fault)

    def _compact(self) -> None:
        """Somebody forgets history, up to a little before now: watchers that are slow are overtaken."""
        node = self.nodes[self._extra.randint(0, len(self.nodes) - 1)]
        if self._calm:
            return
        if node.alive:
            revision = max(1, node.machine.revision - self._extra.randint(0, 20))
            self.checks.compacted = max(self.checks.compacted, revision)
            command = Command(compact=CompactionRequest(revision=revision)).SerializeToString()
            deadline = node.monotonic() + 1.0
            node.core.propose(command, request_id=self._extra.token(16), deadline=deadline, done=lambda _: None)
            node.kick()
        self.scheduler.after(0.1 + self._extra.random(), self._compact)

    def _crash_some(self) -> None:
        s = self.scheduler
        leaders = [n for n in self.nodes if n.alive and n.core.engine.is_leader]
        if self.whole_cluster and s.chance(0.4):
            # All at once, and at the worst moment: just when a client has been told that its write is safe.
            self._ambush = True
            return
        victims = [s.pick(leaders)] if leaders and s.chance(0.6) else [s.pick(self.nodes)]
        self._crash(victims, power=s.chance(self.power))

    def _on_ack(self) -> None:
        if self._ambush and not self._calm:
            self._ambush = False
            self._crash(self.nodes, power=True)

    def _crash(self, victims: list[SimNode], *, power: bool) -> None:
        s = self.scheduler
        for node in victims:
            if node.alive:
                self.crashes += 1
                node.crash(power=power)
                s.after(s.between(0.05, 1.5), lambda node=node: self._restart(node))  # type: ignore[misc]

    def _restart(self, node: SimNode) -> None:
        if not node.alive:
            node.start()

    def _isolate(self, node: SimNode) -> None:
        s = self.scheduler
        pairs = [p for p in self.net.pairs if node.me.id in p]
        if s.chance(0.4):
            pairs = [p for p in pairs if p[s.rand.randint(0, 1)] == node.me.id]
        for pair in pairs:
            self.net.cut(*pair)

        def heal() -> None:
            for pair in pairs:
                self.net.heal(*pair)

        s.after(s.between(0.1, 3.0), heal)

    # -- peace -------------------------------------------------------------------------------------------------

    def _make_peace(self) -> None:
        self._calm = True
        self.scheduler.note("peace")
        self.net.heal_all()
        for node in self.nodes:
            self._restart(node)

    def _must_recover(self) -> None:
        """Clients go on for a while; then every replica stands at the same index with everything acknowledged."""
        s = self.scheduler
        end = s.now + _LIVENESS_S
        before = len(self.checks.acked)
        while s.now < end:
            s.run_until(s.now + 0.25)
            if len(self.checks.acked) >= before + 5:
                for client in self.clients:
                    client.stopped = True
            if not any(client.busy for client in self.clients) and self._converged():
                break
        else:
            state = [
                (n.me.name, n.core.role.value, n.core.engine.term, n.core.engine.applied_index) for n in self.nodes
            ]
            raise ViolationError(
                f"no recovery within {_LIVENESS_S} s of peace: {state}, acked {len(self.checks.acked) - before}"
            )
        for node in self.nodes:
            self.checks.nothing_lost(node.me.name, node.machine.store)

    def _converged(self) -> bool:
        engines = [n.core.engine for n in self.nodes]
        ready = all(n.core.ready and n.core.pending == 0 for n in self.nodes)
        return (
            ready and len({e.applied_index for e in engines}) == 1 and engines[0].applied_index == engines[0].last_index
        )


def run_seed(seed: int, *, breakage: Breakage | None = None, size: int | None = None) -> Result:
    """One whole run. Raises ViolationError when an invariant does not hold."""
    return World(seed, breakage=breakage, size=size).run()
