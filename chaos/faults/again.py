"""A process started anew with something changed, and, if it led, leading again: for faults that must be prepared."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from chaos.fault import FaultError
from chaos.ground import Ground, aside
from controlplane.base.errors import StatusError
from controlplane.client.members_client import MembersClient

__all__ = ["restart", "until_serving"]

_SERVES_S: Final = 30.0
_ASK_S: Final = 0.05


async def restart(ground: Ground, name: str, change: Callable[[], None], *, keep_leader: bool = True) -> None:
    """Stop it in good order, change something, start it; a replica is waited for, and given its leadership back.

    Raises:
        FaultError: it does not serve again, or does not lead again.
    """
    led = (await ground.look()).leader == name
    await aside(ground.cluster.stop, name)
    await aside(change)
    await aside(ground.cluster.start, name)
    if name in ground.seen.replicas:
        await until_serving(ground, name)
        if led and keep_leader:
            await _lead(ground, name)


async def until_serving(ground: Ground, name: str) -> None:
    """Return once the replica serves. Raises FaultError."""
    deadline_s = ground.clock.monotonic() + _SERVES_S
    while ground.clock.monotonic() < deadline_s:
        answer = (await ground.replicas.statuses()).get(name)
        if answer is not None and answer.ready:
            return
        await ground.clock.sleep(_ASK_S)
    log = ground.cluster.processes.log_path(name)
    raise FaultError(f"{name} does not serve {_SERVES_S:g} s after its restart; see {log}")


async def _lead(ground: Ground, name: str) -> None:
    member_id = ground.seen.member_ids.get(name, 0)
    deadline_s = ground.clock.monotonic() + _SERVES_S
    failure = "it was not tried"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SERVES_S):
            while ground.clock.monotonic() < deadline_s:
                seen = await ground.look()
                if seen.leader == name:
                    return
                client = MembersClient(ground.cluster.spec.endpoints, credentials=ground.cluster.credentials())
                try:
                    await client.move_leader(member_id)
                except StatusError as error:
                    failure = error.message
                finally:
                    await client.close()
                await ground.clock.sleep(_ASK_S)
    raise FaultError(f"{name} led, and does not lead again: {failure}")
