"""The whole agent with real processes, against a replica that is only a session."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SystemRand
from controlplane.pb.k8s.core_v1_pb2 import ContainerStateWaiting
from controlplane.pb.quarterdeck.v1.api_pb2 import LogsRequest
from controlplane.pb.quarterdeck.v1.node_pb2 import Assignments, Hello, Welcome
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import AgentStub
from node.agent import Agent
from node.config import AgentConfig
from node.runtime import procs
from node.runtime.base import ContainerState
from node.session import NodeSession, SessionEndedError
from tests.unit.node.support import FakeReplica, eventually, make_pod, python


@asynccontextmanager
async def an_agent(
    tmp_path: Path, *replicas: FakeReplica, leave_pods: bool = False, shutdown_grace_s: float = 2.0
) -> AsyncIterator[Agent]:
    """A running agent; stopped in order at the end."""
    config = AgentConfig(
        name="node-1",
        endpoints=tuple(replica.endpoint for replica in replicas),
        state_dir=tmp_path / "node-1",
        proxy=False,
        leave_pods=leave_pods,
        shutdown_grace_s=shutdown_grace_s,
    )
    config.validate()
    agent = Agent(config, clock=SystemClock(), rand=SystemRand())
    running = asyncio.get_running_loop().create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop()
        await running


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica()
    await fake.start()
    yield fake
    await fake.stop()


def pids(agent: Agent, uid: str) -> list[int]:
    return [
        info.pid
        for info in agent.runtime.list_containers()
        if info.pod_uid == uid and info.state is ContainerState.RUNNING
    ]


def alive(pid: int) -> bool:
    return procs.identity_of(pid) is not None


async def test_an_assigned_pod_becomes_ready_with_an_address_of_its_own(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica):
        for name in ("a", "b"):
            replica.assign(make_pod(name))
        await eventually(lambda: replica.ready("uid-a") and replica.ready("uid-b"))
        ips = {replica.statuses[uid].status.podIP for uid in ("uid-a", "uid-b")}
        assert ips == {"127.130.1.2", "127.130.1.3"}
        hello = replica.hellos[0]
        assert hello.node_name == "node-1"
        assert hello.node.status.daemonEndpoints.kubeletEndpoint.Port > 0


async def test_a_stopped_agent_leaves_no_process_and_says_its_pods_failed(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica) as agent:
        replica.assign(make_pod("a"))
        await eventually(lambda: replica.ready("uid-a"))
        (pid,) = pids(agent, "uid-a")
    assert not alive(pid)
    assert replica.phase("uid-a") == "Failed"
    assert replica.statuses["uid-a"].status.reason == "NodeShutdown"
    assert [goodbye.drained for goodbye in replica.goodbyes] == [True]
    assert list((tmp_path / "node-1" / "pods").iterdir()) == []


async def test_a_stopped_agent_gives_up_the_pods_that_a_controller_replaces(
    tmp_path: Path, replica: FakeReplica
) -> None:
    pod = make_pod("a")
    pod.metadata.ownerReferences.add(kind="ReplicaSet", name="rs", uid="uid-rs", apiVersion="apps/v1", controller=True)
    async with an_agent(tmp_path, replica):
        replica.assign(pod)
        await eventually(lambda: replica.ready("uid-a"))
        assert not replica.statuses["uid-a"].terminated
    assert replica.statuses["uid-a"].terminated


async def test_a_deleted_pod_is_stopped_with_grace_and_reported_terminated(
    tmp_path: Path, replica: FakeReplica
) -> None:
    async with an_agent(tmp_path, replica) as agent:
        stubborn = "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
        replica.assign(make_pod("a", *python(stubborn)))
        await eventually(lambda: replica.ready("uid-a"))
        (pid,) = pids(agent, "uid-a")
        await eventually(lambda: agent.runtime.list_containers()[0].log_path.read_text() == "on\n")
        replica.delete("uid-a", 1)
        await eventually(lambda: replica.statuses["uid-a"].terminated)
        assert not alive(pid)
        final = replica.statuses["uid-a"].status.containerStatuses[0].state.terminated
        assert (final.exitCode, final.signal) == (137, 9)
        assert not replica.ready("uid-a")
        replica.remove("uid-a")
        await eventually(lambda: not (tmp_path / "node-1" / "pods" / "uid-a").exists())


async def test_the_next_agent_adopts_running_pods(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica, leave_pods=True) as agent:
        replica.assign(make_pod("a"))
        await eventually(lambda: replica.ready("uid-a"))
        (pid,) = pids(agent, "uid-a")
        ip = replica.statuses["uid-a"].status.podIP
    assert alive(pid)
    assert [goodbye.drained for goodbye in replica.goodbyes] == [False]
    replica.statuses.clear()
    async with an_agent(tmp_path, replica) as agent:
        await eventually(lambda: replica.ready("uid-a"))
        assert pids(agent, "uid-a") == [pid]
        assert replica.hellos[-1].running_pod_uids == ["uid-a"]
        status = replica.statuses["uid-a"].status
        assert (status.podIP, status.containerStatuses[0].restartCount) == (ip, 0)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: replica.statuses["uid-a"].status.containerStatuses[0].restartCount == 1)
        last = replica.statuses["uid-a"].status.containerStatuses[0].lastState.terminated
        assert (last.reason, last.exitCode) == ("ContainerStatusUnknown", 137)


async def test_a_pod_that_is_not_assigned_any_more_is_stopped_after_a_reconnect(
    tmp_path: Path, replica: FakeReplica
) -> None:
    async with an_agent(tmp_path, replica, leave_pods=True) as agent:
        replica.assign(make_pod("a"))
        await eventually(lambda: replica.ready("uid-a"))
        (pid,) = pids(agent, "uid-a")
    replica.pods.clear()
    async with an_agent(tmp_path, replica):
        await eventually(lambda: not alive(pid))


async def test_pods_outlive_the_death_of_their_replica(tmp_path: Path) -> None:
    first, second = FakeReplica("r1"), FakeReplica("r2")
    await first.start()
    await second.start()
    async with an_agent(tmp_path, first, second) as agent:
        pod = make_pod("a")
        await eventually(lambda: agent.session.connected)
        for fake in (first, second):
            fake.assign(pod)
        holder, other = (first, second) if first.sessions else (second, first)
        await eventually(lambda: holder.ready("uid-a"))
        (pid,) = pids(agent, "uid-a")
        await holder.stop()
        await eventually(lambda: other.ready("uid-a"))
        assert pids(agent, "uid-a") == [pid]
        assert other.statuses["uid-a"].status.containerStatuses[0].restartCount == 0
        await other.stop()
        await eventually(lambda: not agent.session.connected)
        assert alive(pid)
    assert not alive(pid)


async def test_a_replica_that_stops_answering_is_left(tmp_path: Path) -> None:
    paused, healthy = FakeReplica("r1"), FakeReplica("r2")
    await paused.start()
    async with an_agent(tmp_path, paused) as agent:
        await eventually(lambda: agent.session.connected)
        await healthy.start()
        paused.endpoints = [healthy.endpoint]
        # The list of replicas comes with the next welcome.
        paused.answers_heartbeats = False
        await eventually(lambda: healthy.sessions == 1)
        await eventually(lambda: agent.session.replica == "r2")
    await paused.stop()
    await healthy.stop()


async def test_logs_are_served_with_tail_previous_and_follow(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica):
        await eventually(lambda: replica.hellos)
        code = "import time\nfor i in range(5): print('line', i, flush=True)\ntime.sleep(0.3)\nprint('end', flush=True)"
        replica.assign(make_pod("a", *python(code), restart_policy="Never"))
        await eventually(lambda: replica.phase("uid-a") == "Running")
        port = replica.hellos[0].node.status.daemonEndpoints.kubeletEndpoint.Port
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = AgentStub(channel)

            async def read(**fields: object) -> bytes:
                request = LogsRequest(namespace="default", pod="a", **fields)  # type: ignore[arg-type]
                return b"".join([chunk.data async for chunk in stub.Logs(request)])

            assert await read(follow=True) == b"line 0\nline 1\nline 2\nline 3\nline 4\nend\n"
            assert await read(tail_lines=2) == b"line 4\nend\n"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await read(previous=True)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await read(container="other")
            assert "there are: main" in (unknown.value.details() or "")


async def test_an_image_that_is_not_host_is_refused_with_a_reason(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica):
        replica.assign(make_pod("a", image="nginx:1.27"))
        await eventually(lambda: "uid-a" in replica.statuses and _waiting(replica, "uid-a").reason)
        waiting = _waiting(replica, "uid-a")
        assert waiting.reason == "ErrImageNeverPull"
        assert "'cri' runtime" in waiting.message
        assert replica.phase("uid-a") == "Pending"


def _waiting(replica: FakeReplica, uid: str) -> ContainerStateWaiting:
    return replica.statuses[uid].status.containerStatuses[0].state.waiting


async def test_a_second_agent_on_the_same_state_directory_is_refused(tmp_path: Path, replica: FakeReplica) -> None:
    async with an_agent(tmp_path, replica) as agent:
        await eventually(lambda: agent.session.connected)
        config = AgentConfig(name="node-1", endpoints=(replica.endpoint,), state_dir=tmp_path / "node-1", proxy=False)
        with pytest.raises(ConfigError, match="another agent"):
            await Agent(config, clock=SystemClock(), rand=SystemRand()).run()


async def test_a_port_in_use_is_named(tmp_path: Path, replica: FakeReplica) -> None:
    config = AgentConfig(
        name="node-1", endpoints=(replica.endpoint,), state_dir=tmp_path / "n", listen=replica.endpoint, proxy=False
    )
    with pytest.raises(ConfigError, match=replica.endpoint):
        await Agent(config, clock=SystemClock(), rand=SystemRand()).run()


async def test_a_dead_endpoint_costs_no_wait(tmp_path: Path, replica: FakeReplica) -> None:
    gone = FakeReplica("gone")
    await gone.start()
    await gone.stop()
    session = NodeSession([gone.endpoint], _Silent(), clock=SystemClock(), rand=SystemRand())
    with pytest.raises(SessionEndedError, match="refused"):
        await session._hold(gone.endpoint)


class _Silent:
    """A handler that never gets to speak."""

    def hello(self) -> Hello:
        return Hello()

    def welcomed(self, welcome: Welcome) -> None: ...

    def assigned(self, assignments: Assignments) -> None: ...
