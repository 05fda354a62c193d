"""What runs inside pods: its processes found, signalled, and told from others that came after them.

A target inside is a pod (``pod/NAME``: all its containers) or one container of it (``container/POD/NAME``); nothing
else of the pod is touched. Pods are known from the API, processes from the agents' records on this machine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Final

from chaos.ground import Ground
from chaos.observe import containers_of_pods, processes_of_pods
from controlplane.local.procfs import stat_of

__all__ = ["INSIDE", "identified", "signal_pods", "split"]

INSIDE: Final = ("pod/", "container/")


def split(victims: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pods and containers; and processes of the cluster itself."""
    return (
        [name for name in victims if name.startswith(INSIDE)],
        [name for name in victims if not name.startswith(INSIDE)],
    )


def signal_pods(ground: Ground, targets: Sequence[str], signum: signal.Signals) -> dict[str, int]:
    """Send a signal to the process group of every container that is meant; how many groups of each target got it."""
    sent = dict.fromkeys(targets, 0)
    for target in targets:
        for group in _groups(ground, target):
            try:
                os.killpg(group, signum)
                sent[target] += 1
            except ProcessLookupError:
                pass  # it ended between the look and the signal
    return sent


def identified(ground: Ground, target: str) -> list[tuple[int, int]]:
    """(process group, start time of its leader) of what is meant; of a target that is not inside a pod none."""
    stats = ((group, stat_of(group)) for group in _groups(ground, target))
    return [(group, stat.start_ticks) for group, stat in stats if stat is not None]


def _groups(ground: Ground, target: str) -> list[int]:
    if not target.startswith(INSIDE):
        return []
    _, pod_name, *container = target.split("/")
    uid = next((pod.uid for pod in ground.pods.views() if pod.name == pod_name), "")
    if not container:
        return list(processes_of_pods(ground.cluster).get(uid, ()))
    return [group for name, group in containers_of_pods(ground.cluster).get(uid, {}).items() if name == container[0]]
