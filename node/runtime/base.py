"""What a container runtime is: the CRI's calls as a protocol, with the CRI's words. No implementation here.

A sandbox is the room of one pod, a container one run of one of its containers (``attempt`` counts the runs). A
runtime knows nothing of restart policies, probes, statuses or the control plane; it does what it is told and says how
each run ended. It outlives the agent's memory: after :meth:`Runtime.start` it lists every container of the node,
those an earlier agent started included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from controlplane.base.errors import QuarterdeckError

__all__ = [
    "ContainerConfig",
    "ContainerInfo",
    "ContainerRuntimeError",
    "ContainerState",
    "CreateError",
    "ExecResult",
    "ExecTimeoutError",
    "ImageError",
    "Runtime",
    "SandboxConfig",
]


class ContainerRuntimeError(QuarterdeckError):
    """The runtime could not do it. ``reason`` is the word a waiting container shows, the message says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ImageError(ContainerRuntimeError):
    """The image cannot be had by this runtime."""


class CreateError(ContainerRuntimeError):
    """The container cannot be created or started as configured."""


class ExecTimeoutError(ContainerRuntimeError):
    """The command did not end in time; it was killed."""


class ContainerState(Enum):
    """Where a run stands."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """The room of one pod."""

    uid: str
    namespace: str
    name: str
    hostname: str
    ip: str


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One run of a container.

    Attributes:
        argv: command and arguments, variables expanded.
        env: the whole environment; the runtime adds only its own marker.
        working_dir: empty means the container's own directory.
        links: path inside the container's directory -> what it points to (volumes).
        memory_bytes_max: 0 means no limit.
        open_files_max: 0 means the agent's own limit.
        nice: 0..19, added to the agent's.
        stop_signal: name of the signal that asks it to end.
    """

    name: str
    attempt: int
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str = ""
    links: Mapping[str, Path] = field(default_factory=dict)
    memory_bytes_max: int = 0
    open_files_max: int = 0
    nice: int = 0
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """What the runtime knows of one run. Times are wall clock, milliseconds; 0 means not yet.

    ``reason`` of an exited run is Completed, Error, OOMKilled, StartError or ContainerStatusUnknown (it ended while
    no agent watched, so its exit code is not known: 137 stands in, as Kubernetes has it).
    """

    id: str
    pod_uid: str
    name: str
    attempt: int
    image: str
    state: ContainerState
    pid: int = 0
    created_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    log_path: Path = Path()


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command in a container ended; ``output`` is the beginning of what it printed."""

    exit_code: int
    output: str


class Runtime(Protocol):
    """Runs pods. Every method may raise :class:`ContainerRuntimeError`."""

    name: str
    version: str

    async def start(self) -> None:
        """Load what earlier agents left and watch what still runs. First call, once."""
        ...

    async def close(self) -> None:
        """Stop watching. Containers run on."""
        ...

    def check_image(self, image: str) -> None:
        """Raise ImageError if this runtime cannot run that image."""
        ...

    async def run_pod_sandbox(self, config: SandboxConfig) -> None:
        """Make the pod's room; harmless if it is there."""
        ...

    async def remove_pod_sandbox(self, uid: str) -> None:
        """Remove the room with everything in it. Its containers must have ended."""
        ...

    async def create_container(self, uid: str, config: ContainerConfig) -> str:
        """Prepare a run; returns the container's id."""
        ...

    async def start_container(self, container_id: str) -> ContainerInfo:
        """Start it. A run that cannot be started ends at once, with reason StartError."""
        ...

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """Ask it to end, kill it after ``grace_s`` seconds; returns when nothing of it is left."""
        ...

    async def remove_container(self, container_id: str) -> None:
        """Forget an ended run and its logs."""
        ...

    async def wait(self, container_id: str) -> ContainerInfo:
        """Return when it has ended and nothing of it is left."""
        ...

    def status(self, container_id: str) -> ContainerInfo:
        """What is known of it now."""
        ...

    def list_containers(self) -> Sequence[ContainerInfo]:
        """Every run that was not removed."""
        ...

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Run a command inside a running container. Raises ExecTimeoutError."""
        ...

    async def rotate_logs(self, bytes_max: int, files_max: int) -> None:
        """Rotate the log of every running container that has grown past ``bytes_max``."""
        ...
