"""The command as a process against replicas behind real gRPC: pipes, signals, dead endpoints, ``qd status``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from controlplane.api.operator import OperatorService
from controlplane.api.server import ApiServer
from controlplane.api.service import add_services
from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from controlplane.cli.common import Settings
from controlplane.cli.snapshot.save import save_snapshot
from controlplane.cli.status import gather
from controlplane.client.codec import from_dict
from controlplane.client.inprocess import InProcessClient
from controlplane.etcd.local import LocalKV
from controlplane.pb.quarterdeck.v1 import operator_pb2_grpc
from controlplane.store.store import Store
from controlplane.transport.server import listen, new_server
from tests.fakes.raft import FakeRaft
from tests.unit.cli.manifests import CONFIG, NODE, pod

PROGRAM = [sys.executable, "-c", "from controlplane.cli.main import main; main()"]


@dataclass
class Cluster:
    """Three replicas that share a log, each on a port of its own; and a port where nobody is."""

    endpoints: list[str]
    rafts: list[FakeRaft]
    client: InProcessClient
    servers: list[object]
    dead: str

    async def put(self, *manifests: str) -> None:
        for manifest in manifests:
            obj = from_dict(yaml.safe_load(manifest))
            created = await self.client.create(obj)
            if "status" in obj.DESCRIPTOR.fields_by_name:
                created.status.CopyFrom(obj.status)
                await self.client.update_status(created)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    clock, rand = SystemClock(), SeededRand(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
    servers, endpoints, apis = [], [], []
    rafts: list[FakeRaft] = []
    for number in (1, 2, 3):
        server = new_server()
        endpoint = f"127.0.0.1:{listen(server, '127.0.0.1:0')}"
        store = Store()
        raft = FakeRaft(store, name=f"r{number}", join=rafts[0] if rafts else None, client_endpoint=endpoint)
        api = ApiServer(LocalKV(raft, store, clock=clock, rand=rand), clock=clock, rand=rand)
        add_services(server, api)
        operator_pb2_grpc.add_OperatorServicer_to_server(OperatorService(raft, store, clock), server)
        await server.start()
        servers.append(server)
        endpoints.append(endpoint)
        rafts.append(raft)
        apis.append(api)
    await apis[0].bootstrap()
    yield Cluster(endpoints, rafts, InProcessClient(apis[0], clock=clock, rand=rand), list(servers), dead)
    for server in servers:
        await server.stop(None)


async def start(cluster: Cluster, *words: str, endpoints: list[str] | None = None) -> Process:
    named = ",".join(endpoints or cluster.endpoints)
    return await asyncio.create_subprocess_exec(
        *PROGRAM, "--endpoints", named, *words, stdin=PIPE, stdout=PIPE, stderr=PIPE,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )  # fmt: skip


async def qd(cluster: Cluster, *words: str, endpoints: list[str] | None = None) -> tuple[int, str, str]:
    process = await start(cluster, *words, endpoints=endpoints)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_dead_first_endpoint_is_passed_over(cluster: Cluster) -> None:
    await cluster.put(CONFIG)
    code, out, err = await qd(
        cluster, "get", "cm", "-o", "name", endpoints=[cluster.dead, cluster.endpoints[1]]
    )  # fmt: skip
    assert (code, out, err) == (0, "configmap/settings\n", "")


async def test_a_refusal_crosses_the_wire_whole(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("data: {c", "dta: {c"))
    code, out, err = await qd(cluster, "apply", "-f", str(tmp_path / "bad.yaml"))
    assert (code, out) == (1, "")
    assert err.startswith('Error from server (Invalid): ConfigMap "settings" is invalid: dta: ')


async def test_a_reader_that_goes_away_is_no_error(cluster: Cluster) -> None:
    for number in range(30):
        await cluster.put(CONFIG.replace("name: settings", f"name: settings-{number}"))
    read, write = os.pipe()
    os.close(read)  # whoever read the output has gone
    try:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, "--endpoints", cluster.endpoints[0], "get", "cm", "-o", "yaml", stdout=write, stderr=PIPE
        )
    finally:
        os.close(write)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


async def test_a_watch_prints_changes_until_it_is_interrupted(cluster: Cluster) -> None:
    await cluster.put(CONFIG)
    process = await start(cluster, "get", "cm", "-w", "--no-headers")
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"settings ")
    await cluster.put(CONFIG.replace("name: settings", "name: more"))
    assert (await process.stdout.readline()).startswith(b"more ")
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")


async def test_status_has_what_scripts_read(cluster: Cluster) -> None:
    await cluster.put(NODE, pod("a", node="node-1"), pod("b"))
    code, out, _ = await qd(cluster, "status", "-o", "json")
    assert code == 0
    found = json.loads(out)
    assert (found["leader"], found["term"], found["pods"]) == ("r1", 1, {"Running": 2})
    assert [r["name"] for r in found["replicas"]] == ["r1", "r2", "r3"]
    assert [r["role"] for r in found["replicas"]] == ["leader", "follower", "follower"]
    wanted = {"name", "client_endpoint", "metrics_endpoint", "pid", "role", "healthy", "revision", "applied_index"}
    for replica, endpoint in zip(found["replicas"], cluster.endpoints, strict=True):
        assert wanted <= set(replica)
        assert (replica["client_endpoint"], replica["pid"], replica["healthy"]) == (endpoint, os.getpid(), True)
        assert replica["revision"] > 0
        assert replica["applied_index"] > 0
    assert len({r["state_hash"] for r in found["replicas"]}) == 1
    (node,) = found["nodes"]
    assert (node["name"], node["ready"], node["pid"], node["pods"]) == ("node-1", True, None, 1)


async def test_status_as_a_table_marks_the_leader(cluster: Cluster) -> None:
    code, out, _ = await qd(cluster, "status")
    assert code == 0
    assert out.startswith("REPLICA   ROLE")
    assert "* r1" in out
    assert "  r2" in out
    assert out.endswith("pods: none; 0 ready\n")


async def test_status_without_anybody_is_exit_1_and_still_a_table(cluster: Cluster) -> None:
    code, out, err = await qd(cluster, "status", endpoints=[cluster.dead])
    assert (code, err) == (1, "")
    assert cluster.dead in out
    assert "down" in out


async def test_a_dead_replica_shows_as_down_and_the_majority_names_the_leader(cluster: Cluster) -> None:
    found = await gather(Settings((*cluster.endpoints[:2], cluster.dead)))
    assert {r.name: r.role for r in found.replicas} == {
        "r1": "leader", "r2": "follower", "r3": "follower", cluster.dead: "down"
    }  # fmt: skip
    assert found.leader == "r1"
    assert not next(r for r in found.replicas if r.name == cluster.dead).healthy


async def test_replicas_that_were_not_named_are_found_through_those_that_were(cluster: Cluster) -> None:
    found = await gather(Settings((cluster.endpoints[1],)))
    assert [r.client_endpoint for r in found.replicas] == cluster.endpoints
    assert found.leader == "r1"


async def test_without_a_leader_there_is_none_named(cluster: Cluster) -> None:
    cluster.rafts[0].set_leader(None)
    found = await gather(Settings(tuple(cluster.endpoints)))
    assert (found.leader, found.term) == (None, 2)
    assert not any(r.healthy for r in found.replicas)


async def test_no_replica_gives_a_snapshot(cluster: Cluster, tmp_path: Path) -> None:
    code, out, err = await qd(cluster, "snapshot", "save", str(tmp_path / "x"), endpoints=[cluster.dead])
    assert (code, out) == (3, "")
    assert err.startswith("error: no replica gave a snapshot: ")
    assert os.listdir(tmp_path) == []


async def test_a_snapshot_that_does_not_verify_is_not_kept(cluster: Cluster, tmp_path: Path) -> None:
    # The fake Raft streams bare state, not a snapshot file: what a replica with a defect might send.
    with pytest.raises(Exception, match="snapshot"):
        await save_snapshot(Settings((cluster.endpoints[0],)), tmp_path / "x.qdsnap")
    assert os.listdir(tmp_path) == []
