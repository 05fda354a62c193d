"""What the containers of one pod share: its object as of now, its address, and the ways to act and to be heard.

Owns the measuring of runtime calls and the patience with steps that fail for a while. Must not know the order of a
pod's life (``pod_worker``) or of a container's (``container_worker``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from controlplane.base.clock import Clock
from controlplane.pb.k8s.core_v1_pb2 import Pod
from node import metrics
from node.container_config import ContainerConfigs
from node.environment import ContainerConfigError
from node.hooks import HttpGetter
from node.pod_status import ContainerView
from node.probes import Prober
from node.runtime.base import ContainerRuntimeError, Runtime

__all__ = ["Events", "PodScope", "WorkerDeps"]

#: A container whose configuration or image cannot be had is tried again after this.
_CONFIG_RETRY_S: Final = 5.0

T = TypeVar("T")


class Events(Protocol):
    """Where users are told what happened to their pod."""

    def event(self, regarding: Pod, event_type: str, reason: str, message: str) -> None: ...


class HookProber(Prober, HttpGetter, Protocol):
    """Probes containers and calls their hooks."""


@dataclass(frozen=True, slots=True)
class WorkerDeps:
    """What every worker of a node shares."""

    runtime: Runtime
    configs: ContainerConfigs
    prober: HookProber
    clock: Clock
    events: Events
    host_ip: str


@dataclass(slots=True)
class PodScope:
    """Of one pod.

    Attributes:
        pod: its object as of now.
        ip: its address.
        changed: called when its status may have changed.
        confirmed: set once a replica says the pod is still this node's: containers may be started.
    """

    pod: Pod
    ip: str
    deps: WorkerDeps
    changed: Callable[[], None]
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    def event(self, event_type: str, reason: str, message: str) -> None:
        """Tell its owner."""
        self.deps.events.event(self.pod, event_type, reason, message)

    async def call(self, operation: str, work: Awaitable[T]) -> T:
        """A call of the runtime, measured."""
        metrics.RUNTIME_OPERATIONS.labels(operation).inc()
        began_s = self.deps.clock.monotonic()
        try:
            return await work
        except ContainerRuntimeError:
            metrics.RUNTIME_ERRORS.labels(operation).inc()
            raise
        finally:
            metrics.RUNTIME_SECONDS.labels(operation).observe(self.deps.clock.monotonic() - began_s)

    async def until_done(self, step: Callable[[], Awaitable[None]], views: Sequence[ContainerView]) -> None:
        """Take a step until it succeeds; meanwhile the containers wait, and say why."""
        said = ""
        while True:
            try:
                await step()
            except ContainerConfigError as error:
                reason, message = "CreateContainerConfigError", str(error)
            except ContainerRuntimeError as error:
                reason, message = error.reason, str(error)
            else:
                for view in views:
                    view.waiting_reason = view.waiting_message = ""
                return
            for view in views:
                view.waiting_reason, view.waiting_message = reason, message
            if message != said:
                said = message
                self.event("Warning", "Failed", f"Error: {reason}: {message}")
                self.changed()
            await self.deps.clock.sleep(_CONFIG_RETRY_S)
