"""Records of the store's snapshot stream: kind (1 byte), length (4 bytes), payload. Owns the framing, and how a key's
version is read from one; knows neither which kinds there are nor their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from controlplane.base.errors import CorruptStateError
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.store.mvcc import Version
from controlplane.store.wire import frame_kv

__all__ = ["AUTH_KINDS", "HEAD_BYTES", "SUB_BYTES", "record", "split", "version_of"]

HEAD_BYTES: Final = 5
#: Before a key's KeyValue: its place among the changes of its revision.
SUB_BYTES: Final = 4
#: The auth store's head, users and roles.
AUTH_KINDS: Final = b"AUR"


def record(kind: bytes, payload: bytes) -> bytes:
    """One record's bytes."""
    return kind + len(payload).to_bytes(HEAD_BYTES - 1, "big") + payload


def split(records: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, payload) of each of these whole records. Raises CorruptStateError: the last one is not whole."""
    at, end = 0, len(records)
    while at < end:
        start = at + HEAD_BYTES
        after = start + int.from_bytes(records[at + 1 : start], "big")
        if start > end or after > end:
            raise CorruptStateError("snapshot: a record is cut short")
        yield records[at], records[start:after]
        at = after


def version_of(payload: bytes, sub: int) -> tuple[bytes, Version]:
    """Key and version of a serialized mvccpb.KeyValue. Raises DecodeError."""
    kv = KeyValue.FromString(payload)
    return kv.key, Version(kv.mod_revision, kv.create_revision, kv.version, kv.lease, frame_kv(payload), sub)
