"""Faults of disks, clocks and resources, planned: what is undone, what counts as down, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from chaos.faults import fault_named
from chaos.ground import Ground
from chaos.hog import HOG
from chaos.targets import TargetError
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SeededRand
from tests.unit.chaos.faults import rig


def planned(ground: Ground, fault: str, *targets: str, **params: Any) -> Any:
    return fault_named(fault).plan(ground, targets, params, SeededRand(7))


@pytest.mark.parametrize("fault", ["disk-full", "disk-error", "lose-unsynced", "tear", "flip"])
def test_a_replica_whose_disk_is_struck_counts_as_down(tmp_path: Path, fault: str) -> None:
    ground, _ = rig.ground(tmp_path)
    strike = planned(ground, fault, "r2")
    assert strike.args["down"] == ["r2"]
    assert not strike.quorum_lost
    assert [undo.args["name"] for undo in strike.undo] == ["r2"]
    ground, _ = rig.ground(tmp_path, down=frozenset({"r1"}))
    assert planned(ground, fault, "r2").quorum_lost


async def test_a_torn_snapshot_is_put_back_whole_and_nobody_else_may_read_it_meanwhile(tmp_path: Path) -> None:
    ground, cluster = rig.ground(tmp_path)
    (tmp_path / "chaos").mkdir(exist_ok=True)
    snapshot = cluster.replica_dir("r2") / "snapshots" / f"{9:016x}-{1:016x}.snap"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(b"secret" * 50)
    snapshot.chmod(0o600)
    strike = planned(ground, "tear", "r2", where="snapshot")
    await fault_named("tear").strike(ground, strike)
    assert 0 < snapshot.stat().st_size < 300
    (kept,) = (tmp_path / "chaos").glob("*.kept")
    assert kept.stat().st_mode & 0o777 == 0o600
    await fault_named("tear").heal(ground, strike.undo[0])
    assert snapshot.read_bytes() == b"secret" * 50
    assert snapshot.stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "chaos").glob("torn-*"))
    assert cluster.calls == ["SIGKILL r2", "start r2", "SIGKILL r2", "arm r2", "start r2"]


@pytest.mark.parametrize("fault", ["disk-full", "flip", "clock-step"])
def test_only_replicas_have_a_disk_and_only_processes_a_clock(tmp_path: Path, fault: str) -> None:
    ground, _ = rig.ground(tmp_path)
    with pytest.raises(ConfigError, match="pod/web-1 is no replica"):
        planned(ground, fault, "pod/web-1")


@pytest.mark.parametrize(
    ("fault", "params", "says"),
    [
        ("disk-error", {"errno": "EPERM"}, "want one of EIO, EROFS, ENOSPC"),
        ("flip", {"where": "heart"}, "want one of wal, snapshot"),
        ("tear", {"where": "heart"}, "want one of wal, snapshot"),
        ("clock-skew", {"rate": 1}, "that is no skew"),
        ("clock-step", {"step": 5}, "did you mean 'step_s'"),
        ("monotonic-jump", {"jump_s": -5}, "want a number from 0.1"),
        ("cpu-throttle", {"percent": 0}, "want a whole number from 1 to 90"),
        ("memory-pressure", {"mib": "all"}, "want a whole number from 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, fault: str, params: dict[str, Any], says: str) -> None:
    ground, _ = rig.ground(tmp_path)
    with pytest.raises(ConfigError, match=says):
        planned(ground, fault, "r2", **params)


def test_a_process_that_must_be_restarted_for_it_is_named(tmp_path: Path) -> None:
    ground, _ = rig.ground(tmp_path)
    assert planned(ground, "clock-step", "r2", step_s=-60).says == (
        "a step of -60 s of the wall clock of r2 (r2 restarted first)"
    )


def test_the_same_seed_plans_the_same(tmp_path: Path) -> None:
    ground, _ = rig.ground(tmp_path)
    for fault in ("tear", "flip", "cpu-throttle", "memory-pressure"):
        assert planned(ground, fault, "r2") == planned(ground, fault, "r2")


def test_who_is_throttled_is_not_throttled_again_until_that_is_healed(tmp_path: Path) -> None:
    ground, _ = rig.ground(tmp_path)
    entry = ground.undo.add("a-run", planned(ground, "cpu-throttle", "r2"))
    with pytest.raises(TargetError, match="r2 is throttled already"):
        planned(ground, "cpu-throttle", "r1", "r2")
    planned(ground, "cpu-throttle", "r1")
    ground.undo.remove(entry)
    planned(ground, "cpu-throttle", "r2")


def test_a_clock_that_is_wrong_is_not_set_again_until_that_is_healed(tmp_path: Path) -> None:
    ground, _ = rig.ground(tmp_path)
    ground.undo.add("a-run", planned(ground, "clock-step", "r2"))
    with pytest.raises(TargetError, match="clock of r2 is wrong already"):
        planned(ground, "clock-skew", "r2")
    planned(ground, "clock-skew", "r1")


def test_a_replica_that_is_restarted_for_its_clock_counts_as_down_meanwhile(tmp_path: Path) -> None:
    ground, _ = rig.ground(tmp_path)
    assert planned(ground, "clock-step", "r2").args["down"] == ["r2"]
    assert planned(ground, "clock-step", "node-1").args["down"] == []


def test_more_memory_than_is_safe_is_left_alone_at_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground, _ = rig.ground(tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=400 << 20))
    with pytest.raises(TargetError, match="256 MiB of memory: 400 MiB are available"):
        planned(ground, "memory-pressure", mib=256)
    planned(ground, "memory-pressure", mib=200)


def test_taking_memory_takes_no_processor(tmp_path: Path) -> None:
    """A fault of memory that is one of the processor too says nothing about memory."""
    with subprocess.Popen([sys.executable, "-c", HOG, str(64 << 20), str(tmp_path)], stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout is not None
            for _ in range(2):
                assert hog.stdout.readline() == b"filled\n"
            process = psutil.Process(hog.pid)
            used = process.cpu_times()
            assert process.memory_info().rss > 64 << 20
            assert used.user < 0.5
        finally:
            hog.kill()
