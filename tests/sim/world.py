"""A whole cluster on one thread in virtual time: faults while clients work, then peace, and it must recover.

Owns the phases of a run and its options, all drawn from the seed. The replay of a failure is its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.raft.config import RaftConfig
from controlplane.raft.types import Member
from tests.sim.checks import Checks, ViolationError
from tests.sim.clients import Client
from tests.sim.net import SimNet
from tests.sim.node import Breakage, SimNode
from tests.sim.scheduler import Scheduler

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
    events: int

    def line(self) -> str:
        return (
            f"seed={self.seed} ok acked={self.acked} reads={self.reads} terms={self.terms} crashes={self.crashes} "
            f"installs={self.snapshots_installed} virtual_s={self.virtual_s:.1f} events={self.events} "
            f"trace={self.trace_hash[:16]}"
        )


class World:
    """Nodes, network, clients and faults of one seed."""

    def __init__(self, seed: int, *, breakage: Breakage | None = None, faults_s: float = 6.0) -> None:
        self.seed = seed
        self.scheduler = s = Scheduler(seed)
        self.checks = Checks()
        self._faults_s = faults_s
        self._breakage = breakage or Breakage()
        size = 5 if s.chance(0.2) else 3
        self.config = RaftConfig(
            snapshot_entries=s.pick([10, 20, 60, 1_000]),
            catch_up_entries=s.pick([1, 3, 9]),
            snapshot_chunk_bytes=s.pick([512, 65_536]),
            inflight_entries_max=s.pick([1, 2, 4]),
        )
        self.config.validate()
        high = s.pick([0.001, 0.005, 0.03])
        self.net = SimNet(s, delay_s=(0.0002, high), slow_share=s.pick([0.0, 0.02, 0.1]))
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
        self._whole_cluster = s.chance(0.3)
        self._power = s.pick([0.0, 0.5, 1.0])
        self.crashes = 0
        self._ambush = False
        self.checks.on_ack = self._on_ack
        self.clients: list[Client] = []
        self._calm = False

    def run(self) -> Result:
        """Both phases. Raises ViolationError, or whatever a replica raised (fail-stop is a failure here)."""
        s = self.scheduler
        for node in self.nodes:
            s.after(s.between(0, 0.2), node.start)
        think_s = s.pick([0.02, 0.1])
        self.clients = [
            Client(n, s, self.nodes, self.checks, self._breakage, think_s=think_s) for n in range(s.rand.randint(2, 6))
        ]
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

    def _crash_some(self) -> None:
        s = self.scheduler
        leaders = [n for n in self.nodes if n.alive and n.core.engine.is_leader]
        if self._whole_cluster and s.chance(0.4):
            # All at once, and at the worst moment: just when a client has been told that its write is safe.
            self._ambush = True
            return
        victims = [s.pick(leaders)] if leaders and s.chance(0.6) else [s.pick(self.nodes)]
        self._crash(victims, power=s.chance(self._power))

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


def run_seed(seed: int, *, breakage: Breakage | None = None) -> Result:
    """One whole run. Raises ViolationError when an invariant does not hold."""
    return World(seed, breakage=breakage).run()
