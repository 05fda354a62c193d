"""The record of one container run on disk: what a later agent needs to adopt it, and others to find its processes.

``STATE/pods/UID/.agent/containers/ID.json``. A run is alive while ``finished_at_ms`` is 0 and the process ``pid`` has
``start_ticks`` (field 22 of /proc/PID/stat) on this ``boot_id``; all its processes are in the process group ``pgid``,
or carry ``QD_CONTAINER_ID=ID`` in their environment. A record is written before its process starts (pid 0), so that
no process is ever without one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.runtime.base import ContainerInfo, ContainerState
from node.runtime.procs import Identity

__all__ = ["ContainerRecord"]


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """See the module. Times are wall clock, milliseconds."""

    id: str
    pod_uid: str
    name: str
    attempt: int
    image: str
    log_path: str
    cwd: str
    stop_signal: str
    created_at_ms: int
    pid: int = 0
    pgid: int = 0
    start_ticks: int = 0
    boot_id: str = ""
    started_at_ms: int = 0
    finished_at_ms: int = 0
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ContainerRecord | None:
        """The record, or None if it is not one. Fields of later versions are ignored."""
        known = {f.name: f.type for f in dataclasses.fields(cls)}
        try:
            return cls(**{key: item for key, item in value.items() if key in known})
        except TypeError:
            return None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def identity(self) -> Identity:
        return Identity(pid=self.pid, start_ticks=self.start_ticks, boot_id=self.boot_id)

    @property
    def info(self) -> ContainerInfo:
        if self.finished_at_ms:
            state = ContainerState.EXITED
        elif self.pid:
            state = ContainerState.RUNNING
        else:
            state = ContainerState.CREATED
        return ContainerInfo(
            id=self.id,
            pod_uid=self.pod_uid,
            name=self.name,
            attempt=self.attempt,
            image=self.image,
            state=state,
            pid=self.pid,
            created_at_ms=self.created_at_ms,
            started_at_ms=self.started_at_ms,
            finished_at_ms=self.finished_at_ms,
            exit_code=self.exit_code,
            signal=self.signal,
            reason=self.reason,
            message=self.message,
            log_path=Path(self.log_path),
        )
