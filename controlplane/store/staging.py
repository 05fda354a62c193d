"""The stage: a snapshot's state on its way into a store that serves, built piece by piece beside the present one.

Owns what is staged, what may come next, and the pieces themselves: how a loaded snapshot is cut into them and how they
are taken. It must not know how the swap is made (``store``) nor how pieces travel (the log, like every other write).

A piece is whole records of the snapshot stream (``snapshot``), in its order: the auth store, leases, then keys as they
were at one revision, in key order. History does not come along. Pieces are numbered, and chained by a digest, so that
every replica can say at every entry how far it is and that it has what the others have.

Invariants, the same on every replica because they depend on the log alone:

* A piece is taken whole or the stage is cleared: never half.
* No more than ``begin.total_bytes`` are staged, and no key that is newer than the snapshot.
* Nothing of it can be read or watched before the swap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import Final

from google.protobuf.message import DecodeError

from controlplane.base.errors import Code, CorruptStateError, StatusError
from controlplane.base.limits import AUTH_ROLES_MAX, AUTH_USERS_MAX, REQUEST_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import RestoreBegin, RestoreProgress
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import LeaseRecord, StageRecord
from controlplane.store import auth_records
from controlplane.store.auth import Auth
from controlplane.store.keyspan import Span
from controlplane.store.leases import Lease
from controlplane.store.mvcc import Keyspace, Pin, kv_bytes
from controlplane.store.records import HEAD_BYTES, SUB_BYTES, record, split, version_of

__all__ = ["NO_DIGEST", "PIECE_BYTES", "PIECE_BYTES_MAX", "Stage", "chained", "pieces_of"]

#: What one piece holds, unless a single record is bigger: taking it costs a replica a few milliseconds at most.
PIECE_BYTES: Final = 128 * 1024
#: A piece with the biggest key and value there can be in it.
PIECE_BYTES_MAX: Final = REQUEST_BYTES_MAX + 64 * 1024
#: The chain before the first piece.
NO_DIGEST: Final = bytes(32)
_ORDER: Final = b"AURLK"
_STREAM_BYTES: Final = 64 * 1024


class Stage:
    """One restore on its way. ``begin``: what opened it."""

    def __init__(self, begin: RestoreBegin, keyspace: Keyspace | None = None) -> None:
        self.begin = begin
        self.keyspace = keyspace or Keyspace()
        self.keyspace.load_start(max(1, begin.snapshot.revision))
        self.leases: dict[int, Lease] = {}
        self._auth: list[tuple[int, bytes]] = []
        self._next = 0
        self._digest = NO_DIGEST
        self._bytes = 0
        self._step = 0
        self._last_key: bytes | None = None

    @property
    def progress(self) -> RestoreProgress:
        return RestoreProgress(
            next=self._next, digest=self._digest, staged_bytes=self._bytes, staged_keys=self.keyspace.key_count
        )

    def take(self, number: int, records: bytes) -> None:
        """Take the next piece; one that is here already changes nothing.

        Raises:
            StatusError: OUT_OF_RANGE, another piece is next: nothing is changed.
            CorruptStateError: it is not what it must be, and the stage of no more use.
        """
        if number < self._next:
            return
        if number > self._next:
            raise StatusError(
                Code.OUT_OF_RANGE, f"quarterdeck: piece {self._next} of the restore is next, not {number}"
            )
        self._bytes += len(records)
        if self._bytes > self.begin.total_bytes or len(records) > PIECE_BYTES_MAX:
            raise CorruptStateError("more was sent than announced")
        self._load(records)
        self._next += 1
        self._digest = chained(self._digest, records)

    def _load(self, records: bytes) -> None:
        try:
            for kind, payload in split(records):
                self._take(kind, payload)
        except DecodeError as error:
            raise CorruptStateError(f"a record does not decode: {error}") from error

    def _take(self, kind: int, payload: bytes) -> None:
        step = _ORDER.find(kind)
        if step < self._step:
            raise CorruptStateError(f"a record of kind {kind} has no place here")
        self._step = step
        if kind == ord("K"):
            key, version = version_of(payload[SUB_BYTES:], int.from_bytes(payload[:SUB_BYTES], "big"))
            if self._last_key is not None and key <= self._last_key:
                raise CorruptStateError("keys are not in order")
            if not 0 < version.create_revision <= version.mod_revision <= self.begin.snapshot.revision:
                raise CorruptStateError(
                    f"a key of revision {version.mod_revision}, made at {version.create_revision}, in a snapshot of "
                    f"revision {self.begin.snapshot.revision}"
                )
            if version.version < 1:
                raise CorruptStateError("a key that was deleted")
            if version.lease:
                lease = self.leases.get(version.lease)
                if lease is None:
                    raise CorruptStateError(f"a key has lease {version.lease:x}, which does not exist")
                lease.attach(key)
            self._last_key = key
            self.keyspace.load_key(key, version)
        elif kind == ord("L"):
            lease_record = LeaseRecord.FromString(payload)
            self.leases[lease_record.id] = Lease(lease_record.id, lease_record.ttl_s)
        elif len(self._auth) <= AUTH_USERS_MAX + AUTH_ROLES_MAX:
            self._auth.append((kind, payload))
        else:
            raise CorruptStateError("more users and roles than there can be")

    def finish(self, digest: bytes) -> Auth:
        """Check that everything is here and is what was sent; the auth store of it.

        Raises:
            CorruptStateError: it is not.
        """
        if self._bytes != self.begin.total_bytes or self._digest != digest:
            raise CorruptStateError(
                f"{self._bytes} of {self.begin.total_bytes} bytes are staged, with digest {self._digest.hex()} instead "
                f"of {digest.hex()}"
            )
        try:
            return auth_records.load(self._auth)
        except DecodeError as error:
            raise CorruptStateError(f"a record of the auth store does not decode: {error}") from error

    # -- snapshots of a store that has a stage

    def cut(self) -> Iterator[bytes]:
        """The stage as records ``S`` and ``C`` of the snapshot stream, as it is now: made lazily, while it goes on, is
        swapped in, or cleared."""
        head = StageRecord(
            begin=self.begin, next=self._next, digest=self._digest, staged_bytes=self._bytes
        ).SerializeToString(deterministic=True)
        small = [record(bytes((kind,)), payload) for kind, payload in self._auth]
        small += [_lease_record(lease) for lease in self.leases.values()]
        keys = Span(b"", b"" if self._last_key is None else self._last_key + b"\0")
        # The pin is held by the generator alone, as that of the main keyspace.
        return _cut(head, small, self.keyspace, self.keyspace.pin(), keys, self.begin.snapshot.revision)

    @classmethod
    def load_head(cls, payload: bytes) -> Stage:
        """The stage of an ``S`` record, still without what ``C`` records (:meth:`load_part`) bring."""
        head = StageRecord.FromString(payload)
        stage = cls(head.begin)
        stage._next, stage._digest, stage._bytes = head.next, head.digest, head.staged_bytes
        return stage

    def load_part(self, records: bytes) -> None:
        """Raises CorruptStateError, DecodeError."""
        self._load(records)


def _cut(head: bytes, small: list[bytes], keyspace: Keyspace, pin: Pin, keys: Span, revision: int) -> Iterator[bytes]:
    yield record(b"S", head)
    part = bytearray()
    for piece in small:
        part += piece
        if len(part) >= _STREAM_BYTES:
            yield record(b"C", bytes(part))
            part.clear()
    if keys.high:
        for version in keyspace.scan_at(keys, max(1, revision)):
            part += _key_record(version.sub, version.frame)
            if len(part) >= _STREAM_BYTES:
                yield record(b"C", bytes(part))
                part.clear()
    if part:
        yield record(b"C", bytes(part))
    keyspace.unpin(pin)


def chained(digest: bytes, records: bytes) -> bytes:
    """The digest after one more piece."""
    return sha256(digest + records).digest()


def pieces_of(
    keyspace: Keyspace, auth: Auth, leases: Iterable[Lease], *, without: Collection[bytes] = ()
) -> Iterator[bytes]:
    """A state as pieces: users and roles, leases with their full TTL, every key's newest version but those named."""
    part = bytearray()
    for piece in _records_of(keyspace, auth, leases, without):
        if part and len(part) + len(piece) > PIECE_BYTES:
            yield bytes(part)
            part.clear()
        part += piece
    if part:
        yield bytes(part)


def _records_of(keyspace: Keyspace, auth: Auth, leases: Iterable[Lease], without: Collection[bytes]) -> Iterator[bytes]:
    for kind, payload in auth_records.dump(auth):
        yield record(kind, payload)
    for lease in leases:
        yield _lease_record(lease)
    for key in keyspace.keys(Span(b"", None)):
        version = keyspace.get(key)
        if version is not None and key not in without:
            yield _key_record(version.sub, version.frame)


def _lease_record(lease: Lease) -> bytes:
    return record(b"L", LeaseRecord(id=lease.id, ttl_s=lease.ttl_s).SerializeToString())


def _key_record(sub: int, frame: bytes) -> bytes:
    kv = kv_bytes(frame)
    return b"K" + (SUB_BYTES + len(kv)).to_bytes(HEAD_BYTES - 1, "big") + sub.to_bytes(SUB_BYTES, "big") + kv
