"""Deliberately broken builds: each one must be caught, or the checks that never fail prove nothing.

Every build leaves out one thing that Raft, the log or the store promise, inside the production code; the workload and
the faults are the ordinary ones. A build is caught when a check fails or when a replica finds the damage and stops.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from controlplane.base.errors import QuarterdeckError
from controlplane.pb.etcd.kv_pb2 import Event
from controlplane.pb.etcd.rpc_pb2 import RangeRequest, WatchRequest, WatchResponse
from controlplane.store.leases import Change
from controlplane.store.watch import Watcher
from tests.sim.node import Breakage, SimNode
from tests.sim.options import Options, draw
from tests.sim.violation import ViolationError
from tests.sim.world import World


def syncs_do_nothing(node: SimNode) -> None:
    node.disk.loses_syncs = True


def term_and_vote_stay_in_memory(node: SimNode) -> None:
    journal: Any = node.core.engine._journal
    journal.setCurrentTerm = lambda term, voted_for: None


def every_request_is_new(node: SimNode) -> None:
    dedup: Any = node.machine.store._dedup
    dedup.reply = lambda request_id: None


def a_snapshot_forgets_requests(node: SimNode) -> None:
    store: Any = node.machine.store
    take = store.take

    def forgetful(loaded: Any) -> None:
        take(loaded)
        store._dedup._entries.clear()

    store.take = forgetful


def matching_entries_are_truncated(node: SimNode) -> None:
    """What pysyncobj's own journals do: whatever is behind a message's entries goes, contradicted or not."""
    journal: Any = node.core.engine._journal

    def handler_ended() -> None:
        if journal._aside:
            journal.wal.truncate_from(journal.last_index + 1)
            journal._aside.clear()

    journal.handler_ended = handler_ended


def votes_are_counted_as_they_come(node: SimNode) -> None:
    """Pre-votes too: their majority would hide most of this."""
    elections: Any = node.core.engine._elections
    on_vote = elections.on_vote

    def count(peer_id: int, term: int) -> None:
        elections._votes = (term, set())
        on_vote(peer_id, term)

    elections.on_vote = count
    pre_votes = elections._pre_votes
    answers = [0, 0]

    def granted(peer_id: int, seq: int) -> None:
        answers[:] = [seq, answers[1] + 1 if answers[0] == seq else 1]

    pre_votes.on_granted = granted
    pre_votes.won = lambda term, voters, willing: (
        pre_votes._term == term and answers[0] == pre_votes._seq and 2 * (1 + answers[1]) > 1 + len(voters)
    )


def reads_do_not_wait_for_their_index(node: SimNode) -> None:
    reads: Any = node.core._reads
    complete = reads._complete
    reads._complete = lambda applied_index: complete(1 << 62)


def leaders_answer_before_they_have_committed(node: SimNode) -> None:
    """A new leader trusts the commit index it had as a follower (etcd's no-op at the start of a term, left out)."""
    reads: Any = node.core._reads
    step = reads.step

    class Trusting:
        term_committed = property(lambda self: node.core.engine.is_leader)

        def __getattr__(self, name: str) -> Any:
            return getattr(node.core.engine, name)

    reads.step = lambda engine, route, now: step(Trusting(), route, now)


class _Lying:
    """A watcher whose events show the value they bring as the one before."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)

    def poll(self, max_events: int) -> list[tuple[int, list[Event]]]:
        batch = self._watcher.poll(max_events)
        for _, events in batch:
            for event in events:
                event.prev_kv.CopyFrom(event.kv)
        return batch


def watchers_do_not_look_again_after_a_snapshot(node: SimNode) -> None:
    watches: Any = node.machine.store.watches

    def restored(keyspace: Any) -> None:
        watches.keyspace = keyspace

    watches.restored = restored


def a_snapshot_has_no_keys(node: SimNode) -> None:
    store: Any = node.machine.store
    take = store.take

    def empty(loaded: Any) -> None:
        take(loaded)
        store._keyspace = type(store._keyspace)()

    store.take = empty


def one_replica_applies_a_batch_in_another_order(node: SimNode) -> None:
    if node.name == "r2":
        store: Any = node.machine.store
        apply = store.apply

        def backwards(index: int, term: int, proposals: Any) -> list[bytes]:
            replies: list[bytes] = apply(index, term, list(reversed(proposals)))
            return replies[::-1]

        store.apply = backwards


def a_watch_begins_one_revision_late(node: SimNode) -> None:
    watches: Any = node.machine.store.watches
    create = watches.create
    watches.create = lambda key, end, start, **options: create(key, end, start + 1, **options)


def a_watch_is_not_woken_by_deletes(node: SimNode) -> None:
    watches: Any = node.machine.store.watches
    notice = watches.notice
    watches.notice = lambda revision, events: notice(revision, [e for e in events if not e.is_delete])


def values_before_are_those_after(node: SimNode) -> None:
    watches: Any = node.machine.store.watches
    create = watches.create

    watches.create = lambda *args, **options: _Lying(create(*args, **options))


def leases_expire_at_half_time(node: SimNode) -> None:
    lessor: Any = node.kv.lessor
    due = lessor._on_lease

    def early(change: Any) -> None:
        due(change)
        reign = lessor._reign
        if reign is not None and change.kind is Change.GRANTED:
            reign.deadlines_s[change.lease.id] -= change.lease.ttl_s / 2
            heapq.heappush(reign.heap, (reign.deadlines_s[change.lease.id], change.lease.id))

    node.machine.store.leases._listeners[:] = [early]


def renewals_are_not_confirmed(node: SimNode) -> None:
    """A leader that was deposed while it was paused renews leases that its successor lets run out."""
    lessor: Any = node.kv.lessor

    async def trusting() -> Any:
        return lessor._leading()

    lessor._confirmed_reign = trusting


def a_new_leader_counts_from_zero(node: SimNode) -> None:
    lessor: Any = node.kv.lessor

    def arm(reign: Any) -> None:
        now_s = lessor._clock.monotonic()
        reign.deadlines_s = {lease.id: now_s for lease in lessor._leases}
        reign.heap = [(now_s, lease_id) for lease_id in reign.deadlines_s]

    lessor._arm_all = arm


def leases_are_for_ever(node: SimNode) -> None:
    lessor: Any = node.kv.lessor

    async def forget(reign: Any, lease_id: int) -> None:
        reign.expiring.pop(lease_id, None)

    lessor._expire = forget


def permissions_are_not_looked_at(node: SimNode) -> None:
    """Where a write is applied: whoever asked may have lost a permission since, or never had it."""
    store: Any = node.machine.store
    dispatch = store._dispatch

    def trusting(command: Any, index: int) -> bytes:
        command.auth_revision = 0
        answer: bytes = dispatch(command, index)
        return answer

    store._dispatch = trusting


def a_snapshot_has_no_users(node: SimNode) -> None:
    store: Any = node.machine.store
    take = store.take

    def nobody(loaded: Any) -> None:
        take(loaded)
        store.auth.load(False, 1, b"", [], [])

    store.take = nobody


def past_revisions_are_read_as_of_now(node: SimNode) -> None:
    store: Any = node.machine.store
    read = store.range

    def now(request: RangeRequest) -> Any:
        present = RangeRequest()
        present.CopyFrom(request)
        present.revision = 0
        return read(present)

    store.range = now


def counts_stop_at_the_limit(node: SimNode) -> None:
    store: Any = node.machine.store
    read = store.range

    def short(request: RangeRequest) -> Any:
        answer = read(request)
        if request.limit:
            answer.count = min(answer.count, request.limit)
        return answer

    store.range = short


def progress_is_told_before_what_is_on_its_way(node: SimNode) -> None:
    watching: Any = node.watching
    serve = watching.Watch

    async def hasty(requests: Any, context: Any) -> None:
        async def others() -> AsyncIterator[WatchRequest]:
            async for request in requests:
                if request.HasField("progress_request"):
                    await context.write(WatchResponse(header=node.kv.header(), watch_id=-1))
                else:
                    yield request

        await serve(others(), context)

    watching.Watch = hasty


def watches_do_not_wait_for_a_revision_to_come(node: SimNode) -> None:
    """etcd#20221."""
    store: Any = node.machine.store
    create = store.watches.create

    def begin(key: bytes, end: bytes, start: int, **options: Any) -> Any:
        return create(key, end, min(start, store.revision + 1), **options)

    store.watches.create = begin


def a_canceled_watch_goes_on(node: SimNode) -> None:
    watching: Any = node.watching
    serve = watching.Watch

    async def forgetful(requests: Any, context: Any) -> None:
        async def others() -> AsyncIterator[WatchRequest]:
            async for request in requests:
                if request.HasField("cancel_request"):
                    watch_id = request.cancel_request.watch_id
                    await context.write(WatchResponse(header=node.kv.header(), watch_id=watch_id, canceled=True))
                else:
                    yield request

        await serve(others(), context)

    watching.Watch = forgetful


class _OtherHashes:
    """A store of which the hashes tell of another state than the others have."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def hash_at(self, index: int) -> bytes | None:
        digest = self._store.hash_at(index)
        return None if digest is None else digest[::-1]


def one_replica_holds_another_state(node: SimNode) -> None:
    if node.name == "r2":
        integrity: Any = node.integrity
        integrity._store = _OtherHashes(integrity._store)


@dataclass(frozen=True)
class Build:
    """What is broken, what of the drawn options helps to show it, and the first seed of those to try."""

    breakage: Breakage
    faults: str = "crash power"
    first_seed: int = 1
    seeds: int = 30
    #: Part of what catches it.
    says: str = ""
    #: Options that are not drawn.
    options: dict[str, Any] = field(default_factory=dict)


def _inside(on_start: Callable[[SimNode], None]) -> Breakage:
    return Breakage(on_start=on_start)


_SLOW_DISKS = {"sync_min_s": 0.005, "sync_max_s": 0.04}
_SHORT_LOG = {"snapshot_entries": 10, "catch_up_entries": 1}
_LEASES = {"lease_clients": 2}
_BUSY = {"clients": 6, "think_s": 0.004, "down_max_s": 0.2}

_USERS = {"users": 3}

#: The first eight are the ones that every simulation of a store like this must catch.
BUILDS = {
    "no fsync": Build(_inside(syncs_do_nothing), "crash power ambush"),
    "vote not persisted": Build(
        _inside(term_and_vote_stay_in_memory), "ambush power crash", options={**_SLOW_DISKS, "intensity_s": 0.1}
    ),
    "stale read": Build(Breakage(read_locally=True), "cut", says="stale"),
    "watch gap": Build(
        _inside(watchers_do_not_look_again_after_a_snapshot),
        "leader isolate",
        first_seed=164,
        says="watch",
        options={**_SHORT_LOG, **_BUSY},
    ),
    "double apply": Build(_inside(every_request_is_new), "crash break leader", says="twice"),
    "truncation of matching entries": Build(
        _inside(matching_entries_are_truncated), "crash break duplicate flap leader", options={"slow_share": 0.1}
    ),
    "vote counted twice": Build(
        _inside(votes_are_counted_as_they_come),
        "duplicate crash leader",
        first_seed=14,
        options={"size": 5, "duplicate_share": 0.5, "slow_share": 0.1, "down_max_s": 0.2, "lease_clients": 0},
    ),
    "lease expired early": Build(_inside(leases_expire_at_half_time), says="lease", first_seed=8, options=_LEASES),
    "answers before its log is durable": Build(
        Breakage(send_before_sync=True), "ambush power", options={**_SLOW_DISKS, "snapshot_entries": 1_000}
    ),
    "reads before its index is applied": Build(
        _inside(reads_do_not_wait_for_their_index),
        "break flap leader",
        says="stale",
        options={**_BUSY, "delay_max_s": 0.005},
    ),
    "reads before its term has committed": Build(
        _inside(leaders_answer_before_they_have_committed), "ambush power", says="stale", options=_BUSY
    ),
    "forgets requests with a snapshot": Build(
        _inside(a_snapshot_forgets_requests), "crash break leader", first_seed=17, options=_SHORT_LOG
    ),
    "restores a snapshot without its keys": Build(_inside(a_snapshot_has_no_keys), "crash", options=_SHORT_LOG),
    "applies a batch in another order": Build(_inside(one_replica_applies_a_batch_in_another_order), says="r2"),
    "begins a watch one revision late": Build(_inside(a_watch_begins_one_revision_late), says="watch"),
    "keeps deletes from watchers": Build(_inside(a_watch_is_not_woken_by_deletes), says="watch"),
    "shows the new value as the one before": Build(_inside(values_before_are_those_after), says="watch"),
    "renews leases without a quorum": Build(
        _inside(renewals_are_not_confirmed),
        "pause",
        says="lease",
        options={"lease_clients": 8, "clients": 1, "think_s": 0.3, "intensity_s": 1.0, "faults_s": 9.0},
    ),
    "lets a new leader expire every lease": Build(
        _inside(a_new_leader_counts_from_zero), "crash", says="lease", options=_LEASES
    ),
    "writes what a user may not": Build(
        _inside(permissions_are_not_looked_at), "crash leader", says="model", options=_USERS
    ),
    "restores a snapshot without its users": Build(
        _inside(a_snapshot_has_no_users), "crash leader", options={**_SHORT_LOG, **_USERS}
    ),
    "tells progress before what is on its way": Build(
        _inside(progress_is_told_before_what_is_on_its_way), says="watch", options={**_BUSY, "streams": True}
    ),
    "begins a watch of the future now": Build(
        _inside(watches_do_not_wait_for_a_revision_to_come), says="watch", options={"streams": True}
    ),
    "goes on with a canceled watch": Build(_inside(a_canceled_watch_goes_on), says="watch", options={"streams": True}),
    "begins a watch one revision late, on a stream": Build(
        _inside(a_watch_begins_one_revision_late), says="watch", options={"streams": True}
    ),
    "reads the past as it is now": Build(
        _inside(past_revisions_are_read_as_of_now), says="range", options={"readers": 2}
    ),
    "counts no further than its limit": Build(_inside(counts_stop_at_the_limit), says="range", options={"readers": 2}),
    "has another state than the others": Build(
        _inside(one_replica_holds_another_state), says="CorruptMember", options={"compared": True}
    ),
    "never expires a lease": Build(_inside(leases_are_for_ever), says="lease", options=_LEASES),
}


def _options(build: Build, seed: int) -> Options:
    # These only where they help: the seeds were chosen without.
    without = {"users": 0, "restores": 0, "readers": 0, "compared": False, "retention_s": 0.0, "streams": False}
    return replace(draw(seed), **{"faults": frozenset(build.faults.split()), **without, **build.options})


def first_catch(build: Build) -> tuple[int, str]:
    """How many seeds it took, and what caught it; 0 when nothing did."""
    for number in range(build.seeds):
        seed = build.first_seed + number
        try:
            options = _options(build, seed)
            World(seed, breakage=build.breakage, options=options).run()
        except (ViolationError, QuarterdeckError, AssertionError) as error:  # or a replica finds the damage itself
            return number + 1, f"{type(error).__name__}: {error}"
    return 0, ""


@pytest.mark.parametrize("name", BUILDS)
def test_a_broken_build_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, caught = first_catch(BUILDS[name])
    assert caught, f"the broken build {name!r} passed {BUILDS[name].seeds} runs"
    assert BUILDS[name].says in caught
    with capsys.disabled():
        print(f"\n  caught after {seeds} seeds: {name}: {caught[:110]}", end="")  # noqa: T201


def test_the_options_that_catch_them_are_harmless_to_the_real_build() -> None:
    for build in BUILDS.values():
        options = _options(build, build.first_seed)
        World(build.first_seed, options=options).run()
