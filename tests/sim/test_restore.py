"""A restore into the running cluster: under kills and partitions, caught up by a snapshot in the middle, given up.

The checks that watch every run watch these too: every replica answers every step as the model does, states agree at
every entry, watchers are told of the compaction, nothing acknowledged after the swap is lost. Seeds of ``make sim``
restore as well; here are the moments that matter, and builds that get them wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.restoring import IDLE_S
from controlplane.pb.etcd.rpc_pb2 import LeaseGrantRequest, PutRequest
from tests.sim.checks import ViolationError
from tests.sim.checks_lease import LeaseChecks
from tests.sim.node import Breakage, SimNode
from tests.sim.restorer import Restorer, Saved
from tests.sim.stage import Stage

_ID = b"restore-under-way"[:16]
_SHORT: dict[str, Any] = {"snapshot_entries": 10, "catch_up_entries": 1}


def _inside(on_start: Callable[[SimNode], None]) -> Breakage:
    return Breakage(on_start=on_start)


class _Doing:
    """A restore under way, while the scenario does something else."""

    def __init__(self, stage: Stage, saved: Saved) -> None:
        self.restorer = Restorer(0, stage.world.rpc, stage.nodes, SeededRand("restore"))
        self.ended = False
        self.committed = False

        async def run() -> None:
            self.committed = await self.restorer.restore(saved) is not None
            self.ended = True

        stage.world.rpc.start(run)


def _filled(stage: Stage, keys: int = 30) -> Saved:
    """Some state, saved, and then changed."""
    for n in range(keys):
        stage.write(b"k%02d" % n, b"saved %d" % n)
    saved = Saved(stage.leader())
    for n in range(0, keys, 2):
        stage.write(b"k%02d" % n, b"changed")
    stage.write(b"kx", b"unknown to the snapshot")
    return saved


def _is_restored(stage: Stage) -> None:
    model = stage.checks.model
    if len(model.past) != 1:
        raise ViolationError(f"{len(model.past)} restores took effect, not one")
    for node in stage.nodes:
        if node.machine.store.restoring is not None:
            raise ViolationError(f"{node.name} still has a stage")


def under_kills(seed: int, breakage: Breakage | None = None) -> None:
    with Stage(seed=seed, breakage=breakage, clients=2, watchers=2, **_SHORT) as stage:
        saved = _filled(stage)
        doing = _Doing(stage, saved)
        for n in range(6):
            stage.until(lambda n=n: doing.ended or doing.restorer.staged > 4 * n, 20.0)  # type: ignore[misc]
            victim = stage.leader() if n % 2 == 0 else stage.nodes[n % 3]
            victim.crash(power=n % 3 == 0)
            stage.run(0.05)
            victim.start()
        stage.until(lambda: doing.ended, 20.0)
        assert doing.committed
        stage.write(b"after", b"the swap")
        for client in stage.world.clients:
            client.stopped = True
        stage.converge()
        _is_restored(stage)
        stage.run(2.0)
        if stage.checks.watches.compactions < len(stage.world.watchers):
            raise ViolationError("a watcher was not told to list again")
        for watcher in stage.world.watchers:
            stage.checks.watches.caught_up(watcher.name, watcher.after)


@pytest.mark.parametrize("seed", [1, 2])
def test_under_kills_it_is_done_wholly_and_once(seed: int) -> None:
    """Leaders die while the state travels: the client goes on with the next one."""
    under_kills(seed)


def test_it_fails_when_watchers_are_not_told() -> None:
    def silent(node: SimNode) -> None:
        node.machine.store.watches.restored = lambda keyspace: None  # type: ignore[method-assign]

    with pytest.raises(ViolationError):
        under_kills(1, _inside(silent))


def _step(stage: Stage, ask: Callable[[SimNode], Awaitable[object]]) -> None:
    """One step through whoever leads, again until it is known to be done."""
    while True:
        node = stage.leader()
        try:
            stage.ask(node, lambda _, node=node: ask(node))  # type: ignore[misc]
            return
        except StatusError as error:
            if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise


def _staged(stage: Stage, saved: Saved, pieces: range) -> None:
    for n in pieces:
        _step(stage, lambda node, n=n: node.restoring.chunk(_ID, n, saved.pieces[n]))  # type: ignore[misc]


def caught_up_in_the_middle(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, **_SHORT) as stage:
        saved = _filled(stage)
        away = stage.others(stage.leader())[0]
        away.crash(power=False)
        half = len(saved.pieces) // 2
        _step(stage, lambda node: node.restoring.begin(saved.begin(_ID), state_bytes=0))
        _staged(stage, saved, range(half))
        for n in range(40):  # until nobody's log reaches back to where it left
            stage.write(b"meanwhile", b"%d" % n)
        installs = stage.checks.installs
        away.start()
        stage.until(lambda: stage.checks.installs > installs, 10.0)
        # All of them come back from their own snapshot and log, one after the other, while the rest travels.
        for n, other in enumerate(stage.nodes):
            other.crash(power=True)
            other.start()
            _staged(stage, saved, range(half + n, half + n + 1))
        _staged(stage, saved, range(half + 3, len(saved.pieces)))
        _step(stage, lambda node: node.restoring.commit(_ID, saved.digest))
        stage.write(b"after", b"the swap")
        stage.converge()
        _is_restored(stage)


def test_who_is_caught_up_by_a_snapshot_in_the_middle_ends_equal() -> None:
    """What is staged travels with a snapshot, and is in a replica's own."""
    caught_up_in_the_middle()


def test_it_fails_when_snapshots_lack_what_is_staged() -> None:
    def forgetful(node: SimNode) -> None:
        store: Any = node.machine.store
        cut = store.snapshot

        def without_stage() -> Any:
            stage, store._stage = store._stage, None
            try:
                return cut()
            finally:
                store._stage = stage

        store.snapshot = without_stage

    with pytest.raises((ViolationError, StatusError)):
        caught_up_in_the_middle(_inside(forgetful))


def test_in_the_minority_it_waits_and_is_done_when_the_partition_heals() -> None:
    with Stage(seed=3) as stage:
        saved = _filled(stage)
        doing = _Doing(stage, saved)
        stage.until(lambda: doing.restorer.staged >= 5, 10.0)
        leader = stage.leader()
        for node in stage.nodes:
            stage.split([node], *([other] for other in stage.others(node)))
        stage.run(3.0)
        assert not doing.ended
        assert leader.machine.store.restored_index == 0
        stage.heal()
        stage.until(lambda: doing.ended, 20.0)
        assert doing.committed
        stage.converge()
        _is_restored(stage)


def test_one_that_nobody_goes_on_with_is_given_up_and_the_next_may_begin() -> None:
    with Stage() as stage:
        saved = _filled(stage)
        node = stage.leader()
        stage.ask(node, lambda _: node.restoring.begin(saved.begin(b"gone" * 4), state_bytes=0))
        stage.ask(node, lambda _: node.restoring.chunk(b"gone" * 4, 0, saved.pieces[0]))
        with pytest.raises(StatusError, match="is under way"):
            stage.ask(node, lambda _: node.restoring.begin(saved.begin(b"next" * 4), state_bytes=0))
        stage.until(lambda: all(n.machine.store.restoring is None for n in stage.nodes), IDLE_S + 20.0)
        doing = _Doing(stage, saved)
        stage.until(lambda: doing.ended, 20.0)
        assert doing.committed
        stage.converge()
        _is_restored(stage)


def leases_begin_anew(breakage: Breakage | None = None) -> None:
    """A lease about to run out is put back: it has its whole time again, and keeps it over a leader change."""
    lease, ttl_s = 77, 3
    with Stage(breakage=breakage) as stage:
        node = stage.leader()
        began = stage.now
        stage.ask(node, lambda kv: kv.lease_grant(LeaseGrantRequest(ID=lease, TTL=ttl_s), timeout_ms=500))
        stage.checks.leases.granted(lease, ttl_s, began, stage.now)
        put = PutRequest(key=b"kl", value=b"held", lease=lease)
        stage.ask(node, lambda kv: kv.put(put, timeout_ms=500))
        saved = Saved(node)
        # To its leader it has all but run out by the time of the swap.
        node.kv.lessor._clock = _Ahead(node)
        stage.run(0.15)
        doing = _Doing(stage, saved)
        stage.until(lambda: doing.ended, 10.0)
        assert doing.committed
        swapped = stage.now
        stage.until(lambda: stage.checks.leases.alive == 0, 15.0)
        if stage.now < swapped + ttl_s - 0.5:
            raise ViolationError(f"the lease went {stage.now - swapped:.2f} s after the swap")
        stage.converge()


class _Ahead:
    """A clock that is a lease's time ahead of what it was when the lease was granted, until its table is replaced."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._clock = node.clock

    def monotonic(self) -> float:
        ahead = 0.0 if self._node.machine.store.leases.epoch else 2.8
        return self._clock.monotonic() + ahead

    def wall_ms(self) -> int:
        return self._clock.wall_ms()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


def test_leases_begin_anew_with_their_full_time() -> None:
    leases_begin_anew()


def test_a_lease_that_went_with_a_restore_before_its_client_heard_of_it_is_not_overdue() -> None:
    """Seed 639: the grant was answered after the swap that took the lease, and the check waited for its end."""
    leases = LeaseChecks()
    leases.replaced({}, 5.05)
    leases.granted(1, 3, 4.96, 5.12, there=False)
    assert leases.alive == 0
    leases.granted(2, 3, 4.96, 5.12, there=True)
    leases.granted(3, 3, 5.06, 5.12, there=False)  # granted after it: whoever forgot it is to blame
    assert leases.overdue(20.0) == [2, 3]
