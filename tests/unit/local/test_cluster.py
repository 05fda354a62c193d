"""LocalCluster with tiny programs in place of replicas and agents."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.spec import ReplicaSpec, plan
from tests.unit.local.support import script, until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster.create(tmp_path / ".quarterdeck", plan(replicas=3, nodes=2, port_base=21400))
    made.python = script(tmp_path / "program", 'echo "$@"; echo "token=$SECRET_TOKEN"; exec sleep 60')
    yield made
    made.down()


def start_all(cluster: LocalCluster) -> None:
    for name in cluster.names:
        cluster.start(name)


def test_replicas_and_agents_are_started_with_their_flags_and_no_foreign_environment(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "shh")
    start_all(cluster)
    until(lambda: all("token=" in cluster.processes.log_tail(n) for n in cluster.names), "their output")
    replica, node = cluster.processes.log_tail("r2"), cluster.processes.log_tail("node-1")
    assert replica.startswith(f"-m controlplane --name r2 --data-dir {cluster.replica_dir('r2')} --initial-cluster r1=")
    assert f"--cluster-token {cluster.spec.token}" in replica
    assert node.startswith(f"-m node --name node-1 --endpoints {','.join(cluster.spec.endpoints)} --state-dir ")
    assert "shh" not in replica + node


@pytest.mark.parametrize(
    ("archive", "where"),
    [("archive", "{root}/archive"), ("/srv/backups", "/srv/backups"), ("s3://bucket/prefix", "s3://bucket/prefix")],
)
def test_replicas_are_told_where_to_back_up_to(
    cluster: LocalCluster, archive: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.spec = replace(cluster.spec, archive=archive)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-outside")
    cluster.python = script(cluster.root / "shows-key", 'echo "$@"; echo "key=$AWS_ACCESS_KEY_ID"; exec sleep 60')
    cluster.start("r1")
    until(lambda: "key=" in cluster.processes.log_tail("r1"), "its output")
    shown = cluster.processes.log_tail("r1")
    assert f"--archive {where.format(root=cluster.root.resolve())} --archive-keep last=8" in shown
    assert "key=from-outside" in shown


def test_without_an_archive_they_are_told_nothing(cluster: LocalCluster) -> None:
    cluster.start("r1")
    until(lambda: "token=" in cluster.processes.log_tail("r1"), "its output")
    assert "--archive" not in cluster.processes.log_tail("r1")


def test_a_process_may_run_another_source_tree_and_only_that_one_does(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.python = script(tmp_path / "shows-path", 'echo "path=$PYTHONPATH."; exec sleep 60')
    cluster.sources["r2"] = tmp_path / "old"
    start_all(cluster)
    until(lambda: all("path=" in cluster.processes.log_tail(n) for n in cluster.names), "their output")
    assert {n: cluster.processes.log_tail(n) for n in ("r1", "r2", "node-1")} == {
        "r1": "path=.",
        "r2": f"path={tmp_path / 'old'}.",
        "node-1": "path=.",
    }


def test_a_second_look_finds_what_runs(cluster: LocalCluster) -> None:
    start_all(cluster)
    found = LocalCluster.open(cluster.root)
    assert found.running() == ["r1", "r2", "r3", "node-1", "node-2"]
    assert found.start("r1") == cluster.processes.pid("r1")


def test_down_stops_everything_and_up_may_go_on(cluster: LocalCluster) -> None:
    start_all(cluster)
    with pytest.raises(ProcessError, match="still running: r1, r2, r3, node-1, node-2"):
        cluster.destroy()
    assert cluster.down() == []
    assert cluster.running() == []
    assert cluster.down() == []
    cluster.start("r1")
    assert cluster.running() == ["r1"]
    cluster.down()
    cluster.destroy()
    assert not cluster.root.exists()


def test_one_process_is_stopped_killed_paused_or_left(cluster: LocalCluster) -> None:
    start_all(cluster)
    assert not cluster.stop("r1")
    assert cluster.kill("r2")
    assert cluster.kill("r3", signal.SIGSTOP)
    assert cluster.running() == ["r3", "node-1", "node-2"]
    assert not cluster.kill("r1")
    assert not cluster.stop("r1")


def test_a_name_that_is_not_there_is_told_with_those_that_are(cluster: LocalCluster) -> None:
    for call in (cluster.start, cluster.stop, cluster.kill, cluster.kill_node, cluster.remove_node):
        with pytest.raises(ConfigError, match="no process 'r9' in this cluster; there are: r1, r2, r3, node-1, node-2"):
            call("r9")


def test_a_process_that_ended_is_told_with_the_end_of_its_log(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.python = script(tmp_path / "failing", "echo the port is taken; exit 1")
    cluster.start("r1")
    until(lambda: not cluster.running(), "its end")
    with pytest.raises(ProcessError, match=r"r1 ended; the end of (?s:.*)the port is taken"):
        cluster.check_alive(cluster.names)


def test_ports_in_use_are_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        spec = plan(replicas=1, nodes=0, port_base=21400)
        busy = ReplicaSpec("r1", "127.0.0.1:0", address, "127.0.0.1:0")
        cluster = LocalCluster.create(tmp_path / "c", replace(spec, replicas=(busy,)))
        with pytest.raises(ConfigError, match=rf"in use by another program: {address}\. .*PORT_BASE=22400"):
            cluster.check_ports()
    cluster.check_ports()


def test_nodes_come_and_go(cluster: LocalCluster) -> None:
    start_all(cluster)
    node = cluster.add_node()
    assert node.name == "node-3"
    state = cluster.node_dir("node-2")
    state.mkdir()
    cluster.remove_node("node-2")
    assert not state.exists()
    assert LocalCluster.open(cluster.root).names == ["r1", "r2", "r3", "node-1", "node-3"]
    assert cluster.running() == ["r1", "r2", "r3", "node-1", "node-3"]
    assert cluster.add_node().name == "node-2"


def test_a_replicas_disk_is_not_destroyed_under_it(cluster: LocalCluster) -> None:
    data = cluster.replica_dir("r1")
    data.mkdir()
    cluster.start("r1")
    with pytest.raises(ProcessError, match="r1 runs"):
        cluster.destroy_replica_data("r1")
    with pytest.raises(ProcessError, match="still running: r1"):
        cluster.renew_token()
    cluster.kill("r1")
    cluster.destroy_replica_data("r1")
    assert not data.exists()
    before = cluster.spec.token
    cluster.renew_token()
    assert LocalCluster.open(cluster.root).spec.token not in {before, ""}


def test_killing_a_node_counts_its_pods(cluster: LocalCluster) -> None:
    cluster.start("node-1")
    assert cluster.kill_node("node-1") == 0
    assert cluster.running() == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=f"cannot write {tmp_path / 'file' / 'c'}"):
        LocalCluster.create(tmp_path / "file" / "c", plan(replicas=1, nodes=0, port_base=21400))


def test_a_folder_without_a_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    assert not LocalCluster.exists(tmp_path)
    with pytest.raises(ConfigError, match="make cluster"):
        LocalCluster.open(tmp_path)


def test_replicas_and_agents_run_on_this_programs_interpreter(tmp_path: Path) -> None:
    made = LocalCluster.create(tmp_path / "c", plan(replicas=1, nodes=0, port_base=21400))
    assert os.access(made.python, os.X_OK)


@pytest.mark.hosts
@pytest.mark.slow
def test_a_cluster_that_is_down_leaves_the_network_to_who_has_it_now(tmp_path: Path) -> None:
    one, two = (
        LocalCluster.create(tmp_path / name, plan(replicas=1, nodes=0, port_base=21_750, hosts="netns"))
        for name in ("one", "two")
    )
    try:
        one.prepare()
        one.down()
        two.prepare()
        one.down()  # once more, to be sure
        assert two.hosts.present()
    finally:
        two.down()
    assert not two.hosts.present()
