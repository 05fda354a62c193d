"""A replica that believes whatever it has: linearizable reads are answered from its own state, without asking anybody
whether it is still up to date."""

from __future__ import annotations

from typing import Any

from controlplane.etcd.local import LocalKV


async def barrier(self: Any, timeout_ms: int | None = None) -> None:
    self._check_sound()


LocalKV.barrier = barrier  # type: ignore[method-assign]
