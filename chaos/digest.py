"""One number for everything a store holds: to compare what was saved with what is served."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from controlplane.client import EtcdClient
from controlplane.local.snapshot_file import contents
from controlplane.pb.etcd import kv_pb2, rpc_pb2

__all__ = ["digest", "digest_of_snapshot", "read_everything"]

_PAGE: Final = 2_000


def digest(kvs: Iterable[kv_pb2.KeyValue]) -> str:
    """SHA-256 over keys, values, revisions, versions and leases, in the order given."""
    hasher = hashlib.sha256()
    for kv in kvs:
        hasher.update(kv.SerializeToString(deterministic=True))
        hasher.update(b"\0" * 8)
    return hasher.hexdigest()


async def digest_of_snapshot(path: Path) -> str:
    """The digest of every key in a snapshot file."""
    return await asyncio.to_thread(lambda: digest(contents(path)))


async def read_everything(client: EtcdClient, revision: int) -> list[kv_pb2.KeyValue]:
    """Every key of the store as of a revision, in key order. Raises ApiError."""
    key = b"\0"
    kvs: list[kv_pb2.KeyValue] = []
    while True:
        page = await client.range(rpc_pb2.RangeRequest(key=key, range_end=b"\0", revision=revision, limit=_PAGE))
        kvs += page.kvs
        if not page.more:
            return kvs
        key = page.kvs[-1].key + b"\0"
