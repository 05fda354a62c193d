"""Experiments on a real cluster: a runner that is killed in mid-fault, the real Chaos Toolkit, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.experiment import FOLDER
from controlplane.local.procfs import stat_of
from tests.e2e.support import QD, WEB, Qd, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

PORT_BASE = 12900


@pytest.fixture(scope="module")
def qd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qd]:
    """One cluster for all."""
    found = Qd(tmp_path_factory.mktemp("chaos"))
    try:
        found.ok("local", "up", "--port-base", str(PORT_BASE), "--apply", str(WEB))
        yield found
    finally:
        found.clean_up()
    assert found.processes() == []


def undo_list(qd: Qd) -> list[dict[str, object]]:
    path = qd.root / "chaos" / "undo.json"
    found: list[dict[str, object]] = json.loads(path.read_text())["entries"] if path.exists() else []
    return found


def test_a_runner_killed_in_mid_fault_leaves_what_heals_it_and_the_next_run_refuses_until_then(qd: Qd) -> None:
    runner = subprocess.Popen(
        [str(QD), "chaos", "run", "leader-pause"], cwd=qd.folder, env=qd.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: bool(undo_list(qd)) or runner.poll() is not None, 40.0)
        (entry,) = undo_list(qd)
        victim = entry["strike"]["victims"][0]  # type: ignore[index]
        pid = json.loads((qd.root / "run" / f"{victim}.json").read_text())["pid"]

        def stopped() -> bool:
            stat = stat_of(pid)
            return stat is not None and stat.state == "T"

        wait_until(stopped, 5.0)
    finally:
        runner.kill()
        runner.wait()
    assert stopped()
    refused = qd.run("chaos", "run", "leader-kill")
    assert refused.returncode == 2
    assert "qd chaos heal" in refused.stderr
    healed = qd.ok("chaos", "heal")
    assert "healed 1" in healed.stdout
    assert not stopped()
    assert undo_list(qd) == []
    wait_until(lambda: all(replica["healthy"] for replica in qd.status()["replicas"]), 20.0)
    assert "nothing was left" in qd.ok("chaos", "heal").stdout


def chaos_run(qd: Qd, *arguments: str, code: int = 0, **environment: str) -> dict[str, Any]:
    """Chaos Toolkit's own command; its journal. What it prints is its own log, without a traceback of ours."""
    path = qd.folder / "journal.json"
    done = subprocess.run(
        [str(QD.with_name("chaos")), "--no-version-check", "--log-file", str(qd.folder / "chaos.log"), "run",
         "--journal-path", str(path), *arguments],
        cwd=qd.folder, env={**qd.environment, **environment}, capture_output=True, text=True, timeout=140, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert not [word for word in ("Traceback", "RuntimeError", "never awaited", "Event loop") if word in said], said
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_real_chaos_run_runs_an_experiment_file_unchanged(qd: Qd) -> None:
    before = qd.status()["leader"]
    journal = chaos_run(qd, str(FOLDER / "leader-kill.yaml"))
    assert (journal["status"], journal["deviated"]) == ("completed", False), journal
    assert journal["steady_states"]["after"]["steady_state_met"]
    assert [activity["status"] for activity in journal["run"] + journal["rollbacks"]] == ["succeeded"] * 5
    assert journal["run"][0]["output"]["victims"] == [before]
    assert undo_list(qd) == []
    wait_until(lambda: all(replica["healthy"] for replica in qd.status()["replicas"]), 30.0)
    assert qd.status()["leader"] != before


def random_faults(qd: Qd, **arguments: Any) -> str:
    raw = yaml.safe_load((FOLDER / "everything-at-once.yaml").read_text())
    raw["method"][0]["provider"]["arguments"] = {"duration_s": 6, "every_s": 2, "at_most": 1, **arguments}
    path = qd.folder / "random.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def test_the_real_chaos_run_plays_random_faults_too(qd: Qd) -> None:
    file = random_faults(qd, faults=[{"fault": "pause", "target": "replica", "for_s": 0.5}])
    journal = chaos_run(qd, file, QD_CHAOS_SEED="7")
    assert (journal["status"], journal["deviated"]) == ("completed", False), journal
    assert journal["run"][0]["output"] == {"seed": 7, "struck": 2, "left_out": []}
    assert undo_list(qd) == []


def test_a_real_chaos_run_that_broke_nothing_is_interrupted_not_completed(qd: Qd) -> None:
    # Of three replicas a majority may not be killed, and there is no other fault to draw.
    file = random_faults(qd, faults=[{"fault": "kill", "target": "majority", "for_s": 0.5}])
    journal = chaos_run(qd, file, code=1)
    assert journal["status"] == "interrupted"
    assert undo_list(qd) == []


def test_our_journal_is_one_of_chaos_toolkit_with_more(qd: Qd) -> None:
    done = qd.run("chaos", "run", "minority-loss", "--seed", "7", timeout_s=120.0)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = max((qd.root / "chaos").glob("*-minority-loss"))
    journal = json.loads((folder / "journal.json").read_text())
    assert (journal["status"], journal["deviated"], journal["seed"]) == ("completed", False, 7)
    assert journal["experiment"]["title"] == yaml.safe_load((FOLDER / "minority-loss.yaml").read_text())["title"]
    for key in ("platform", "node", "start", "end", "duration", "chaoslib-version"):
        assert journal[key]
    assert all(probe["tolerance_met"] for probe in journal["steady_states"]["before"]["probes"])
    assert journal["faults"][0]["fault"] == "kill"
    assert journal["trials"] == [
        {"experiment": "minority-loss", "n": 1, "status": "completed", "deviated": False, "deviations": [],
         "impossible": "", "verdict": "PASS"}
    ]  # fmt: skip
    resolved = json.loads((folder / "experiment.json").read_text())
    assert resolved["seed"] == 7
    assert resolved["experiments"][0]["name"] == "minority-loss"
    for name in ("report.html", "junit.xml", "report.json", "logs"):
        assert (folder / name).exists()


def test_a_dry_run_names_victims_and_what_undoes_them_and_does_nothing(qd: Qd) -> None:
    leader = qd.status()["leader"]
    said = qd.ok("chaos", "dry-run", "leader-kill", "majority-loss", "--seed", "3").stdout
    assert f"kill -9 {leader}, the leader" in said
    assert f"undone by: kill: start {leader}" in said
    assert "costs the quorum, which this experiment allows" in said
    assert said == qd.ok("chaos", "dry-run", "leader-kill", "majority-loss", "--seed", "3").stdout
    assert qd.status()["leader"] == leader


def test_one_container_is_killed_starts_again_and_nothing_else_does(qd: Qd) -> None:
    said = qd.ok("chaos", "run", "container-kill", "--seed", "4").stdout
    assert "PASS         container-kill: every killed container started again (2 checked); 2 killed, 2 restarts" in said
    assert "PASS         container-kill: no pod restarted" in said
    assert "PASS         container-kill: state hashes agree at an equal revision on all members (3 checked)" in said
    folder = max((qd.root / "chaos").glob("*-container-kill"))
    during = json.loads((folder / "journal.json").read_text())["steady_states"]["during"]
    assert during, "the steady state was not asked while the faults lasted"
    assert {probe["status"] for sample in during for probe in sample["probes"]} <= {"succeeded", "failed"}


def test_a_dry_run_refuses_a_container_that_is_not_there(qd: Qd, tmp_path: Path) -> None:
    raw = yaml.safe_load((FOLDER / "pod-kill.yaml").read_text())
    pod = qd.ok("get", "pods", "-o", "name").stdout.split()[0].split("/")[-1]
    raw["method"][0]["provider"]["arguments"]["target"] = f"container/{pod}/wbe"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw))
    said = qd.ok("chaos", "dry-run", str(file)).stdout
    assert f"not now: target 'container/{pod}/wbe': {pod} has no container 'wbe'; it has: web" in said


def test_ctrl_c_in_mid_fault_heals(qd: Qd) -> None:
    code, text = qd.interrupted("chaos", "run", "majority-loss", when=lambda said: "kill -9" in said)
    assert code == 130, text
    assert "putting back: kill -9" in text
    assert undo_list(qd) == []
    wait_until(lambda: all(replica["healthy"] for replica in qd.status()["replicas"]), 20.0)
