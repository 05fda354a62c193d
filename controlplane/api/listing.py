"""Lists: pages at one revision, stored bytes passed on unparsed when no selector asks for more.

Owns the continue token: the revision of the first page and the key after the last one looked at, so that all pages
together are the objects of one moment, whatever is written in between.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass

from controlplane.api import storage
from controlplane.api.errors import ExpiredError, bad_request
from controlplane.api.objects import kv_errors
from controlplane.api.registry import Kind
from controlplane.api.selectors import Predicate
from controlplane.base.errors import Code
from controlplane.base.limits import LIST_PAGE_MAX
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.store.kv import KVStore

__all__ = ["Page", "list_page"]


@dataclass(frozen=True, slots=True)
class Page:
    """Objects as ``(raw, mod revision)``, at one revision. ``remaining`` is 0 when it is not known."""

    items: list[tuple[bytes, int]]
    revision: int
    continue_token: str
    remaining: int


async def list_page(
    kv: KVStore,
    kind: Kind,
    namespace: str,
    *,
    matches: Predicate | None = None,
    limit: int = 0,
    continue_token: str = "",
    serializable: bool = False,
) -> Page:
    """Up to ``limit`` (0: all) objects of a kind, of one namespace or (empty) of all.

    Raises:
        ExpiredError: the token's revision is compacted: list from the start.
        ApiError: the token or the limit is not valid (INVALID_ARGUMENT).
    """
    if limit < 0:
        raise bad_request(f"limit: Invalid value: {limit}: must be 0 (all) or more")
    prefix = storage.prefix_of(kind, namespace if kind.namespaced else "")
    revision, start = _read_token(continue_token, prefix) if continue_token else (0, prefix)
    end = storage.prefix_end(prefix)
    items: list[tuple[bytes, int]] = []
    while True:
        chunk = min(limit - len(items), LIST_PAGE_MAX) if limit else LIST_PAGE_MAX
        request = etcd.RangeRequest(
            key=start,
            range_end=end,
            limit=chunk,
            revision=revision,
            # A revision this replica has applied is the same everywhere: no quorum round needed for it.
            serializable=serializable or 0 < revision <= kv.revision,
        )
        try:
            with kv_errors():
                response = await kv.range(request)
        except ExpiredError as error:
            raise ExpiredError(
                Code.OUT_OF_RANGE,
                "The provided continue parameter is too old for a consistent list: start again without it",
                reason="Expired",
            ) from error
        revision = revision or response.header.revision
        for found in response.kvs:
            raw = storage.raw_message(kind, found.key, found.value)
            if matches is None or matches(storage.decode(kind, raw, found.mod_revision)):
                items.append((raw, found.mod_revision))
        if not response.more:
            return Page(items, revision, "", 0)
        start = response.kvs[-1].key + b"\0"
        if limit and len(items) >= limit:
            remaining = response.count - len(response.kvs) if matches is None else 0
            return Page(items, revision, _token(revision, start), remaining)
        await asyncio.sleep(0)  # a long list lets others run


def _token(revision: int, start: bytes) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": revision, "start": start.decode()}).encode()).decode()


def _read_token(token: str, prefix: bytes) -> tuple[int, bytes]:
    try:
        held = json.loads(base64.urlsafe_b64decode(token.encode()))
        revision, start = held["rv"], held["start"].encode()
        valid = isinstance(revision, int) and 0 < revision < 1 << 63 and start.startswith(prefix)
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise bad_request(
            "continue_token: not a token of this list: pass the one the last page gave, with the same resource and "
            "namespace"
        )
    return revision, start
