"""A run from beginning to end: the load started, acts played, the cluster healed, the history judged.

Owns the order of things and the folder of results. However a run ends (an act that fails, Ctrl-C), the cluster is
healed and what was recorded is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from chaos.acts import ACTS, Stage, node_ready
from chaos.deeds import Faults
from chaos.history import Header, Recorder, load
from chaos.load import Load, Rates
from chaos.observe import POLL_S, Pods, Replicas, processes_of_pods
from chaos.report import as_dict
from chaos.verdict import Report, judge_history
from chaos.workload import fetch
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError, QuarterdeckError, StatusError
from controlplane.base.rand import Rand, SystemRand
from controlplane.client import EtcdClient, GrpcClient, NotFoundError
from controlplane.local.cluster import LocalCluster
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Service

__all__ = ["NAMESPACE", "WORKLOAD", "Run", "play"]

NAMESPACE: Final = "default"
#: The Deployment and the Service that acts are played on.
WORKLOAD: Final = "web"
_WHOLE_TIMEOUT_S: Final = 30.0
_READY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left: its report and the folder with ``history.jsonl`` and ``report.json``."""

    report: Report
    folder: Path
    #: Why it ended before its last act; empty: it did not.
    cut_short: str


async def play(
    cluster: LocalCluster,
    acts: Sequence[str],
    *,
    repeat: int = 1,
    rates: Rates,
    say: Callable[[str], None],
    clock: Clock | None = None,
    rand: Rand | None = None,
) -> Run:
    """Play the acts, in order, ``repeat`` times, under one load, on a cluster that runs the workload.

    Raises:
        ConfigError: the workload is not there.
        QuarterdeckError: the cluster was not whole to begin with, or could not be healed.
    """
    clock, rand = clock or SystemClock(), rand or SystemRand()
    started = datetime.now(UTC)
    folder = cluster.root / "chaos" / started.strftime("%Y%m%dT%H%M%S.%fZ")
    folder.mkdir(parents=True)
    run = rand.token(4).hex()
    endpoints = cluster.spec.endpoints
    credentials, kv_credentials = cluster.credentials(), cluster.kv_credentials()
    kv_endpoints, foreign = cluster.spec.kv_endpoints, bool(cluster.spec.store)
    header = Header(
        run, f"/chaos/{run}/", started.isoformat(timespec="milliseconds"), kv_endpoints, cluster.spec.store_kind
    )
    cut_short = ""
    async with (
        GrpcClient(endpoints, credentials=credentials) as client,
        EtcdClient(kv_endpoints, foreign=foreign, credentials=kv_credentials) as kv,
        Replicas({r.name: r.client for r in cluster.spec.replicas}, clock, credentials) as replicas,
        Pods(client, namespace=NAMESPACE, label_selector=f"app={WORKLOAD}", clock=clock, rand=rand) as pods,
    ):
        faults = Faults(cluster, client, (NAMESPACE, WORKLOAD))
        address, wanted = await _workload(client)
        whole = _Whole(faults, client, replicas, pods, wanted, clock, say)
        await whole.wait()
        failure = await fetch(*address, timeout_s=2.0)
        if failure is not None:
            raise QuarterdeckError(f"the Service at {address[0]}:{address[1]} does not answer: {failure}")
        with Recorder(folder / "history.jsonl", header, clock) as recorder:
            try:
                async with Load(
                    kv_endpoints, address, prefix=header.prefix, recorder=recorder, rates=rates, clock=clock, rand=rand,
                    foreign=foreign, credentials=kv_credentials,
                ) as load:  # fmt: skip
                    stage = Stage(faults, load, pods, replicas, client, kv, recorder, clock, wanted, folder, say)
                    cut_short = await _play_acts(stage, whole, acts, repeat)
                    try:
                        await load.finish()
                    except StatusError as error:
                        cut_short = cut_short or f"the final read-back: {error.message}"
                    if not cut_short:
                        recorder.mark("run", 1, "run-ended")
            finally:
                await _heal(whole)
    report = await asyncio.to_thread(_judge, folder)
    return Run(report, folder, cut_short)


async def _play_acts(stage: Stage, whole: _Whole, acts: Sequence[str], repeat: int) -> str:
    """Why they ended early, or nothing."""
    for n in range(1, repeat + 1):
        for act in acts:
            stage.say(f"act: {act}" if repeat == 1 else f"act: {act}, {n} of {repeat}")
            try:
                await ACTS[act](stage, n)
            except QuarterdeckError as error:
                stage.say(f"{act}: {error}")
                return f"{act}: {error}"
        if n < repeat:
            await _heal(whole)
    return ""


async def _heal(whole: _Whole) -> None:
    """Undo what is not undone, and wait until the cluster is as it was."""
    todo = whole.faults.undone_by
    if todo:
        whole.say(f"putting back: {', '.join(todo)}")
        await whole.faults.heal()
    await whole.wait()


async def _workload(client: GrpcClient) -> tuple[tuple[str, int], int]:
    """The Service's address, and how many pods the Deployment asks for."""
    try:
        service = await client.get(Service, WORKLOAD, namespace=NAMESPACE)
        deployment = await client.get(Deployment, WORKLOAD, namespace=NAMESPACE)
    except NotFoundError as error:
        raise ConfigError(
            f"chaos plays on the Deployment and Service {WORKLOAD!r}: {error.message}. "
            "Try: qd apply -f examples/web.yaml"
        ) from error
    return (service.spec.clusterIP, service.spec.ports[0].port), deployment.spec.replicas


@dataclass(frozen=True, slots=True)
class _Whole:
    """A cluster that is whole: before it is broken, or nothing is learned, and after."""

    faults: Faults
    client: GrpcClient
    replicas: Replicas
    pods: Pods
    wanted: int
    clock: Clock
    say: Callable[[str], None]

    async def wait(self) -> None:
        """Return once every replica serves, every node is Ready, and there are as many pods as wanted, all Ready and
        none going, each with a process: what the API says of a node that died a moment ago is not yet true.

        Raises:
            QuarterdeckError: not in time, or a process has ended.
        """
        cluster = self.faults.cluster
        if not await self.replicas.until_whole(_WHOLE_TIMEOUT_S, lambda: cluster.check_alive(cluster.names)):
            raise QuarterdeckError(f"not every replica serves after {_WHOLE_TIMEOUT_S:g} s; see: qd status")
        for node in cluster.spec.nodes:
            await self._until_node_ready(node.name)
        if await self.pods.until(self._pods_settled, _READY_TIMEOUT_S) is None:
            raise QuarterdeckError(f"not {self.wanted} Ready pods after {_READY_TIMEOUT_S:g} s; see: qd get pods")

    async def _until_node_ready(self, name: str) -> None:
        deadline_s = self.clock.monotonic() + _READY_TIMEOUT_S
        while not await node_ready(self.client, name):
            if self.clock.monotonic() > deadline_s:
                raise QuarterdeckError(f"{name} is not Ready after {_READY_TIMEOUT_S:g} s; see: qd get nodes")
            await self.clock.sleep(POLL_S)

    def _pods_settled(self) -> bool:
        if not len(self.pods.views()) == len(self.pods.ready()) == self.wanted:
            return False
        return {pod.uid for pod in self.pods.ready()} <= set(processes_of_pods(self.faults.cluster))


def _judge(folder: Path) -> Report:
    report = judge_history(load(folder / "history.jsonl"))
    (folder / "report.json").write_text(json.dumps(as_dict(report), indent=2) + "\n")
    return report
