"""Watchers over the Watch service's own streams: several watches on one, cancelled and begun again, and asked how far
they are.

Owns what such a client knows of each of its watches, and the rules of the stream itself: ``created`` comes first, an id
means one watch, nothing comes after ``canceled``, and an answer about the progress of all holds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.kv_pb2 import Event
from controlplane.pb.etcd.rpc_pb2 import (
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from controlplane.store.keyspan import prefix_end
from tests.sim.checks import Checks
from tests.sim.net import SimNet
from tests.sim.node import SimNode
from tests.sim.rpc import Rpc
from tests.sim.streams import SimStream
from tests.sim.violation import ViolationError

__all__ = ["StreamWatcher"]


@dataclass(slots=True)
class _Watch:
    """One watch of the stream."""

    name: str
    prefix: bytes
    after: int
    id: int
    created: bool = False
    canceling: bool = False


class StreamWatcher:
    """Follows a prefix for ever, over many streams; beside it, on each stream, what a revision to come will bring."""

    def __init__(
        self,
        number: int,
        rpc: Rpc,
        net: SimNet,
        nodes: Sequence[SimNode],
        checks: Checks,
        rand: SeededRand,
        prefix: bytes,
    ) -> None:
        self.name = f"w{number}"
        self._rpc = rpc
        self._net = net
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        self._main = _Watch(self.name, prefix, 1, 1)  # revision 1: the store's first, at which nothing happens
        self._watches: dict[int, _Watch] = {}
        self._ids = 1
        self._stream: SimStream | None = None
        self.moving = True
        self.canceled = 0
        self.progress_told = 0
        #: Hears every event, too.
        self.on_events: Callable[[Sequence[Event]], None] = lambda events: None

    @property
    def after(self) -> int:
        """It has been told of everything up to this revision."""
        return self._main.after

    async def run(self) -> None:
        """For ever: is the replica still there, and what is to be tried on the stream?"""
        while True:
            stream, rand = self._stream, self._rand
            draw = rand.random()
            if stream is None or not stream.alive or (self.moving and draw < 0.03):
                self._move()
            elif draw < 0.2 or not self.moving:  # at the end it wants to know of everything, whatever its prefix
                stream.send(WatchRequest(progress_request=WatchProgressRequest()))
            elif draw < 0.3 and self._main.created and not self._main.canceling:
                self._main.canceling = True
                stream.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=self._main.id)))
            await self._rpc.sleep(0.05 + 0.1 * rand.random())

    def _move(self) -> None:
        if self._stream is not None:
            self._stream.end()
            self._stream = None
        node = self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
        if not node.serving:
            return
        self._watches.clear()
        slow = self._rand.random() < 0.2
        self._stream = stream = SimStream(
            self._rpc,
            self._net,
            node,
            lambda requests, context: node.watching.Watch(requests, context),
            lambda response: self._take(stream, response),
            lambda said: self._ended(said),
            metadata={"hasleader": "true"} if self._rand.random() < 0.5 else {},
            holds_up_s=lambda: 0.05 * self._rand.random() if slow else 0.0,
        )
        self._begin(stream, self._main)
        if self._rand.random() < 0.3:
            ahead = self._checks.model.revision + self._rand.randint(0, 10)
            self._begin(stream, _Watch(f"{self.name}+", b"k", ahead, 0))

    def _begin(self, stream: SimStream, watch: _Watch) -> None:
        """Ids are never used again, so that what is still on its way for an old one is told apart."""
        self._ids += 1
        watch.id, watch.created, watch.canceling = self._ids, False, False
        self._watches[watch.id] = watch
        create = WatchCreateRequest(
            watch_id=watch.id,
            key=watch.prefix,
            range_end=prefix_end(watch.prefix),
            start_revision=watch.after + 1,
            prev_kv=True,
            progress_notify=self._rand.random() < 0.7,
        )
        stream.send(WatchRequest(create_request=create))

    def _ended(self, said: StatusError | None) -> None:
        if said is not None and said.code is not Code.UNAVAILABLE:
            self._rpc.scheduler.fail(said)
        self._stream = None

    def _take(self, stream: SimStream, response: Any) -> None:
        try:
            self._told(stream, response)
        except ViolationError as error:
            self._rpc.scheduler.fail(error)

    def _told(self, stream: SimStream, response: WatchResponse) -> None:
        if response.watch_id == -1 and not response.canceled:
            self.progress_told += 1
            for watch in self._watches.values():
                if watch.created:
                    self._saw(watch, response)
            return
        known = self._watches.get(response.watch_id)
        if known is None:
            raise ViolationError(f"watch {self.name}: {response} is of no watch of this stream")
        if response.created:
            if known.created or response.canceled:
                raise ViolationError(f"watch {known.name}: {response} does not begin it")
            known.created = True
        elif not known.created:
            raise ViolationError(f"watch {known.name} is told of {response} before it was created")
        elif response.canceled:
            self._canceled(stream, known, response)
        else:
            self._saw(known, response)

    def _canceled(self, stream: SimStream, watch: _Watch, response: WatchResponse) -> None:
        del self._watches[watch.id]
        if response.compact_revision:
            self._checks.watches.told_of_compaction(watch.name, watch.after, response.compact_revision)
            watch.after = response.compact_revision - 1
        elif not watch.canceling:
            raise ViolationError(f"watch {watch.name} was ended by its replica: {response}")
        self.canceled += 1
        if watch is self._main:
            self._begin(stream, watch)

    def _saw(self, watch: _Watch, response: WatchResponse) -> None:
        until = max(watch.after, response.header.revision)
        self._checks.watches.saw(watch.name, watch.prefix, watch.after, until, response.events)
        if watch is self._main:
            self.on_events(response.events)
        watch.after = until
        self._rpc.scheduler.note("saw", watch.name, until)
