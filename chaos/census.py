"""The pods at the beginning of a trial, by the API and by their processes, to compare with later. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from chaos.ground import Ground
from chaos.observe import PodView, compare, containers_of_pods, processes_of_pods

__all__ = ["Census"]


class Census:
    """Who was there. Pods that come later are counted from :meth:`include` on."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._pods: list[PodView] = list(ground.pods.views())
        self._processes: dict[str, Sequence[int]] = dict(processes_of_pods(ground.cluster))
        self._containers: dict[str, Mapping[str, int]] = dict(containers_of_pods(ground.cluster))
        #: (pod's name, container) -> how often it was killed.
        self._killed: Counter[tuple[str, str]] = Counter()
        #: What had become of pods that were to leave when they left.
        self._left: Counter[str] = Counter()

    def on(self, nodes: Collection[str]) -> int:
        """How many there were on these nodes."""
        return sum(1 for pod in self._pods if pod.node in nodes)

    def include(self, victims: Sequence[str]) -> None:
        """Count the pods of victims that are containers from now on, if they are not counted yet: the other containers
        of those pods have no reason to stop."""
        names, known = {pod for pod, _ in _containers(victims)}, {pod.uid for pod in self._pods}
        for pod in self._ground.pods.views():
            if pod.name in names and pod.uid not in known:
                self._pods.append(pod)
                self._processes[pod.uid] = processes_of_pods(self._ground.cluster).get(pod.uid, ())
                self._containers[pod.uid] = containers_of_pods(self._ground.cluster).get(pod.uid, {})

    def killed(self, victims: Sequence[str]) -> None:
        """One more kill of those of them that are containers."""
        self._killed.update(_containers(victims))

    def leave(self, pods: Sequence[str]) -> None:
        """``pod/NAME``: it goes now, as it should. What has become of it until now counts."""
        going = [pod for pod in self._pods if f"pod/{pod.name}" in pods]
        self._left.update(self._compared(going, ()))
        self._pods = [pod for pod in self._pods if pod not in going]

    def changes(self, excused: Collection[str]) -> dict[str, Any]:
        """What became of the pods that had no reason to stop. ``excused``: nodes, ``pod/NAME``, or ``*`` for all."""
        found = self._compared(self._pods, excused)
        if self._killed:
            found["containers_killed"] = self._killed.total()
        return {name: count + self._left[name] for name, count in found.items()}

    def _compared(self, pods: Sequence[PodView], excused: Collection[str]) -> dict[str, int]:
        gone = {pod.uid for pod in pods if "*" in excused or pod.node in excused or f"pod/{pod.name}" in excused}
        found = compare(pods, self._ground.pods.views(), excused=gone, killed=self._killed)
        now = processes_of_pods(self._ground.cluster)
        mine = [pod for pod in pods if pod.uid not in gone]
        ended = sum(1 for pod in mine if not self._spared(pod) <= set(now.get(pod.uid, ())))
        return {
            "pods_watched": found.watched,
            "pods_restarted": found.restarted,
            "pods_replaced_without_need": found.replaced,
            "processes_ended": ended,
            "pods_excused": len(gone),
            "containers_restarts_expected": found.expected,
            "containers_restarts_seen": found.seen,
        }

    def started_again(self) -> bool:
        """Whether every killed container is said to run again."""
        found = compare(self._pods, self._ground.pods.views(), killed=self._killed)
        return found.seen >= found.expected

    def _spared(self, pod: PodView) -> set[int]:
        """Process groups it had, but for those of containers that were killed."""
        containers = self._containers.get(pod.uid, {})
        lost = {group for name, group in containers.items() if self._killed[pod.name, name]}
        return set(self._processes.get(pod.uid, ())) - lost


def _containers(victims: Sequence[str]) -> list[tuple[str, str]]:
    """(pod's name, container) of each ``container/POD/NAME``."""
    return [(parts[1], parts[2]) for parts in (v.split("/") for v in victims if v.startswith("container/"))]
