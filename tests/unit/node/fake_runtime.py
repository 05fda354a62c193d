"""A runtime without processes: containers end when the test says so, or when they are stopped."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from controlplane.base.clock import Clock
from node.runtime.base import ContainerConfig, ContainerInfo, ContainerState, ExecResult, ImageError, SandboxConfig

__all__ = ["FakeRuntime"]


class FakeRuntime:
    """Implements ``Runtime`` in memory.

    Attributes:
        exit_of: name and attempt -> exit code of a run that ends as soon as it starts; None keeps it running.
    """

    name = "fake"
    version = "1"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._infos: dict[str, ContainerInfo] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self.started: list[tuple[str, int, float]] = []
        self.stopped: list[tuple[str, float]] = []
        self.commands: list[list[str]] = []
        self.exit_of: Callable[[str, int], int | None] = lambda _name, _attempt: None

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def check_image(self, image: str) -> None:
        if image != "host":
            raise ImageError("ErrImageNeverPull", f"no {image}")

    async def run_pod_sandbox(self, config: SandboxConfig) -> None: ...

    async def remove_pod_sandbox(self, uid: str) -> None:
        self._infos = {key: info for key, info in self._infos.items() if info.pod_uid != uid}

    async def create_container(self, uid: str, config: ContainerConfig) -> str:
        container_id = f"{config.name}-{config.attempt}"
        self._infos[container_id] = ContainerInfo(
            container_id, uid, config.name, config.attempt, config.image, ContainerState.CREATED
        )
        self._ended[container_id] = asyncio.Event()
        return container_id

    async def start_container(self, container_id: str) -> ContainerInfo:
        info = self._infos[container_id]
        self.started.append((info.name, info.attempt, self._clock.monotonic()))
        self._infos[container_id] = dataclasses.replace(
            info, state=ContainerState.RUNNING, pid=1, started_at_ms=self._clock.wall_ms()
        )
        code = self.exit_of(info.name, info.attempt)
        if code is not None:
            self.end(container_id, code)
        return self._infos[container_id]

    def end(self, container_id: str, exit_code: int) -> None:
        """The run ends by itself."""
        self._infos[container_id] = dataclasses.replace(
            self._infos[container_id],
            state=ContainerState.EXITED,
            exit_code=exit_code,
            reason="Completed" if exit_code == 0 else "Error",
            finished_at_ms=self._clock.wall_ms(),
        )
        self._ended[container_id].set()

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        self.stopped.append((container_id, grace_s))
        if self._infos[container_id].state is not ContainerState.EXITED:
            self.end(container_id, 143)

    async def remove_container(self, container_id: str) -> None:
        del self._infos[container_id]

    async def wait(self, container_id: str) -> ContainerInfo:
        await self._ended[container_id].wait()
        return self._infos[container_id]

    def status(self, container_id: str) -> ContainerInfo:
        return self._infos[container_id]

    def list_containers(self) -> Sequence[ContainerInfo]:
        return list(self._infos.values())

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        self.commands.append(list(argv))
        return ExecResult(0, "")

    async def rotate_logs(self, bytes_max: int, files_max: int) -> None: ...
