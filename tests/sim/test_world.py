"""The simulation itself: it holds on a slice of seeds and repeats exactly. (It can fail, too: test_broken_builds.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.etcd import metrics
from tests.sim.options import Options, past_failure
from tests.sim.stream_watchers import StreamWatcher
from tests.sim.world import World, run_seed

_CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


@pytest.mark.parametrize("seed", range(1_000, 1_006))
def test_nothing_acknowledged_is_lost_and_the_cluster_recovers(seed: int) -> None:
    assert run_seed(seed).acked > 0


@pytest.mark.parametrize("seed", [3, 5])
def test_a_replica_alone_loses_nothing_either(seed: int) -> None:
    faults = frozenset({"crash", "power", "ambush", "eio", "compact"})
    options = Options(size=1, faults=faults, think_s=0.005, delay_max_s=0.001, sync_max_s=0.01, snapshot_entries=20)
    world = World(seed, options=options)
    assert world.run().acked > 20


@pytest.mark.parametrize("entry", _CORPUS, ids=lambda entry: entry.stem)
def test_what_once_failed_does_not_fail_again(entry: Path) -> None:
    seed, options = past_failure(entry)
    assert World(seed, options=options).run().acked > 0


def test_a_run_has_second_opinions() -> None:
    """The search judges keys, and the rules of real runs find something to check."""
    world = World(3, options=Options(recorded=True, lease_clients=1, faults=frozenset({"crash"})))
    world.run()
    assert world.searched >= 4
    assert world.recording is not None
    assert len(world.recording.history.ops) > 20
    assert len(world.recording.history.events) > 10


def test_replicas_keep_house_while_clients_read_ranges() -> None:
    """Nobody compacts but the replicas; ranges of all kinds are read; states are compared."""
    options = Options(readers=2, retention_s=0.5, compared=True, faults=frozenset({"crash"}))
    world = World(4, options=options)
    compared = metrics.INTEGRITY_COMPARED._value.get()
    world.run()
    assert world.checks.ranges > 30
    assert world.checks.model.compacted > 0
    assert metrics.INTEGRITY_COMPARED._value.get() > compared


def test_watchers_use_the_services_own_streams() -> None:
    """Several watches on each; they are cancelled, overtaken by compaction, and asked for their progress."""
    world = World(6, options=Options(streams=True, watchers=3, retention_s=0.5, faults=frozenset({"crash", "leader"})))
    world.run()
    assert world.checks.watches.watched > 100
    assert sum(watcher.canceled for watcher in world.watchers if isinstance(watcher, StreamWatcher)) > 3
    assert sum(watcher.progress_told for watcher in world.watchers if isinstance(watcher, StreamWatcher)) > 10


def test_the_same_seed_is_the_same_run_and_another_seed_is_another() -> None:
    first, again, other = run_seed(11), run_seed(11), run_seed(12)
    assert first == again
    assert first.trace_hash != other.trace_hash


def test_a_run_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    lines = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.sim", "--seed", "13"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        lines.append(done.stdout.splitlines()[0])
    assert lines[0] == lines[1]
    assert "trace=" in lines[0]
