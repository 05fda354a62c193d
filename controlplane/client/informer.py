"""Informer: a local copy of one kind, kept current by list and watch.

Owns a cache, its indexes and the place in the event stream. It must not know what anybody does with a change:
handlers put keys on work queues. Everything runs on one loop; handlers are called synchronously and must not block.

Invariants:

* Objects in the cache are shared: nobody changes them (copy first).
* The place in the stream never goes back, except by listing again when the old place is gone (compacted or restored).
* Several events may share one revision (a transaction), and a stream may break between them. So the place to resume
  from is the last revision known to be *complete*: a bookmark's, a list's, or the one before the newest event's.
  Events seen twice for that reason are recognised by the object's own version and dropped.
* An object deleted and created again under the same name is reported as a deletion and an addition, also when both
  happened between a break and a list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Generic

from controlplane.base.clock import Clock
from controlplane.base.errors import Code
from controlplane.base.limits import LIST_PAGE_MAX
from controlplane.base.rand import Rand
from controlplane.client import metrics
from controlplane.client.backoff import Backoff
from controlplane.client.interface import (
    ApiClient,
    ApiError,
    ExpiredError,
    ObjT,
    UnavailableError,
    WatchEvent,
    WatchType,
)
from controlplane.client.kinds import info_of

__all__ = ["Handler", "IndexFn", "Informer", "Key", "key_of", "version_of"]

log = logging.getLogger("quarterdeck.informer")

#: (namespace, name); the namespace of a cluster-scoped object is "".
Key = tuple[str, str]
#: Called with (old, new): (None, new) added, (old, new) changed, (old, None) deleted.
Handler = Callable[[ObjT | None, ObjT | None], None]
#: The keys under which an object is found in an index; empty: not in it.
IndexFn = Callable[[ObjT], Iterable[str]]


def key_of(obj: Any) -> Key:
    """(namespace, name) of an object."""
    meta = obj.metadata
    return meta.namespace, meta.name


def version_of(obj: Any) -> int:
    """The object's resource version as a number (0 when it has none)."""
    return int(obj.metadata.resourceVersion or 0)


class Informer(Generic[ObjT]):
    """A live cache of the objects of one kind that a selector matches."""

    def __init__(
        self,
        client: ApiClient,
        kind: type[ObjT],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        clock: Clock,
        rand: Rand,
        backoff_base_s: float = 0.05,
        backoff_cap_s: float = 1.0,
    ) -> None:
        self._client = client
        self._kind: type[ObjT] = kind
        self._resource = info_of(kind).resource
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._clock = clock
        self._backoff = Backoff(rand, base_s=backoff_base_s, cap_s=backoff_cap_s)
        self._objects: dict[Key, ObjT] = {}
        self._index_fns: dict[str, IndexFn[ObjT]] = {}
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {}
        self._handlers: list[Handler[ObjT]] = []
        self._complete = 0  # every event up to this revision has been delivered
        self._must_list = True
        self._relist_handlers: list[Callable[[], None]] = []
        #: The cache has had a list, and its place in the stream is not known to be gone.
        self.synced = asyncio.Event()

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, name: str, namespace: str = "") -> ObjT | None:
        """The object, or None. Shared: do not change it."""
        return self._objects.get((namespace, name))

    def list(self) -> Sequence[ObjT]:
        """Every object, in no particular order. Shared: do not change them."""
        return list(self._objects.values())

    def by_index(self, name: str, key: str) -> Sequence[ObjT]:
        """The objects that index ``name`` has under ``key``.

        Raises:
            KeyError: there is no such index.
        """
        return [self._objects[k] for k in self._indexes[name].get(key, ())]

    def index_keys(self, name: str) -> Sequence[str]:
        """The keys index ``name`` has now."""
        return list(self._indexes[name])

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def resource_version(self) -> int:
        """Every event up to this revision has been delivered; 0 before the first list."""
        return self._complete

    async def wait_synced(self) -> None:
        """Return once a list is in the cache that the present state can follow from: the first, or the one after the
        place was lost."""
        await self.synced.wait()

    # -- set-up ----------------------------------------------------------------------------------------------------

    def add_index(self, name: str, fn: IndexFn[ObjT]) -> None:
        """Keep an index: ``fn`` gives the keys of an object (owner uid, node name, ...)."""
        if name in self._index_fns:
            raise ValueError(f"the informer of {self._resource} has an index {name} already")
        self._index_fns[name] = fn
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            self._index_add(name, key, obj)

    def on_change(self, handler: Handler[ObjT]) -> None:
        """Call ``handler`` for every change from now on, and at once, as additions, for what is here already."""
        self._handlers.append(handler)
        for obj in self.list():
            handler(None, obj)

    def on_relist(self, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever everything was listed again because the place in the stream was gone. The state may
        have been replaced by a snapshot's: what somebody concluded from versions growing no longer holds."""
        self._relist_handlers.append(handler)

    # -- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the cache current until cancelled. Failures of the API are waited out; a handler's exception is not."""
        while True:
            try:
                if self._must_list:
                    await self._relist()
                await self._follow()
            except ExpiredError as error:
                log.info("place expired resource=%s revision=%d reason=%s", self._resource, self._complete, error)
                self._must_list = True
                self.synced.clear()
            except UnavailableError as error:
                log.debug("stream broke resource=%s reason=%s", self._resource, error)
            except ApiError as error:
                log.warning("request refused resource=%s code=%s reason=%s", self._resource, error.code.name, error)
            await self._clock.sleep(self._backoff.next_s())

    async def _relist(self) -> None:
        fresh: dict[Key, ObjT] = {}
        token = ""
        while True:
            page = await self._client.list(
                self._kind,
                namespace=self._namespace,
                label_selector=self._label_selector,
                field_selector=self._field_selector,
                limit=LIST_PAGE_MAX,
                continue_token=token,
            )
            for obj in page.items:
                fresh[key_of(obj)] = obj
            token = page.continue_token
            if not token:
                break
        metrics.INFORMER_RELISTS.labels(self._resource).inc()
        for key in [k for k in self._objects if k not in fresh]:
            self._remove(key)
        for obj in fresh.values():
            self._store(obj, even_older=True)
        again = self._complete > 0
        self._complete = int(page.resource_version)
        self._must_list = False
        self.synced.set()
        if again:
            for handler in self._relist_handlers:
                handler()

    async def _follow(self) -> None:
        metrics.INFORMER_WATCHES.labels(self._resource).inc()
        async with self._client.watch(
            self._kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            resource_version=str(self._complete),
        ) as events:
            await self._consume(events)

    async def _consume(self, events: AsyncIterator[WatchEvent[ObjT]]) -> None:
        async for event in events:
            self._backoff.reset()
            revision = int(event.resource_version)
            if event.type is WatchType.BOOKMARK:
                self._complete = max(self._complete, revision)
                continue
            if event.object is None:
                raise ApiError(Code.INTERNAL, f"a {event.type.value} event of {self._resource} carries no object")
            # More events of this revision may follow, so only the one before it is complete.
            self._complete = max(self._complete, revision - 1)
            if event.type is WatchType.DELETED:
                held = self._objects.get(key_of(event.object))
                if held is not None and version_of(held) <= revision:
                    self._remove(key_of(held), last_state=event.object)
            else:
                self._store(event.object)

    # -- the cache -------------------------------------------------------------------------------------------------

    def _store(self, obj: ObjT, *, even_older: bool = False) -> None:
        key = key_of(obj)
        old = self._objects.get(key)
        if old is not None:
            if old.metadata.uid != obj.metadata.uid and (even_older or version_of(obj) > version_of(old)):
                self._remove(key)
                old = None
            elif version_of(obj) == version_of(old) or (version_of(obj) < version_of(old) and not even_older):
                return
        if old is not None:
            self._index_remove(key, old)
        self._objects[key] = obj
        for name in self._index_fns:
            self._index_add(name, key, obj)
        for handler in self._handlers:
            handler(old, obj)

    def _remove(self, key: Key, last_state: ObjT | None = None) -> None:
        old = self._objects.pop(key)
        self._index_remove(key, old)
        for handler in self._handlers:
            handler(last_state or old, None)

    def _index_add(self, name: str, key: Key, obj: ObjT) -> None:
        index = self._indexes[name]
        for index_key in self._index_fns[name](obj):
            index.setdefault(index_key, {})[key] = None

    def _index_remove(self, key: Key, obj: ObjT) -> None:
        for name, fn in self._index_fns.items():
            index = self._indexes[name]
            for index_key in fn(obj):
                members = index.get(index_key)
                if members is None:
                    continue
                members.pop(key, None)
                if not members:
                    del index[index_key]
