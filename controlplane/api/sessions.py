"""Node sessions: the replica's end of ``quarterdeck.v1.Nodes.Session``. One stream per node agent.

Owns the sessions this replica holds and the report of all of them to the leader. Must not know what follows from
silence: it gathers evidence (:class:`~controlplane.api.session_table.SessionTable`), ``controllers.nodelifecycle``
judges.

* Heartbeats touch memory only. The leader gets one report a replica: regularly, and at once when a session opens or
  closes, so a broken session is known to the leader within milliseconds.
* Pods come from the one pod cache the replica has anyway; a session costs no watch of its own.
* A replica that did not run for a while (paused, swapped) has not listened: it counts nobody's silence for that time.
* A replica that cannot reach a leader lets its agents go to one that can; the leader would count their silence else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from controlplane.api import metrics_sessions as metrics
from controlplane.api.calls import ResourceCalls
from controlplane.api.cell import Cell
from controlplane.api.node_access import check_node_session
from controlplane.api.node_registration import NodeRegistration
from controlplane.api.node_session import NodeSession, Send
from controlplane.api.pod_status import PodStatusWriter
from controlplane.api.podcidr import PodCIDRs
from controlplane.api.session_table import SessionTable
from controlplane.base.aio import run_until_first, wait_event
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.internal.v1 import sessions_pb2
from controlplane.pb.quarterdeck.v1 import node_pb2, node_pb2_grpc
from controlplane.store.kv import KVStore
from controlplane.transport.callers import caller_of
from controlplane.transport.tls import Identity

__all__ = ["PROTOCOL_VERSION", "SESSIONS_CHANNEL", "PodCache", "SessionConfig", "Sessions"]

log = logging.getLogger("quarterdeck.sessions")

#: Channel of the reports between replicas.
SESSIONS_CHANNEL: Final = "sessions"
#: Version of the session protocol this replica speaks; an agent's may be lower, not higher.
PROTOCOL_VERSION: Final = 1
#: A wait that ends this much too late means that this process did not run.
_LATE_S: Final = 0.5


class PodCache(Protocol):
    """The replica's cache of all pods (an ``Informer[Pod]``), as far as sessions need it."""

    def on_change(self, handler: Callable[[Pod | None, Pod | None], None], /) -> None: ...

    def on_relist(self, handler: Callable[[], None], /) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Settings of node sessions.

    Attributes:
        cluster_cidr: the pods' addresses; each node gets a /24 of it.
        service_cidr: told to agents, for their proxies.
        heartbeat_interval_ms: told to agents. Halving it doubles what idle agents cost.
        report_interval_ms: longest time between two reports to the leader.
        report_gap_ms: shortest; bounds what a wave of reconnecting agents costs.
        isolation_ms: without a delivered report for this long, agents are sent to other replicas. Longer than an
            election, shorter than the leader's patience with a silent replica.
        idle_max_ms: a session silent for this long is closed (its connection is dead and nobody told us).
        departure_ms: how long a goodbye is repeated to the leader.
        release_ms: how long a session that this replica ended itself is still reported: what agents need to move.
    """

    cluster_cidr: str = "127.128.0.0/16"
    service_cidr: str = "127.96.0.0/16"
    heartbeat_interval_ms: int = 500
    report_interval_ms: int = 500
    report_gap_ms: int = 20
    isolation_ms: int = 1_500
    idle_max_ms: int = 10_000
    departure_ms: int = 10_000
    release_ms: int = 2_000


class Sessions(node_pb2_grpc.NodesServicer):
    """All node sessions of this replica. Register it as the ``Nodes`` service and keep :meth:`run` running."""

    def __init__(
        self,
        api: ResourceCalls,
        kv: KVStore,
        cell: Cell,
        pods: PodCache,
        *,
        config: SessionConfig,
        clock: Clock,
        rand: Rand,
    ) -> None:
        self._api = api
        self._cell = cell
        self._config = config
        self._clock = clock
        self._registration = NodeRegistration(api, PodCIDRs(kv, config.cluster_cidr), clock)
        self._statuses = PodStatusWriter(api, clock)
        self._reporter = _Reporter(cell, self._report, config, clock)
        self._boot_id = rand.token(8).hex()
        self._sequence = 0
        self._sessions: dict[str, NodeSession] = {}
        self._departures: dict[str, tuple[float, sessions_pb2.Departure]] = {}
        self._released: dict[str, tuple[float, NodeSession]] = {}
        self._closing = False
        #: What the leader knows of every node's contact; evidence only while this replica leads.
        self.table = SessionTable()
        pods.on_change(self._pod_changed)
        pods.on_relist(self._relisted)
        cell.serve(SESSIONS_CHANNEL, self._hear)
        cell.on_leadership(self._leadership_changed)

    @property
    def open_nodes(self) -> Sequence[str]:
        """The nodes whose sessions this replica holds."""
        return tuple(self._sessions)

    # -- one session -----------------------------------------------------------------------------------------------

    async def Session(  # type: ignore[override]  # noqa: N802 - grpc allows both styles, its types one
        self,
        request_iterator: AsyncIterator[node_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """The RPC, in the style of writing to the context, so that the writer may wait for flow control."""
        await self.serve(request_iterator, context.write, caller_of(context))

    async def serve(
        self, requests: AsyncIterator[node_pb2.AgentMessage], send: Send, caller: Identity | None = None
    ) -> None:
        """Hold one session until it ends. With a ``caller`` it must be that of the node the certificate names.

        Raises:
            StatusError: why it was refused or ended; the agent goes to another replica on UNAVAILABLE.
        """
        hello = await self._hello(requests)
        check_node_session(caller, hello.node_name)
        if self._closing:
            raise StatusError(Code.UNAVAILABLE, "this replica is shutting down: try another")
        session = NodeSession(hello.node_name, hello.boot_id, api=self._api, statuses=self._statuses, clock=self._clock)
        self._open(session)
        reason = "closed"
        try:
            await run_until_first(session.closed(), self._talk(session, hello, requests, send))
            reason = "goodbye" if session.goodbye is not None else "closed"
        except StatusError as error:
            reason = error.code.name.lower()
            raise
        finally:
            self._close(session, reason)

    async def _talk(
        self,
        session: NodeSession,
        hello: node_pb2.Hello,
        requests: AsyncIterator[node_pb2.AgentMessage],
        send: Send,
    ) -> None:
        async def welcome() -> node_pb2.Welcome:
            return self._welcome((await self._registration.register(hello)).spec.podCIDR)

        await session.run(welcome, requests, send)

    async def _hello(self, requests: AsyncIterator[node_pb2.AgentMessage]) -> node_pb2.Hello:
        async for message in requests:
            if message.WhichOneof("message") != "hello":
                raise StatusError(Code.INVALID_ARGUMENT, "the first message of a node session must be hello")
            if message.hello.protocol_version > PROTOCOL_VERSION:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"the agent speaks session protocol {message.hello.protocol_version}, this replica at most "
                    f"{PROTOCOL_VERSION}: upgrade the replicas before the agents",
                )
            return message.hello
        raise StatusError(Code.CANCELLED, "the agent closed the stream without a hello")

    def _welcome(self, pod_cidr: str) -> node_pb2.Welcome:
        status = self._cell.status()
        return node_pb2.Welcome(
            replica=status.name,
            pod_cidr=pod_cidr,
            service_cidr=self._config.service_cidr,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            endpoints=[member.client_endpoint for member in status.members if member.client_endpoint],
            cluster_id=f"{status.cluster_id:016x}",
        )

    def _open(self, session: NodeSession) -> None:
        former = self._sessions.get(session.node_name)
        if former is not None:
            former.close(StatusError(Code.ABORTED, f"node {session.node_name!r} opened a newer session"))
        self._sessions[session.node_name] = session
        self._departures.pop(session.node_name, None)
        self._released.pop(session.node_name, None)
        metrics.OPEN.set(len(self._sessions))
        log.info("event=session_opened node=%s boot_id=%s", session.node_name, session.boot_id)
        self._reporter.at_once()

    def _close(self, session: NodeSession, reason: str) -> None:
        metrics.ENDS.labels(reason).inc()
        log.info("event=session_closed node=%s boot_id=%s reason=%s", session.node_name, session.boot_id, reason)
        if self._sessions.get(session.node_name) is not session:
            return
        del self._sessions[session.node_name]
        metrics.OPEN.set(len(self._sessions))
        now_s = self._clock.monotonic()
        if session.sent_away:
            self._released[session.node_name] = (now_s + self._config.release_ms / 1000, session)
        elif session.goodbye is not None:
            departure = sessions_pb2.Departure(
                node_name=session.node_name, boot_id=session.boot_id, drained=session.goodbye.drained
            )
            self._departures[session.node_name] = (now_s + self._config.departure_ms / 1000, departure)
        self._reporter.at_once()

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new if new is not None else old
        session = self._sessions.get(pod.spec.nodeName) if pod is not None else None
        if session is not None:
            session.pod_changed(old, new)

    def _relisted(self) -> None:
        """The state may have been replaced by a snapshot's, in which nodes may lack and pods be older: begin anew in
        every session, without breaking any."""
        log.info("event=sessions_renewed sessions=%d", len(self._sessions))
        for session in self._sessions.values():
            session.renew()

    # -- reports ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Report to the leader until cancelled or closed."""
        while not self._closing:
            stalled = await self._reporter.wait()
            now_s = self._clock.monotonic()
            if stalled:
                metrics.STALLS.inc()
                log.warning("event=stalled sessions=%d: not counting the silence of any node", len(self._sessions))
                for session in self._sessions.values():
                    session.last_heard_s = now_s
                self.table.arm(now_s)
            self._close_idle(now_s)
            if self._closing:
                return
            if not await self._reporter.deliver():
                self._send_away("this replica cannot reach a leader: try another")

    def close(self) -> None:
        """This replica stops: send all agents to others, take no more, and report nothing more, so that the leader
        gives them the time it gives the agents of a dead replica."""
        self._closing = True
        self._send_away("this replica is shutting down: try another")

    def _send_away(self, why: str) -> None:
        for session in list(self._sessions.values()):
            session.sent_away = True
            session.close(StatusError(Code.UNAVAILABLE, why))

    def _close_idle(self, now_s: float) -> None:
        for session in list(self._sessions.values()):
            if now_s - session.last_heard_s > self._config.idle_max_ms / 1000:
                session.close(
                    StatusError(Code.DEADLINE_EXCEEDED, f"no message for {self._config.idle_max_ms} ms: connect again")
                )

    def _report(self) -> sessions_pb2.SessionReport:
        now_s = self._clock.monotonic()
        self._sequence += 1
        self._departures = {name: d for name, d in self._departures.items() if d[0] > now_s}
        self._released = {name: r for name, r in self._released.items() if r[0] > now_s}
        return sessions_pb2.SessionReport(
            replica=self._cell.status().name,
            replica_boot_id=self._boot_id,
            sequence=self._sequence,
            sessions=[
                sessions_pb2.OpenSession(
                    node_name=session.node_name,
                    boot_id=session.boot_id,
                    idle_ms=int((now_s - session.last_heard_s) * 1000),
                )
                for session in (*self._sessions.values(), *(released for _, released in self._released.values()))
            ],
            departures=[departure for _, departure in self._departures.values()],
        )

    async def _hear(self, peer: str, payload: bytes) -> bytes:
        try:
            report = sessions_pb2.SessionReport.FromString(payload)
        except DecodeError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"session report of {peer}: {error}") from error
        self.table.report(report, self._clock.monotonic())
        leading = self._cell.status().role == "leader"
        return sessions_pb2.SessionReportAck(leading=leading).SerializeToString()

    def _leadership_changed(self, term: int, leading: bool) -> None:
        if leading:
            self.table.arm(self._clock.monotonic())
        self._reporter.at_once()


class _Reporter:
    """When to report, to whom, and whether it arrives."""

    def __init__(
        self, cell: Cell, report: Callable[[], sessions_pb2.SessionReport], config: SessionConfig, clock: Clock
    ) -> None:
        self._cell = cell
        self._report = report
        self._clock = clock
        self._interval_s = config.report_interval_ms / 1000
        self._gap_s = config.report_gap_ms / 1000
        self._isolation_s = config.isolation_ms / 1000
        self._due = asyncio.Event()
        self._delivered_s = clock.monotonic()
        self._stalled = False

    def at_once(self) -> None:
        """Something changed: do not wait for the interval."""
        self._due.set()

    async def wait(self) -> bool:
        """Wait for the next report's time. True: this process did not run for much longer than that."""
        started_s = self._clock.monotonic()
        await self._clock.sleep(self._gap_s)
        await wait_event(self._due, self._clock, self._interval_s - self._gap_s)
        self._due.clear()
        now_s = self._clock.monotonic()
        stalled = self._stalled or now_s - started_s > self._interval_s + _LATE_S
        self._stalled = False
        if stalled:
            self._delivered_s = now_s
        return stalled

    async def deliver(self) -> bool:
        """Report once. False: nothing was delivered for so long that this replica must count as cut off."""
        leader = self._cell.status().leader
        result = "no_leader"
        started_s = self._clock.monotonic()
        if leader is not None:
            payload = self._report().SerializeToString()
            try:
                answer = await self._cell.call(
                    leader, SESSIONS_CHANNEL, payload, timeout_ms=int(self._interval_s * 1000)
                )
                leading = sessions_pb2.SessionReportAck.FromString(answer).leading
                result = "delivered" if leading else "not_leading"
            except StatusError as error:
                result = "failed"
                log.debug("event=report_failed leader=%s reason=%s", leader, error)
        metrics.REPORTS.labels(result).inc()
        now_s = self._clock.monotonic()
        self._stalled = now_s - started_s > self._interval_s + _LATE_S
        if result == "delivered":
            self._delivered_s = now_s
            return True
        self._due.set()  # again after the gap
        return now_s - self._delivered_s <= self._isolation_s
