"""Lease timers: when a lease runs out, and who says so.

Owns deadlines, on the Raft leader only, on its own monotonic clock. What leases exist, their TTL and their keys are
the store's; this module never changes them except by proposals. It must not read the wall clock, and a deadline never
leaves the process: what travels is remaining seconds.

Invariants:

- Never early. A leader arms every lease when it wins its term, with the remaining TTL the store has for it (the full
  TTL unless a checkpoint lowered it). A renewal is answered only after a quorum confirmed that we still led *after*
  it was taken, so any later leader arms after the renewal too.
- A renewal is not a log entry. Only a lease that had been checkpointed low is reset through the log, before the
  answer, so that no later leader arms it with the old remainder.
- Expiry is a logged command that names the term; a deposed leader's is ignored by the store.
- After stepping down no timer runs and nothing is proposed.

Checkpoints (etcd's LeaseCheckpoint) bound how much longer than its TTL an unrenewed lease lives over leader changes.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.etcd import metrics
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, LeaseExpire
from controlplane.raft.types import Applied, RaftHandle, Unknown
from controlplane.store.leases import Change, Lease, LeaseChange, Leases

__all__ = ["KEEP_ALIVE_CHANNEL", "TIME_TO_LIVE_CHANNEL", "Lessor", "min_lease_ttl_s"]

_log = logging.getLogger("quarterdeck.lessor")

#: Peer channels; the payloads are etcd's own keep-alive and time-to-live messages.
KEEP_ALIVE_CHANNEL: Final = "lease.keepalive"
TIME_TO_LIVE_CHANNEL: Final = "lease.ttl"

_TICK_S: Final = 0.2
#: At most 1,000 expiries a second, as etcd: a mass expiry must not starve writes.
_EXPIRIES_PER_TICK: Final = 200
_EXPIRY_RETRY_S: Final = 1.0
_EXPIRY_TIMEOUT_MS: Final = 5_000
_CHECKPOINT_EVERY_S: Final = 60.0
_CHECKPOINTS_PER_ENTRY: Final = 1_000
_ASK_AGAIN_S: Final = 0.05


def min_lease_ttl_s(election_timeout_ms: int) -> int:
    """The shortest TTL granted: a leader change alone must not expire a lease that is being renewed."""
    return math.ceil(1.5 * election_timeout_ms / 1000)


def remaining_s(lease: Lease) -> int:
    """Seconds left as of the last checkpoint: the full TTL without one."""
    return lease.remaining_ttl_s or lease.ttl_s


@dataclass(slots=True)
class _Reign:
    """The timers of one term of leadership; thrown away as a whole at its end."""

    term: int
    deadlines_s: dict[int, float]
    #: (deadline, id), lazily: a renewal only moves the entry in ``deadlines_s``; the heap follows when it comes up.
    heap: list[tuple[float, int]]
    expiring: dict[int, asyncio.Task[None]]
    next_checkpoint_s: float
    #: Leases whose checkpoint is on its way: a renewal must be written down behind it.
    lowering: set[int] = field(default_factory=set)


class Lessor:
    """Lease timers of one replica. ``start`` once; all methods on the replica's loop."""

    def __init__(self, raft: RaftHandle, leases: Leases, clock: Clock, rand: Rand) -> None:
        self._raft = raft
        self._leases = leases
        self._clock = clock
        self._rand = rand
        self._reign: _Reign | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._stopped = False
        self._unlisten: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen to leadership, to the store and to peers. Once; needs a running loop."""
        if self._unlisten is not None or self._stopped:
            return
        self._unlisten = self._leases.listen(self._on_lease)
        self._raft.serve(KEEP_ALIVE_CHANNEL, self._serve_keep_alive)
        self._raft.serve(TIME_TO_LIVE_CHANNEL, self._serve_time_to_live)
        self._raft.on_leadership(self._on_leadership)

    async def stop(self) -> None:
        """Stop all timers, for good. Leases live on in the store."""
        self._stopped = True
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        tasks = [] if self._reign is None else list(self._reign.expiring.values())
        ticking = self._ticking
        self._abdicate()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *([ticking] if ticking else []), return_exceptions=True)

    # -- what the services ask, on any replica ------------------------------------------------------------------

    async def keep_alive(self, lease_id: int, *, timeout_ms: int) -> int:
        """Renew a lease. Returns its TTL in seconds; 0 when there is no such lease.

        Raises:
            StatusError: Unavailable, no leader confirmed it in time.
        """
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
        answer = await self._ask_leader(KEEP_ALIVE_CHANNEL, request.SerializeToString(), timeout_ms)
        return rpc_pb2.LeaseKeepAliveResponse.FromString(answer).TTL

    async def time_to_live(self, lease_id: int, *, timeout_ms: int) -> int:
        """Seconds left, rounded up; -1 when there is no such lease.

        Raises:
            StatusError: Unavailable, no leader answered in time.
        """
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)
        answer = await self._ask_leader(TIME_TO_LIVE_CHANNEL, request.SerializeToString(), timeout_ms)
        return rpc_pb2.LeaseTimeToLiveResponse.FromString(answer).TTL

    async def _ask_leader(self, channel: str, payload: bytes, timeout_ms: int) -> bytes:
        deadline_s = self._clock.monotonic() + timeout_ms / 1000
        while True:
            status = self._raft.status()
            left_ms = int((deadline_s - self._clock.monotonic()) * 1000)
            try:
                if status.leader is None:
                    raise StatusError(Code.UNAVAILABLE, "etcdserver: no leader")
                if status.leader == status.name:
                    serve = self._serve_keep_alive if channel == KEEP_ALIVE_CHANNEL else self._serve_time_to_live
                    return await serve(status.name, payload)
                return await self._raft.call(status.leader, channel, payload, timeout_ms=max(1, left_ms))
            except StatusError as error:
                if error.code is not Code.UNAVAILABLE or self._clock.monotonic() + _ASK_AGAIN_S >= deadline_s:
                    raise
            await self._clock.sleep(_ASK_AGAIN_S)

    # -- what the leader answers ---------------------------------------------------------------------------------

    async def _serve_keep_alive(self, peer: str, payload: bytes) -> bytes:
        request = rpc_pb2.LeaseKeepAliveRequest.FromString(payload)
        return rpc_pb2.LeaseKeepAliveResponse(ID=request.ID, TTL=await self._renew(request.ID)).SerializeToString()

    async def _serve_time_to_live(self, peer: str, payload: bytes) -> bytes:
        request = rpc_pb2.LeaseTimeToLiveRequest.FromString(payload)
        reign = await self._confirmed_reign()
        deadline_s = reign.deadlines_s.get(request.ID)
        ttl_s = -1 if deadline_s is None else max(0, math.ceil(deadline_s - self._clock.monotonic()))
        return rpc_pb2.LeaseTimeToLiveResponse(ID=request.ID, TTL=ttl_s).SerializeToString()

    async def _renew(self, lease_id: int) -> int:
        reign = self._leading()
        expiring = reign.expiring.get(lease_id)
        if expiring is not None:  # its fate is in the log already: wait for it
            await asyncio.wait([expiring], timeout=_EXPIRY_TIMEOUT_MS / 1000)
            if lease_id in reign.expiring:
                raise StatusError(Code.UNAVAILABLE, "etcdserver: request timed out")
        if self._leases.get(lease_id) is None:
            # Not applied here yet, or gone: a confirmed leader knows which.
            reign = await self._confirmed_reign()
        lease = self._leases.get(lease_id)
        if lease is None or lease_id not in reign.deadlines_s:
            return 0
        reign.deadlines_s[lease_id] = self._clock.monotonic() + lease.ttl_s
        if lease.remaining_ttl_s or lease_id in reign.lowering:
            await self._checkpoint(reign, [rpc_pb2.LeaseCheckpoint(ID=lease_id, remaining_TTL=0)])  # 0: full again
        if await self._confirmed_reign() is not reign:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: leader changed")
        if lease_id not in reign.deadlines_s:
            return 0  # revoked meanwhile
        reign.deadlines_s[lease_id] = self._clock.monotonic() + lease.ttl_s
        metrics.LEASE_RENEWED.inc()
        return lease.ttl_s

    def _leading(self) -> _Reign:
        if self._reign is None:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: no leader")
        return self._reign

    async def _confirmed_reign(self) -> _Reign:
        """Our reign, after a quorum confirmed that it had not ended when we asked."""
        reign = self._leading()
        await self._raft.read_barrier(timeout_ms=_EXPIRY_TIMEOUT_MS)
        if self._reign is not reign:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: leader changed")
        return reign

    # -- leadership and timers -----------------------------------------------------------------------------------

    def _on_leadership(self, term: int, leading: bool) -> None:
        self._abdicate()
        if not leading or self._stopped:
            return
        reign = _Reign(term, {}, [], {}, self._clock.monotonic() + _CHECKPOINT_EVERY_S)
        self._arm_all(reign)
        self._reign = reign
        self._ticking = asyncio.get_running_loop().create_task(self._tick(reign), name=f"lessor-term-{term}")
        _log.info("event=lessor_started term=%d leases=%d", term, len(reign.deadlines_s))

    def _arm_all(self, reign: _Reign) -> None:
        now_s = self._clock.monotonic()
        reign.deadlines_s = {lease.id: now_s + remaining_s(lease) for lease in self._leases}
        reign.heap = [(deadline_s, lease_id) for lease_id, deadline_s in reign.deadlines_s.items()]
        heapq.heapify(reign.heap)

    def _abdicate(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._ticking = None
        self._reign = None

    def _on_lease(self, change: LeaseChange) -> None:
        reign = self._reign
        if reign is None:
            return
        lease = change.lease
        if lease is None:
            self._arm_all(reign)  # the whole table is new
        elif change.kind is Change.REVOKED:
            reign.deadlines_s.pop(lease.id, None)
        elif change.kind is Change.GRANTED:
            deadline_s = self._clock.monotonic() + lease.ttl_s
            reign.deadlines_s[lease.id] = deadline_s
            heapq.heappush(reign.heap, (deadline_s, lease.id))

    async def _tick(self, reign: _Reign) -> None:
        while self._reign is reign:
            await self._clock.sleep(_TICK_S)
            now_s = self._clock.monotonic()
            for lease_id in _due(reign, now_s):
                task = asyncio.get_running_loop().create_task(self._expire(reign, lease_id, self._leases.epoch))
                reign.expiring[lease_id] = task
            if now_s >= reign.next_checkpoint_s:
                reign.next_checkpoint_s = now_s + _CHECKPOINT_EVERY_S * (1 + 0.1 * self._rand.random())
                await self._checkpoint_all(reign, now_s)

    async def _expire(self, reign: _Reign, lease_id: int, epoch: int) -> None:
        """Have one lease, as it was in that epoch, revoked. While this runs no renewal of it is accepted, so it ends
        only when the fate of the proposal is known: an unknown one may still be applied, and is asked again under the
        same request id."""
        expire = LeaseExpire(id=lease_id, term=reign.term)
        command = Command(proposed_at_ms=self._clock.wall_ms(), lease_epoch=epoch, lease_expire=expire)
        payload, request_id = command.SerializeToString(), self._rand.token(16)
        try:
            while self._reign is reign:
                outcome = await self._raft.propose(payload, request_id=request_id, timeout_ms=_EXPIRY_TIMEOUT_MS)
                if not isinstance(outcome, Unknown):
                    break
                _log.warning("event=lease_expiry_unknown lease=%x reason=%r", lease_id, outcome.reason)
                await self._clock.sleep(_EXPIRY_RETRY_S)
        finally:
            reign.expiring.pop(lease_id, None)
            if lease_id in reign.deadlines_s:  # not revoked: again later, if we still lead
                heapq.heappush(reign.heap, (self._clock.monotonic() + _EXPIRY_RETRY_S, lease_id))

    async def _checkpoint_all(self, reign: _Reign, now_s: float) -> None:
        """Write down what is left of every lease that lost more than an interval since it was last written."""
        low: list[rpc_pb2.LeaseCheckpoint] = []
        for lease_id, deadline_s in reign.deadlines_s.items():
            lease = self._leases.get(lease_id)
            left_s = max(1, math.ceil(deadline_s - now_s))
            if lease is not None and remaining_s(lease) - left_s >= _CHECKPOINT_EVERY_S / 2:
                low.append(rpc_pb2.LeaseCheckpoint(ID=lease_id, remaining_TTL=left_s))
        for i in range(0, len(low), _CHECKPOINTS_PER_ENTRY):
            part = [c for c in low[i : i + _CHECKPOINTS_PER_ENTRY] if not _renewed(reign, c, now_s)]
            ids = {c.ID for c in part}
            reign.lowering |= ids
            try:
                await self._checkpoint(reign, part)
            except StatusError as error:
                _log.warning("event=lease_checkpoint_failed error=%s", error.message)
            else:
                reign.lowering -= ids  # of unknown fate they stay marked: it may still be applied

    async def _checkpoint(self, reign: _Reign, checkpoints: list[rpc_pb2.LeaseCheckpoint]) -> None:
        request = rpc_pb2.LeaseCheckpointRequest(checkpoints=checkpoints)
        await self._propose(
            Command(
                proposed_at_ms=self._clock.wall_ms(),
                leader_term=reign.term,
                lease_epoch=self._leases.epoch,
                lease_checkpoint=request,
            )
        )

    async def _propose(self, command: Command) -> None:
        outcome = await self._raft.propose(
            command.SerializeToString(), request_id=self._rand.token(16), timeout_ms=_EXPIRY_TIMEOUT_MS
        )
        if not isinstance(outcome, Applied):
            raise StatusError(Code.UNAVAILABLE, f"etcdserver: request timed out: {outcome.reason}")


def _renewed(reign: _Reign, low: rpc_pb2.LeaseCheckpoint, seen_s: float) -> bool:
    """Whether a lease was renewed, or is gone, since what was left of it was computed."""
    deadline_s = reign.deadlines_s.get(low.ID)
    return deadline_s is None or max(1, math.ceil(deadline_s - seen_s)) != low.remaining_TTL


def _due(reign: _Reign, now_s: float) -> list[int]:
    """The leases that ran out, at most one tick's worth; moves the heap's stale entries to where they belong."""
    due: dict[int, None] = {}  # a lease granted anew under an old id may stand twice in the heap
    heap = reign.heap
    while heap and heap[0][0] <= now_s and len(due) < _EXPIRIES_PER_TICK:
        _, lease_id = heapq.heappop(heap)
        deadline_s = reign.deadlines_s.get(lease_id)
        if deadline_s is None or lease_id in reign.expiring:
            continue
        if deadline_s > now_s:
            heapq.heappush(heap, (deadline_s, lease_id))
        else:
            due[lease_id] = None
    return list(due)
