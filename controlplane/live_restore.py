"""Disaster recovery of a cluster that serves: from a snapshot file, through the log, to all replicas at once.

Owns the client's part: verify the file, make the pieces of it, send them to whichever replica answers, go on with
another when that one dies or the leader changes, and see to it that every replica then has the same state. What the
replicas do with the pieces is ``controlplane.etcd.restoring``; the recipe for a cluster that does not run is
``controlplane.recovery``.

Until the commit nothing has changed; a restore that fails before it is aborted. An answer to the commit that does not
come leaves the outcome open until a replica is asked again, and it is asked until one answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, ConfigError
from controlplane.base.rand import Rand, SystemRand
from controlplane.client import OperatorClient
from controlplane.client.fenced import LEADER_KEY
from controlplane.client.interface import ApiError, ExpiredError, UnavailableError
from controlplane.pb.quarterdeck.v1 import operator_pb2
from controlplane.raft.snapshot_format import SnapshotInfo, read_snapshot_file
from controlplane.store.auth import Auth
from controlplane.store.snapshot import load
from controlplane.store.staging import NO_DIGEST, PIECE_BYTES_MAX, chained, pieces_of
from controlplane.transport.channel import Credentials

__all__ = ["LiveRestored", "Plan", "plan_of", "restore_live"]

T = TypeVar("T")

#: Pieces on their way at once: about what fits one log entry without a replica standing still to apply it.
_WINDOW: Final = 8
_STEP_TIMEOUT_MS: Final = 15_000
#: Given up when no replica takes a step for so long.
_PATIENCE_S: Final = 30.0
_RETRY_S: Final = 0.2
#: How long replicas may take to show the same state after the swap.
_AGREE_S: Final = 5.0
_LEASE_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """A verified file, and its state in pieces: the newest version of every key. The key of the leader is not among
    them: it speaks of a reign that is over."""

    info: SnapshotInfo
    pieces: Sequence[bytes]
    digest: bytes
    state_bytes: int
    keys: int

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(frozen=True, slots=True)
class LiveRestored:
    """What a restore made. ``revision``: where the cluster goes on; ``replicas``: those that were seen to have the
    state, all with ``state_hash`` at ``hash_revision``; ``behind``: those that were not."""

    snapshot_revision: int
    revision: int
    keys: int
    digest: str
    swap_s: float
    state_hash: str
    hash_revision: int
    replicas: Sequence[str]
    behind: Sequence[str]


def plan_of(path: Path) -> Plan:
    """Verify the file wholly, and make the pieces.

    Raises:
        CorruptStateError: it is damaged.
        ConfigError: it cannot be read, a newer version wrote it, or a record of it is too big to travel.
    """
    info, chunks = read_snapshot_file(path)
    loaded = load(chunks)
    if loaded.header.revision != info.header.revision:
        raise ConfigError(f"{path} says revision {info.header.revision} and holds {loaded.header.revision}")
    pieces = list(pieces_of(loaded.keyspace, loaded.auth, loaded.leases.values(), without={LEADER_KEY}))
    if (biggest := max(map(len, pieces), default=0)) > PIECE_BYTES_MAX:
        raise ConfigError(
            f"{path} holds a record of {biggest} bytes, and a restore into a running cluster takes at most "
            f"{PIECE_BYTES_MAX}: {_biggest_of(loaded.auth)}. Make a new cluster of the file (qd snapshot restore "
            "--name ...), or make it smaller and take another snapshot"
        )
    digest = NO_DIGEST
    for piece in pieces:
        digest = chained(digest, piece)
    keys = loaded.keyspace.key_count - (loaded.keyspace.get(LEADER_KEY) is not None)
    state_bytes = loaded.keyspace.size_bytes + _LEASE_BYTES * len(loaded.leases)
    return Plan(info, pieces, digest, state_bytes, keys)


def _biggest_of(auth: Auth) -> str:
    """The user or role with the most to it: keys are bounded by what a request may hold, these grow by many."""
    sizes = [
        (0, "it is no user's and no role's"),
        *((sum(map(len, user.roles)), f"user {user.name!r} has {len(user.roles)} roles") for user in auth.users),
        *(
            (sum(len(it.key) + len(it.range_end) for it in role.permissions),
             f"role {role.name!r} has {len(role.permissions)} permissions")
            for role in auth.roles
        ),
    ]  # fmt: skip
    return max(sizes)[1]


async def restore_live(
    plan: Plan,
    endpoints: Sequence[str],
    *,
    credentials: Credentials | None,
    force: bool = False,
    say: Callable[[int, int], None] = lambda sent, total: None,
    clock: Clock | None = None,
    rand: Rand | None = None,
) -> LiveRestored:
    """Put the planned state in the place of a running cluster's.

    Args:
        say: told how many pieces of how many are staged.

    Raises:
        ApiError: refused, with the reason, or given up; nothing was changed, unless ``unknown_outcome`` says that this
            is not known.
    """
    clients = [OperatorClient(endpoint, credentials=credentials) for endpoint in endpoints]
    try:
        return await _Restore(plan, clients, clock or SystemClock(), rand or SystemRand(), force=force, say=say).run()
    finally:
        await asyncio.gather(*(client.close() for client in clients))


class _Restore:
    def __init__(
        self,
        plan: Plan,
        clients: Sequence[OperatorClient],
        clock: Clock,
        rand: Rand,
        *,
        force: bool,
        say: Callable[[int, int], None],
    ) -> None:
        self._plan = plan
        self._clients = list(clients)
        self._force = force
        self._say = say
        self._id = rand.token(16)
        self._clock = clock

    async def run(self) -> LiveRestored:
        begun = await self._step(self._begin)
        try:
            await self._send(begun.next)
        except BaseException:
            await self._abort()
            raise
        began_s = self._clock.monotonic()
        commit = operator_pb2.RestoreRequest(id=self._id, commit=operator_pb2.RestoreCommit(digest=self._plan.digest))
        done = await self._step(lambda client: client.restore(commit, timeout_ms=_STEP_TIMEOUT_MS))
        swap_s = self._clock.monotonic() - began_s
        state_hash, hash_revision, replicas, behind = await self._agreement(done.revision)
        return LiveRestored(
            self._plan.info.header.revision, done.revision, done.keys, self._plan.digest.hex(), swap_s,
            state_hash, hash_revision, replicas, behind,
        )  # fmt: skip

    def _begin(self, client: OperatorClient) -> Awaitable[operator_pb2.RestoreResponse]:
        plan = self._plan
        begin = operator_pb2.RestoreBegin(
            header=plan.info.header.SerializeToString(deterministic=True),
            file_sha256=bytes.fromhex(plan.info.sha256),
            total_bytes=plan.total_bytes,
            state_bytes=plan.state_bytes,
            force=self._force,
        )
        return client.restore(operator_pb2.RestoreRequest(id=self._id, begin=begin), timeout_ms=_STEP_TIMEOUT_MS)

    async def _send(self, at: int) -> None:
        """Every piece from ``at`` on. Pieces of one window may overtake each other, and a replica may die with some of
        them: then it is asked what is wanted next."""
        total, stuck_since_s = len(self._plan.pieces), self._clock.monotonic()
        while at < total:
            window = range(at, min(at + _WINDOW, total))
            answers = await asyncio.gather(*(self._piece(n) for n in window), return_exceptions=True)
            failures = [answer for answer in answers if isinstance(answer, BaseException)]
            for failure in failures:
                if not isinstance(failure, (ExpiredError, UnavailableError)):
                    raise failure
            then = max((answer.next for answer in answers if not isinstance(answer, BaseException)), default=at)
            if failures:
                if any(isinstance(failure, UnavailableError) for failure in failures):
                    self._clients.append(self._clients.pop(0))
                then = (await self._step(self._begin)).next
            if then > at:
                stuck_since_s = self._clock.monotonic()
            elif self._clock.monotonic() - stuck_since_s > _PATIENCE_S:
                raise failures[0] if failures else RuntimeError(f"piece {at} is taken and still wanted")
            at = then
            self._say(at, total)

    def _piece(self, number: int) -> Awaitable[operator_pb2.RestoreResponse]:
        chunk = operator_pb2.RestoreChunk(number=number, records=self._plan.pieces[number])
        request = operator_pb2.RestoreRequest(id=self._id, chunk=chunk)
        return self._clients[0].restore(request, timeout_ms=_STEP_TIMEOUT_MS)

    async def _step(self, ask: Callable[[OperatorClient], Awaitable[T]]) -> T:
        """The answer of the first replica that gives one; each is asked again and again."""
        deadline_s = self._clock.monotonic() + _PATIENCE_S
        while True:
            try:
                return await ask(self._clients[0])
            except UnavailableError:
                if self._clock.monotonic() > deadline_s:
                    raise
                self._clients.append(self._clients.pop(0))
                await self._clock.sleep(_RETRY_S)

    async def _abort(self) -> None:
        request = operator_pb2.RestoreRequest(id=self._id, abort=operator_pb2.RestoreAbort())
        for client in self._clients:
            try:
                await client.restore(request, timeout_ms=_STEP_TIMEOUT_MS)
            except UnavailableError:
                continue
            except ApiError:
                pass  # it is clear already
            return

    async def _agreement(self, revision: int) -> tuple[str, int, list[str], list[str]]:
        """The state hash that replicas share at one revision after the swap; who has it, and who was not seen to."""
        deadline_s = self._clock.monotonic() + _AGREE_S
        while True:
            answers = await asyncio.gather(*(client.status() for client in self._clients), return_exceptions=True)
            heard = [answer for answer in answers if isinstance(answer, operator_pb2.StatusResponse)]
            there = [answer for answer in heard if answer.revision >= revision]
            names = {member.name for answer in heard for member in answer.members if member.name}
            behind = sorted(names - {answer.name for answer in there})
            agreed = len({(answer.revision, answer.state_hash) for answer in there}) == 1
            late = self._clock.monotonic() > deadline_s
            if there and agreed and (not behind or late):
                return there[0].state_hash, there[0].revision, sorted(answer.name for answer in there), behind
            if late:
                raise UnavailableError(
                    Code.UNAVAILABLE,
                    f"restored at revision {revision}, but the replicas do not show one state: `qd status`",
                )
            await self._clock.sleep(_RETRY_S)
