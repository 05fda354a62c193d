"""A running cluster looked at from outside: every process's metrics and health, the real etcdctl on real replicas, and
a replica whose log was damaged while it was down."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.local.cluster import LocalCluster
from controlplane.local.etcdctl import environment as etcdctl_environment
from tests.conftest import find_program
from tests.e2e.support import Qd, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

PORT_BASE = 18400

#: What etcd's dashboards and alerts ask a member for.
ETCD_METRICS = [
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_quota_backend_bytes",
    "etcd_server_healthcheck",
    "etcd_server_healthchecks_total",
    "etcd_server_version",
    "etcd_cluster_version",
    "etcd_server_id",
    "etcd_server_client_requests_total",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_mvcc_put_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_backend_defrag_duration_seconds",
    "etcd_disk_backend_snapshot_duration_seconds",
    "etcd_network_peer_round_trip_time_seconds",
    "etcd_network_peer_sent_failures_total",
    "etcd_network_peer_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_network_client_grpc_received_bytes_total",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
]


@pytest.fixture(scope="module")
def qd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qd]:
    made = Qd(tmp_path_factory.mktemp("endpoints"))
    try:
        made.ok("local", "up", "--replicas", "3", "--nodes", "2", "--port-base", str(PORT_BASE))
        yield made
    finally:
        made.clean_up()
    assert made.processes() == []


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics_addresses(found: dict[str, Any]) -> list[str]:
    agents = [f"127.0.0.1:{PORT_BASE + 100 + 2 * number + 1}" for number in (1, 2)]
    return [replica["metrics_endpoint"] for replica in found["replicas"]] + agents


@pytest.mark.needs("promtool", "prometheus")
def test_promtool_finds_nothing_to_say_of_any_processs_metrics(qd: Qd) -> None:
    promtool = find_program("promtool")
    assert promtool is not None
    for address in metrics_addresses(qd.status()):
        status, text = get(f"http://{address}/metrics")
        assert status == 200
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), address


def test_every_process_answers_its_health_paths(qd: Qd) -> None:
    for address in metrics_addresses(qd.status()):
        assert get(f"http://{address}/livez") == (200, "ok"), address
        status, text = get(f"http://{address}/readyz?verbose")
        assert status == 200, text
        assert "readyz check passed" in text
    replica = qd.status()["replicas"][0]["metrics_endpoint"]
    checks = get(f"http://{replica}/readyz?verbose")[1]
    for name in ("data_corruption", "linearizable_read", "serializable_read", "non_learner"):
        assert f"[+]{name} ok" in checks
        assert get(f"http://{replica}/readyz/{name}") == (200, "ok")


def test_a_replica_has_every_metric_that_etcds_dashboards_ask_for(qd: Qd) -> None:
    addresses = [replica["metrics_endpoint"] for replica in qd.status()["replicas"]]
    qd.ok("get", "nodes")
    for address in addresses:
        get(f"http://{address}/readyz")
        text = get(f"http://{address}/metrics")[1]
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
        assert [name for name in ETCD_METRICS if name not in names] == []
    received = "etcd_network_client_grpc_received_bytes_total"
    counts = [float(line.split()[1]) for line in text.splitlines() if line.startswith(received)]
    assert counts[0] > 0


def test_dashboards_find_the_names_they_ask_for(qd: Qd) -> None:
    found = qd.status()
    replica, agent = metrics_addresses(found)[0], metrics_addresses(found)[-1]
    of_replica, of_agent = get(f"http://{replica}/metrics")[1], get(f"http://{agent}/metrics")[1]
    for name in (
        "etcd_server_has_leader 1.0",
        "etcd_server_proposals_committed_total",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_network_peer_round_trip_time_seconds_bucket",
        "grpc_server_handled_total",
        "apiserver_request_total",
        "workqueue_depth",
        "scheduler_pending_pods",
        "process_start_time_seconds",
    ):
        assert name in of_replica, name
    for name in ("kubelet_running_pods", "kubelet_node_name", "kubeproxy_sync_proxy_rules_duration_seconds_bucket"):
        assert name in of_agent, name


@pytest.mark.needs("etcdctl", "etcd-client")
def test_the_real_etcdctl_works_through_every_replica(qd: Qd) -> None:
    etcdctl = find_program("etcdctl")
    assert etcdctl is not None
    endpoints = [replica["client_endpoint"] for replica in qd.status()["replicas"]]

    cluster = LocalCluster.open(qd.root)

    def run(*argv: str, endpoint: str) -> str:
        environment = {**os.environ, **etcdctl_environment(cluster), "ETCDCTL_ENDPOINTS": f"https://{endpoint}"}
        done = subprocess.run(
            [etcdctl, *argv], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for writer in endpoints:
        assert run("put", "k", f"by {writer}", endpoint=writer) == "OK\n"
        for reader in endpoints:
            assert run("get", "k", endpoint=reader) == f"k\nby {writer}\n"
    assert len(run("member", "list", endpoint=endpoints[0]).splitlines()) == 3
    assert run("lock", "l", "echo", "held", endpoint=endpoints[1]) == "held\n"


def test_a_torn_end_of_a_log_is_cut_and_told(qd: Qd) -> None:
    victim = next(replica["name"] for replica in qd.status()["replicas"] if replica["role"] == "follower")
    qd.ok("local", "stop", victim)
    segment = max(Path(qd.root, "replicas", victim, "wal").iterdir())
    with segment.open("ab") as log:
        log.write(b"\x01\x02\x03\x04\x05")
    qd.ok("local", "start", victim)
    wait_until(lambda: all(r["healthy"] for r in qd.status()["replicas"]), 30.0)
    assert {r["name"]: r["torn_bytes"] for r in qd.status()["replicas"]}[victim] == 5
    assert f"{victim}: the end of its log was torn (5 bytes) and was cut" in qd.ok("status").stdout


def test_a_replica_whose_log_was_damaged_refuses_to_start_and_the_others_serve_on(qd: Qd) -> None:
    found = qd.status()
    victim = next(replica["name"] for replica in found["replicas"] if replica["role"] == "follower")
    qd.ok("local", "stop", victim)
    segment = min(Path(qd.root, "replicas", victim, "wal").iterdir())
    whole = segment.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0x10
    segment.write_bytes(bytes(damaged))
    try:
        qd.run("local", "start", victim)
        log = qd.root / "logs" / f"{victim}.log"
        wait_until(lambda: f"replica {victim} stopped" in log.read_text(), 20.0)
        said = log.read_text().splitlines()[-1]
        assert segment.name in said, said
        after = qd.status()
        assert [r["healthy"] for r in after["replicas"] if r["name"] != victim] == [True, True]
        assert after["leader"] not in {None, victim}
    finally:
        segment.write_bytes(whole)
        qd.ok("local", "start", victim)
        wait_until(lambda: all(r["healthy"] for r in qd.status()["replicas"]), 30.0)
