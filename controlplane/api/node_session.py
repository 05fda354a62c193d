"""One node session from welcome to end. Owns the stream's two directions and nothing that outlives it.

Reading never waits for the store: statuses are stored by a task of their own. Writing sends the newest of everything:
one heartbeat acknowledgement, the differences of the assignments, the acknowledgements of stored statuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from controlplane.api import metrics_sessions as metrics
from controlplane.api.assignments import AssignmentLog
from controlplane.api.calls import ResourceCalls
from controlplane.api.errors import UnavailableError
from controlplane.api.pod_status import PodStatusWriter
from controlplane.base.aio import run_until_first, wait_event
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import api_pb2, node_pb2

__all__ = ["STATUS_BATCHES_MAX", "NodeSession", "Send"]

log = logging.getLogger("quarterdeck.sessions")

#: Status batches one agent may have waiting. An agent keeps what is not acknowledged, so it does not need more.
STATUS_BATCHES_MAX: Final = 256
_LIST_RETRY_S: Final = 0.1
_GOODBYE_DRAIN_S: Final = 5.0

Send = Callable[[node_pb2.ReplicaMessage], Awaitable[object]]


class NodeSession:
    """An agent's session on this replica."""

    def __init__(
        self, node_name: str, boot_id: str, *, api: ResourceCalls, statuses: PodStatusWriter, clock: Clock
    ) -> None:
        self.node_name = node_name
        self.boot_id = boot_id
        #: When a message last came, on this replica's monotonic clock.
        self.last_heard_s = clock.monotonic()
        #: Set when the agent said goodbye.
        self.goodbye: node_pb2.Goodbye | None = None
        #: Set when this replica ends the session for reasons of its own: no evidence against the node.
        self.sent_away = False
        self._api = api
        self._statuses = statuses
        self._clock = clock
        self._assignments = AssignmentLog()
        self._full: node_pb2.Assignments | None = None
        self._welcome: node_pb2.Welcome | None = None
        self._renewal = asyncio.Event()
        self._batches: deque[node_pb2.StatusBatch] = deque()
        self._batches_changed = asyncio.Event()
        self._batches_stored = asyncio.Event()
        self._batches_stored.set()
        self._heartbeat: int | None = None
        self._acks: deque[int] = deque()
        self._to_send = asyncio.Event()
        self._closed = asyncio.Event()
        self._close_error: StatusError | None = None

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """The replica's pod cache saw a change of one of this node's pods."""
        if self._assignments.changed(old, new):
            self._to_send.set()

    def close(self, error: StatusError) -> None:
        """End the stream with this error."""
        if self._close_error is None:
            self._close_error = error
            self._closed.set()

    async def closed(self) -> None:
        """Raise the error of :meth:`close` once it is called."""
        await self._closed.wait()
        if self._close_error is not None:
            raise self._close_error

    def renew(self) -> None:
        """The state was replaced: the node is registered, welcomed and told all its pods again, and says all it knows
        of them."""
        self._assignments = AssignmentLog()
        self._full = None
        self._renewal.set()

    async def run(
        self,
        welcome: Callable[[], Awaitable[node_pb2.Welcome]],
        requests: AsyncIterator[node_pb2.AgentMessage],
        send: Send,
    ) -> None:
        """Talk until the agent ends the stream. ``welcome`` registers the node. Raises what :meth:`close` was given, or
        StatusError."""
        await send(node_pb2.ReplicaMessage(welcome=await welcome()))
        await run_until_first(self._read(requests), self._write(send), self._list(welcome), self._store())

    async def _read(self, requests: AsyncIterator[node_pb2.AgentMessage]) -> None:
        async for message in requests:
            self.last_heard_s = self._clock.monotonic()
            match message.WhichOneof("message"):
                case "heartbeat":
                    self._heartbeat = message.heartbeat.sequence
                    self._to_send.set()
                case "statuses":
                    self._accept(message.statuses)
                case "goodbye":
                    self.goodbye = message.goodbye
                    await wait_event(self._batches_stored, self._clock, _GOODBYE_DRAIN_S)
                    return
                case other:
                    raise StatusError(
                        Code.INVALID_ARGUMENT, f"a node session takes heartbeat, statuses and goodbye here, not {other}"
                    )

    def _accept(self, batch: node_pb2.StatusBatch) -> None:
        if len(self._batches) >= STATUS_BATCHES_MAX:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                f"{STATUS_BATCHES_MAX} status batches wait already; send more when these are acknowledged",
            )
        metrics.STATUSES.inc(len(batch.reports))
        self._batches.append(batch)
        self._batches_stored.clear()
        self._batches_changed.set()

    async def _store(self) -> None:
        while True:
            while self._batches:
                # Taken off only when stored, so that the bound counts it.
                await self._statuses.store(self.node_name, self._batches[0].reports)
                self._acks.append(self._batches.popleft().sequence)
                self._to_send.set()
            self._batches_stored.set()
            self._batches_changed.clear()
            await self._batches_changed.wait()

    async def _list(self, welcome: Callable[[], Awaitable[node_pb2.Welcome]]) -> None:
        """Read the full list of assignments; then once more with each renewal, until cancelled."""
        renewed: node_pb2.Welcome | None = None
        while True:
            try:
                if self._renewal.is_set():
                    renewed = await welcome()
                    self._renewal.clear()
                assignments = self._assignments
                pods, revision = await self._list_once()
            except UnavailableError as error:
                log.info("assignments wait node=%s reason=%s", self.node_name, error)
                await self._clock.sleep(_LIST_RETRY_S)
                continue
            if assignments is not self._assignments:
                continue  # renewed meanwhile
            self._welcome, renewed = renewed, None
            self._full = assignments.start(pods, revision)
            self._to_send.set()
            await self._renewal.wait()

    async def _list_once(self) -> tuple[list[Pod], int]:
        # Linearizable: an older list could lack a pod that another replica told this agent of, and stop it.
        pods: list[Pod] = []
        request = api_pb2.ListRequest(resource="pods", field_selector=f"spec.nodeName={self.node_name}")
        while True:
            page = await self._api.list(request)
            pods.extend(item.pod for item in page.items)
            if not page.continue_token:
                return pods, int(page.resource_version)
            request.continue_token = page.continue_token

    async def _write(self, send: Send) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            if self._welcome is not None:
                renewed, self._welcome = self._welcome, None
                await send(node_pb2.ReplicaMessage(welcome=renewed))
            if self._full is not None:
                full, self._full = self._full, None
                await send(node_pb2.ReplicaMessage(assignments=full))
            while (delta := self._assignments.take()) is not None:
                await send(node_pb2.ReplicaMessage(assignments=delta))
            while self._acks:
                await send(node_pb2.ReplicaMessage(status_ack=node_pb2.StatusAck(sequence=self._acks.popleft())))
            if self._heartbeat is not None:
                sequence, self._heartbeat = self._heartbeat, None
                await send(node_pb2.ReplicaMessage(heartbeat_ack=node_pb2.HeartbeatAck(sequence=sequence)))
