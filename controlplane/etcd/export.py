"""The state as etcd itself would keep it: the keys and values of its database's buckets.

Owns the translation of the store, at one moment, into the schema of etcd 3.4's backend, which later releases read and
upgrade; and what is computed over it: HashKV, Hash, and the database file that ``etcdctl snapshot restore`` takes.

Everything is cut when the export is made and read while writes go on. What takes long gives the loop a turn after every
:data:`_SLICE` entries. Held meanwhile: the history (a pin), a reference for each key older than the last compaction,
the small tables.

Source: etcd server/storage/schema, server/storage/mvcc/{revision,hash,kvstore}.go, server/lease/leasepb;
HashKV is that of 3.4.23.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from hashlib import sha256
from heapq import merge
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple

from controlplane.etcd.bolt import BoltFile, BucketPlan
from controlplane.etcd.crc32c import Crc32c
from controlplane.pb.etcd import auth_pb2, kv_pb2
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import LeaseRecord
from controlplane.raft.types import Member, RaftStatus
from controlplane.store import errors
from controlplane.store.auth import Role, User
from controlplane.store.history import History
from controlplane.store.mvcc import Event, Version, kv_bytes
from controlplane.store.store import Store

__all__ = ["Export", "KVHash", "hash_kv"]

#: Entries handled between two turns of the loop: about a millisecond of work.
_SLICE: Final = 512
#: Bytes of a value that count as one entry more.
_ENTRY_BYTES: Final = 256
#: Sorted at once; runs are merged as they are read.
_RUN: Final = 2_048

_REVISION = Struct(">qcq")  # main, "_", sub
_TOMBSTONE: Final = b"t"
#: Of the format: what a 3.4 server keeps. Newer ones raise it by themselves.
_CLUSTER_VERSION: Final = b"3.4.0"
#: Left out of Hash, as in etcd: they differ between members with the same state.
_LOCAL: Final = frozenset({(b"meta", b"consistent_index"), (b"meta", b"term")})

_Entry = tuple[bytes, bytes]


class KVHash(NamedTuple):
    """What HashKV answers. Comparable only at equal ``compact_revision``, which is -1 before the first compaction."""

    hash: int
    revision: int
    compact_revision: int


async def hash_kv(store: Store, revision: int) -> KVHash:
    """etcd's own hash of all revisions up to one (0: the present one): CRC-32C of the ``key`` bucket as it is once
    compaction is done. Equal on every replica, and to that of an etcd that was given the same requests.

    Raises:
        StatusError: OutOfRange, the revision is compacted or in the future.
    """
    history = store.history()
    try:
        compacted = history.compact_revision
        if 0 < revision <= compacted:
            raise errors.compacted()
        if revision > history.revision:
            raise errors.future_revision()
        revision = revision or history.revision
        # Of what is older than the compaction only what is still there at the revision counts; unless nothing is there
        # at all, when etcd leaves nothing out.
        empty = next(history.at(revision), None) is None
        old = history.at(compacted) if empty else history.at(revision)
        runs = await _runs(version for version in old if version.mod_revision <= compacted)
        crc = Crc32c()
        crc.update(b"key")
        await _digest(crc, _revisions(history, runs, revision))
        return KVHash(crc.value, revision, compacted or -1)
    finally:
        history.close()


class Export:
    """The whole state, cut when this is made. Close it when done: compaction waits for it.

    Args:
        status: whose members, term and index it is cut at.
        tls: members' URLs say https.
    """

    def __init__(self, store: Store, status: RaftStatus, *, tls: bool) -> None:
        self._history = store.history()
        self.revision = self._history.revision
        self._tables = _tables(store, status, self._history, tls=tls)
        self._runs: list[list[Version]] | None = None

    def close(self) -> None:
        """Let compaction go on. Safe to call twice."""
        self._history.close()

    async def hash(self) -> int:
        """CRC-32C over every bucket's name and entries, as etcd's Hash and, but for two entries that every member has
        its own of, ``etcdctl snapshot status`` compute it."""
        crc = Crc32c()
        for name in self._names():
            crc.update(name)
            entries = await self._entries(name)
            await _digest(crc, ((key, value) for key, value in entries if (name, key) not in _LOCAL))
        return crc.value

    async def file(self, chunk_bytes: int) -> tuple[int, AsyncIterator[bytes]]:
        """The database file: its length, and its bytes in chunks of one size but for the last, which is the SHA-256 of
        all before it (not in the length)."""
        plans = []
        pace = _Pace()
        for name in self._names():
            plan = BucketPlan(name)
            for key, value in await self._entries(name):
                plan.add(key, len(value))
                await pace.spend(len(value))
            plans.append(plan)
        bolt = BoltFile(plans)
        return bolt.size_bytes, self._chunks(bolt, chunk_bytes)

    async def _chunks(self, bolt: BoltFile, chunk_bytes: int) -> AsyncIterator[bytes]:
        digest = sha256()
        waiting = bytearray(bolt.head())
        pace = _Pace()
        for name in self._names():
            for page in bolt.bucket(name, await self._entries(name)):
                waiting += page
                await pace.spend(16 * len(page))
                while len(waiting) >= chunk_bytes:
                    chunk = bytes(waiting[:chunk_bytes])
                    del waiting[:chunk_bytes]
                    digest.update(chunk)
                    yield chunk
        waiting += bolt.tail()
        for start in range(0, len(waiting), chunk_bytes):
            chunk = bytes(waiting[start : start + chunk_bytes])
            digest.update(chunk)
            yield chunk
        yield digest.digest()

    def _names(self) -> list[bytes]:
        return sorted((*self._tables, b"key"))

    async def _entries(self, name: bytes) -> Iterator[_Entry]:
        if name != b"key":
            return iter(self._tables[name])
        history = self._history
        if self._runs is None:
            self._runs = await _runs(history.at(history.compact_revision) if history.compact_revision else iter(()))
        return _revisions(history, self._runs, self.revision)


class _Pace:
    """Gives the loop a turn when enough was done."""

    def __init__(self) -> None:
        self._left = _SLICE

    async def spend(self, size_bytes: int) -> None:
        self._left -= 1 + size_bytes // _ENTRY_BYTES
        if self._left <= 0:
            self._left = _SLICE
            await asyncio.sleep(0)


async def _runs(versions: Iterable[Version]) -> list[list[Version]]:
    """All versions, in runs that are in etcd's order each."""
    runs: list[list[Version]] = []
    versions = iter(versions)
    while run := list(islice(versions, _RUN)):
        run.sort(key=_order)
        runs.append(run)
        await asyncio.sleep(0)
    return runs


def _order(version: Version) -> int:
    return version.mod_revision << 32 | version.sub


def _revisions(history: History, old: list[list[Version]], last: int) -> Iterator[_Entry]:
    """The ``key`` bucket: versions from before the compaction, then every change since, up to revision ``last``."""
    for version in merge(*old, key=_order):
        yield _REVISION.pack(version.mod_revision, b"_", version.sub), kv_bytes(version.frame)
    for revision in range(history.compact_revision + 1, last + 1):
        for event in history.events(revision):
            yield _change(event)


def _change(event: Event) -> _Entry:
    version = event.version
    key = _REVISION.pack(version.mod_revision, b"_", version.sub)
    if event.is_delete:  # etcd's tombstone says nothing but the key
        return key + _TOMBSTONE, kv_pb2.KeyValue(key=event.key).SerializeToString()
    return key, kv_bytes(version.frame)


async def _digest(crc: Crc32c, entries: Iterable[_Entry]) -> None:
    pace = _Pace()
    for key, value in entries:
        crc.update(key)
        crc.update(value)
        await pace.spend(len(value))


def _tables(store: Store, status: RaftStatus, history: History, *, tls: bool) -> dict[bytes, list[_Entry]]:
    """Every bucket but ``key``, each in order of key."""
    auth = store.auth
    tables = {
        b"alarm": [(alarm.SerializeToString(), b"") for alarm in store.alarms.declared],
        # Passwords are hashed in a way that etcd cannot check, so nobody could log in: an operator gives new ones, and
        # enables authentication, in the etcd that starts from this.
        b"auth": [(b"authEnabled", b"\0"), (b"authRevision", auth.revision.to_bytes(8, "big"))],
        b"authRoles": [(role.name.encode(), _role(role)) for role in auth.roles],
        b"authUsers": [(user.name.encode(), _user(user)) for user in auth.users],
        b"cluster": [(b"clusterVersion", _CLUSTER_VERSION)],
        # leasepb.Lease has the numbers of our record: ID 1, TTL 2, RemainingTTL 3.
        b"lease": [
            (
                lease.id.to_bytes(8, "big", signed=True),
                LeaseRecord(id=lease.id, ttl_s=lease.ttl_s, remaining_ttl_s=lease.remaining_ttl_s).SerializeToString(),
            )
            for lease in store.leases
        ],
        b"members": [(b"%x" % member.id, _member(member, tls=tls)) for member in status.members],
        b"members_removed": [],
        b"meta": _meta(status, history),
    }
    return {name: sorted(entries) for name, entries in tables.items()}


def _meta(status: RaftStatus, history: History) -> list[_Entry]:
    voters = [member.id for member in status.members if not member.learner]
    entries = [
        (b"consistent_index", status.applied_index.to_bytes(8, "big")),
        (b"term", status.term.to_bytes(8, "big")),
        (b"confState", json.dumps({"voters": voters, "auto_leave": False}, separators=(",", ":")).encode()),
    ]
    if history.compact_revision:
        compacted = _REVISION.pack(history.compact_revision, b"_", 0)
        entries += [(b"scheduledCompactRev", compacted), (b"finishedCompactRev", compacted)]
    return entries


def _member(member: Member, *, tls: bool) -> bytes:
    scheme = "https" if tls else "http"
    shown: dict[str, object] = {"id": member.id, "peerURLs": [f"{scheme}://{member.peer_address}"]}
    if member.learner:
        shown["isLearner"] = True
    if member.name:
        shown["name"] = member.name
    if member.client_endpoint:
        shown["clientURLs"] = [f"{scheme}://{member.client_endpoint}"]
    return json.dumps(shown, separators=(",", ":")).encode()


def _user(user: User) -> bytes:
    return auth_pb2.User(name=user.name.encode(), roles=user.roles).SerializeToString()


def _role(role: Role) -> bytes:
    permissions = [permission.message() for permission in role.permissions]
    return auth_pb2.Role(name=role.name.encode(), keyPermission=permissions).SerializeToString()
