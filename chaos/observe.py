"""What is seen of the cluster from outside while it is hurt: who leads, which pods there are, which processes run.

Owns the looking; changes nothing. Comparisons are pure functions over :class:`PodView`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from chaos.remote import RemoteCluster
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.client import ApiClient, Informer, OperatorClient
from controlplane.client.operator_client import leader_of
from controlplane.client.tls import Credentials
from controlplane.local import pods as local_pods
from controlplane.local.cluster import LocalCluster
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import operator_pb2

__all__ = [
    "POLL_S",
    "PodChanges",
    "PodView",
    "Pods",
    "Replicas",
    "compare",
    "containers_of_pods",
    "processes_by_node",
    "processes_of_pods",
    "view",
]

POLL_S: Final = 0.02
_ASK_TIMEOUT_MS: Final = 500


@dataclass(frozen=True, slots=True)
class PodView:
    """What matters of a pod here. ``restarts``: of all its containers."""

    uid: str
    name: str
    node: str
    restarts: int
    ready: bool
    deleting: bool
    #: (name, restarts) of each container.
    containers: tuple[tuple[str, int], ...] = ()
    #: Its restartPolicy starts a killed container again.
    starts_again: bool = True


@dataclass(frozen=True, slots=True)
class PodChanges:
    """Between two looks, among pods that had no reason to stop: how many there were, restarts without need of those
    that are still there, and how many are gone or going. Of containers that were killed: restarts that had to come, and
    those of them that were seen."""

    watched: int
    restarted: int
    replaced: int
    expected: int = 0
    seen: int = 0


def view(pod: Pod) -> PodView:
    """The view of an API object."""
    return PodView(
        uid=pod.metadata.uid,
        name=pod.metadata.name,
        node=pod.spec.nodeName,
        restarts=sum(status.restartCount for status in pod.status.containerStatuses),
        ready=any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions),
        deleting=pod.metadata.HasField("deletionTimestamp"),
        containers=tuple((status.name, status.restartCount) for status in pod.status.containerStatuses),
        starts_again=pod.spec.restartPolicy != "Never",
    )


def compare(
    before: Iterable[PodView],
    after: Iterable[PodView],
    *,
    excused: Collection[str] = (),
    killed: Mapping[tuple[str, str], int] | None = None,
) -> PodChanges:
    """What became of the pods of ``before``; ``excused`` uids had a reason to go. ``killed``: (pod's name, container)
    -> how often it was killed: so often it starts again, and everything else of its pod does not."""
    later = {pod.uid: pod for pod in after}
    killed = killed or {}
    watched = restarted = replaced = expected = seen = 0
    for pod in before:
        if pod.uid in excused or pod.deleting:
            continue
        watched += 1
        now = later.get(pod.uid)
        if now is None or now.deleting:
            replaced += 1
        else:
            due = {name: n for (of, name), n in killed.items() if of == pod.name} if pod.starts_again else {}
            then, came = dict(pod.containers), dict(now.containers)
            known = sum(min(n, max(0, came.get(name, 0) - then.get(name, 0))) for name, n in due.items())
            expected += sum(due.values())
            seen += known
            restarted += max(0, now.restarts - pod.restarts - known)
    return PodChanges(watched, restarted, replaced, expected, seen)


def processes_of_pods(cluster: LocalCluster) -> Mapping[str, Sequence[int]]:
    """Pod uid -> its process groups on this machine now: what really runs, whatever the API says."""
    found: dict[str, Sequence[int]] = {}
    for pods in processes_by_node(cluster).values():
        found.update(pods)
    return found


def processes_by_node(cluster: LocalCluster) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """The same for each node."""
    if isinstance(cluster, RemoteCluster):
        return cluster.pods_by_node()
    return {node.name: local_pods.running(cluster.node_dir(node.name)) for node in cluster.spec.nodes}


def containers_of_pods(cluster: LocalCluster) -> Mapping[str, Mapping[str, int]]:
    """Pod uid -> container -> its process group on this machine now; of other machines' pods nothing is known."""
    found: dict[str, Mapping[str, int]] = {}
    if not isinstance(cluster, RemoteCluster):
        for node in cluster.spec.nodes:
            found.update(local_pods.containers(cluster.node_dir(node.name)))
    return found


class Pods:
    """The pods of one Deployment, live. Use as a context manager."""

    def __init__(
        self,
        client: ApiClient,
        *,
        namespace: str,
        label_selector: str,
        clock: Clock,
        rand: Rand,
        wait: bool = True,
    ) -> None:
        """``wait``: entering waits for the first list; without, nobody may answer for a long time."""
        self._wait = wait
        self._clock = clock
        self._informer = Informer(
            client, Pod, namespace=namespace, label_selector=label_selector, clock=clock, rand=rand, backoff_cap_s=0.2
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._informer.run())
        if self._wait:
            await self._informer.wait_synced()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def views(self) -> list[PodView]:
        """All of them now, those being deleted included."""
        return sorted((view(pod) for pod in self._informer.list()), key=lambda pod: pod.name)

    def ready(self, *, not_on: Collection[str] = ()) -> list[PodView]:
        """Those that serve: Ready, not going, on no node of ``not_on``."""
        return [pod for pod in self.views() if pod.ready and not pod.deleting and pod.node not in not_on]

    async def until(self, done: Callable[[], bool], timeout_s: float) -> float | None:
        """Seconds until the condition held, or None if it did not within the time."""
        began_s = self._clock.monotonic()
        while not done():
            if self._clock.monotonic() - began_s > timeout_s:
                return None
            await self._clock.sleep(POLL_S)
        return self._clock.monotonic() - began_s

    async def caught_up(self, revision: int, timeout_s: float) -> bool:
        """Whether this view is at least as new as that revision, waiting for it at most that long."""
        return await self.until(lambda: self._informer.resource_version >= revision, timeout_s) is not None


class Replicas:
    """Every replica, asked directly. Close it, or use it as a context manager."""

    def __init__(self, endpoints: Mapping[str, str], clock: Clock, credentials: Credentials | None = None) -> None:
        self._credentials = credentials
        self._clients: dict[str, OperatorClient] = {}
        self._clock = clock
        for name, endpoint in endpoints.items():
            self.add(name, endpoint)

    def add(self, name: str, endpoint: str) -> None:
        """One more is asked from now on."""
        self._clients[name] = OperatorClient(endpoint, timeout_ms=_ASK_TIMEOUT_MS, credentials=self._credentials)

    async def remove(self, name: str) -> None:
        """It is not asked any more."""
        client = self._clients.pop(name, None)
        if client is not None:
            await client.close()

    async def statuses(self) -> dict[str, operator_pb2.StatusResponse]:
        """The answers of those that answer, by name."""

        async def ask(client: OperatorClient) -> operator_pb2.StatusResponse | None:
            try:
                return await client.status()
            except StatusError:
                return None

        asked = dict(self._clients)
        answers = await asyncio.gather(*(ask(client) for client in asked.values()))
        return {name: answer for name, answer in zip(asked, answers, strict=True) if answer is not None}

    async def leader(self) -> tuple[str | None, int]:
        """The leader by majority, and its term."""
        return self.leader_among(await self.statuses())

    def leader_among(self, answers: Mapping[str, operator_pb2.StatusResponse]) -> tuple[str | None, int]:
        """The leader that these answers name by majority, and its term."""
        return leader_of(list(answers.values()), len(self._clients))

    @property
    def names(self) -> list[str]:
        """Everyone that is asked."""
        return list(self._clients)

    async def status(self, name: str) -> operator_pb2.StatusResponse | None:
        """One replica's answer; None: it gave none."""
        client = self._clients.get(name)
        try:
            return await client.status() if client is not None else None
        except StatusError:
            return None

    async def cut_snapshot(self, name: str) -> operator_pb2.CutSnapshotResponse:
        """Have one replica cut a snapshot and drop its log. Raises StatusError."""
        client = self._clients.get(name)
        if client is None:
            raise StatusError(Code.NOT_FOUND, f"no replica {name!r}")
        return await client.cut_snapshot()

    async def until_leader(self, *, other_than: str | None, timeout_s: float) -> tuple[str, int] | None:
        """The leader and its term, once a majority names one that is not ``other_than``; None: not within the time."""
        deadline_s = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline_s:
            name, term = await self.leader()
            if name is not None and name != other_than:
                return name, term
            await self._clock.sleep(POLL_S)
        return None

    async def until_whole(self, timeout_s: float, check: Callable[[], None]) -> bool:
        """Whether all replicas serve and have applied what was committed when they were first seen to, in time.
        ``check`` is called meanwhile and may raise."""
        deadline_s = self._clock.monotonic() + timeout_s
        target: int | None = None
        while self._clock.monotonic() < deadline_s:
            answers = (await self.statuses()).values()
            serving = len(answers) == len(self._clients) and all(answer.ready for answer in answers)
            # A store of its own is whole when every replica's last look at it found every member.
            if serving and all(member.reachable for answer in answers for member in answer.store_members):
                target = target or max(answer.commit_index for answer in answers)
                if min(answer.applied_index for answer in answers) >= target:
                    return True
            check()
            await self._clock.sleep(POLL_S)
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))
