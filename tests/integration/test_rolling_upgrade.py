"""Replicas, and agents with their pods, are replaced one by one, under load, by another version's or by themselves: no
client notices, nothing is lost, no pod restarts, and the states agree.

Real processes on one machine. The old version is the newest release, taken from the repository's own history and run
with this environment's dependencies; without that history (a shallow clone) these tests fail, they never skip.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import grpc
import pytest

from chaos import releases
from chaos.checkers import check_all
from chaos.findings import Verdict
from chaos.history import Recorder, load
from chaos.observe import PodView, processes_of_pods, view
from chaos.probes import node_ready, service_address
from chaos.records import Header, History, Listing
from chaos.workload import Board, Pace, Reader, ServiceClient, Watcher, Writer, fetch, read_prefix
from controlplane.base.clock import SystemClock
from controlplane.base.rand import SystemRand
from controlplane.client import ApiError, EtcdClient, GrpcClient, OperatorClient
from controlplane.client.codec import load_manifests
from controlplane.client.operator_client import leader_of
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import NodeSpec, ReplicaSpec, plan
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import operator_pb2
from controlplane.transport.channel import new_channel
from tests.integration.etcd_rig import free_port

pytestmark = pytest.mark.slow

log = logging.getLogger(__name__)

_WEB: Final = Path(__file__).resolve().parents[2] / "examples" / "web.yaml"
_PODS = 4
_PREFIX = "upgrade/"
_TIMEOUT_S = 60.0
#: Acknowledged writes between two steps: every mixture of versions has work to do.
_WRITES_BETWEEN = 60


class Fleet:
    """Three replicas without TLS (0.1 has none), perhaps agents, and what their operators see."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.endpoints = cluster.spec.endpoints

    async def status(self, replica: ReplicaSpec) -> operator_pb2.StatusResponse | None:
        async with OperatorClient(replica.client, timeout_ms=1_000) as client:
            try:
                return await client.status()
            except ApiError:
                return None

    async def leader(self) -> str:
        """Its name, once a majority agrees on one."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                answers = [a for r in self.cluster.spec.replicas if (a := await self.status(r)) is not None]
                name, _ = leader_of(answers, len(self.cluster.spec.replicas))
                if name is not None:
                    return name
                await asyncio.sleep(0.1)

    async def ready(self, name: str) -> None:
        """Return when the replica or the agent says so at its health port."""
        agents = {node.name: node.metrics for node in self.cluster.spec.nodes}
        url = f"http://{agents.get(name) or self.cluster.replica(name).metrics}/readyz"
        async with asyncio.timeout(_TIMEOUT_S):
            while not await asyncio.to_thread(_answers, url):
                self.cluster.check_alive([name])
                await asyncio.sleep(0.1)

    async def agreed(self) -> operator_pb2.StatusResponse:
        """Return when all three are at one revision with one hash; what one of them says."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                answers = [a for r in self.cluster.spec.replicas if (a := await self.status(r)) is not None]
                if len(answers) == 3 and len({(a.revision, a.state_hash) for a in answers}) == 1:
                    return answers[0]
                await asyncio.sleep(0.1)

    async def replace(self, name: str, source: Path | None) -> None:
        """Stop one in good order (a leader hands over first) and start it on its data with the code of ``source``;
        None: this tree's."""
        forced = await asyncio.to_thread(self.cluster.stop, name)
        assert not forced, f"{name} did not stop by itself:\n{self.cluster.processes.log_tail(name, 20)}"
        if source is None:
            self.cluster.sources.pop(name, None)
        else:
            self.cluster.sources[name] = source
        self.cluster.start(name)
        await self.ready(name)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class _Leaving(LocalCluster):
    """Its agents leave their pods running for their successors, as those do that are to be upgraded."""

    def argv(self, name: str) -> list[str]:
        agent = any(node.name == name for node in self.spec.nodes)
        return [*super().argv(name), *(["--leave-pods"] if agent else [])]


def _addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{free_port()}" for _ in range(count)]


@asynccontextmanager
async def running(folder: Path, source: Path | None, *args: str, nodes: int = 0) -> AsyncIterator[Fleet]:
    """Three replicas, and agents, of that source tree; gone afterwards."""
    spec = plan(replicas=3, nodes=nodes, port_base=20_000)
    spec = dataclasses.replace(
        spec,
        replicas=tuple(ReplicaSpec(r.name, *_addresses(3)) for r in spec.replicas),
        nodes=tuple(NodeSpec(node.name, *_addresses(2)) for node in spec.nodes),
        extra_replica_args=args,
    )
    cluster = _Leaving.create(folder / ".quarterdeck", spec)
    try:
        fleet = Fleet(cluster)
        for names in ([r.name for r in spec.replicas], [node.name for node in spec.nodes]):
            for name in names:
                if source is not None:
                    cluster.sources[name] = source
                cluster.start(name)
            for name in names:
                await fleet.ready(name)
        yield fleet
    finally:
        await asyncio.to_thread(cluster.down)


class Load:
    """A writer and a reader at every replica, one watch over it all, and a client of a Service, if there is one;
    recorded."""

    def __init__(self, endpoints: list[str], path: Path, service: tuple[str, int] | None = None) -> None:
        clock, rand = SystemClock(), SystemRand()
        self.recorder = Recorder(path, Header("upgrade", _PREFIX, "", endpoints), clock)
        self._clients = [EtcdClient(endpoints, first=first) for first in endpoints for _ in range(2)]
        self.board = Board()
        self._stopping = asyncio.Event()
        self._parts: list[Writer | Reader | ServiceClient] = []
        for n in range(len(endpoints)):
            writer, reader = self._clients[2 * n : 2 * n + 2]
            self._parts.append(Writer(n, _PREFIX, writer, self.board, self.recorder, Pace(30, clock), rand))
            self._parts.append(Reader(n, reader, self.board, self.recorder, Pace(10, clock)))
        if service is not None:
            self._parts.append(ServiceClient(0, service, self.recorder, Pace(30, clock), timeout_s=2.0))
        self._watching_client = EtcdClient(endpoints)
        self._watcher = Watcher(_PREFIX, self._watching_client, self.recorder, clock)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._watcher.begin()
        self._tasks = [asyncio.create_task(self._watcher.run())]
        self._tasks += [asyncio.create_task(part.run(self._stopping)) for part in self._parts]

    async def more(self, writes: int = _WRITES_BETWEEN) -> None:
        """Return after so many more revisions were acknowledged."""
        enough = self.board.revision + writes
        async with asyncio.timeout(_TIMEOUT_S):
            while self.board.revision < enough:  # noqa: ASYNC110 - the other tasks' progress
                await asyncio.sleep(0.02)

    async def finish(self) -> None:
        """End it, and read everything back."""
        self._stopping.set()
        await asyncio.gather(*self._tasks[1:])
        revision, rows = await read_prefix(self._watching_client, _PREFIX)
        await self._watcher.reached(max(row.mod_revision for row in rows), 10.0)
        self.recorder.listing(Listing("final", 0, revision, self.recorder.now_ns(), rows))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in (*self._clients, self._watching_client)))
        self.recorder.close()


async def roll(
    fleet: Fleet,
    history: Path,
    source: Path | None,
    *,
    leader: Literal["last", "always"],
    half_way: Callable[[ReplicaSpec], Awaitable[None]] | None = None,
    service: tuple[str, int] | None = None,
) -> None:
    """Replace every replica, then every agent, under load; then nothing may have failed or be missing.

    Args:
        source: of the code that they come back with; None: this tree's.
        leader: ``last``: the one that leads at the start is the last; ``always``: whoever leads is the next, if it has
            not been replaced yet.
        half_way: given each replaced replica while others are not.
        service: asked for all the while: one retry is a client's own.
    """
    work = Load(fleet.endpoints, history, service)
    try:
        await work.start()
        await work.more()
        old = [r.name for r in fleet.cluster.spec.replicas]
        while old:
            leads = await fleet.leader()
            old.sort(key=lambda name: (name == leads) is (leader == "last"))
            replaced = old.pop(0)
            await fleet.replace(replaced, source)
            if half_way is not None and old:
                await half_way(fleet.cluster.replica(replaced))
            await work.more()
        for node in fleet.cluster.spec.nodes:
            await fleet.replace(node.name, source)
            await work.more()
        await work.finish()
    finally:
        await work.close()
    judge(load(history))


def judge(history: History) -> None:
    """No write and no read failed or was left in doubt, and every rule of a history holds."""
    lost = [op for op in history.of_kind("put", "get", "http") if op.outcome != "ok"]
    assert not lost, f"{len(lost)} of {len(history.ops)} operations were not served, such as {lost[0]}"
    assert len(history.of_kind("put")) >= 4 * _WRITES_BETWEEN
    for finding in check_all(history):
        assert finding.verdict is Verdict.PASS, finding


async def web(fleet: Fleet) -> tuple[str, int]:
    """Four pods behind a Service, all serving; the Service's address."""
    async with asyncio.timeout(_TIMEOUT_S), api(fleet) as client:
        for manifest in load_manifests(_WEB.read_text()):
            if manifest["kind"] == "Deployment":
                manifest["spec"]["replicas"] = _PODS
            await client.apply(manifest)
        while True:
            if len(await serving(client)) == _PODS:
                address = await service_address(client)
                if await fetch(*address, timeout_s=2.0) is None:
                    return address
            await asyncio.sleep(0.1)


@asynccontextmanager
async def api(fleet: Fleet) -> AsyncIterator[GrpcClient]:
    client = GrpcClient(fleet.endpoints)
    try:
        yield client
    finally:
        await client.close()


async def serving(client: GrpcClient) -> Mapping[str, PodView]:
    """Pods that are Ready, by uid."""
    pods = (await client.list(Pod, namespace="default")).items
    return {pod.metadata.uid: view(pod) for pod in pods if view(pod).ready and not view(pod).deleting}


async def role_added(replica: ReplicaSpec) -> None:
    """Users and roles are not in 0.1: its replicas would apply this as a rejection."""
    channel = new_channel(replica.client)
    try:
        await rpc_pb2_grpc.AuthStub(channel).RoleAdd(rpc_pb2.AuthRoleAddRequest(name="after"), timeout=10)
    finally:
        await channel.close()


async def refuses_what_the_old_do_not_know(replica: ReplicaSpec) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="an older version that does not know this request; upgrade first"):
        await role_added(replica)


@pytest.mark.parametrize("leader", ["last", "always"])
async def test_a_release_is_upgraded_to_this_tree_replica_by_replica_under_load(
    tmp_path: Path, leader: Literal["last", "always"]
) -> None:
    old = await asyncio.to_thread(releases.source_of, releases.newest(), tmp_path / "old")
    # Few entries between snapshots, so that each version starts from snapshots of its own and of the other.
    async with running(tmp_path, old, "--snapshot-entries", "150") as fleet:
        assert list((old / "controlplane" / "raft" / "__pycache__").glob("driver.*.pyc")), "the old code did not run"
        await roll(fleet, tmp_path / "history.jsonl", None, leader=leader, half_way=refuses_what_the_old_do_not_know)
        assert (await fleet.agreed()).state_hash
        await role_added(fleet.cluster.spec.replicas[0])
        assert fleet.cluster.running() == [r.name for r in fleet.cluster.spec.replicas]


async def test_a_rolling_restart_fails_no_request(tmp_path: Path) -> None:
    async with running(tmp_path, None) as fleet:
        await roll(fleet, tmp_path / "history.jsonl", None, leader="always")
        assert (await fleet.agreed()).state_hash


async def test_agents_with_pods_and_a_service_are_upgraded_with_the_replicas(tmp_path: Path) -> None:
    old = await asyncio.to_thread(releases.source_of, releases.newest(), tmp_path / "old")
    async with running(tmp_path, old, nodes=2) as fleet:
        service = await web(fleet)
        assert list((old / "node" / "__pycache__").glob("agent.*.pyc")), "the old code did not run"
        processes = processes_of_pods(fleet.cluster)
        assert len(processes) == _PODS
        await roll(fleet, tmp_path / "history.jsonl", None, leader="last", service=service)
        requests = load(tmp_path / "history.jsonl").of_kind("http")
        log.info("%d requests, %d attempts failed", len(requests), sum(op.attempts_failed for op in requests))
        assert len(requests) > 100
        assert processes_of_pods(fleet.cluster) == processes, "pods did not run on as the same processes"
        async with api(fleet) as client:
            now = await serving(client)
            assert set(now) == set(processes), "the API says that they are others, or do not serve"
            assert [pod.restarts for pod in now.values()] == [0] * _PODS
            for node in fleet.cluster.spec.nodes:
                assert await node_ready(client, node.name), node.name
