"""Watches: the changes of a kind as ``WatchEvent`` bytes, from a revision on.

Owns the reading of store events as object events: created or changed, and, with a selector, when an object starts or
stops matching. Stored bytes are passed on; they are parsed only for a selector.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from controlplane.api import storage
from controlplane.api.errors import ApiError, ExpiredError, UnavailableError, bad_request
from controlplane.api.listing import list_page
from controlplane.api.objects import kv_errors
from controlplane.api.registry import Kind
from controlplane.api.selectors import Predicate
from controlplane.base.errors import Code
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.quarterdeck.v1.api_pb2 import WatchEvent
from controlplane.store.kv import KVStore

__all__ = ["open_watch", "parse_resource_version"]


def parse_resource_version(text: str) -> int:
    """The revision a client names; 0 for none.

    Raises:
        ApiError: not a resource version of this API (INVALID_ARGUMENT).
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 62:
        raise bad_request(f"resource_version: Invalid value: {text!r}: must be one that a get, list or watch gave")
    return int(text)


@asynccontextmanager
async def open_watch(
    kv: KVStore, kind: Kind, namespace: str, *, matches: Predicate | None, resource_version: str, bookmarks: bool
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The events after ``resource_version``. Empty (or "0"): what is there as ADDED, a bookmark, then changes.

    The iterator raises ExpiredError when the revision is compacted, UnavailableError when the store ends the watch.
    """
    since = parse_resource_version(resource_version)
    async with aclosing(_events(kv, kind, namespace, matches, since, bookmarks)) as events:
        yield events


async def _events(
    kv: KVStore, kind: Kind, namespace: str, matches: Predicate | None, since: int, bookmarks: bool
) -> AsyncGenerator[bytes, None]:
    prefix = storage.prefix_of(kind, namespace if kind.namespaced else "")
    if not since:
        page = await list_page(kv, kind, namespace, matches=matches)
        for raw, revision in page.items:
            yield storage.watch_event_bytes(WatchEvent.ADDED, storage.object_bytes(kind, raw, revision), revision)
        since = page.revision
        yield storage.watch_event_bytes(WatchEvent.BOOKMARK, None, since)
    request = etcd.WatchCreateRequest(
        key=prefix,
        range_end=storage.prefix_end(prefix),
        start_revision=since + 1,
        prev_kv=True,
        progress_notify=bookmarks,
    )
    with kv_errors():
        async with kv.watch(request) as responses:
            async for response in responses:
                if response.canceled:
                    raise _ended(since, response)
                for event in response.events:
                    seen = _seen(kind, event, matches)
                    if seen is not None:
                        yield seen
                if bookmarks and not response.events and not response.created:
                    yield storage.watch_event_bytes(WatchEvent.BOOKMARK, None, response.header.revision)
    raise UnavailableError(
        Code.UNAVAILABLE, "the watch ended: open it again from where it was", reason="ServiceUnavailable"
    )


def _ended(since: int, response: etcd.WatchResponse) -> ApiError:
    if response.compact_revision:
        return ExpiredError(
            Code.OUT_OF_RANGE,
            f"too old resource version: {since} ({response.compact_revision} is the oldest kept): list again",
            reason="Expired",
        )
    why = response.cancel_reason or "no reason given"
    return UnavailableError(Code.UNAVAILABLE, f"the watch was cancelled: {why}", reason="ServiceUnavailable")


def _seen(kind: Kind, event: kv_pb2.Event, matches: Predicate | None) -> bytes | None:
    """One store event as this watch sees it, or None."""
    revision = event.kv.mod_revision
    deleted = event.type == kv_pb2.Event.DELETE
    created = not deleted and event.kv.create_revision == revision
    if matches is None:
        if deleted:
            return _bytes(WatchEvent.DELETED, kind, _last_state(kind, event), revision)
        raw = storage.raw_message(kind, event.kv.key, event.kv.value)
        return _bytes(WatchEvent.ADDED if created else WatchEvent.MODIFIED, kind, raw, revision)
    before = not created and _matched_before(kind, event, matches)
    if deleted:
        return _bytes(WatchEvent.DELETED, kind, _last_state(kind, event), revision) if before else None
    raw = storage.raw_message(kind, event.kv.key, event.kv.value)
    if matches(storage.decode(kind, raw, revision)):
        return _bytes(WatchEvent.MODIFIED if before else WatchEvent.ADDED, kind, raw, revision)
    return _bytes(WatchEvent.DELETED, kind, _last_state(kind, event), revision) if before else None


def _matched_before(kind: Kind, event: kv_pb2.Event, matches: Predicate) -> bool:
    if not event.HasField("prev_kv"):
        return True  # compacted: unknown. A change or an end too many does no harm, one too few would
    raw = storage.raw_message(kind, event.kv.key, event.prev_kv.value)
    return matches(storage.decode(kind, raw, event.prev_kv.mod_revision))


def _last_state(kind: Kind, event: kv_pb2.Event) -> bytes:
    """The object as it was; of an object whose history is compacted only its name is left."""
    if event.HasField("prev_kv"):
        return storage.raw_message(kind, event.kv.key, event.prev_kv.value)
    obj = kind.message()
    namespace, obj.metadata.name = storage.name_in_key(kind, event.kv.key)
    if namespace:
        obj.metadata.namespace = namespace
    raw: bytes = obj.SerializeToString()
    return raw


def _bytes(type: int, kind: Kind, raw: bytes, revision: int) -> bytes:
    return storage.watch_event_bytes(type, storage.object_bytes(kind, raw, revision), revision)
