"""A Deployment of its own that is scaled up and down and rolled out again and again, and what becomes of its pods: as
the API says, and as the machine says, which knows their processes.

The Deployment has one name in all runs, so that what a killed run left is taken over by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chaos.history import Recorder
from chaos.observe import Pods, PodView
from chaos.records import PodSeen, ProcessSeen
from controlplane.base.clock import Clock
from controlplane.base.errors import StatusError
from controlplane.base.rand import Rand
from controlplane.client import ApiClient, NotFoundError
from controlplane.pb.k8s.apps_v1_pb2 import Deployment

__all__ = ["DEPLOYMENT", "SURGE", "Rollouts"]

DEPLOYMENT: Final = "chaos-deploy"
SURGE: Final = 1
_NAMESPACE: Final = "default"
_FEWEST: Final = 2
_MOST: Final = 5
_EVERY_S: Final = 3.0
_LOOK_EVERY_S: Final = 0.1
_SETTLE_TIMEOUT_S: Final = 20.0

#: Node -> pod uid -> its process groups now.
Processes = Callable[[], Mapping[str, Mapping[str, Sequence[int]]]]


class Rollouts:
    """``processes`` looks at the machine; it is called in a thread."""

    def __init__(self, api: ApiClient, processes: Processes, recorder: Recorder, clock: Clock, rand: Rand) -> None:
        self._api = api
        self._processes = processes
        self._recorder = recorder
        self._clock = clock
        self._rand = rand
        self._wanted = 3
        self._rollout = 0
        self._pods = Pods(api, namespace=_NAMESPACE, label_selector=f"app={DEPLOYMENT}", clock=clock, rand=rand)
        self._looking: asyncio.Task[None] | None = None
        self._made = False
        self._seen: dict[str, PodView] = {}
        self._running: set[tuple[str, str]] = set()

    async def start(self) -> None:
        """Make the Deployment, and begin to look. Raises ApiError."""
        self._want(self._wanted)
        made = _deployment(self._wanted)
        try:
            await self._api.get(Deployment, DEPLOYMENT, namespace=_NAMESPACE)
        except NotFoundError:
            await self._api.create(made)
        else:
            await self._api.patch(
                Deployment, DEPLOYMENT, {"spec": {"replicas": self._wanted}}, namespace=_NAMESPACE
            )  # fmt: skip
        self._made = True
        await self._pods.__aenter__()
        self._looking = asyncio.create_task(self._look())

    @property
    def looking(self) -> list[asyncio.Task[None]]:
        """What ends only when cancelled."""
        return [self._looking] if self._looking is not None else []

    async def run(self, stopping: asyncio.Event) -> None:
        """Change what is wanted, again and again, until told to stop."""
        while not stopping.is_set():
            await self._clock.sleep(_EVERY_S * (0.5 + self._rand.random()))
            if stopping.is_set():
                return
            try:
                await self._change()
            except StatusError as error:
                # It may have been taken or not; until the next change both are wanted, as the mark before says.
                self._recorder.mark("deploy", 0, "refused", reason=f"{error.code.name}: {error.message}")

    async def _change(self) -> None:
        if self._rand.random() < 0.6:
            self._wanted = _FEWEST + int(self._rand.random() * (_MOST - _FEWEST + 1))
            self._want(self._wanted)
            await self._api.patch(
                Deployment, DEPLOYMENT, {"spec": {"replicas": self._wanted}}, namespace=_NAMESPACE
            )  # fmt: skip
        else:
            self._rollout += 1
            self._want(self._wanted)
            annotations = {"chaos/rollout": f"{self._recorder.header.run}-{self._rollout}"}
            await self._api.patch(
                Deployment, DEPLOYMENT, {"spec": {"template": {"metadata": {"annotations": annotations}}}},
                namespace=_NAMESPACE,
            )  # fmt: skip

    def _want(self, replicas: int) -> None:
        self._recorder.mark(
            "deploy", 0, "wanted", workload=DEPLOYMENT, replicas=replicas, surge=SURGE, rollout=self._rollout
        )  # fmt: skip

    async def finish(self) -> None:
        """After the last change: wait until all is as wanted, and say whether it came so. Raises ApiError."""
        began_s = self._clock.monotonic()
        # Once more, in case the last change was refused.
        await self._api.patch(Deployment, DEPLOYMENT, {"spec": {"replicas": self._wanted}}, namespace=_NAMESPACE)
        took = await self._pods.until(self._settled, _SETTLE_TIMEOUT_S)
        self._recorder.mark(
            "deploy", 0, "settled", workload=DEPLOYMENT, wanted=self._wanted, ready=len(self._pods.ready()),
            settled_s=None if took is None else self._clock.monotonic() - began_s,
        )  # fmt: skip

    def _settled(self) -> bool:
        return len(self._pods.views()) == len(self._pods.ready()) == self._wanted

    async def close(self) -> None:
        """Remove the Deployment, if the cluster answers."""
        if not self._made:
            return
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._pods.__aexit__()
        try:
            await self._api.delete(Deployment, DEPLOYMENT, namespace=_NAMESPACE)
        except StatusError as error:
            # The next run takes it over.
            self._recorder.mark("deploy", 0, "left", reason=f"{error.code.name}: {error.message}")

    async def _look(self) -> None:
        while True:
            found = await asyncio.to_thread(self._processes)
            # One look, at one time: what the API says is at least as new as what runs.
            now_ns = self._recorder.now_ns()
            self._note_pods(now_ns)
            self._note_processes(found, now_ns)
            await self._clock.sleep(_LOOK_EVERY_S)

    def _note_pods(self, now_ns: int) -> None:
        now = {pod.uid: pod for pod in self._pods.views()}
        for uid, pod in now.items():
            if self._seen.get(uid) != pod:
                self._recorder.pod(
                    PodSeen(
                        now_ns, DEPLOYMENT, uid, pod.name, pod.node, ready=pod.ready, deleting=pod.deleting,
                        restarts=pod.restarts,
                    )
                )  # fmt: skip
        for uid in self._seen.keys() - now.keys():
            self._recorder.pod(PodSeen(now_ns, DEPLOYMENT, uid, self._seen[uid].name, gone=True))
        self._seen = now

    def _note_processes(self, found: Mapping[str, Mapping[str, Sequence[int]]], now_ns: int) -> None:
        mine = self._seen.keys() | {uid for _, uid in self._running}
        now = {(node, uid) for node, pods in found.items() for uid in pods if uid in mine}
        for running, changed in ((True, now - self._running), (False, self._running - now)):
            for node, uid in sorted(changed):
                self._recorder.process(ProcessSeen(now_ns, DEPLOYMENT, uid, node, running))
        self._running = now


def _deployment(replicas: int) -> Deployment:
    made = Deployment()
    made.metadata.name, made.metadata.namespace = DEPLOYMENT, _NAMESPACE
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = DEPLOYMENT
    made.spec.strategy.rollingUpdate.maxSurge.intVal = SURGE
    made.spec.strategy.rollingUpdate.maxUnavailable.intVal = 0
    made.spec.template.metadata.labels["app"] = DEPLOYMENT
    made.spec.template.spec.terminationGracePeriodSeconds = 1
    container = made.spec.template.spec.containers.add(name="sleeper", image="host")
    container.command.extend(["sleep", "1000000"])
    container.resources.requests["cpu"].string = "5m"
    return made
