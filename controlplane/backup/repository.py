"""One cluster's backups in an object store: snapshots with their manifests, and segments of the log.

Owns how they are written, found, read and checked, encryption included. What lies there is never trusted: whoever gets
something from here gets it verified. Blocks; call it off the loop.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from controlplane.backup import age
from controlplane.backup.checks import check_room
from controlplane.backup.manifest import Manifest
from controlplane.backup.names import LOG, MANIFEST_SUFFIX, SNAPSHOTS, SegmentName, SnapshotName, cluster_folder
from controlplane.backup.objects import ObjectStore
from controlplane.backup.segment import Part, decode_segment, encode_pack, encode_segment, find_part
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry, SegmentHeader
from controlplane.raft.snapshot_format import SnapshotInfo, inspect_snapshot_file, read_snapshot_file
from controlplane.store.snapshot import peek

__all__ = ["Keys", "Repository", "clusters", "describe_file", "open_file"]

_CLUSTER: Final = re.compile(r"[0-9a-f]{16}")
_COPY_BYTES: Final = 1 << 20
#: Of a folder from which something goes all the time: what is removed there is old.
_LISTINGS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Keys:
    """To whom new objects are encrypted (nobody: they are not), and with what encrypted ones are opened."""

    recipients: Sequence[X25519PublicKey] = ()
    identities: Sequence[X25519PrivateKey] = ()


def clusters(objects: ObjectStore) -> list[int]:
    """Ids of the clusters that have backups there. Raises StorageError."""
    return [int(name, 16) for name in objects.folders() if _CLUSTER.fullmatch(name)]


class Repository:
    """See the module."""

    def __init__(self, objects: ObjectStore, cluster_id: int, keys: Keys | None = None) -> None:
        self.cluster_id = cluster_id
        self._objects = objects
        self._keys = keys or Keys()
        self._folder = cluster_folder(cluster_id)
        self._last_pack: tuple[SegmentName, bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self._objects.url

    @property
    def can_decrypt(self) -> bool:
        """Whether there is a key, right or wrong."""
        return bool(self._keys.identities)

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshots(self) -> list[SnapshotName]:
        """Published snapshots, newest first. Raises StorageError."""
        found = {stored.name for stored in self._objects.listing(f"{self._folder}/{SNAPSHOTS}")}
        names = (SnapshotName.parse(name) for name in found if name + MANIFEST_SUFFIX in found)
        return sorted((name for name in names if name is not None), reverse=True)

    def locate(self, name: SnapshotName | SegmentName) -> str:
        """Path or URL of a snapshot or segment."""
        return self._objects.locate(self._path(name))

    def manifest(self, name: SnapshotName) -> Manifest:
        """Raises CorruptStateError, ConfigError (a newer format), StorageError."""
        path = self._path(name) + MANIFEST_SUFFIX
        return Manifest.decode(self._objects.read(path), self._objects.locate(path))

    def save(self, source: Path, *, saved_by: str) -> tuple[SnapshotName, Manifest]:
        """Publish a plain snapshot file; it is verified first, and encrypted if there are recipients.

        Raises:
            CorruptStateError, ConfigError: the file is no whole snapshot, or another cluster's.
            StorageError: the store refused; nothing is published.
        """
        info, state_hash = describe_file(source)
        return self.publish(source, info, state_hash, saved_by=saved_by)

    def publish(
        self, source: Path, info: SnapshotInfo, state_hash: str, *, saved_by: str
    ) -> tuple[SnapshotName, Manifest]:
        """The same for a file that :func:`describe_file` has just described."""
        header = info.header
        if header.cluster_id != self.cluster_id:
            raise ConfigError(f"{source} is of cluster {header.cluster_id:x}, this is the place of {self.cluster_id:x}")
        encrypted = bool(self._keys.recipients)
        name = SnapshotName(header.term, header.index, header.created_at_ms, header.revision, encrypted)
        with self._objects.writing(self._path(name)) as target, source.open("rb") as file:
            hashing = _Hashing(target)
            age.encrypt(file, hashing, self._keys.recipients)
        manifest = Manifest(
            file=str(name),
            cluster_id=f"{header.cluster_id:016x}",
            members=tuple(member.name for member in header.members),
            revision=header.revision,
            index=header.index,
            term=header.term,
            created_at_ms=header.created_at_ms,
            file_bytes=hashing.size,
            sha256=hashing.digest.hexdigest(),
            state_hash=state_hash,
            encrypted=encrypted,
            saved_by=saved_by,
        )
        with self._objects.writing(self._path(name) + MANIFEST_SUFFIX) as target:
            target.write(manifest.encode())
        return name, manifest

    def fetch(self, name: SnapshotName, target: Path) -> SnapshotInfo:
        """Copy a snapshot to a plain file, decrypted and wholly verified.

        Raises:
            CorruptStateError: it is damaged, or not what its name says.
            ConfigError: it is encrypted and there is no key, or the wrong one; or a newer version wrote it.
            StorageError: the store, or the disk of ``target``, refused.
        """
        where = self.locate(name)
        size = self._size(name)
        check_room(target.parent, 2 * size if name.encrypted else size, what=f"a copy of {where}")
        if name.encrypted:
            _need_identity(self._keys.identities, where)
            sealed = target.with_name(target.name + ".sealed")
            try:
                self._objects.fetch(self._path(name), sealed)
                open_file(sealed, target, self._keys.identities, where)
            finally:
                sealed.unlink(missing_ok=True)
        else:
            self._objects.fetch(self._path(name), target)
        info = inspect_snapshot_file(target, where)
        header = info.header
        if (header.cluster_id, header.index, header.term, header.revision) != (
            self.cluster_id, name.index, name.term, name.revision,
        ):  # fmt: skip
            raise CorruptStateError(f"{where} is another snapshot than its name says")
        return info

    def stored_digest(self, name: SnapshotName, scratch: Path) -> str:
        """SHA-256 of the file as it lies there. Raises StorageError."""
        self._objects.fetch(self._path(name), scratch)
        digest = sha256()
        with scratch.open("rb") as file:
            while part := file.read(_COPY_BYTES):
                digest.update(part)
        return digest.hexdigest()

    def remove_snapshot(self, name: SnapshotName) -> None:
        """The manifest first: what is half removed is not published. Raises StorageError."""
        self._objects.remove(self._path(name) + MANIFEST_SUFFIX)
        self._objects.remove(self._path(name))

    def _size(self, name: SnapshotName) -> int:
        stored = self._objects.listing(f"{self._folder}/{SNAPSHOTS}")
        found = next((s.size for s in stored if s.name == str(name)), None)
        if found is None:
            raise StorageError(f"{self.locate(name)} is gone")
        return found

    # -- the log -------------------------------------------------------------------------------------------------

    def segments(self) -> list[SegmentName]:
        """Published segments, in the log's order. Raises StorageError.

        A folder that changes while it is listed may show neither the segments that go nor the pack that has come in
        their place: so it is listed until nothing has gone since the time before.
        """
        found: set[str] = set()
        for attempt in range(_LISTINGS_MAX):
            before, found = found, {stored.name for stored in self._objects.listing(f"{self._folder}/{LOG}")}
            if attempt and before <= found:
                break
        return sorted(name for name in map(SegmentName.parse, found) if name is not None)

    def save_segment(self, header: SegmentHeader, entries: Sequence[ArchivedEntry]) -> tuple[SegmentName, Part]:
        """Publish a segment; its name, and its bytes for :meth:`save_pack`. Raises StorageError; then it is not
        there."""
        sealed = io.BytesIO()
        age.encrypt(io.BytesIO(encode_segment(header, entries)), sealed, self._keys.recipients)
        name = SegmentName(
            header.first_index, header.last_index, header.last_term, header.revision, header.closed_at_ms,
            bool(self._keys.recipients),
        )  # fmt: skip
        self._put(name, sealed.getvalue())
        return name, Part(name.first, name.last, sealed.getvalue())

    def save_pack(self, parts: Sequence[tuple[SegmentName, Part]]) -> SegmentName:
        """Publish segments that follow one another as one file, then remove them. Raises StorageError; then they are
        all there, or the pack is."""
        (first, _), (last, _) = parts[0], parts[-1]
        revision = max(name.revision for name, _ in parts)
        name = SegmentName(first.first, last.last, last.last_term, revision, last.closed_at_ms, packed=True)
        self._put(name, encode_pack([part for _, part in parts]))
        for packed, _ in parts:
            self.remove_segment(packed)
        return name

    def read_segment(self, name: SegmentName, index: int) -> tuple[SegmentHeader, list[ArchivedEntry]]:
        """The segment that holds an entry, decrypted and verified: this one, or the one in this pack. Raises as
        :meth:`fetch`."""
        where = self.locate(name)
        data = self._read(name)
        if name.packed:
            data = find_part(data, index, where)
        if age.is_encrypted(data):
            _need_identity(self._keys.identities, where)
            opened = io.BytesIO()
            age.decrypt(io.BytesIO(data), opened, self._keys.identities, where)
            data = opened.getvalue()
        header, entries = decode_segment(data, where)
        found = (header.first_index, header.last_index)
        renamed = not name.packed and found != (name.first, name.last)
        if header.cluster_id != self.cluster_id or renamed or not found[0] <= index <= found[1]:
            raise CorruptStateError(f"segment {where} is another one than its name says")
        return header, entries

    def _put(self, name: SegmentName, data: bytes) -> None:
        with self._objects.writing(self._path(name)) as target:
            target.write(data)

    def _read(self, name: SegmentName) -> bytes:
        """A pack is read for each of its segments: the last one is kept."""
        if self._last_pack is not None and self._last_pack[0] == name:
            return self._last_pack[1]
        data = self._objects.read(self._path(name))
        self._last_pack = (name, data) if name.packed else None
        return data

    def unpublished(self) -> list[SnapshotName]:
        """Snapshots without a manifest: being saved at this moment, or left by a writer that was killed."""
        found = {stored.name for stored in self._objects.listing(f"{self._folder}/{SNAPSHOTS}")}
        names = (SnapshotName.parse(name) for name in found if name + MANIFEST_SUFFIX not in found)
        return sorted(name for name in names if name is not None)

    def remove_segment(self, name: SegmentName) -> None:
        """Raises StorageError."""
        self._objects.remove(self._path(name))

    def _path(self, name: SnapshotName | SegmentName) -> str:
        return f"{self._folder}/{SNAPSHOTS if isinstance(name, SnapshotName) else LOG}/{name}"


def describe_file(path: Path) -> tuple[SnapshotInfo, str]:
    """Verify a plain snapshot file; what it says of itself, and the state's hash (hex). Raises as inspect does."""
    info, chunks = read_snapshot_file(path)
    return info, peek(next(chunks, b"")).state_hash.hex()


def open_file(source: Path, target: Path, identities: Sequence[X25519PrivateKey], where: str) -> None:
    """Decrypt a file into another.

    Raises:
        ConfigError: there is no key, or the wrong one.
        CorruptStateError: it is damaged.
        StorageError: the disk refused.
    """
    _need_identity(identities, where)
    try:
        with source.open("rb") as sealed, target.open("wb") as plain:
            age.decrypt(sealed, plain, identities, where)
    except OSError as error:
        raise StorageError(f"cannot decrypt {where}: {error.strerror or error}", errno=error.errno or 0) from error


def _need_identity(identities: Sequence[X25519PrivateKey], where: str) -> None:
    if not identities:
        raise ConfigError(f"{where} is encrypted: name the key file that opens it (--key-file)")


class _Hashing:
    """Passes writes on, and keeps their checksum and size."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.digest = sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._target.write(data)
