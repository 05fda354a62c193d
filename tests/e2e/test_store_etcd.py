"""The same cluster and the same demo with an etcd cluster as the store: ``make demo STORE=etcd``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import WEB, Qd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.needs("etcd", "etcd-server")]

PORT_BASE = 15400
ACTS = ("leader-kill", "store-leader-kill", "node-kill", "scaling", "disaster")


@pytest.fixture
def qd(tmp_path: Path) -> Iterator[Qd]:
    made = Qd(tmp_path)
    yield made
    made.clean_up()
    assert made.processes() == []


@pytest.mark.needs("etcdctl", "etcd-client")
def test_nobody_notices_on_an_external_etcd_either(qd: Qd) -> None:
    numbers = ("--port-base", str(PORT_BASE), "--store", "etcd")
    done = qd.run("chaos", "demo", *numbers, "--apply", str(WEB), timeout_s=220.0)
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    for act in ACTS:
        assert re.search(rf"^{act} .* PASS$", done.stdout, re.MULTILINE), said
    history = min((qd.root / "chaos").glob("*/history.jsonl"))
    report = json.loads(history.with_name("report.json").read_text())
    for act in report["acts"]:
        assert act["served"]["writes_acknowledged"] > 100
        # Of what etcd's own lost leader had taken, clients cannot know: the verdict counts it.
        assert act["act"] == "store-leader-kill" or act["served"]["operations_failed"] == 0
        assert act["served"]["http_requests_failed"] == 0
        assert act["observed"]["pods_restarted"] == act["observed"]["processes_ended"] == 0

    found = qd.status()
    assert [member["version"].startswith("3.") for member in found["store"]] == [True] * 3
    assert [member["leader"] for member in found["store"]].count(True) == 1
    assert found["pods_ready"] == 6
    assert found["leader"] in {"r1", "r2", "r3"}

    refused = qd.run("snapshot", "save")
    assert refused.returncode != 0
    assert "etcdctl --endpoints" in refused.stderr
    assert "stopped 9 processes" in qd.ok("local", "down").stderr
    assert qd.processes() == []


def test_the_store_of_a_cluster_is_not_changed_by_starting_it_otherwise(qd: Qd) -> None:
    up = ("local", "up", "--replicas", "1", "--nodes", "0", "--port-base", str(PORT_BASE + 1000))
    qd.ok(*up, "--store", "etcd")
    qd.ok("local", "down")
    refused = qd.run(*up, "--store", "embedded")
    assert refused.returncode == 2
    assert "STORE=etcd" in refused.stderr
