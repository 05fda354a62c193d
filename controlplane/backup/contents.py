"""What is in a snapshot file, counted: for people who look at one. Pure, but for reading the file."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from controlplane.pb.etcd.rpc_pb2 import RangeRequest
from controlplane.raft.snapshot_format import SnapshotInfo, read_snapshot_file
from controlplane.store.store import Store

__all__ = ["Contents", "Group", "contents_of", "group_of"]

_REGISTRY = "/registry/"


@dataclass(frozen=True, slots=True)
class Group:
    """Keys under one prefix: how many, and the bytes of their names and values."""

    prefix: str
    keys: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A verified file. ``groups``: the biggest first. ``resident_bytes``: what its state takes in a replica's memory,
    history included."""

    info: SnapshotInfo
    revision: int
    compact_revision: int
    state_hash: str
    keys: int
    leases: int
    users: int
    auth_enabled: bool
    resident_bytes: int
    groups: tuple[Group, ...]


def contents_of(path: Path) -> Contents:
    """Verify a plain snapshot file wholly, and count what is in it.

    Raises:
        CorruptStateError: what is damaged, and where.
        ConfigError: it cannot be read, or a newer version wrote it.
    """
    info, chunks = read_snapshot_file(path)
    store = Store()
    store.restore(chunks)
    sizes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kv in store.range(RangeRequest(key=b"\0", range_end=b"\0")).kvs:
        size = sizes[group_of(kv.key)]
        size[0] += 1
        size[1] += len(kv.key) + len(kv.value)
    groups = (Group(prefix, keys, total) for prefix, (keys, total) in sizes.items())
    return Contents(
        info=info,
        revision=store.revision,
        compact_revision=store.compact_revision,
        state_hash=store.state_hash(),
        keys=store.key_count,
        leases=len(store.leases),
        users=len(store.auth.users),
        auth_enabled=store.auth.enabled,
        resident_bytes=store.size_bytes,
        groups=tuple(sorted(groups, key=lambda group: (-group.bytes, group.prefix))),
    )


def group_of(key: bytes) -> str:
    """``/registry/<resource>/`` for objects; for other keys their first part, up to a slash."""
    text = key.decode(errors="backslashreplace")
    start = len(_REGISTRY) if text.startswith(_REGISTRY) else 1
    end = text.find("/", start)
    return text[: end + 1] if end >= 0 else "(others)"
