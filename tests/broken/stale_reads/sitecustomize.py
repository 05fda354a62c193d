"""A replica that believes whatever it has: linearizable reads are answered from its own state, without asking anybody
whether it is still up to date."""

from __future__ import annotations

from typing import Any

from controlplane.etcd.local import LocalKV
from controlplane.etcd.soundness import check_sound


async def barrier(self: Any, timeout_ms: int | None = None) -> None:
    check_sound(self._store, self._raft)


LocalKV.barrier = barrier  # type: ignore[method-assign]
