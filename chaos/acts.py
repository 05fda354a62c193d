"""The acts: each breaks one thing under load, waits until all is well again, and says what it saw.

An act marks ``begin``, then two steady seconds, ``fault``, ``recovered`` when the cluster is whole, two steady seconds,
``observed`` with what it saw. It judges nothing: ``verdict`` does, from the history. It raises ActError when the
cluster does not get well in time, because what comes after would measure nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos.deeds import Faults, digest, digest_of_snapshot, read_everything
from chaos.history import Mark, Recorder
from chaos.load import Load
from chaos.observe import Pods, PodView, Replicas, compare, processes_of_pods
from controlplane.base.clock import Clock
from controlplane.base.errors import QuarterdeckError, StatusError
from controlplane.cli.common import Settings
from controlplane.cli.snapshot import save_snapshot
from controlplane.client import ApiClient, EtcdClient
from controlplane.local.cluster import LocalCluster
from controlplane.local.etcd_restore import save_store, snapshot_revision
from controlplane.local.restore import verify
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.k8s.core_v1_pb2 import Node

__all__ = ["ACTS", "ActError", "Stage", "demo_acts", "node_ready"]

#: Steady stretch before a fault and after recovery.
STEADY_S: Final = 2.0
_RECOVERY_TIMEOUT_S: Final = 30.0
_LEADER_TIMEOUT_S: Final = 10.0
_AFTER_SNAPSHOT_S: Final = 0.5
_POLL_S: Final = 0.02


class ActError(QuarterdeckError):
    """The cluster did not get well in time. The message says what was waited for."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything an act plays with. ``pods_wanted``: what the Deployment asked for at the beginning."""

    faults: Faults
    load: Load
    pods: Pods
    replicas: Replicas
    client: ApiClient
    kv: EtcdClient
    recorder: Recorder
    clock: Clock
    pods_wanted: int
    snapshots: Path
    say: Callable[[str], None]

    async def steady(self) -> None:
        """Two seconds of nothing but load."""
        await self.clock.sleep(STEADY_S)
        self.load.check()

    def seconds_since(self, mark: Mark) -> float:
        """Since something was marked."""
        return (self.recorder.now_ns() - mark.at_ns) / 1e9


async def node_ready(client: ApiClient, name: str) -> bool:
    """Whether the API says the node is Ready and not under suspicion."""
    try:
        node = await client.get(Node, name)
    except StatusError:
        return False  # not registered yet, or nobody to ask: asked again
    conditions = {condition.type: condition.status for condition in node.status.conditions}
    return conditions.get("Ready") == "True" and conditions.get("Suspect") != "True"


async def leader_kill(stage: Stage, n: int) -> None:
    """kill -9 of the leading replica, and its return."""
    act = "leader-kill"
    stage.recorder.mark(act, n, "begin")
    pods = _Census(stage)
    await stage.steady()
    leader, term = await stage.replicas.leader()
    if leader is None:
        raise ActError("no majority names a leader")
    stage.say(f"kill -9 {leader}, the leader of term {term}")
    fault = stage.recorder.mark(act, n, "fault", replica=leader)
    await stage.faults.kill_replica(leader)
    found = await stage.replicas.until_leader(other_than=leader, timeout_s=_LEADER_TIMEOUT_S)
    leader_s = stage.seconds_since(fault)
    if found is None:
        raise ActError(f"no new leader within {_LEADER_TIMEOUT_S:g} s")
    stage.say(f"{found[0]} leads term {found[1]} after {leader_s:.2f} s; starting {leader} again")
    await stage.faults.start(leader)
    await _whole(stage)
    recovered = stage.recorder.mark(act, n, "recovered")
    await stage.steady()
    _, term_at_end = await stage.replicas.leader()
    stage.recorder.mark(
        act, n, "observed",
        leader_before=leader, leader_after=found[0], term_before=term, term_after=found[1], leader_s=leader_s,
        elections_after=term_at_end - found[1],
        recovered_s=(recovered.at_ns - fault.at_ns) / 1e9, **pods.changes(),
    )  # fmt: skip


async def store_leader_kill(stage: Stage, n: int) -> None:
    """kill -9 of the leading member of the etcd cluster that is the store, and its return."""
    act = "store-leader-kill"
    stage.recorder.mark(act, n, "begin")
    pods = _Census(stage)
    await stage.steady()
    leader, term = await _store_leader(stage)
    if leader is None:
        raise ActError("no etcd member says that it leads")
    stage.say(f"kill -9 {leader}, the leader of etcd's term {term}")
    fault = stage.recorder.mark(act, n, "fault", member=leader)
    await stage.faults.kill_replica(leader)
    deadline_s = stage.clock.monotonic() + _LEADER_TIMEOUT_S
    while (found := await _store_leader(stage))[0] in {None, leader}:
        if stage.clock.monotonic() > deadline_s:
            raise ActError(f"no new leader of etcd within {_LEADER_TIMEOUT_S:g} s")
        await stage.clock.sleep(_POLL_S)
    leader_s = stage.seconds_since(fault)
    stage.say(f"{found[0]} leads etcd's term {found[1]} after {leader_s:.2f} s; starting {leader} again")
    await stage.faults.start(leader)
    await _whole(stage)
    recovered = stage.recorder.mark(act, n, "recovered")
    await stage.steady()
    stage.recorder.mark(
        act, n, "observed",
        leader_before=leader, leader_after=found[0], term_before=term, term_after=found[1], leader_s=leader_s,
        recovered_s=(recovered.at_ns - fault.at_ns) / 1e9, **pods.changes(),
    )  # fmt: skip


async def node_kill(stage: Stage, n: int) -> None:
    """kill -9 of an agent and of every process of its pods; the machine comes back when its pods run elsewhere."""
    act = "node-kill"
    stage.recorder.mark(act, n, "begin")
    pods = _Census(stage)
    await stage.steady()
    on_node = Counter(pod.node for pod in stage.pods.ready())
    if len(on_node) < 2:
        raise ActError(f"all pods are on {', '.join(on_node) or 'no node'}: nothing would be left to serve")
    victim = max(sorted(on_node), key=lambda name: on_node[name])
    wanted = len(stage.pods.ready())
    stage.say(f"kill -9 {victim} with its {on_node[victim]} pods")
    fault = stage.recorder.mark(act, n, "fault", node=victim)
    killed = await stage.faults.kill_node(victim)
    took = await stage.pods.until(lambda: len(stage.pods.ready(not_on=[victim])) >= wanted, _RECOVERY_TIMEOUT_S)
    replaced_s = stage.seconds_since(fault)
    if took is None:
        raise ActError(f"{len(stage.pods.ready(not_on=[victim]))} of {wanted} pods Ready elsewhere")
    stage.say(f"{wanted} pods Ready elsewhere after {replaced_s:.2f} s; starting {victim} again")
    await stage.faults.start(victim)
    await _until(stage, lambda: node_ready(stage.client, victim), f"{victim} Ready again")
    recovered = stage.recorder.mark(act, n, "recovered")
    await stage.steady()
    stage.recorder.mark(
        act, n, "observed",
        node=victim, pods_killed=killed, replaced_s=replaced_s, recovered_s=(recovered.at_ns - fault.at_ns) / 1e9,
        **pods.changes(excused_nodes=[victim]),
    )  # fmt: skip


async def scaling(stage: Stage, n: int) -> None:
    """Five times the pods, while two node agents join. Undone by ``faults.heal``."""
    act = "scaling"
    stage.recorder.mark(act, n, "begin")
    pods = _Census(stage)
    await stage.steady()
    wanted = stage.pods_wanted * 5
    stage.say(f"two nodes join while the Deployment grows from {stage.pods_wanted} to {wanted} pods")
    fault = stage.recorder.mark(act, n, "fault", pods=wanted)
    nodes = [await stage.faults.add_node() for _ in range(2)]
    # Half of the growth at once, which the old nodes take; the rest when the new ones can take their share.
    await stage.faults.scale((stage.pods_wanted + wanted) // 2)
    for name in nodes:
        await _until(stage, lambda name=name: node_ready(stage.client, name), f"{name} Ready")  # type: ignore[misc]
    joined_s = stage.seconds_since(fault)
    await stage.faults.scale(wanted)
    took = await stage.pods.until(lambda: len(stage.pods.ready()) >= wanted, _RECOVERY_TIMEOUT_S)
    scaled_s = stage.seconds_since(fault)
    if took is None:
        raise ActError(f"{len(stage.pods.ready())} of {wanted} pods Ready")
    stage.say(f"{wanted} pods Ready after {scaled_s:.2f} s")
    stage.recorder.mark(act, n, "recovered")
    await stage.steady()
    on_node = Counter(pod.node for pod in stage.pods.ready())
    stage.recorder.mark(
        act, n, "observed",
        pods_wanted=wanted, pods_ready=len(stage.pods.ready()), nodes_joined_s=joined_s, scaled_s=scaled_s,
        recovered_s=scaled_s, pods_on_new_nodes={name: on_node[name] for name in nodes}, **pods.changes(),
    )  # fmt: skip


async def disaster(stage: Stage, n: int) -> None:
    """A snapshot, then every replica killed and its data destroyed, then a new control plane from the snapshot. Agents
    and pods run on. What was acknowledged after the snapshot is given up, and counted."""
    act = "disaster"
    cluster = stage.faults.cluster
    stage.recorder.mark(act, n, "begin")
    pods = _Census(stage)
    await stage.steady()
    path = stage.snapshots / f"{act}-{n}{'.db' if cluster.spec.store else '.qdsnap'}"
    began = stage.recorder.mark(act, n, "snapshot", path=str(path))
    revision, size = await _save(cluster, path)
    snapshot_s = stage.seconds_since(began)
    stage.say(f"snapshot of revision {revision}, {size} bytes, in {snapshot_s:.2f} s")
    if cluster.spec.store:
        # Read from the members before they are lost: the file is etcd's, and so is what reads it.
        saved_hash = expected = digest(_lasting(await read_everything(stage.kv, revision)))
    else:
        _, saved = await asyncio.to_thread(verify, path)
        saved_hash, expected = saved.state_hash, await digest_of_snapshot(path)
    await stage.clock.sleep(_AFTER_SNAPSHOT_S)  # more is acknowledged, which the snapshot cannot have
    members = " and of every etcd member" if cluster.spec.store else ""
    stage.say(f"kill -9 of every replica{members}, and their data destroyed")
    fault = stage.recorder.mark(act, n, "fault")
    await stage.faults.lose_control_plane(path)
    newest = stage.load.board.revision
    restored = await stage.faults.restore(path)
    stage.recorder.mark(
        act, n, "restored",
        snapshot_revision=restored.snapshot_revision, revision=restored.revision, snapshot_began_ns=began.at_ns,
    )  # fmt: skip
    first = await stage.pods.until(lambda: stage.load.board.revision > restored.revision, _RECOVERY_TIMEOUT_S)
    if first is None:
        raise ActError("no write was acknowledged after the restore")
    first_write_s = stage.seconds_since(fault)
    stage.say(f"serving again after {first_write_s:.2f} s, at revision {stage.load.board.revision}")
    await _whole(stage)
    recovered = stage.recorder.mark(act, n, "recovered")
    recovered_s = (recovered.at_ns - fault.at_ns) / 1e9
    kept = await read_everything(stage.kv, restored.revision)
    served = digest(_lasting(kept) if cluster.spec.store else kept)
    if not await stage.pods.caught_up(restored.revision, _RECOVERY_TIMEOUT_S):
        raise ActError("pods could not be listed after the restore")
    await stage.steady()
    stage.recorder.mark(
        act, n, "observed",
        snapshot_s=snapshot_s, snapshot_bytes=size, snapshot_revision=restored.snapshot_revision,
        keys=restored.keys, snapshot_hash=saved_hash,
        restored_hash=served if cluster.spec.store else restored.state_hash,
        snapshot_digest=expected, served_digest=served, restored_revision=restored.revision,
        revision_before_loss=newest, first_write_s=first_write_s, recovered_s=recovered_s, **pods.changes(),
    )  # fmt: skip


#: Every act, in the order of the demo.
ACTS: Final[Mapping[str, Callable[[Stage, int], Awaitable[None]]]] = {
    "leader-kill": leader_kill,
    "store-leader-kill": store_leader_kill,
    "node-kill": node_kill,
    "scaling": scaling,
    "disaster": disaster,
}


async def _save(cluster: LocalCluster, path: Path) -> tuple[int, int]:
    """A snapshot: its revision and size."""
    if not cluster.spec.store:
        return await save_snapshot(Settings(tuple(cluster.spec.endpoints), cluster.root), path)
    await asyncio.to_thread(save_store, cluster, path)
    return await asyncio.to_thread(snapshot_revision, path), path.stat().st_size


def _lasting(kvs: Sequence[kv_pb2.KeyValue]) -> list[kv_pb2.KeyValue]:
    """Without the keys that go with a lease: they speak for processes, which are other ones after a restore."""
    return [kv for kv in kvs if not kv.lease]


def demo_acts(store: str) -> list[str]:
    """The acts of the demo where the state is kept in the replicas, or in an etcd cluster."""
    return [act for act in ACTS if store == "etcd" or act != "store-leader-kill"]


async def _store_leader(stage: Stage) -> tuple[str | None, int]:
    """The etcd member that says it leads, in the newest term any says; and that term."""
    newest: tuple[str | None, int] = (None, 0)
    for member in stage.faults.cluster.spec.store:
        try:
            found = await stage.kv.status(member.client)
        except StatusError:
            continue
        if found.leader == found.header.member_id and found.raftTerm > newest[1]:
            newest = member.name, found.raftTerm
    return newest


class _Census:
    """The pods at the beginning of an act, by the API and by their processes, to compare with later."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._pods: Sequence[PodView] = stage.pods.views()
        self._processes = processes_of_pods(stage.faults.cluster)

    def changes(self, *, excused_nodes: Collection[str] = ()) -> dict[str, Any]:
        """What became of the pods that had no reason to stop: those not on an excused node."""
        excused = {pod.uid for pod in self._pods if pod.node in excused_nodes}
        found = compare(self._pods, self._stage.pods.views(), excused=excused)
        now = processes_of_pods(self._stage.faults.cluster)
        mine = {pod.uid for pod in self._pods if pod.uid not in excused}
        ended = sum(1 for uid in mine if not set(self._processes.get(uid, ())) <= set(now.get(uid, ())))
        return {
            "pods_watched": found.watched,
            "pods_restarted": found.restarted,
            "pods_replaced_without_need": found.replaced,
            "processes_ended": ended,
        }


async def _whole(stage: Stage) -> None:
    """Raises ActError; ProcessError with the end of its log if a process has ended."""
    cluster = stage.faults.cluster
    if not await stage.replicas.until_whole(_RECOVERY_TIMEOUT_S, lambda: cluster.check_alive(cluster.names)):
        answers = await stage.replicas.statuses()
        serving = ", ".join(name for name, answer in answers.items() if answer.ready) or "none"
        raise ActError(f"not all replicas serve after {_RECOVERY_TIMEOUT_S:g} s; those that do: {serving}")


async def _until(stage: Stage, holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline_s = stage.clock.monotonic() + _RECOVERY_TIMEOUT_S
    while not await holds():
        if stage.clock.monotonic() > deadline_s:
            raise ActError(f"not within {_RECOVERY_TIMEOUT_S:g} s: {what}")
        await stage.clock.sleep(_POLL_S)
