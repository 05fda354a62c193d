"""A resource API in memory, small enough to see through: what informers and queues are tested against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from controlplane.client.interface import ApiClient, ApiError, ListResult, WatchEvent, WatchType
from controlplane.pb.k8s.core_v1_pb2 import Pod


async def settle(rounds: int = 20) -> None:
    """Let every task that can run, run."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def pod(name: str, revision: int, *, uid: str = "", node: str = "", namespace: str = "default") -> Pod:
    """A pod as the API would return it."""
    p = Pod()
    p.metadata.name = name
    p.metadata.namespace = namespace
    p.metadata.uid = uid or f"uid-{name}"
    p.metadata.resourceVersion = str(revision)
    if node:
        p.spec.nodeName = node
    return p


def added(p: Pod) -> WatchEvent[Pod]:
    return WatchEvent(WatchType.ADDED, p, p.metadata.resourceVersion)


def modified(p: Pod) -> WatchEvent[Pod]:
    return WatchEvent(WatchType.MODIFIED, p, p.metadata.resourceVersion)


def deleted(p: Pod, revision: int) -> WatchEvent[Pod]:
    return WatchEvent(WatchType.DELETED, p, str(revision))


def bookmark(revision: int) -> WatchEvent[Pod]:
    return WatchEvent(WatchType.BOOKMARK, None, str(revision))


@dataclass
class ScriptedApi:
    """Lists what ``pages`` says (the last one again and again) and streams what the test sends."""

    pages: list[ListResult[Pod] | ApiError]
    watched_from: list[str] = field(default_factory=list)
    lists: int = 0
    _streams: list[asyncio.Queue[WatchEvent[Pod] | ApiError | None]] = field(default_factory=list)

    def client(self) -> ApiClient:
        return cast(ApiClient, self)

    async def list(self, kind: type[Any], *, continue_token: str = "", **_: object) -> ListResult[Pod]:
        page = self.pages[min(self.lists, len(self.pages) - 1)]
        self.lists += 1
        if isinstance(page, ApiError):
            raise page
        return page

    @asynccontextmanager
    async def watch(self, kind: type[Any], *, resource_version: str, **_: object) -> AsyncIterator[Any]:
        self.watched_from.append(resource_version)
        queue: asyncio.Queue[WatchEvent[Pod] | ApiError | None] = asyncio.Queue()
        self._streams.append(queue)

        async def events() -> AsyncIterator[WatchEvent[Pod]]:
            while (item := await queue.get()) is not None:
                if isinstance(item, ApiError):
                    raise item
                yield item

        yield events()

    async def send(self, *items: WatchEvent[Pod] | ApiError | None) -> None:
        """Send into the newest stream (an error breaks it, None ends it) and let the informer take it."""
        for item in items:
            self._streams[-1].put_nowait(item)
        await settle()
