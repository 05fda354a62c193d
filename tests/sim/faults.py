"""What goes wrong in a run: picks a fault now and then, does it, and undoes it later.

Owns the choice and the blast radius: whatever loses data for good (a bit that rots) hits a minority only. Everything
else may hit everybody: then nothing is promised but safety.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from controlplane.base.errors import StatusError, StorageError
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.rpc_pb2 import CompactionRequest
from controlplane.raft.types import AddMember, Member, MemberChange, RemoveMember
from tests.sim.checks import Checks
from tests.sim.net import SimNet
from tests.sim.node import SimNode
from tests.sim.options import Options
from tests.sim.rpc import HOST, Rpc
from tests.sim.scheduler import Scheduler

__all__ = ["Faults"]


class Faults:
    """The faults of one run, until :meth:`stop`."""

    def __init__(
        self,
        options: Options,
        scheduler: Scheduler,
        net: SimNet,
        rpc: Rpc,
        nodes: list[SimNode],
        checks: Checks,
        seed: int,
        add_node: Callable[[Member, list[Member]], SimNode],
    ) -> None:
        self._options = options
        self._s = scheduler
        self._net = net
        self._rpc = rpc
        self._nodes = nodes
        self._checks = checks
        self._rand = SeededRand(f"faults {seed}")
        self._calm = False
        self._ambush = False
        self._changing = False
        #: Makes a machine for a new member.
        self._add_node = add_node
        #: Whose disk lost something for good.
        self._rotten: SimNode | None = None
        self.crashes = 0
        self.done: dict[str, int] = {}
        acts: dict[str, Callable[[], None]] = {
            "crash": self._crash_one,
            "ambush": self._lay_ambush,
            "pause": self._pause,
            "break": self._break,
            "cut": self._cut,
            "isolate": lambda: self._isolate(self._any()),
            "leader": lambda: self._isolate(self._leader()),
            "ring": self._ring,
            "flap": self._flap,
            "deaf": self._deaf,
            "eio": self._eio,
            "enospc": self._enospc,
            "rot": self._rot,
            "wall": self._wall,
            "transfer": self._transfer,
            "compact": self._compact,
            "members": self._members,
        }
        self._acts = [(name, act) for name, act in acts.items() if name in options.faults]
        checks.on_ack = self._on_ack
        for node in nodes:
            self.mind(node)

    def mind(self, node: SimNode) -> None:
        """What to do when this replica stops by itself."""
        node.on_stop = self._stopped

    def begin(self, delay_s: float) -> None:
        """The first fault comes after that."""
        if self._acts:
            self._s.after(delay_s, self._next)

    def stop(self) -> None:
        """Undo everything, and do nothing more."""
        self._calm = True
        self._net.calm()
        for node in self._nodes:
            node.disk.capacity_bytes = 1 << 40
            node.disk.sync_failures, node.disk.fails_at = 0, None
            if not node.alive:
                self._restart(node)

    def _next(self) -> None:
        if self._calm:
            return
        name, act = self._acts[self._rand.randint(0, len(self._acts) - 1)]
        self.done[name] = self.done.get(name, 0) + 1
        self._s.note("fault", name)
        act()
        self._s.after(self._between(0.2, 2) * self._options.intensity_s, self._next)

    # -- processes ---------------------------------------------------------------------------------------------

    def _crash_one(self) -> None:
        self._crash(self._leader() if self._chance(0.6) else self._any())

    def _crash(self, node: SimNode, *, power: bool | None = None) -> None:
        if node.alive:
            self.crashes += 1
            node.crash(power="power" in self._options.faults and self._chance(0.6) if power is None else power)
            self._restart_later(node)

    def _restart_later(self, node: SimNode) -> None:
        self._s.after(self._between(0.05, self._options.down_max_s), lambda: self._restart(node))

    def _restart(self, node: SimNode) -> None:
        if not node.alive and not node.retired and (node is not self._rotten or node.stopped is None):
            node.start()

    def _stopped(self, node: SimNode, error: BaseException) -> None:
        """It stopped by itself. Only a fault of its disk may do that, and then a supervisor starts it again."""
        if node.retired or node is self._rotten:
            return
        if not (isinstance(error, StorageError) and node.disk.refused):
            self._s.fail(error)
            return
        self._s.after(self._between(0.05, 0.5), lambda: self._restart(node))

    def _lay_ambush(self) -> None:
        self._ambush = True

    def _on_ack(self) -> None:
        if self._ambush and not self._calm:
            self._ambush = False
            for node in self._nodes:
                self._crash(node, power="power" in self._options.faults)

    def _pause(self) -> None:
        (self._leader() if self._chance(0.5) else self._any()).pause(self._between(0.05, 2.5))

    def _wall(self) -> None:
        node = self._any()
        if node.alive:
            node.clock.wall_step_ms += self._rand.randint(-3_600_000, 3_600_000)

    # -- network -----------------------------------------------------------------------------------------------

    def _break(self) -> None:
        for _ in range(self._rand.randint(1, 3)):
            self._net.break_link(*self._pair())

    def _cut(self) -> None:
        pair = self._pair()
        self._cut_for(self._between(0.1, 2.5), [pair])

    def _cut_for(self, seconds: float, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self._net.cut(*pair)

        def heal() -> None:
            for pair in pairs:
                self._net.heal(*pair)

        self._s.after(seconds, heal)

    def _isolate(self, node: SimNode) -> None:
        pairs = [p for p in self._peers() if node.name in p]
        if self._chance(0.4):
            pairs = [p for p in pairs if p[self._rand.randint(0, 1)] == node.name]
        self._cut_for(self._between(0.1, 3.0), pairs)

    def _ring(self) -> None:
        """A-B-C: the ends do not hear each other."""
        names = [node.name for node in self._nodes]
        start = self._rand.randint(0, len(names) - 1)
        chain = names[start:] + names[:start]
        neighbours = {*pairwise(chain), *pairwise(reversed(chain))}
        self._cut_for(self._between(0.3, 3.0), [p for p in self._peers() if p not in neighbours])

    def _flap(self) -> None:
        a, b = self._pair()
        for n in range(self._rand.randint(3, 12)):
            self._s.after(0.07 * n, lambda: self._net.break_link(a, b))
            self._s.after(0.07 * n, lambda: self._cut_for(0.03, [(a, b)]))

    def _deaf(self) -> None:
        name = self._any().name
        self._cut_for(self._between(0.1, 2.0), [(name, HOST) if self._chance(0.5) else (HOST, name)])

    # -- disks -------------------------------------------------------------------------------------------------

    def _eio(self) -> None:
        disk = self._any().disk
        if self._chance(0.5):
            disk.sync_failures += 1
        else:
            disk.fails_at = len(disk.operations) + self._rand.randint(0, 9)

    def _enospc(self) -> None:
        disk = self._any().disk
        disk.capacity_bytes = disk.used_bytes + self._rand.randint(0, 4_000)

        def free() -> None:
            disk.capacity_bytes = 1 << 40

        self._s.after(self._between(0.2, 2.0), free)

    def _rot(self) -> None:
        """A bit flips in a file of one replica, once a run, while it is down: it must refuse, never serve."""
        node = self._any()
        if self._rotten is None and node.alive:
            files = [name for d in ("wal", "snapshots") for name in (f"{d}/{f}" for f in node.disk.list(d))]
            files = [name for name in files if node.disk.size(name)]
            if files:
                self._rotten = node
                self._crash(node, power=False)
                name = files[self._rand.randint(0, len(files) - 1)]
                if node.disk.exists(name) and (size := node.disk.size(name)):
                    node.disk.flip_bit(name, self._rand.randint(0, size - 1), self._rand.randint(0, 7))

    @property
    def lost_for_good(self) -> SimNode | None:
        """A replica that refused its disk: its machine has to be replaced."""
        node = self._rotten
        return node if node is not None and node.stopped is not None else None

    # -- operators ---------------------------------------------------------------------------------------------

    def _compact(self) -> None:
        """Somebody forgets history, up to a little before now: watchers that are slow are overtaken."""
        node = self._any()
        revision = max(1, self._checks.model.revision - self._rand.randint(0, 20))
        request = CompactionRequest(revision=revision, physical=self._chance(0.3))
        if node.serving:
            self._rpc.send(node, lambda kv: kv.compact(request, timeout_ms=1_000))

    def _transfer(self) -> None:
        node = self._leader()
        target = None if self._chance(0.5) else self._any().me.id
        if node.leads:
            self._rpc.send(node, lambda kv: node.replica.transfer_leadership(target, timeout_ms=1_000))

    def _members(self) -> None:
        """A member comes, or one that is not the leader goes; one change at a time."""
        if not self._changing:
            self._changing = True
            self._rpc.start(self._change_members)

    async def _change_members(self) -> None:
        try:
            await self._change_one()
        except StatusError as error:
            self._s.note("no change", error.code)
            self._changing = error.unknown_outcome

    async def _change_one(self) -> None:
        leader = self._leader()
        active = [node for node in self._nodes if not node.retired]
        if not leader.leads:
            self._changing = False
            return
        # After a change of unknown fate nobody changes anything any more: the next one must know the members.
        if len(active) > self._options.size:
            victim = next(node for node in active if node is not leader)
            await self._change(leader, RemoveMember(victim.me.id))
            victim.retired = True
            victim.crash(power=False)
        else:
            name = f"r{len(self._nodes) + 1}"
            members = await self._change(leader, AddMember(f"{name}:1", learner=False, name=name))
            me = next((m for m in members if m.peer_address == f"{name}:1"), None)
            if me is not None:
                node = self._add_node(replace(me, name=name), list(members))
                self.mind(node)
                node.start()
        self._changing = False

    async def _change(self, leader: SimNode, change: MemberChange) -> tuple[Member, ...]:
        return await self._rpc.call(leader, lambda kv: leader.replica.change_members(change, timeout_ms=1_000))

    # -- chance ------------------------------------------------------------------------------------------------

    def _any(self) -> SimNode:
        return self._nodes[self._rand.randint(0, len(self._nodes) - 1)]

    def _leader(self) -> SimNode:
        leaders = [node for node in self._nodes if node.leads]
        return leaders[self._rand.randint(0, len(leaders) - 1)] if leaders else self._any()

    def _peers(self) -> list[tuple[str, str]]:
        return [p for p in self._net.pairs if HOST not in p]

    def _pair(self) -> tuple[str, str]:
        peers = self._peers()
        return peers[self._rand.randint(0, len(peers) - 1)]

    def _chance(self, probability: float) -> bool:
        return self._rand.random() < probability

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._rand.random()
