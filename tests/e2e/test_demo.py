"""What ``make demo`` does, for real: four acts on real processes, judged from the recorded history."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import WEB, Qd, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PORT_BASE = 12400
Demo = tuple[Qd, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo, which starts its own cluster; it is left running, as it should be, until all tests have looked."""
    qd = Qd(tmp_path_factory.mktemp("demo"))
    try:
        done = qd.run("chaos", "demo", "--port-base", str(PORT_BASE), "--apply", str(WEB), timeout_s=170.0)
        yield qd, done
    finally:
        qd.clean_up()
    assert qd.processes() == []


def history(qd: Qd) -> Path:
    return min((qd.root / "chaos").glob("*/history.jsonl"))


def test_nobody_notices(demo: Demo) -> None:
    qd, done = demo
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert done.stdout.rstrip().endswith("verdict: PASS")
    for act in ("leader-kill", "node-kill", "scaling", "disaster"):
        assert re.search(rf"^{act} .* PASS$", done.stdout, re.MULTILINE), said
    report = json.loads(history(qd).with_name("report.json").read_text())
    acts = {act["act"]: act for act in report["acts"]}
    for act in acts.values():
        assert act["served"]["writes_acknowledged"] > 100
        assert act["served"]["http_requests_failed"] == 0
        assert act["served"]["operations_failed"] == act["served"]["operations_unknown"] == 0
        assert act["observed"]["pods_restarted"] == act["observed"]["processes_ended"] == 0
    assert acts["leader-kill"]["observed"]["leader_after"] != acts["leader-kill"]["observed"]["leader_before"]
    assert acts["node-kill"]["observed"]["pods_killed"] > 0
    assert acts["scaling"]["observed"]["pods_ready"] == 30
    assert acts["disaster"]["observed"]["restored_revision"] > acts["disaster"]["observed"]["revision_before_loss"]


def test_the_cluster_is_left_as_it_was(demo: Demo) -> None:
    # A busy machine answers late: what is asked for is the state, not the moment.
    wait_until(lambda: all(replica["healthy"] for replica in demo[0].status()["replicas"]), 20.0)
    found = demo[0].status()
    assert [(node["name"], node["ready"]) for node in found["nodes"]] == [(f"node-{n}", True) for n in (1, 2, 3)]
    assert found["pods_ready"] == 6


def test_the_history_is_judged_the_same_from_its_file(demo: Demo) -> None:
    qd, done = demo
    again = qd.ok("chaos", "verify", str(history(qd)))
    assert again.stdout == done.stdout


def test_one_acknowledged_write_taken_out_of_the_read_back_is_noticed(demo: Demo, tmp_path: Path) -> None:
    qd, _ = demo
    lines = history(qd).read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if '"reason":"final"' in line)
    final = json.loads(lines[number])
    gone = final["rows"].pop(len(final["rows"]) // 2)
    lines[number] = json.dumps(final)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("\n".join(lines) + "\n")
    judged = qd.run("chaos", "verify", str(damaged))
    assert judged.returncode == 1
    assert "FAIL         no acknowledged write lost" in judged.stdout
    assert gone[0] in judged.stdout


def test_ctrl_c_in_the_middle_of_the_disaster_puts_the_control_plane_back(demo: Demo) -> None:
    qd, _ = demo
    code, text = qd.interrupted("chaos", "run", "disaster", when=lambda said: "kill -9 of every replica" in said)
    assert code == 130, text
    assert "putting back: kill -9 of every replica" in text
    found = qd.status()
    assert found["leader"] is not None
    assert all(replica["healthy"] for replica in found["replicas"])
    assert found["pods_ready"] == 6
