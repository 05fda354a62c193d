"""What components read from: warm caches of objects, and where they tell users what they did. Protocols only.

Owns the contracts that :class:`~controlplane.client.informer.Informer` and the event recorder fulfil, so that
controllers and the scheduler can be tested without either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from controlplane.client.interface import K8sObject, ObjT

__all__ = ["Cache", "Caches", "EventSink"]

CachedT = TypeVar("CachedT", bound=K8sObject, covariant=True)


class Cache(Protocol[CachedT]):
    """The read side of an informer: the objects of one kind as of a moment ago. Objects are shared: never mutate."""

    def get(self, name: str, namespace: str = "") -> CachedT | None: ...

    def list(self) -> Sequence[CachedT]: ...

    def by_index(self, name: str, key: str) -> Sequence[CachedT]: ...

    def add_index(self, name: str, fn: Callable[[CachedT], Iterable[str]]) -> None: ...

    def on_change(self, fn: Callable[[CachedT | None, CachedT | None], None]) -> None: ...


class Caches(Protocol):
    """One shared cache per kind, kept warm on every replica."""

    def of(self, kind: type[ObjT]) -> Cache[ObjT]: ...

    async def wait_for(self, revision: int) -> None:
        """Return when the caches have had their first list and show everything up to ``revision``, or a moment later
        if a stream has nothing to say."""
        ...


class EventSink(Protocol):
    """Where controllers tell users what they did: Kubernetes Events, aggregated and rate-limited by the recorder."""

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        """``event_type`` is Normal or Warning; ``regarding`` the object it is about. Never blocks, never raises."""
        ...
