"""The store's snapshot stream: a canonical encoding of the whole applied state.

Owns the format. The stream is ``MAGIC``, then records (kind: 1 byte, length: 4 bytes, payload), in this order:

=================  ==========================================================================================
``H``              a StateHeader, exactly once
``A`` ``U`` ``R``  the auth store, if it was ever used (``auth_records``)
``L``              a LeaseRecord, in order of grant
``D``              a DedupRecord, oldest first
``K``              sub-revision (4 bytes), then a mvccpb.KeyValue that existed at the compact revision, in key order
``E``              a mvccpb.KeyValue an event of a retained revision made (version 0: a deletion), in order of events
``S`` ``C``        the stage of a restore on its way, and what is on it (``staging``)
``Z``              SHA-256 of every byte before this record, exactly once, last
=================  ==========================================================================================

Same state, same bytes, on every replica: what a reader can see is encoded, never how memory is laid out. So the state
at the compact revision and the events since are the whole keyspace; leases' keys follow from it. An event's place
among the records of its revision is its sub-revision.

Format 1 had no auth store, no alarms (they are in the header) and no sub-revisions: keys of one revision are counted
in key order. A stream without a stage says format 2, so that a version that knows of none can read it.

A cut copies the lease and dedup tables (a millisecond at their bounds) and pins the keyspace; records are made while
writes go on. Chunks may be joined and split at will on their way to :func:`load`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from controlplane.base.errors import CorruptStateError
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import DedupRecord, LeaseRecord, StateHeader
from controlplane.store import auth_records
from controlplane.store.auth import Auth
from controlplane.store.dedup import Dedup
from controlplane.store.hash import StateHash
from controlplane.store.keyspan import Span
from controlplane.store.leases import Lease, Leases
from controlplane.store.mvcc import Keyspace, Pin, Version, kv_bytes
from controlplane.store.records import AUTH_KINDS, HEAD_BYTES, SUB_BYTES, record, version_of
from controlplane.store.staging import Stage

__all__ = ["FORMAT_VERSION", "Loaded", "Loading", "cut", "load", "peek"]

FORMAT_VERSION: Final = 3
#: Of a stream that has no stage in it.
_WITHOUT_STAGE: Final = 2
_READS: Final = (1, 2, 3)
MAGIC: Final = b"QDSTATE\x01"
_CHUNK_BYTES: Final = 64 * 1024
_RECORD_BYTES_MAX: Final = 128 * 1024 * 1024
_EVERYTHING: Final = Span(b"", None)
_ORDER: Final = b"HAURLDKESCZ"


def cut(
    header: StateHeader, keyspace: Keyspace, auth: Auth, leases: Leases, dedup: Dedup, stage: Stage | None = None
) -> Iterator[bytes]:
    """Cut now; iterating makes the chunks. Reaching the end, or dropping the iterator, ends its pin on the keyspace."""
    lease_records = [
        LeaseRecord(id=lease.id, ttl_s=lease.ttl_s, remaining_ttl_s=lease.remaining_ttl_s) for lease in leases
    ]
    # The pin is held by the generator alone, started or not: no reference cycle may keep it alive.
    header.format_version = FORMAT_VERSION if stage is not None else _WITHOUT_STAGE
    staged = stage.cut() if stage is not None else iter(())
    records = _records(header, keyspace, auth_records.dump(auth), lease_records, dedup.entries(), staged)
    return _chunks(keyspace, keyspace.pin(), records)


def _chunks(keyspace: Keyspace, pin: Pin, records: Iterator[bytes]) -> Iterator[bytes]:
    digest = sha256()
    chunk = bytearray(MAGIC)
    for piece in records:
        chunk += piece
        if len(chunk) >= _CHUNK_BYTES:
            digest.update(chunk)
            yield bytes(chunk)
            chunk.clear()
    digest.update(chunk)
    chunk += record(b"Z", digest.digest())
    keyspace.unpin(pin)
    yield bytes(chunk)


def _records(
    header: StateHeader,
    keyspace: Keyspace,
    auth: list[tuple[bytes, bytes]],
    leases: list[LeaseRecord],
    dedup: list[tuple[bytes, tuple[int, bytes]]],
    staged: Iterator[bytes],
) -> Iterator[bytes]:
    yield record(b"H", header.SerializeToString(deterministic=True))
    for kind, payload in auth:
        yield record(kind, payload)
    for lease in leases:
        yield record(b"L", lease.SerializeToString())
    for request_id, (index, reply) in dedup:
        yield record(b"D", DedupRecord(request_id=request_id, index=index, reply=reply).SerializeToString())
    first, last = header.compact_revision, header.revision
    # Before the first compaction nothing existed at "the compact revision" (0), and history is complete.
    if first > 0:
        for version in keyspace.scan_at(_EVERYTHING, first):
            yield record(b"K", version.sub.to_bytes(SUB_BYTES, "big") + kv_bytes(version.frame))
    for revision in range(first, last + 1):
        for event in keyspace.events(revision):
            yield record(b"E", kv_bytes(event.version.frame))
    yield from staged


class Loaded(NamedTuple):
    """A whole state, read from a stream and verified."""

    header: StateHeader
    keyspace: Keyspace
    auth: Auth
    leases: dict[int, Lease]
    dedup: Dedup
    hash: StateHash
    stage: Stage | None = None


def load(chunks: Iterable[bytes]) -> Loaded:
    """Read a stream into a new state, at once.

    Raises:
        CorruptStateError: damaged, cut short, of an unknown format, or not a state the store can have.
    """
    loading = Loading()
    for chunk in chunks:
        loading.feed(chunk)
    return loading.finish()


def peek(chunk: bytes) -> StateHeader:
    """The header of a stream, from its first chunk as :func:`cut` made it; nothing is verified.

    Raises:
        CorruptStateError: there is none.
    """
    at = len(MAGIC) + HEAD_BYTES
    if not chunk.startswith(MAGIC + b"H"):
        raise CorruptStateError("snapshot: no header")
    size = int.from_bytes(chunk[at - 4 : at], "big")
    try:
        return StateHeader.FromString(chunk[at : at + size])
    except DecodeError as error:
        raise CorruptStateError(f"snapshot: the header does not decode: {error}") from error


class Loading:
    """A state in the making: :meth:`feed` every chunk, then :meth:`finish`.

    A chunk costs time in proportion to its size (a few milliseconds for one as :func:`cut` makes them), and finishing
    costs next to nothing, so that a loop can do other things in between. Nothing of it is anybody's state before.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # what comes before it in the buffer is read, and not yet digested
        self._digest = sha256()
        self._begun = False
        self._step = 0
        self._ended = False
        self._header: StateHeader | None = None
        self._keyspace, self._dedup = Keyspace(), Dedup()
        self._leases: dict[int, Lease] = {}
        self._auth: list[tuple[int, bytes]] = []
        self._seen: dict[int, int] = {}  # format 1: keys met of a revision
        self._revision_events: list[tuple[bytes, Version]] = []
        self._stage: Stage | None = None
        self._leased: dict[bytes, None] = {}  # keys that have a lease, or had one

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the stream. Raises CorruptStateError; then this object is of no more use."""
        if self._ended and chunk:
            raise CorruptStateError("snapshot: bytes after the end")
        buffer = self._buffer
        self._digest.update(memoryview(buffer)[: self._at])
        del buffer[: self._at]
        self._at = 0
        buffer += chunk
        try:
            self._read()
        except DecodeError as error:
            raise CorruptStateError(f"snapshot: a record does not decode: {error}") from error

    def finish(self) -> Loaded:
        """The whole state. Raises CorruptStateError: the stream is not complete, or contradicts itself."""
        header, keyspace, leases = self._header, self._keyspace, self._leases
        if not self._ended or header is None:
            raise CorruptStateError("snapshot: cut short")
        if keyspace.revision != header.revision:
            raise CorruptStateError(f"snapshot: revision {keyspace.revision}, the header says {header.revision}")
        self._dedup.floor = header.dedup_floor
        for key in self._leased:
            version = keyspace.get(key)
            if version is None or not version.lease:
                continue
            if version.lease not in leases:
                raise CorruptStateError(f"snapshot: a key has lease {version.lease:x}, which does not exist")
            leases[version.lease].attach(key)
        chained = StateHash(header.chain, header.revision, header.state_hash)
        auth = auth_records.load(self._auth)
        return Loaded(header, keyspace, auth, leases, self._dedup, chained, self._stage)

    def _read(self) -> None:
        """Take the records that are whole."""
        buffer = self._buffer
        if not self._begun:
            if len(buffer) < len(MAGIC):
                return
            if buffer[: len(MAGIC)] != MAGIC:
                raise CorruptStateError("snapshot: not a snapshot of this format")
            self._at, self._begun = len(MAGIC), True
        while len(buffer) - self._at >= HEAD_BYTES:
            at = self._at
            kind, size = buffer[at], int.from_bytes(buffer[at + 1 : at + HEAD_BYTES], "big")
            order = _ORDER.find(kind)
            if order < self._step or size > _RECORD_BYTES_MAX:
                raise CorruptStateError("snapshot: damaged record")
            self._step = order
            end = at + HEAD_BYTES + size
            if len(buffer) < end:
                return
            payload = bytes(buffer[at + HEAD_BYTES : end])
            if kind == _ORDER[-1]:
                self._end(payload, end)
                return
            self._take(kind, payload)
            self._at = end

    def _end(self, trailer: bytes, end: int) -> None:
        self._digest.update(memoryview(self._buffer)[: self._at])
        if trailer != self._digest.digest():
            raise CorruptStateError("snapshot: checksum does not match")
        if len(self._buffer) > end:
            raise CorruptStateError("snapshot: bytes after the end")
        self._close_revision()
        self._buffer.clear()
        self._at, self._ended = 0, True

    def _take(self, kind: int, payload: bytes) -> None:
        header = self._header
        if header is None:
            if kind != ord("H"):
                raise CorruptStateError("snapshot: no header")
            self._begin(StateHeader.FromString(payload))
        elif kind == ord("K"):
            if header.format_version == 1:
                key, version = version_of(payload, 0)
                version = version._replace(sub=self._seen.get(version.mod_revision, 0))
                self._seen[version.mod_revision] = version.sub + 1
            else:
                key, version = version_of(payload[SUB_BYTES:], int.from_bytes(payload[:SUB_BYTES], "big"))
            self._keyspace.load_key(key, version)
            self._note_lease(key, version)
        elif kind == ord("E"):
            key, version = version_of(payload, 0)
            events = self._revision_events
            if events and events[0][1].mod_revision != version.mod_revision:
                self._close_revision()
                events = self._revision_events
            events.append((key, version._replace(sub=len(events)) if events else version))
            self._note_lease(key, version)
        elif kind == ord("L"):
            lease = LeaseRecord.FromString(payload)
            self._leases[lease.id] = Lease(lease.id, lease.ttl_s, lease.remaining_ttl_s)
        elif kind == ord("D"):
            entry = DedupRecord.FromString(payload)
            self._dedup.remember(entry.request_id, entry.index, entry.reply)
        elif kind in AUTH_KINDS:
            self._auth.append((kind, payload))
        elif kind == ord("S") and self._stage is None:
            self._stage = Stage.load_head(payload)
        elif kind == ord("C") and self._stage is not None:
            self._stage.load_part(payload)
        else:
            raise CorruptStateError("snapshot: a record has no place here")

    def _begin(self, header: StateHeader) -> None:
        if header.format_version not in _READS:
            raise CorruptStateError(
                f"snapshot: format {header.format_version}, this version reads up to {FORMAT_VERSION}"
            )
        self._header = header
        self._keyspace.load_start(header.compact_revision)

    def _note_lease(self, key: bytes, version: Version) -> None:
        if version.lease:
            self._leased[key] = None

    def _close_revision(self) -> None:
        if self._revision_events:
            self._keyspace.load_events(self._revision_events)
            self._revision_events = []
