"""The way of a write: from a wanted object or a change of one to a transaction that took effect.

Owns the attempts against concurrent writers, their request ids, what a transaction compares besides the object itself
(its namespace, addresses it takes, the fence), and what the client is told was written. Must not know requests: what a
change is, is given as a function of the stored object (``lifecycle`` has the rules).

- Reads go without a quorum round first, because the transaction compares what was read; an answer that would rest on
  such a read alone (an error, "nothing to change") is given only after a linearizable one.
- A retry of a whole write walks the same request ids in the same order, so it happens once and answers alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from controlplane.api import lifecycle, storage
from controlplane.api.addresses import AddressPlan, ServiceAddresses
from controlplane.api.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError, UnavailableError
from controlplane.api.objects import Committed, ObjectStore, Stored, attempt_id, delete_op, put_op
from controlplane.api.registry import Kind, kind_of_resource
from controlplane.api.watching import parse_resource_version
from controlplane.base.clock import Clock
from controlplane.base.errors import Code
from controlplane.base.limits import OBJECT_BYTES_MAX
from controlplane.base.rand import Rand, SeededRand
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["ATTEMPTS_MAX", "Change", "Outcome", "Writes"]

#: Times one write is tried against concurrent writers before the client is told to try again.
ATTEMPTS_MAX: Final = 16
_NAMESPACES: Final = kind_of_resource("namespaces")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write left behind. ``changed`` is False when there was nothing to do."""

    obj: Any
    changed: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A change, ready for its transaction. ``obj`` is the new state; ``gone``: the last one."""

    obj: Any
    op: etcd.RequestOp
    plan: AddressPlan
    gone: bool
    unchanged: bool


#: Next state from the stored one. Raises ApiError; called anew for each attempt.
Change = Callable[[Any], Any]


class Writes:
    """Of one replica. ``rand``: names and uids of objects that are made without a request id."""

    def __init__(self, store: ObjectStore, addresses: ServiceAddresses, clock: Clock, rand: Rand) -> None:
        self._store = store
        self._addresses = addresses
        self._clock = clock
        self._rand = rand

    async def create(self, kind: Kind, wanted: Any, options: api_pb2.WriteOptions) -> Outcome:
        """A new object. Raises ApiError and its children."""
        for attempt in range(ATTEMPTS_MAX):
            request_id = attempt_id(options.request_id, attempt)
            obj = kind.message()
            obj.CopyFrom(wanted)
            # Under a request id the name and uid follow from it, so that a retry asks for the very same object.
            rand = SeededRand(request_id.hex()) if request_id else self._rand
            lifecycle.prepare_create(kind, obj, now_s=self._now_s(), rand=rand)
            meta = obj.metadata
            compare: dict[bytes, int] = {}
            home: Stored | None = None
            if kind.namespaced:
                home = await self._open_namespace(kind, meta.namespace, meta.name, serializable=attempt == 0)
                compare[storage.key_of(_NAMESPACES, "", meta.namespace)] = home.mod_revision
            plan = await self._plan(kind, obj, None)
            value, _ = _encoded(kind, obj)
            if options.dry_run:
                if await self._store.get(kind, meta.namespace, meta.name) is not None:
                    raise _exists(kind, meta.name)
                return Outcome(obj, True)
            key = storage.key_of(kind, meta.namespace, meta.name)
            result = await self._store.commit(
                {key: 0, **compare, **plan.compare},
                [put_op(key, value), *plan.ops],
                request_id=attempt_id(request_id, 0, b"create " + key),
                born_index=options.born_index,
                fence=_fence(options),
            )
            if isinstance(result, Committed):
                read_revision = home.read_revision if home is not None else 0
                return Outcome(await self._written(kind, obj, result, read_revision), True)
            if result.found[key] and wanted.metadata.name:
                raise _exists(kind, meta.name)
            plan.refuse_taken(result.found)
        raise _contended(kind, wanted.metadata.name)

    async def modify(self, kind: Kind, target: Any, options: api_pb2.WriteOptions, change: Change) -> Outcome:
        """Read, change, compare and write, until nobody came between.

        ``target`` names the object; its resource version, if set, must be the stored one. Raises ApiError and its
        children, and what ``change`` raises.
        """
        namespace, name = target.metadata.namespace, target.metadata.name
        wanted_revision = parse_resource_version(target.metadata.resourceVersion)
        fresh = options.dry_run
        commits = 0  # numbers the request ids: a retry of this write meets the same ones in the same order
        for _ in range(ATTEMPTS_MAX):
            try:
                stored = await self._store.require(kind, namespace, name, serializable=not fresh)
                step = await self._prepare(kind, stored, change)
                if wanted_revision and wanted_revision != stored.mod_revision and not options.request_id:
                    raise lifecycle.conflict(kind, name)
            except ApiError as error:
                if fresh or isinstance(error, UnavailableError):
                    raise
                fresh = True
                continue
            expected = wanted_revision or stored.mod_revision
            if options.dry_run and expected != stored.mod_revision:
                raise lifecycle.conflict(kind, name)
            if options.dry_run or (step.unchanged and expected == stored.mod_revision):
                if fresh:
                    step.obj.metadata.resourceVersion = str(stored.mod_revision)
                    return Outcome(step.obj, not step.unchanged)
                fresh = True
                continue
            key = storage.key_of(kind, namespace, name)
            result = await self._store.commit(
                {key: expected, **step.plan.compare},
                [step.op, *step.plan.ops],
                request_id=attempt_id(options.request_id, commits, b"change " + key),
                born_index=options.born_index,
                fence=_fence(options),
            )
            if isinstance(result, Committed):
                if step.gone:
                    step.obj.metadata.resourceVersion = str(stored.mod_revision)
                    return Outcome(step.obj, True)
                return Outcome(await self._written(kind, step.obj, result, stored.read_revision), True)
            step.plan.refuse_taken(result.found)
            if wanted_revision:
                raise lifecycle.conflict(kind, name)
            commits += 1
            fresh = True
        raise _contended(kind, name)

    async def _prepare(self, kind: Kind, stored: Stored, change: Change) -> _Step:
        """What a change makes of a stored object."""
        old = stored.message()
        new = change(old)
        gone = lifecycle.is_gone(kind, new)
        plan = await self._plan(kind, None if gone else new, old)
        key = storage.key_of(kind, old.metadata.namespace, old.metadata.name)
        if gone:
            return _Step(new, delete_op(key), plan, gone=True, unchanged=False)
        value, raw = _encoded(kind, new)
        return _Step(new, put_op(key, value), plan, gone=False, unchanged=raw == stored.raw)

    async def _written(self, kind: Kind, obj: Any, committed: Committed, read_revision: int) -> Any:
        """The object as stored. A revision not after our read tells that this is a retry of a write that had taken
        effect before: the answer is then what that one stored."""
        if 0 < committed.revision <= read_revision:
            meta = obj.metadata
            earlier = await self._store.get(kind, meta.namespace, meta.name, revision=committed.revision)
            if earlier is not None:
                return earlier.message()
        obj.metadata.resourceVersion = str(committed.revision)
        return obj

    async def _open_namespace(self, kind: Kind, namespace: str, name: str, *, serializable: bool) -> Stored:
        """The namespace a new object goes to. An error is never based on a stale read."""
        stored = await self._store.get(_NAMESPACES, "", namespace, serializable=serializable)
        terminating = stored is not None and stored.message().metadata.HasField("deletionTimestamp")
        if stored is not None and not terminating:
            return stored
        if serializable:
            return await self._open_namespace(kind, namespace, name, serializable=False)
        if stored is None:
            raise NotFoundError(Code.NOT_FOUND, f'namespaces "{namespace}" not found', reason="NotFound")
        raise ApiError(
            Code.PERMISSION_DENIED,
            f'{kind.qualified} "{name}" is forbidden: unable to create new content in namespace {namespace} '
            "because it is being terminated",
            reason="Forbidden",
        )

    async def _plan(self, kind: Kind, new: Any, old: Any) -> AddressPlan:
        if kind.kind != "Service":
            return AddressPlan()
        return await self._addresses.plan(new, old)

    def _now_s(self) -> int:
        return self._clock.wall_ms() // 1000


def _encoded(kind: Kind, obj: Any) -> tuple[bytes, bytes]:
    value, raw = storage.encode(kind, obj)
    if len(value) > OBJECT_BYTES_MAX:
        raise ApiError(
            Code.INVALID_ARGUMENT,
            f'{kind.qualified} "{obj.metadata.name}" is too large: {len(value)} bytes, at most {OBJECT_BYTES_MAX}',
            reason="RequestEntityTooLarge",
        )
    return value, raw


def _fence(options: api_pb2.WriteOptions) -> api_pb2.Fence | None:
    return options.fence if options.HasField("fence") and options.fence.key else None


def _exists(kind: Kind, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(Code.ALREADY_EXISTS, f'{kind.qualified} "{name}" already exists', reason="AlreadyExists")


def _contended(kind: Kind, name: str) -> ConflictError:
    return lifecycle.conflict(kind, name, f"too many concurrent writers ({ATTEMPTS_MAX} attempts); try again")
