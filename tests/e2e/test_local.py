"""The local cluster as a newcomer meets it: up, looked at, up again, down; and its bad days."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import WEB, Qd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

PORT_BASE = 13400


@pytest.fixture
def qd(tmp_path: Path) -> Iterator[Qd]:
    made = Qd(tmp_path)
    yield made
    made.clean_up()
    assert made.processes() == []


def up(port_base: int = PORT_BASE, *, replicas: int = 3, nodes: int = 2) -> list[str]:
    numbers = {"--replicas": replicas, "--nodes": nodes, "--port-base": port_base}
    return ["local", "up", *(str(word) for pair in numbers.items() for word in pair)]


def test_a_cluster_comes_up_is_found_again_and_goes_down(qd: Qd) -> None:
    first = qd.ok(*up(), "--apply", str(WEB))
    assert "pods of web ready: 6/6" in first.stderr
    assert "service web answers: 1/1" in first.stderr
    assert "127.0.0.1:13410" in first.stdout

    found = qd.status()
    assert found["leader"] in {"r1", "r2", "r3"}
    assert found["term"] >= 1
    assert [replica["name"] for replica in found["replicas"]] == ["r1", "r2", "r3"]
    for replica in found["replicas"]:
        assert replica["healthy"]
        assert replica["role"] == ("leader" if replica["name"] == found["leader"] else "follower")
        assert replica["client_endpoint"].startswith("127.0.0.1:134")
        assert replica["metrics_endpoint"].startswith("127.0.0.1:134")
        assert min(replica["pid"], replica["revision"], replica["applied_index"]) > 0
    assert [(node["name"], node["ready"]) for node in found["nodes"]] == [("node-1", True), ("node-2", True)]
    assert (found["pods"], found["pods_ready"]) == ({"Running": 6}, 6)
    pids = {item["pid"] for item in (*found["replicas"], *found["nodes"])}
    assert len(pids) == 5

    again = qd.ok(*up())
    assert "already running: 3 replicas, 2 nodes" in again.stderr
    later = qd.status()
    assert {item["pid"] for item in (*later["replicas"], *later["nodes"])} == pids

    assert "stopped 5 processes" in qd.ok("local", "down").stderr
    assert qd.processes() == []
    assert qd.run("status").returncode == 1
    assert "nothing was running" in qd.ok("local", "down").stderr

    # Its data stayed: the Deployment is still wanted, and its pods come back.
    back = qd.ok(*up(), "--apply", str(WEB))
    assert "pods of web ready: 6/6" in back.stderr
    assert qd.status()["replicas"][0]["revision"] > found["replicas"][0]["revision"]

    qd.ok("local", "down", "--destroy")
    assert not qd.root.exists()


def test_a_port_in_use_is_named_and_nothing_is_left(qd: Qd) -> None:
    port_base = PORT_BASE + 3000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port_base + 20))
        taken.listen()
        refused = qd.run(*up(port_base))
    assert refused.returncode == 2
    assert f"in use by another program: 127.0.0.1:{port_base + 20}" in refused.stderr
    assert "PORT_BASE=" in refused.stderr
    assert qd.processes() == []


def test_ctrl_c_on_the_way_up_leaves_no_process(qd: Qd) -> None:
    def all_started(_: str) -> bool:
        return len(list(qd.root.glob("run/*.json"))) == 5

    code, text = qd.interrupted(*up(PORT_BASE + 4000), when=all_started)
    assert code == 130, text
    assert qd.processes() == []


def test_numbers_out_of_range_and_folders_without_a_cluster_are_refused_by_name(qd: Qd) -> None:
    assert "REPLICAS=0" in qd.run(*up(replicas=0)).stderr
    assert "PORT_BASE=80" in qd.run(*up(80)).stderr
    missing = qd.run("local", "status")
    assert missing.returncode == 2
    assert "no local cluster here" in missing.stderr
