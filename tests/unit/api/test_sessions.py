"""Node sessions on real replicas: registration, assignments, statuses, and what the leader learns."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controlplane.base.errors import Code
from controlplane.client.interface import NotFoundError
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, PodStatus
from controlplane.pb.quarterdeck.v1 import node_pb2
from tests.unit.api.session_rig import Rig, running, settle


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


@pytest.fixture
async def trio() -> AsyncIterator[Rig]:
    async with running(3) as rig:
        yield rig


def status_of(pod: Pod, phase: str, *, terminated: bool = False, uid: str = "") -> node_pb2.PodStatusReport:
    return node_pb2.PodStatusReport(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        uid=uid or pod.metadata.uid,
        status=PodStatus(phase=phase),
        terminated=terminated,
    )


# -- hello ---------------------------------------------------------------------------------------------------------


async def test_hello_creates_the_node_and_is_welcomed(trio: Rig) -> None:
    agent = trio.agent("n1")
    await agent.hello(zone="a")
    node = await trio.client.get(Node, "n1")
    assert node.metadata.labels["zone"] == "a"
    assert node.status.capacity["cpu"].string == "4"
    assert [(c.type, c.status) for c in node.status.conditions] == [("Ready", "True")]
    [welcome] = agent.all("welcome")
    assert welcome.replica == "r1"
    assert welcome.pod_cidr == node.spec.podCIDR == "127.128.1.0/24"
    assert welcome.service_cidr == "127.96.0.0/16"
    assert welcome.heartbeat_interval_ms == 500
    assert len(welcome.endpoints) == 3


async def test_each_node_gets_its_own_range_and_keeps_it(rig: Rig) -> None:
    for name in ("n1", "n2"):
        await rig.agent(name).hello()
    again = rig.agent("n1", boot_id="b2")
    await again.hello()
    assert again.all("welcome")[0].pod_cidr == "127.128.1.0/24"
    assert (await rig.client.get(Node, "n2")).spec.podCIDR == "127.128.2.0/24"


async def test_a_second_hello_changes_what_is_the_agents_and_nothing_else(rig: Rig) -> None:
    await rig.agent("n1").hello(zone="a")
    node = await rig.client.get(Node, "n1")
    node.spec.unschedulable = True
    node.spec.taints.add(key="mine", effect="NoSchedule")
    await rig.client.update(node)
    node = await rig.client.get(Node, "n1")
    node.status.conditions[0].status = "Unknown"
    await rig.client.update_status(node)
    await rig.agent("n1", boot_id="b2").hello(zone="b")
    node = await rig.client.get(Node, "n1")
    assert node.metadata.labels["zone"] == "b"
    assert node.spec.unschedulable
    assert [t.key for t in node.spec.taints] == ["mine"]
    assert node.status.conditions[0].status == "Unknown"


async def test_an_agents_taints_count_when_its_node_is_created_and_not_after(rig: Rig) -> None:
    await rig.agent("n1").hello(taints=["gpu"])
    node = await rig.client.get(Node, "n1")
    assert [taint.key for taint in node.spec.taints] == ["gpu"]
    del node.spec.taints[:]
    await rig.client.update(node)
    await rig.agent("n1", boot_id="b2").hello(taints=["gpu"])
    assert not (await rig.client.get(Node, "n1")).spec.taints


async def test_a_hello_that_changes_nothing_writes_nothing(rig: Rig) -> None:
    await rig.agent("n1").hello(zone="a")
    writes = len(rig.replicas[0].raft.proposals)
    again = rig.agent("n1")
    await again.hello(zone="a")
    assert again.all("welcome")
    assert len(rig.replicas[0].raft.proposals) == writes


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "-a", "x" * 254])
async def test_a_name_that_is_no_nodes_is_refused_with_what_is_allowed(rig: Rig, name: str) -> None:
    agent = rig.agent(name)
    await agent.hello()
    error = await agent.error()
    assert error.code is Code.INVALID_ARGUMENT
    assert "lower-case letters" in error.message


async def test_the_first_message_must_be_hello(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.heartbeat()
    assert (await agent.error()).code is Code.INVALID_ARGUMENT


async def test_an_agent_of_a_newer_protocol_is_refused(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.send(node_pb2.AgentMessage(hello=node_pb2.Hello(node_name="n1", protocol_version=99)))
    error = await agent.error()
    assert error.code is Code.FAILED_PRECONDITION
    assert "upgrade the replicas before the agents" in error.message


async def test_a_newer_session_of_the_same_node_ends_the_older(rig: Rig) -> None:
    first = rig.agent("n1")
    await first.hello()
    second = rig.agent("n1", boot_id="b2")
    await second.hello()
    assert (await first.error()).code is Code.ABORTED
    assert list(rig.replicas[0].sessions.open_nodes) == ["n1"]
    assert not second.task.done()


# -- assignments ---------------------------------------------------------------------------------------------------


async def test_the_first_assignments_are_full_and_the_rest_differences(rig: Rig) -> None:
    await rig.agent("n1").hello()
    await rig.bound_pod("a", "n1")
    agent = rig.agent("n1", boot_id="b2")
    await agent.hello()
    await rig.bound_pod("b", "n1")
    assert [m.full for m in agent.all("assignments")] == [True, False]
    assert agent.pods == {"a", "b"}
    revisions = [m.revision for m in agent.all("assignments")]
    assert revisions == sorted(set(revisions))


async def test_a_node_without_pods_is_told_so(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    assert [(m.full, len(m.upserts)) for m in agent.all("assignments")] == [(True, 0)]


async def test_an_agent_hears_only_of_its_own_pods(rig: Rig) -> None:
    one, two = rig.agent("n1"), rig.agent("n2")
    await one.hello()
    await two.hello()
    await rig.bound_pod("a", "n1")
    await rig.bound_pod("b", "n2")
    assert (one.pods, two.pods) == ({"a"}, {"b"})


async def test_a_pod_asked_to_stop_is_an_upsert_and_one_that_is_gone_a_removal(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    await rig.client.delete(Pod, "a", namespace="default")
    await settle()
    last = agent.all("assignments")[-1]
    assert last.upserts[0].metadata.HasField("deletionTimestamp")
    await rig.client.delete(Pod, "a", namespace="default", grace_period_s=0)
    await settle()
    assert agent.all("assignments")[-1].removed_uids == [pod.metadata.uid]


async def test_an_agents_own_statuses_do_not_come_back(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    told = len(agent.all("assignments"))
    await agent.report(1, status_of(pod, "Running"))
    assert (await rig.client.get(Pod, "a", namespace="default")).status.phase == "Running"
    assert len(agent.all("assignments")) == told


async def test_a_replica_without_a_quorum_sends_no_assignments_until_it_has_one(rig: Rig) -> None:
    await rig.agent("n1").hello()
    await rig.bound_pod("a", "n1")
    agent = rig.agent("n1", boot_id="b2")
    rig.replicas[0].raft.set_leader(None)
    await agent.hello()
    assert agent.all("assignments") == []
    rig.replicas[0].raft.set_leader("r1")
    if agent.task.done():  # the registration already told it to go elsewhere
        agent = rig.agent("n1", boot_id="b3")
        await agent.hello()
    await rig.pass_time(1.0, 0.1, agent)
    assert agent.pods == {"a"}


# -- statuses ------------------------------------------------------------------------------------------------------


async def test_statuses_are_acknowledged_when_stored(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pods = [await rig.bound_pod(name, "n1") for name in "abc"]
    await agent.report(7, *(status_of(pod, "Running") for pod in pods))
    assert [ack.sequence for ack in agent.all("status_ack")] == [7]
    stored = await rig.client.list(Pod, namespace="default")
    assert [pod.status.phase for pod in stored.items] == ["Running"] * 3


async def test_a_status_keeps_what_the_agent_does_not_speak_of(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    before = {c.type for c in pod.status.conditions}
    assert "PodScheduled" in before
    report = status_of(pod, "Running")
    report.status.conditions.add(type="Ready", status="True")
    await agent.report(1, report)
    after = await rig.client.get(Pod, "a", namespace="default")
    assert {c.type for c in after.status.conditions} == before | {"Ready"}
    assert after.status.qosClass == pod.status.qosClass


async def test_a_status_of_another_pod_of_the_same_name_does_not_count(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    await agent.report(1, status_of(pod, "Failed", uid="another"))
    assert (await rig.client.get(Pod, "a", namespace="default")).status.phase == "Pending"
    assert agent.all("status_ack")


async def test_a_status_of_another_nodes_pod_does_not_count(rig: Rig) -> None:
    agent = rig.agent("n2")
    await rig.agent("n1").hello()
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    await agent.report(1, status_of(pod, "Failed"))
    assert (await rig.client.get(Pod, "a", namespace="default")).status.phase == "Pending"


async def test_a_terminated_pods_object_is_deleted_but_never_its_successors(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    await agent.report(1, status_of(pod, "Succeeded", terminated=True, uid="former"))
    assert await rig.client.get(Pod, "a", namespace="default") == pod
    await agent.report(2, status_of(pod, "Succeeded", terminated=True))
    with pytest.raises(NotFoundError):
        await rig.client.get(Pod, "a", namespace="default")
    assert [ack.sequence for ack in agent.all("status_ack")] == [1, 2]


async def test_heartbeats_are_answered_while_statuses_wait_for_a_quorum(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    pod = await rig.bound_pod("a", "n1")
    rig.replicas[0].raft.hold()
    await agent.report(1, status_of(pod, "Running"))
    await agent.heartbeat()
    assert [ack.sequence for ack in agent.all("heartbeat_ack")] == [1]
    assert agent.all("status_ack") == []
    rig.replicas[0].raft.release()
    await rig.pass_time(0.3)
    assert [ack.sequence for ack in agent.all("status_ack")] == [1]


# -- what the leader learns ----------------------------------------------------------------------------------------


async def test_the_leader_hears_of_sessions_on_every_replica_at_once(trio: Rig) -> None:
    await trio.agent("n1", replica=1).hello()
    await trio.pass_time(0.1, 0.02)
    contact = trio.table.contact("n1")
    assert contact.open
    assert contact.last_seen_s == pytest.approx(trio.clock.monotonic(), abs=0.15)


async def test_a_broken_session_is_known_within_a_tenth_of_a_second(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(1.0, 0.1, agent)
    assert trio.table.contact("n1").open
    await agent.hang_up()
    await trio.pass_time(0.1, 0.02)
    assert not trio.table.contact("n1").open
    assert trio.table.contact("n1").broken_since_s == pytest.approx(trio.clock.monotonic(), abs=0.11)


async def test_a_goodbye_is_told_to_the_leader(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.6, 0.1, agent)
    await agent.goodbye(drained=True)
    await trio.pass_time(0.1, 0.02)
    contact = trio.table.contact("n1")
    assert contact.departed
    assert contact.drained
    assert agent.task.done()


async def test_silence_of_an_open_session_shows_in_last_seen(trio: Rig) -> None:
    agent = trio.agent("n1", replica=1)
    await agent.hello()
    await trio.pass_time(1.0, 0.1, agent)
    heard = trio.clock.monotonic()
    await trio.pass_time(2.0)
    contact = trio.table.contact("n1")
    assert contact.open
    assert contact.last_seen_s == pytest.approx(heard, abs=0.15)


async def test_heartbeats_cost_no_log_entries(trio: Rig) -> None:
    agent = trio.agent("n1", replica=1)
    await agent.hello()
    entries = trio.replicas[0].raft.status().commit_index
    await trio.pass_time(5.0, 0.1, agent)
    assert trio.replicas[0].raft.status().commit_index == entries


async def test_a_new_leader_learns_all_sessions_from_the_next_reports(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.5, 0.1, agent)
    trio.replicas[0].raft.set_leader("r2")
    await trio.pass_time(0.6, 0.1, agent)
    contact = trio.replicas[1].sessions.table.contact("n1")
    assert contact is not None
    assert contact.open


async def test_a_leader_that_leads_again_starts_without_its_old_evidence(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.5, 0.1, agent)
    trio.replicas[0].raft.set_leader("r2")
    await trio.pass_time(5.0, 0.1, agent)
    trio.replicas[0].raft.set_leader("r1")
    assert trio.table.contact("n1") is None


async def test_sessions_a_replica_ended_itself_do_not_count_as_broken_when_it_is_back(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.5, 0.1, agent)
    trio.replicas[0].raft.reachable = False
    while not agent.task.done():
        await trio.pass_time(0.1, 0.1, agent)
    trio.replicas[0].raft.reachable = True
    await trio.pass_time(0.5)
    assert trio.table.contact("n1").broken_since_s is None
    await agent.error()


async def test_a_replica_cut_off_from_the_leader_sends_its_agents_away(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.5, 0.1, agent)
    trio.replicas[0].raft.reachable = False
    await trio.pass_time(2.0, 0.1, agent)
    error = await agent.error()
    assert error.code is Code.UNAVAILABLE
    assert "try another" in error.message


async def test_an_election_sends_nobody_away(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    trio.replicas[0].raft.set_leader(None)
    await trio.pass_time(1.0, 0.1, agent)
    trio.replicas[0].raft.set_leader("r2")
    await trio.pass_time(3.0, 0.1, agent)
    assert not agent.task.done()


async def test_a_stopping_replicas_sessions_are_not_reported_as_broken(trio: Rig) -> None:
    agent = trio.agent("n1", replica=2)
    await agent.hello()
    await trio.pass_time(0.6, 0.1, agent)
    trio.replicas[2].sessions.close()
    await trio.pass_time(0.6)
    assert (await agent.error()).code is Code.UNAVAILABLE
    assert trio.table.contact("n1").broken_since_s is None
    refused = trio.agent("n2", replica=2)
    await refused.hello()
    assert (await refused.error()).code is Code.UNAVAILABLE


async def test_a_replica_that_did_not_run_counts_nobodys_silence(trio: Rig) -> None:
    agent = trio.agent("n1", replica=1)
    await agent.hello()
    await trio.pass_time(1.0, 0.1, agent)
    trio.clock.advance(30.0)  # one jump: every process was paused
    await settle()
    await trio.pass_time(0.2)
    assert not agent.task.done()
    contact = trio.table.contact("n1")
    assert trio.clock.monotonic() - contact.last_seen_s < 0.5


async def test_a_session_silent_for_very_long_is_closed(trio: Rig) -> None:
    agent = trio.agent("n1", replica=1)
    await agent.hello()
    await trio.pass_time(10.8)
    assert (await agent.error()).code is Code.DEADLINE_EXCEEDED
