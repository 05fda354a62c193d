"""A trial's order, its marks, and what becomes of what goes wrong: on a ground made of fakes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos import experiment
from chaos.experiment import Activity, Experiment, Settings
from chaos.fault import FaultError, Strike, Undo
from chaos.faults import REGISTRY
from chaos.ground import Ground, aside
from chaos.history import Recorder, load
from chaos.records import Header, Mark
from chaos.runner import heal_left, put_back
from chaos.schedule import Choice, Schedule
from chaos.stage import Stage
from chaos.steps import catalogue
from chaos.trial import TrialLog, play_trial
from chaos.whole import NotWholeError, Whole
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SeededRand
from tests.unit.chaos.faults.rig import FakeCluster, ground


class QuickClock(SystemClock):
    """Sleeps only as long as others need to get on."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.002))


class FakeWhole:
    """Whole at once, or never."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    async def wait(self) -> None:
        if self.broken:
            raise NotWholeError(self.broken)


class FakeLookout:
    """r3 leads, one term later."""

    def leader(self) -> tuple[str, int]:
        return "r3", 5

    def leads_since_s(self, leader: str, term: int) -> float:
        return QuickClock().monotonic()


class FakeReplicas:
    """All at one revision; with one state, or not."""

    def __init__(self) -> None:
        self.names = ["r1", "r2", "r3"]
        self.hashes = dict.fromkeys(self.names, "a")

    async def statuses(self) -> dict[str, Any]:
        return {name: SimpleNamespace(revision=7, state_hash=found) for name, found in self.hashes.items()}


class Rig:
    """One stage, and what it wrote."""

    def __init__(self, folder: Path, *, whole: str = "", allow: bool = False) -> None:
        self.ground, self.cluster = ground(folder)
        self.ground.clock = QuickClock()
        self.replicas = FakeReplicas()
        self.ground.replicas = cast(Any, self.replicas)
        self.said: list[str] = []
        self.ground.say = self.said.append
        self.recorder = Recorder(folder / "history.jsonl", Header("t", "/t/", "now", []), self.ground.clock)
        self.whole = FakeWhole(whole)
        self.stage = Stage(
            ground=self.ground, lookout=cast(Any, FakeLookout()), act="mine", n=1, rand=SeededRand(1), wanted=6,
            by="run", allow_quorum_loss=allow, recorder=self.recorder,
        )  # fmt: skip

    async def play(self, *method: Activity, **more: Any) -> TrialLog:
        hypothesis, schedule = more.get("hypothesis", ()), more.get("schedule")
        method = (*method, act("random_faults")) if schedule is not None else method
        experiment = Experiment("mine", "mine", "", (), hypothesis, method, (), schedule, Settings(), {})
        try:
            return await play_trial(self.stage, experiment, cast(Whole, self.whole), 1)
        finally:
            self.recorder.close()

    def marks(self) -> list[Mark]:
        return load(self.recorder.path).marks

    def names(self) -> list[str]:
        return [mark.name for mark in self.marks()]


@pytest.fixture(autouse=True)
def seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(self: Ground) -> Any:
        return self.seen

    monkeypatch.setattr(Ground, "look", look)


def act(func: str, /, background: bool = False, tolerance: Any = None, **arguments: Any) -> Activity:
    kind = "probe" if tolerance is not None else "action"
    return Activity(kind, func, func, arguments, "method[0]", background=background, tolerance=tolerance)


async def test_a_trial_is_marked_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = await rig.play(act("kill", target="leader"), act("new_leader"), act("heal"))
    assert rig.names() == ["begin", "fault", "healed", "recovered", "observed"]
    marks = {mark.name: mark.detail for mark in rig.marks()}
    assert marks["fault"]["victims"] == ["r2"]
    assert marks["fault"]["id"] == marks["healed"]["id"]
    assert (marks["observed"]["leader_before"], marks["observed"]["leader_after"]) == ("r2", "r3")
    assert rig.cluster.calls == ["SIGKILL r2", "start r2"]
    assert (log.whole, log.deviations, log.impossible) == (True, [], "")
    assert [played.status for played in log.run] == ["succeeded"] * 3


async def test_the_undoing_is_on_disk_before_the_fault_strikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    seen: list[str] = []

    def kill(self: FakeCluster, name: str, signum: Any = None) -> bool:
        seen.append((tmp_path / "chaos" / "undo.json").read_text())
        return True

    monkeypatch.setattr(FakeCluster, "kill", kill)
    await rig.play(act("kill", target="r1"))
    assert '"start": "r1"' in seen[0]
    assert rig.ground.undo.entries == []


async def test_what_does_not_come_in_time_is_a_deviation_and_all_is_healed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = await rig.play(
        act("kill", target="leader"), act("pods_ready", count=99, within_s=0.01), act("kill", target="r1")
    )
    assert rig.names() == ["begin", "fault", "deviated", "healed", "recovered", "observed"]
    assert "99 pods Ready" in log.deviations[0]
    assert rig.cluster.calls == ["SIGKILL r2", "start r2"]


async def test_the_quorum_is_not_lost_unless_the_experiment_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = await rig.play(act("kill", target="majority"))
    assert rig.names() == ["begin", "impossible", "recovered", "observed"]
    assert "would cost the quorum" in log.impossible
    assert rig.cluster.calls == []
    (tmp_path / "again").mkdir()
    allowed = Rig(tmp_path / "again", allow=True)
    await allowed.play(act("kill", target="majority"))
    assert "fault" in allowed.names()


async def test_what_cannot_be_made_here_is_impossible(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = await rig.play(act("partition", target="leader"))
    assert "impossible" in rig.names()
    assert "HOSTS=netns" in log.impossible


async def test_a_cluster_that_is_not_whole_again_is_a_deviation_and_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path, whole="r2 does not serve")
    log = await rig.play(act("kill", target="leader"))
    assert rig.names() == ["begin", "fault", "healed", "deviated"]
    assert not log.whole


async def test_a_steady_state_that_does_not_hold_before_breaks_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = await rig.play(act("kill"), hypothesis=(act("pods_ready_now", tolerance=7),))
    assert rig.names() == ["begin", "deviated"]
    assert rig.marks()[1].detail["when"] == "before"
    assert rig.cluster.calls == []
    assert log.before[0].tolerated is False


async def test_a_fault_that_is_refused_in_the_middle_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.cluster.refuse = {"r1"}
    log = await rig.play(act("pause", target="r1"))
    assert "r1 does not run" in log.impossible
    assert rig.cluster.calls == ["SIGSTOP r1", "SIGCONT r1"]


async def test_what_cannot_be_healed_stays_on_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    heal = REGISTRY["kill"].heal

    async def refuse(on: Ground, undo: Undo) -> None:
        raise FaultError("no")

    monkeypatch.setattr(REGISTRY["kill"], "heal", refuse)
    log = await rig.play(act("kill", target="leader"))
    assert not log.whole
    assert [entry.strike.victims for entry in rig.ground.undo.entries] == [("r2",)]
    monkeypatch.setattr(REGISTRY["kill"], "heal", heal)


async def test_a_fault_that_says_it_did_not_last_has_not_bitten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)

    async def ended(on: Ground, strike: Strike) -> Mapping[str, Any]:
        raise FaultError("it ended early")

    monkeypatch.setattr(REGISTRY["pause"], "proof", ended)
    await rig.play(act("pause", target="r1"))
    healed = next(mark for mark in rig.marks() if mark.name == "healed")
    assert healed.detail["proof"] == {"bit": False, "failed": "it ended early"}


async def test_one_that_this_program_does_not_know_keeps_no_other_from_being_healed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ground.undo.add("a-run", Strike("kill", ("r1",), {}, (Undo("kill", {"start": "r1"}),), False, "kill -9 r1"))
    rig.ground.undo.add("newer", Strike("melt", ("r2",), {}, (Undo("melt", {}),), False, "r2 melts"))
    with pytest.raises(ConfigError, match="melt"):
        await heal_left(rig.ground)
    assert [entry.strike.fault for entry in rig.ground.undo.entries] == ["melt"]
    assert "start r1" in rig.cluster.calls
    rig.recorder.close()


async def test_what_needs_a_cluster_that_serves_is_healed_once_the_others_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot nothing runs. Whose fault is not healed is not started: its disk may not be its own."""
    rig = Rig(tmp_path)
    rig.ground.undo.add("a-run", Strike("member-remove", ("r1",), {}, (Undo("member-remove", {}),), False, "r1 is out"))
    running: list[str] = []
    monkeypatch.setattr(FakeCluster, "running", lambda _: running)

    def start(self: FakeCluster, name: str) -> int:
        self.calls.append(f"start {name}")
        running.append(name)
        return 1

    async def heal(ground: Ground, undo: Undo) -> None:
        if "r2" not in running:
            raise FaultError("nobody answers")
        rig.cluster.calls.append("rejoin r1")

    monkeypatch.setattr(FakeCluster, "start", start)
    monkeypatch.setattr(REGISTRY["member-remove"], "heal", heal)
    await heal_left(rig.ground)
    assert rig.ground.undo.entries == []
    assert rig.cluster.calls == [*(f"start {n}" for n in rig.cluster.names if n != "r1"), "rejoin r1", "start r1"]
    rig.recorder.close()


async def _putting_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Task[None], asyncio.Event]:
    """In the middle of healing the newer of two strikes, which goes on when the event is set."""
    for name in ("r1", "r2"):
        undo = Undo("kill", {"start": name})
        rig.ground.undo.add("a-run", Strike("kill", (name,), {}, (undo,), False, f"kill -9 {name}"))
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def heal(ground: Ground, undo: Undo) -> None:
        began.set()
        await goes_on.wait()

    monkeypatch.setattr(REGISTRY["kill"], "heal", heal)
    task = asyncio.create_task(put_back(rig.ground))
    await began.wait()
    return task, goes_on


async def test_ctrl_c_while_it_is_put_back_lets_that_come_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    task, goes_on = await _putting_back(rig, monkeypatch)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.ground.undo.entries == []
    rig.recorder.close()


async def test_a_second_ctrl_c_leaves_the_rest_and_says_what_and_how_to_heal_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    task, _ = await _putting_back(rig, monkeypatch)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(rig.ground.undo.entries) == 2
    assert rig.said[-1] == "left broken: kill -9 r2; kill -9 r1. Put it back: qd chaos heal"
    rig.recorder.close()


async def test_twice_told_to_stop_before_it_is_put_back_nothing_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ground.undo.add("a-run", Strike("kill", ("r1",), {}, (Undo("kill", {"start": "r1"}),), False, "kill -9 r1"))

    async def run() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await put_back(rig.ground)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.cluster.calls == []
    assert rig.said == ["left broken: kill -9 r1. Put it back: qd chaos heal"]
    rig.recorder.close()


async def test_what_is_done_aside_is_done_before_anybody_goes_on_however_often_they_are_told_to_stop() -> None:
    began, goes_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        goes_on.wait()
        done.set()

    task = asyncio.create_task(aside(work))
    await asyncio.to_thread(began.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_cancelled_in_mid_fault_what_was_struck_is_on_the_list(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ground.clock = SystemClock()
    struck = asyncio.Event()
    rig.ground.say = lambda text: struck.set() if "SIGSTOP" in text else None
    task = asyncio.create_task(rig.play(act("pause", target="r1", for_s=30)))
    await struck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [entry.strike.victims for entry in rig.ground.undo.entries] == [("r1",)]


@pytest.mark.parametrize("seed", range(3))
async def test_random_faults_are_struck_and_healed_and_leave_out_what_costs_the_quorum(
    tmp_path: Path, seed: int
) -> None:
    rig = Rig(tmp_path)
    choices = (Choice("kill", target="replica", for_s=(1, 2)), Choice("kill", target="majority", for_s=(1, 2)))
    rig.stage.n = seed + 1
    log = await rig.play(schedule=Schedule(60, (1, 2), 3, choices))
    names = rig.names()
    # How many there is room for depends on how soon the ones before are healed, which real threads do.
    assert names.count("fault") == names.count("healed") > 0
    assert log.whole
    assert int(rig.stage.observed["faults_left_out"]) > 0


async def test_a_random_fault_that_cannot_be_made_is_left_out_only_if_it_may_be(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    some = (Choice("kill", target="replica"), Choice("partition", target="replica", optional=True))
    await rig.play(schedule=Schedule(20, (1, 2), 1, some))
    assert rig.stage.observed["left_out"] == ["partition"]
    (tmp_path / "again").mkdir()
    strict = Rig(tmp_path / "again")
    log = await strict.play(schedule=Schedule(20, (1, 2), 1, (Choice("partition", target="replica"),)))
    assert "partition" in log.impossible


async def test_a_random_fault_whose_victim_is_gone_when_it_strikes_is_taken_back_and_left_out(tmp_path: Path) -> None:
    """Such a moment must not end a run of hours, nor count as a fault that was in force."""
    rig = Rig(tmp_path)
    rig.cluster.refuse = {"node-1", "node-2", "node-3"}
    choices = (Choice("pause", target="node", for_s=(30, 40)), Choice("kill", target="r1", for_s=(1, 2)))
    log = await rig.play(schedule=Schedule(60, (1, 2), 2, choices))
    assert (log.impossible, log.deviations) == ("", [])
    proofs = [mark.detail["proof"] for mark in rig.marks() if mark.name == "healed" and mark.detail["fault"] == "pause"]
    assert proofs
    assert all(proof["bit"] is False and "does not run now" in proof["failed"] for proof in proofs)
    assert int(rig.stage.observed["faults_left_out"]) >= len(proofs)


async def test_everything_at_once_breaks_clocks_disks_processor_and_memory_too() -> None:
    schedule = experiment.read("everything-at-once", catalogue()).schedule
    assert schedule is not None
    kinds = {choice.fault for choice in schedule.faults}
    assert {"clock-step", "clock-skew", "disk-full", "disk-error", "cpu-throttle", "memory-pressure"} <= kinds
    # One that takes no time from anybody's leases: a clock that jumps ends them early, by right (docs/chaos.md).
    assert "monotonic-jump" not in kinds


def test_a_strike_says_what_it_needs() -> None:
    """The values that go to disk."""
    args: Mapping[str, Any] = {}
    victims: Sequence[str] = ()
    assert Strike("kill", tuple(victims), args, (), quorum_lost=False, says="").excused == ()


async def test_after_healing_the_states_of_all_replicas_are_compared(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.replicas.hashes["r3"] = "b"
    await rig.play(act("kill", target="r1"))
    states = next(mark.detail["states"] for mark in rig.marks() if mark.name == "observed")
    assert (states["agree"], states["members"]) == (False, ["r1", "r2", "r3"])
    assert states["text"] == "at revision 7 r1 has a, r3 has b"


async def test_what_was_seen_of_a_claimed_coincidence_is_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def strike(self: Any, ground: Ground, strike: Strike) -> Mapping[str, Any]:
        return {"proved": {"unsynced-tail": "9 bytes"}, "bytes_lost": 9}

    monkeypatch.setattr(type(REGISTRY["kill"]), "strike", strike)
    rig = Rig(tmp_path)
    await rig.play(act("kill", target="r1"))
    marks = {mark.name: mark.detail for mark in rig.marks()}
    assert marks["proved"] == {"what": "unsynced-tail", "seen": "9 bytes"}
    assert marks["observed"]["bytes_lost"] == 9
