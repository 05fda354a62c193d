"""A restore into the running cluster: the snapshot's state travels through the log, and is swapped in at one entry.

Owns how each step is proposed, what must be true before the first one, and the end of a restore that nobody goes on
with. What a step does is the store's (``store.staging``); reading the file is the client's.

* Nothing changes before the commit, and everything with it, on every replica at the same entry.
* Any replica takes any step. A step may be sent again: pieces are numbered, and the commit has a request id that
  follows from the restore's, so it happens once.
* Every member that can be reached is asked first whether it can: its version, disk and quota.
* The leader clears a stage to which nothing was added for :data:`IDLE_S`: memory is not held for a client that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import MIB
from controlplane.base.rand import Rand
from controlplane.etcd.local import LocalKV
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import (
    Command,
    RestoreAbort,
    RestoreBegin,
    RestoreChunk,
    RestoreCommit,
    RestoreProgress,
)
from controlplane.pb.quarterdeck.internal.v1.restore_pb2 import RestoreQuery, RestoreReadiness
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

__all__ = ["CHANNEL", "IDLE_S", "REVISION_BUMP", "LiveRestore", "Opened"]

log = logging.getLogger("quarterdeck.restore")

#: Peer channel; replicas too old to restore do not serve it.
CHANNEL: Final = "restore"
#: As far above anything the cluster of the snapshot may have told anybody: at 10,000 writes a second, 27 hours.
REVISION_BUMP: Final = 1_000_000_000
#: A stage to which nothing was added for so long is cleared.
IDLE_S: Final = 60.0
_LOOK_EVERY_S: Final = 5.0
_ASK_TIMEOUT_MS: Final = 2_000
_STEP_TIMEOUT_MS: Final = 10_000
_TOKEN_KEY_BYTES: Final = 32
#: The pieces are in the log, and the state they make in the next snapshot.
_DISK_FACTOR: Final = 2
_DISK_SPARE_BYTES: Final = 48 * MIB


@dataclass(frozen=True, slots=True)
class Opened:
    """A restore has begun. ``absent``: names of members that could not be asked; they catch up when they are back."""

    progress: RestoreProgress
    absent: Sequence[str]


class LiveRestore:
    """The steps of a restore, as one replica takes them. Answers its peers from the moment it is made.

    Args:
        free_bytes: how much room the disk with this replica's data has.
    """

    def __init__(
        self, kv: LocalKV, raft: RaftHandle, store: Store, clock: Clock, rand: Rand, free_bytes: Callable[[], int]
    ) -> None:
        self._kv = kv
        self._raft = raft
        self._store = store
        self._clock = clock
        self._rand = rand
        self._free_bytes = free_bytes
        raft.serve(CHANNEL, self._answer)

    async def begin(self, begin: RestoreBegin, *, state_bytes: int) -> Opened:
        """Check what can be checked before anything changes, then open the stage. Again with the same id: go on.

        Raises:
            StatusError: FailedPrecondition with the reason: another cluster's snapshot, a member that cannot, another
                restore under way. Else as a write.
        """
        status = self._raft.status()
        theirs = begin.snapshot.cluster_id
        if theirs != status.cluster_id and not begin.force:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"the file is of cluster {theirs:x}, this is {status.cluster_id:x}; --force takes it nevertheless",
            )
        query = RestoreQuery(total_bytes=begin.total_bytes, state_bytes=state_bytes).SerializeToString()
        if not self._is_staged(begin.id):
            # Begun through another replica, perhaps: it is in the log, and ours may be behind.
            await self._raft.read_barrier(timeout_ms=_STEP_TIMEOUT_MS)
        goes_on = self._is_staged(begin.id)
        # What is staged already takes its room: who goes on has been let in.
        names = [] if goes_on else [member.name for member in status.members if member.name]
        obstacles = dict(zip(names, await asyncio.gather(*(self._ask(name, query) for name in names)), strict=True))
        if found := [f"{name}: {obstacle}" for name, obstacle in obstacles.items() if obstacle]:
            raise StatusError(Code.FAILED_PRECONDITION, f"nothing was changed; {'; '.join(found)}")
        progress = await self._kv.restore(Command(restore_begin=begin), timeout_ms=_STEP_TIMEOUT_MS)
        log.warning(
            "event=restore-begun id=%s revision=%d bytes=%d", begin.id.hex(), begin.snapshot.revision, begin.total_bytes
        )
        return Opened(progress, [name for name, obstacle in obstacles.items() if obstacle is None])

    def _is_staged(self, id: bytes) -> bool:
        stage = self._store.restoring
        return stage is not None and stage.begin.id == id

    async def chunk(self, id: bytes, number: int, records: bytes) -> RestoreProgress:
        """Stage the next piece. Raises StatusError: OutOfRange, another one is next; as a write."""
        command = Command(restore_chunk=RestoreChunk(id=id, number=number, records=records))
        return await self._kv.restore(command, timeout_ms=_STEP_TIMEOUT_MS)

    async def commit(self, id: bytes, digest: bytes) -> RestoreProgress:
        """Swap. Once, however often it is asked for.

        Raises:
            StatusError: Aborted, the stage is not what was sent, and nothing was changed; as a write.
        """
        commit = RestoreCommit(
            id=id, digest=digest, revision_bump=REVISION_BUMP, token_key=self._rand.token(_TOKEN_KEY_BYTES)
        )
        request_id = sha256(b"commit" + id).digest()[:16]
        progress = await self._kv.restore(
            Command(restore_commit=commit), request_id=request_id, timeout_ms=_STEP_TIMEOUT_MS
        )
        log.warning("event=restored id=%s revision=%d", id.hex(), progress.header.revision)
        return progress

    async def abort(self, id: bytes) -> RestoreProgress:
        """Clear the stage. Raises StatusError: NotFound, it is clear already or another restore's; as a write."""
        return await self._kv.restore(Command(restore_abort=RestoreAbort(id=id)), timeout_ms=_STEP_TIMEOUT_MS)

    # -- housekeeping

    async def run(self) -> None:
        """While this replica leads, give up restores that nobody goes on with. Until cancelled."""
        seen: tuple[bytes, int, int] | None = None
        since_s = self._clock.monotonic()
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            status, stage, now_s = self._raft.status(), self._store.restoring, self._clock.monotonic()
            found = None if stage is None else (stage.begin.id, stage.progress.next, status.term)
            if stage is None or found != seen or status.leader != status.name:
                seen, since_s = found, now_s
            elif now_s - since_s >= IDLE_S:
                log.warning("event=restore-given-up id=%s next=%d", stage.begin.id.hex(), stage.progress.next)
                try:
                    await self.abort(stage.begin.id)
                except StatusError as error:  # the next look tries again, if it is still there
                    log.warning("event=restore-not-given-up reason=%s", error.message)

    # -- what peers ask

    async def _ask(self, name: str, query: bytes) -> str | None:
        """What keeps that member from it; empty: nothing; None: it could not be asked."""
        try:
            answer = await self._raft.call(name, CHANNEL, query, timeout_ms=_ASK_TIMEOUT_MS)
        except StatusError as error:
            if error.code is Code.UNIMPLEMENTED:
                return "its version cannot restore into a running cluster; upgrade it first"
            return None
        return RestoreReadiness.FromString(answer).obstacle

    async def _answer(self, peer: str, payload: bytes) -> bytes:
        query = RestoreQuery.FromString(payload)
        return RestoreReadiness(obstacle=self._obstacle(query)).SerializeToString()

    def _obstacle(self, query: RestoreQuery) -> str:
        quota_bytes = self._kv.quota.limit_bytes
        if quota_bytes and query.state_bytes >= quota_bytes:
            return f"a state of {query.state_bytes} bytes is over its quota of {quota_bytes} (--quota-backend-bytes)"
        needed, free = _DISK_FACTOR * query.total_bytes + _DISK_SPARE_BYTES, self._free_bytes()
        if free < needed:
            return f"its disk has {free} bytes free, and the restore needs {needed}"
        return ""
