"""Deliberately broken builds: each one must be caught, or the checks that never fail prove nothing.

Every build leaves out one thing that Raft, the log or the store promise, inside the production code; the workload and
the faults are the ordinary ones. A build is caught when a check fails or when a replica finds the damage and stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.sim.node import Breakage, SimNode
from tests.sim.world import World


def syncs_do_nothing(node: SimNode) -> None:
    node.disk.loses_syncs = True


def term_and_vote_stay_in_memory(node: SimNode) -> None:
    journal: Any = node.storage.journal
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
    journal: Any = node.storage.journal

    def handler_ended() -> None:
        if journal._aside:
            journal.wal.truncate_from(journal.last_index + 1)
            journal._aside.clear()

    journal.handler_ended = handler_ended


def votes_are_counted_as_they_come(node: SimNode) -> None:
    engine: Any = node.core.engine
    on_vote = engine._on_vote

    def count(peer_id: int, term: int) -> None:
        engine._votes = (term, set())
        on_vote(peer_id, term)

    engine._on_vote = count


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


def watchers_do_not_look_again_after_a_snapshot(node: SimNode) -> None:
    watches: Any = node.machine.store.watches

    def restored(keyspace: Any) -> None:
        watches.keyspace = keyspace

    watches.restored = restored


@dataclass(frozen=True)
class Build:
    """What is broken, and the first seed that shows it and a few behind it, should the runs change."""

    breakage: Breakage
    first_seed: int
    seeds: int = 30
    size: int | None = None
    #: Part of what catches it.
    says: str = ""
    #: All replicas lose power at once, right after an acknowledgement.
    blackouts: bool = False
    #: A sync takes longer than a message.
    slow_disks: bool = False
    #: The log is compacted behind every few entries, so that most followers that were away need a snapshot.
    short_log: bool = False


def _inside(on_start: Callable[[SimNode], None]) -> Breakage:
    return Breakage(on_start=on_start)


BUILDS = {
    "answers before its log is durable": Build(Breakage(send_before_sync=True), 6, blackouts=True, slow_disks=True),
    "syncs nothing": Build(_inside(syncs_do_nothing), 1),
    "keeps term and vote in memory": Build(_inside(term_and_vote_stay_in_memory), 15, blackouts=True),
    "reads whatever is there": Build(Breakage(read_locally=True), 1, says="stale"),
    "reads before its index is applied": Build(_inside(reads_do_not_wait_for_their_index), 30, says="stale"),
    "reads before its term has committed": Build(_inside(leaders_answer_before_they_have_committed), 1, says="stale"),
    "applies a retry again": Build(_inside(every_request_is_new), 1, says="twice"),
    "forgets requests with a snapshot": Build(_inside(a_snapshot_forgets_requests), 1),
    "truncates matching entries": Build(_inside(matching_entries_are_truncated), 4),
    "counts a vote as often as it comes": Build(_inside(votes_are_counted_as_they_come), 8, size=5),
    "skips events over a snapshot": Build(
        _inside(watchers_do_not_look_again_after_a_snapshot), 6, says="watch", short_log=True
    ),
}


def first_catch(build: Build) -> tuple[int, str]:
    for seed in range(build.first_seed, build.first_seed + build.seeds):
        try:
            world = World(seed, breakage=build.breakage, size=build.size)
            if build.blackouts:
                world.whole_cluster, world.power = True, 1.0
            if build.slow_disks:
                world.slow_disks()
            if build.short_log:
                world.shorten_log()
            world.run()
        except Exception as error:  # noqa: BLE001 - a violation, or a replica that found the damage itself
            return seed, f"{type(error).__name__}: {error}"
    return 0, ""


@pytest.mark.parametrize("name", BUILDS)
def test_a_broken_build_is_caught(name: str) -> None:
    seed, caught = first_catch(BUILDS[name])
    assert caught, f"the build that {name} passed {BUILDS[name].seeds} runs"
    assert BUILDS[name].says in caught, f"seed {seed}"
