"""A whole cluster on one thread in virtual time: faults while clients work, then peace, and it must recover.

Owns the phases of a run. The replay of a failure is its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.base.rand import SeededRand
from controlplane.base.retention import Retention
from controlplane.raft.config import RaftConfig
from controlplane.raft.types import Member
from tests.sim.auth_clients import Administrator, UserClient
from tests.sim.checks import Checks, ViolationError
from tests.sim.clients import Client, Marker
from tests.sim.faults import Faults
from tests.sim.lease_clients import LeaseClient
from tests.sim.net import SimNet
from tests.sim.node import Breakage, SimNode
from tests.sim.opinions import MARKS, Recording, search
from tests.sim.options import Options, draw
from tests.sim.readers import Reader
from tests.sim.restorer import Restorer
from tests.sim.rpc import HOST, Rpc
from tests.sim.scheduler import Scheduler
from tests.sim.stream_watchers import StreamWatcher
from tests.sim.watchers import SimWatcher

__all__ = ["Result", "World", "run_seed"]

#: After peace, the cluster must serve and agree within so many virtual seconds...
_LIVENESS_S = 8.0
#: ... and the last lease be gone within so many more.
_LEASES_S = 14.0


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
    leases_expired: int
    events: int

    def line(self) -> str:
        return (
            f"seed={self.seed} ok acked={self.acked} reads={self.reads} terms={self.terms} crashes={self.crashes} "
            f"installs={self.snapshots_installed} watched={self.watched} expired={self.leases_expired} "
            f"virtual_s={self.virtual_s:.1f} events={self.events} trace={self.trace_hash[:16]}"
        )


class World:
    """Nodes, network, clients and faults of one seed.

    Args:
        seed: everything follows from it, ...
        breakage: ... but for what is broken on purpose,
        size: how many replicas, if that is not to be drawn,
        options: or all that is drawn.
        services: lease timers run; else the caller brings its own.
    """

    def __init__(
        self,
        seed: int,
        *,
        breakage: Breakage | None = None,
        size: int | None = None,
        options: Options | None = None,
        services: bool = True,
    ) -> None:
        self.seed = seed
        self.options = options = options or draw(seed)
        if size is not None:
            self.options = options = replace(options, size=size)
        self.scheduler = s = Scheduler(seed)
        self.checks = Checks()
        self._breakage = breakage or Breakage()
        self.config = RaftConfig(
            snapshot_entries=options.snapshot_entries,
            catch_up_entries=options.catch_up_entries,
            snapshot_chunk_bytes=options.snapshot_chunk_bytes,
            catch_up_bytes_per_s=options.catch_up_bytes_per_s,
            inflight_entries_max=options.inflight_entries_max,
            wal_segment_bytes=4_096,
        )
        self.config.validate()
        self.net = SimNet(s, delay_s=(0.0002, options.delay_max_s), slow_share=options.slow_share)
        if "duplicate" in options.faults:
            self.net.duplicate_share = options.duplicate_share
        self.net.add(HOST, [])
        self.members = [Member(n, f"r{n}", f"r{n}:1", f"r{n}") for n in range(1, options.size + 1)]
        self.nodes: list[SimNode] = []
        for member in self.members:
            self.add_node(member, self.members, services=services)
        self.rpc = Rpc(s, self.net)
        self.faults = Faults(options, s, self.net, self.rpc, self.nodes, self.checks, seed, self.add_node)
        self.clients: list[Client] = []
        self.lease_clients: list[LeaseClient] = []
        self.users: list[Administrator | UserClient] = []
        self.watchers: list[SimWatcher | StreamWatcher] = []
        self.restorers: list[Restorer] = []
        self.readers: list[Reader] = []
        self.recording: Recording | None = None
        self.marker: Marker | None = None
        #: Keys whose beginning the search has found in order.
        self.searched = 0

    def add_node(self, me: Member, members: list[Member], *, services: bool = True) -> SimNode:
        """A machine for a member, not started."""
        self.net.add(me.name, [HOST, *(node.name for node in self.nodes)])
        node = SimNode(
            scheduler=self.scheduler,
            net=self.net,
            checks=self.checks,
            config=self.config,
            me=me,
            members=members,
            sync_s=(self.options.sync_min_s, self.options.sync_max_s),
            breakage=self._breakage,
            services=services,
            compared=self.options.compared,
            retention=Retention(seconds=self.options.retention_s or None),
        )
        self.nodes.append(node)
        return node

    # -- a run -------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Both phases. Raises ViolationError, or whatever a replica raised (fail-stop is a failure here)."""
        try:
            self.start()
            self.faults.begin(self.scheduler.between(0.8, 1.5))
            self.scheduler.run_until(1.0 + self.options.faults_s)
            self.recover()
        finally:
            self.close()
        return Result(
            self.seed,
            self.scheduler.trace_hash,
            self.scheduler.now,
            len(self.checks.acked),
            self.checks.reads,
            self.checks.terms,
            self.faults.crashes,
            self.checks.installs,
            self.checks.watches.watched,
            self.checks.leases.expired,
            self.scheduler.events,
        )

    def start(self) -> None:
        """Replicas, clients and watchers begin."""
        s, options = self.scheduler, self.options
        for node in self.nodes:
            s.after(s.between(0, 0.2), node.start)
        for n in range(options.clients):
            rand = SeededRand(f"{self.seed} c{n}")
            self.clients.append(Client(n, self.rpc, self.nodes, self.checks, rand, think_s=options.think_s))
            self.rpc.start(self.clients[-1].run)
        for n in range(options.lease_clients):
            self.lease_clients.append(
                LeaseClient(n + 1, self.rpc, self.nodes, self.checks, SeededRand(f"{self.seed} l{n}"))
            )
            self.rpc.start(self.lease_clients[-1].run)
        for n in range(options.readers):
            self.readers.append(Reader(self.rpc, self.nodes, self.checks, SeededRand(f"{self.seed} rd{n}")))
            self.rpc.start(self.readers[-1].run)
        for n in range(options.restores):
            self.restorers.append(Restorer(n, self.rpc, self.nodes, SeededRand(f"{self.seed} r{n}")))
            self.rpc.start(self.restorers[-1].run)
        if options.users:
            self._bring_users(options.users)
        if options.recorded:
            self._record()
        for n in range(options.watchers):
            prefix = b"k" if n == 0 else b"k%d" % n
            rand = SeededRand(f"{self.seed} w{n}")
            self.watchers.append(self._watcher(n, rand, prefix))
            self.rpc.start(self.watchers[-1].run)

    def _watcher(self, number: int, rand: SeededRand, prefix: bytes) -> SimWatcher | StreamWatcher:
        kind = StreamWatcher if self.options.streams else SimWatcher
        return kind(number, self.rpc, self.net, self.nodes, self.checks, rand, prefix)

    def _bring_users(self, count: int) -> None:
        kinds: list[type[Administrator | UserClient]] = [Administrator, *([UserClient] * count)]
        for n, kind in enumerate(kinds):
            rand = SeededRand(f"{self.seed} u{n}")
            self.users.append(kind(f"u{n}", self.rpc, self.nodes, self.checks, rand))
            self.rpc.start(self.users[-1].run)

    def _record(self) -> None:
        self.recording = recording = Recording(self.seed)
        self.marker = Marker(self.rpc, self.nodes, recording.history, SeededRand(f"{self.seed} m"))
        self.rpc.start(self.marker.run)
        rand = SeededRand(f"{self.seed} wm")
        watcher = self._watcher(len(self.watchers), rand, MARKS)
        watcher.on_events = lambda events: recording.told(events, self.scheduler.now)
        self.watchers.append(watcher)
        self.rpc.start(watcher.run)

    def recover(self) -> None:
        """Peace: clients go on for a while; then every replica stands at the same index with everything acknowledged,
        every watcher has heard of it, and leases that nobody renews are gone."""
        s = self.scheduler
        s.note("peace")
        self.faults.stop()
        before, end = len(self.checks.acked), s.now + _LIVENESS_S
        for lessee in self.lease_clients:
            lessee.stopped = True
        for restorer in self.restorers:
            restorer.stopped = True
        for reader in self.readers:
            reader.stopped = True
        while not self._recovered(before):
            if s.now >= end:
                raise ViolationError(f"no recovery within {_LIVENESS_S} s of peace: {self._state()}")
            s.run_until(s.now + 0.2)
        self._leases_run_out()
        for watcher in self.watchers:
            watcher.moving = False
        end = s.now + 2.0
        while s.now < end and any(w.after < self.checks.model.revision for w in self.watchers):
            s.run_until(s.now + 0.1)
        for watcher in self.watchers:
            self.checks.watches.caught_up(watcher.name, watcher.after)
        for node in self.core:
            self.checks.nothing_lost(node.name, node.machine.store)
            if not self.checks.model.past:  # users are put back with the state
                self.checks.users_agree(node.name, node.machine.store.auth)
            if self.recording is not None:
                self.recording.judge(node.machine.store, s.now)
                self.recording.history.listings.pop()
        if not self.checks.model.past:  # the search knows of no state that comes back
            self.searched = search(self.checks.asked)

    @property
    def core(self) -> list[SimNode]:
        """The replicas that must come back."""
        return [n for n in self.nodes if n is not self.faults.lost_for_good and not n.retired]

    def _recovered(self, before: int) -> bool:
        if len(self.checks.acked) < before + 5:
            return False
        for client in (*self.clients, *self.users):
            client.stopped = True
        if self.marker is not None:
            self.marker.stopped = True
        busy = [client.busy for client in (*self.clients, *self.users, *self.restorers)]
        return not any(busy) and self._converged()

    def _converged(self) -> bool:
        if not all(node.serving for node in self.core):
            return False
        engines = [node.core.engine for node in self.core]
        ready = all(node.core.ready and node.core.pending == 0 for node in self.core)
        return (
            ready and len({e.applied_index for e in engines}) == 1 and engines[0].applied_index == engines[0].last_index
        )

    def _leases_run_out(self) -> None:
        s, leases = self.scheduler, self.checks.leases
        end = s.now + _LEASES_S
        while leases.alive and s.now < end:
            s.run_until(s.now + 0.2)
            if overdue := leases.overdue(s.now):
                raise ViolationError(f"lease {overdue[0]:x} should have gone long before {s.now:.1f} s")
        if leases.alive:
            raise ViolationError(f"{leases.alive} leases are left at {s.now:.1f} s")
        end = s.now + 1.0
        while not self._converged():
            if s.now >= end:
                raise ViolationError(f"no agreement after the last lease: {self._state()}")
            s.run_until(s.now + 0.1)

    def _state(self) -> str:
        return "; ".join(
            f"{n.name} {n.core.role.value} term {n.core.engine.term} applied {n.core.engine.applied_index} of "
            f"{n.core.engine.last_index}, pending {n.core.pending}, ready {n.core.ready}"
            if n.serving
            else f"{n.name} down: {n.stopped!r}"
            for n in self.nodes
        )

    def close(self) -> None:
        """Nothing of it runs any more."""
        for loop in (self.rpc.loop, *(node.loop for node in self.nodes if node.boot)):
            if not loop.dead:
                loop.kill()
        self.scheduler.close()


def run_seed(seed: int, *, breakage: Breakage | None = None, size: int | None = None) -> Result:
    """One whole run. Raises ViolationError when an invariant does not hold."""
    return World(seed, breakage=breakage, size=size).run()
