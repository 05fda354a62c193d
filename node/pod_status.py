"""A pod's status from what is known of its containers. Pure: Kubernetes' rules for phase and conditions.

The agent speaks of four conditions (Initialized, ContainersReady, Ready, and PodScheduled only as it was told); a
condition keeps its transition time while its status stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.pb.k8s.core_v1_pb2 import (
    Container,
    ContainerStateTerminated,
    ContainerStatus,
    Pod,
    PodCondition,
    PodStatus,
)
from controlplane.pb.k8s.meta_v1_pb2 import Time
from node.restart import restarts
from node.runtime.base import ContainerInfo, ContainerState

__all__ = ["ContainerView", "PodView", "build_status", "time_of"]

_OUR_CONDITIONS: Final = ("Initialized", "ContainersReady", "Ready")


@dataclass(slots=True)
class ContainerView:
    """What the worker knows of one container of the pod's spec.

    Attributes:
        current: the newest run, if there was one.
        last: the run before.
        restart_count: runs before the newest.
        ready: its readiness probe's word (True without one), while it runs.
        started: its startup probe's word (True without one), while it runs.
        waiting_reason, waiting_message: why it does not run, when it is to run.
    """

    current: ContainerInfo | None = None
    last: ContainerInfo | None = None
    restart_count: int = 0
    ready: bool = False
    started: bool = False
    waiting_reason: str = ""
    waiting_message: str = ""

    @property
    def running(self) -> bool:
        return self.current is not None and self.current.state is ContainerState.RUNNING and not self.waiting_reason

    @property
    def ended(self) -> ContainerInfo | None:
        """The newest run, if it ended and nothing is waiting to follow."""
        if self.current is None or self.current.state is not ContainerState.EXITED or self.waiting_reason:
            return None
        return self.current


@dataclass(frozen=True, slots=True)
class PodView:
    """What the worker knows of the pod."""

    init: Mapping[str, ContainerView]
    main: Mapping[str, ContainerView]
    ip: str
    host_ip: str
    accepted_at_ms: int
    stopping: bool = False
    #: Set when the pod is over for a reason of the node's (a shutdown): phase Failed with this reason and message.
    failed_reason: str = ""
    failed_message: str = ""


def time_of(wall_ms: int) -> Time:
    """Milliseconds since 1970 as Kubernetes' Time (whole seconds, as its JSON has them)."""
    return Time(seconds=wall_ms // 1000)


def build_status(pod: Pod, view: PodView, previous: PodStatus | None, now_ms: int) -> PodStatus:
    """The status to report.

    Args:
        previous: the status built before, for transition times; None the first time.
    """
    status = PodStatus(
        phase=_phase(pod, view),
        hostIP=view.host_ip,
        startTime=time_of(view.accepted_at_ms),
        initContainerStatuses=[_container(c, view.init[c.name]) for c in pod.spec.initContainers],
        containerStatuses=[_container(c, view.main[c.name]) for c in pod.spec.containers],
    )
    status.hostIPs.add(ip=view.host_ip)
    if view.ip:
        status.podIP = view.ip
        status.podIPs.add(ip=view.ip)
    if view.failed_reason:
        status.reason, status.message = view.failed_reason, view.failed_message
    if pod.status.HasField("qosClass"):
        status.qosClass = pod.status.qosClass
    old = {c.type: c for c in (previous or pod.status).conditions}
    for type_ in _OUR_CONDITIONS:
        status.conditions.append(_condition(type_, pod, view, status, old.get(type_), now_ms))
    # What others say of the pod (PodScheduled, readiness gates) stays as it was told.
    status.conditions.extend(c for c in pod.status.conditions if c.type not in _OUR_CONDITIONS)
    return status


def _phase(pod: Pod, view: PodView) -> str:
    if view.failed_reason:
        return "Failed"
    policy = pod.spec.restartPolicy or "Always"
    for view_ in view.init.values():
        if view_.ended is not None and view_.ended.exit_code != 0 and policy == "Never":
            return "Failed"
    views = list(view.main.values())
    if any(v.current is None for v in views):
        return "Pending"
    over = [v.ended for v in views if v.ended is not None and not restarts(policy, v.ended.exit_code)]
    if len(over) == len(views):
        return "Succeeded" if all(info.exit_code == 0 for info in over) else "Failed"
    return "Running"


def _initialized(pod: Pod, view: PodView) -> bool:
    if any(v.current is not None for v in view.main.values()):
        return True
    return all(v.ended is not None and v.ended.exit_code == 0 for v in view.init.values())


def _condition(
    type_: str, pod: Pod, view: PodView, status: PodStatus, old: PodCondition | None, now_ms: int
) -> PodCondition:
    unready = [c.name for c in status.containerStatuses if not c.ready]
    reason, message = "", ""
    if type_ == "Initialized":
        true = _initialized(pod, view)
        if not true:
            incomplete = [n for n, v in view.init.items() if v.ended is None or v.ended.exit_code != 0]
            reason, message = "ContainersNotInitialized", _named("incomplete", incomplete)
    else:
        true = not unready and status.phase == "Running" and not view.stopping
        gates = {g.conditionType for g in pod.spec.readinessGates}
        passed = {c.type for c in pod.status.conditions if c.status == "True"}
        if type_ == "Ready" and true and gates - passed:
            true, reason = False, "ReadinessGatesNotReady"
            message = f"readiness gates not passed: {', '.join(sorted(gates - passed))}"
        elif not true and status.phase == "Succeeded":
            reason = "PodCompleted"
        elif not true and status.phase == "Failed":
            reason = "PodFailed"
        elif not true and view.stopping and not unready:
            reason, message = "PodTerminating", "the pod is being stopped"
        elif not true:
            reason, message = "ContainersNotReady", _named("unready", unready)
    value = "True" if true else "False"
    condition = PodCondition(type=type_, status=value)
    if reason:
        condition.reason = reason
    if message:
        condition.message = message
    if old is not None and old.status == value and old.HasField("lastTransitionTime"):
        condition.lastTransitionTime.CopyFrom(old.lastTransitionTime)
    else:
        condition.lastTransitionTime.CopyFrom(time_of(now_ms))
    return condition


def _named(what: str, names: Sequence[str]) -> str:
    return f"containers with {what} status: [{' '.join(names)}]"


def _container(container: Container, view: ContainerView) -> ContainerStatus:
    status = ContainerStatus(
        name=container.name,
        image=container.image,
        imageID="",
        restartCount=view.restart_count,
        ready=view.running and view.started and view.ready,
        started=view.running and view.started,
    )
    if view.current is not None:
        status.containerID = _id(view.current)
    if view.waiting_reason or view.current is None or view.current.state is ContainerState.CREATED:
        status.state.waiting.reason = view.waiting_reason or "ContainerCreating"
        if view.waiting_message:
            status.state.waiting.message = view.waiting_message
        # The run that ended is the last one: another is to come.
        ended = view.current if view.current is not None and view.current.finished_at_ms else view.last
    else:
        if view.current.state is ContainerState.RUNNING:
            status.state.running.startedAt.CopyFrom(time_of(view.current.started_at_ms))
        else:
            _terminated(status.state.terminated, view.current)
            status.ready = False
        ended = view.last
    if ended is not None and ended.finished_at_ms:
        _terminated(status.lastState.terminated, ended)
    return status


def _terminated(target: ContainerStateTerminated, info: ContainerInfo) -> None:
    target.exitCode = info.exit_code
    if info.signal:
        target.signal = info.signal
    target.reason = info.reason
    if info.message:
        target.message = info.message
    if info.started_at_ms:
        target.startedAt.CopyFrom(time_of(info.started_at_ms))
    target.finishedAt.CopyFrom(time_of(info.finished_at_ms))
    target.containerID = _id(info)


def _id(info: ContainerInfo) -> str:
    return f"process://{info.id}"
