"""The composition root: the only place that knows every part of a replica and wires them.

One process, one loop: the backbone (Raft and store, or an external etcd), gRPC services, informers, controllers and
scheduler. Controllers and scheduler are warm everywhere and work only on the leader, behind the fence of its term.

Start order: ports bound, backbone, client port serving; and when the replica takes part, the second stage
(``second_stage``): HTTP port serving, informers, controllers and scheduler. Stop order: not ready, controllers and
scheduler, leadership handed over, client port, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import TYPE_CHECKING, Any

import uvloop
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

from controlplane.api import service as api_service
from controlplane.api.logs import AgentLogs
from controlplane.api.server import ApiServer
from controlplane.api.sessions import SessionConfig, Sessions
from controlplane.backbone import backbone_of
from controlplane.base import failpoints
from controlplane.base.addresses import split_address
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError, QuarterdeckError, StatusError
from controlplane.base.garbage import GarbageCollector
from controlplane.base.health import KUBERNETES
from controlplane.base.http_listener import bind
from controlplane.base.identity import member
from controlplane.base.rand import SystemRand
from controlplane.base.stalls import GcPauses, watch_loop
from controlplane.client.charge import WAITED_OUT
from controlplane.client.events import EventRecorder
from controlplane.client.inprocess import InProcessClient
from controlplane.client.shared import SharedInformers
from controlplane.config import ReplicaConfig
from controlplane.etcd import metrics as etcd_metrics
from controlplane.joining import find_place
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import node_pb2_grpc
from controlplane.raft.founding import Founding
from controlplane.supervision import health_port, supervise
from controlplane.transport import server as grpc_server
from controlplane.transport.authorization import AuthorizationInterceptor
from controlplane.transport.tls import Reloader, TlsFiles, server_context

if TYPE_CHECKING:
    from controlplane.second_stage import ObservabilityServer, Workers

__all__ = ["App", "run"]

log = logging.getLogger("quarterdeck.app")

_SERVICES = (
    "quarterdeck.v1.Resources",
    "quarterdeck.v1.Nodes",
    "quarterdeck.v1.Operator",
)
_READ_CHECK_TIMEOUT_MS = 2_000
_BOOTSTRAP_RETRY_S = 0.5
_SERVER_GRACE_S = 0.3
#: How long the parts of the second stage are held back for the first election.
_TAKING_PART_MS = 1_000
#: What agents need to move from a replica that lets them go to another, and to be heard of there.
_MOVING_S = 2.0


class _Hangup(asyncio.Protocol):
    """Of who speaks HTTP/1 to the client port before that is served."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _second_stage() -> ModuleType:
    from controlplane import second_stage

    return second_stage


class App:
    """One replica, wired. ``await start()``, then :meth:`wait`, then ``await stop()``."""

    def __init__(self, config: ReplicaConfig, *, had_data: bool = False, place: Founding | None = None) -> None:
        """``had_data``: an earlier life in this process had its data in the directory. ``place``: see find_place."""
        self._config = config
        self._led_term: int | None = None
        clock, rand = SystemClock(), SystemRand()
        self._clock = clock
        self.tls = Reloader(config.tls, clock=clock) if config.tls is not None else None
        if self.tls is not None and self.tls.identity != member(config.name):
            raise ConfigError(f"{self.tls.files.cert} is the certificate of {self.tls.identity}, not of {config.name}")
        self.backbone = backbone_of(config, had_data=had_data, place=place, clock=clock, rand=rand, tls=self.tls)
        self.kv, self.cell = self.backbone.kv, self.backbone.cell
        self.logs = AgentLogs(self.tls)
        self.api = ApiServer(self.kv, clock=clock, rand=rand, service_cidr=config.service_cidr, logs=self.logs)
        self.client = InProcessClient(self.api, clock=clock, rand=rand)
        self.informers = SharedInformers(self.client, clock=clock, rand=rand)
        self.sessions = Sessions(
            self.api,
            self.kv,
            self.cell,
            self.informers.of(Pod),
            config=SessionConfig(
                cluster_cidr=config.cluster_cidr,
                service_cidr=config.service_cidr,
                heartbeat_interval_ms=config.node_heartbeat_ms,
                isolation_ms=self.backbone.isolation_ms,
            ),
            clock=clock,
            rand=rand,
        )
        self.recorder = EventRecorder(self.client, component="quarterdeck", host=config.name, clock=clock, rand=rand)
        self._rand = rand
        self._workers: Workers | None = None
        self._staffed = asyncio.Event()
        self._gc_pauses = GcPauses(clock)
        self._garbage = GarbageCollector(clock)
        self._http_socket: socket.socket | None = None
        self._http: ObservabilityServer | None = None
        guard = [AuthorizationInterceptor()] if self.tls is not None else []
        self._server = grpc_server.new_server(
            grpc_server.ServerOptions(front=config.grpc_front),
            clock=clock,
            interceptors=guard,
            http1=self._http_connection,
        )
        self._services = (*self.backbone.services, *_SERVICES)
        self._health = grpc_server.Health(self._server, self._services)
        self._reign: asyncio.Task[None] | None = None
        self._leadership_changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[BaseException] | None = None
        self._caches_synced = False
        self._stopping = False
        self._collectors: list[Collector] = []

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the ports, recover the state, take part.

        Raises:
            ConfigError: an address or the data directory cannot be used.
            CorruptStateError, StorageError: the data directory's contents or disk.
        """
        self._broken = asyncio.get_running_loop().create_future()
        self.backbone.add_services(self._server)
        api_service.add_services(self._server, self.api, log_index=self.backbone.log_index)
        node_pb2_grpc.add_NodesServicer_to_server(self.sessions, self._server)
        grpc_server.add_reflection(self._server, self._services)
        self.cell.on_leadership(self._on_leadership)
        grpc_server.listen(self._server, self._config.me.client, self.tls)
        self._http_socket = bind(*split_address(self._config.me.metrics))
        await self.backbone.start()
        for collector in (*self.backbone.collectors, etcd_metrics.ClientBytes(self._server)):
            self._collect(collector)
        await self._server.start()
        await self._health.set_serving(True)
        if self.tls is not None:
            self._spawn(self.tls.run(), "certificates")
        self._gc_pauses.start()
        self._spawn(watch_loop(self._clock), "loop-lag")
        self._spawn(self.sessions.run(), "sessions")
        self._spawn(self.recorder.run(), "events")
        self._spawn(self._govern(), "leadership")
        self._garbage.start()
        self._spawn(self._garbage.run(lambda: self._led_term is not None), "garbage")
        self._spawn(self._start_rest(), "second-stage")

    async def _start_rest(self) -> None:
        """The HTTP port, controllers and scheduler, once this replica takes part or has waited for that long enough."""
        with contextlib.suppress(StatusError):
            await self.cell.read_barrier(timeout_ms=_TAKING_PART_MS)
        # On a thread: the loop gets its turns between the interpreter's switches.
        stage = await asyncio.to_thread(_second_stage)
        await self._serve_http(stage.ObservabilityServer, body_bytes_max=stage.gateway.BODY_BYTES_MAX)
        workers: Workers = stage.Workers(
            self.client,
            self.informers,
            events=self.recorder,
            sessions=self.sessions.table,
            replica_grace_s=self.backbone.isolation_ms / 1000 + _MOVING_S,
            leading=lambda: self._led_term is not None,
            clock=self._clock,
            rand=self._rand,
        )
        self._collect(workers.metrics)
        self._spawn(self.informers.run(), "informers")
        self._spawn(self._note_synced(), "informers-synced")
        self._spawn(workers.controllers.run(), "controllers")
        self._spawn(workers.scheduler.run(), "scheduler")
        self._workers = workers
        self._staffed.set()
        self._garbage.keep()

    async def _serve_http(self, server: type[ObservabilityServer], *, body_bytes_max: int) -> None:
        http = server(
            self._config.me.metrics,
            routes=self.backbone.routes(),
            body_bytes_max=body_bytes_max,
            versions=self.backbone.versions,
            ready={
                "leader": self._check_leader,
                "linearizable_read": self._check_read,
                "caches": self._check_caches,
                **self.backbone.ready_checks,
            },
            live={"store": self._check_store, **self.backbone.live_checks},
            outcomes=(KUBERNETES, etcd_metrics.HEALTH),
            tls=self.tls.server("http/1.1") if self.tls is not None else None,
        )
        listening, self._http_socket = self._http_socket, None
        await http.start(listening)
        self._http = http

    def _http_connection(self) -> asyncio.BaseProtocol:
        return _Hangup() if self._http is None else self._http.connection()

    def _collect(self, collector: Collector) -> None:
        REGISTRY.register(collector)
        self._collectors.append(collector)

    @property
    def has_data(self) -> bool:
        """Whether its directory was seen to hold this member's data."""
        return self.backbone.has_data

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when ``stop`` is set.

        Raises:
            QuarterdeckError: the replica had to stop by itself.
        """
        assert self._broken is not None
        asked = asyncio.create_task(stop.wait())
        waited: set[asyncio.Future[Any]] = {asked, self.backbone.failed, self._broken}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        for failure in (self.backbone.failed, self._broken):
            if failure.done():
                error = failure.result()
                raise error if isinstance(error, QuarterdeckError) else QuarterdeckError(repr(error)) from error

    async def stop(self) -> None:
        """Leave in good order: nobody waits for us, our writes are answered."""
        self._stopping = True
        await self._health.set_serving(False)
        # Agents move before the port closes, and the leader is not told that their sessions broke.
        self.sessions.close()
        await self._end_reign()
        await self.backbone.stop()
        await self._server.stop(_SERVER_GRACE_S)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.logs.close()
        await self.backbone.close()
        if self._http is not None:
            await self._http.stop()
        if self._http_socket is not None:
            self._http_socket.close()
        self._garbage.stop()
        self._gc_pauses.stop()
        for collector in self._collectors:
            REGISTRY.unregister(collector)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run beside everything; its failure is the replica's (fail-stop)."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if task.cancelled() or self._stopping:
            return
        error = task.exception()
        if error is not None and self._broken is not None and not self._broken.done():
            log.critical("event=part-failed part=%s error=%r", task.get_name(), error, exc_info=error)
            self._broken.set_result(error)

    # -- leadership ------------------------------------------------------------------------------------------------

    def _on_leadership(self, term: int, leading: bool) -> None:
        """The word of the cell: remember it, and let :meth:`_govern` act."""
        self._led_term = term if leading else None
        self._leadership_changed.set()
        if self._reign is not None:
            self._reign.cancel()

    async def _govern(self) -> None:
        """One reign at a time: the next begins when the one before has ended, whatever was said in between."""
        while True:
            await self._leadership_changed.wait()
            self._leadership_changed.clear()
            term = self._led_term
            if term is None:
                continue
            self._reign = asyncio.get_running_loop().create_task(self._lead(term), name=f"reign-{term}")
            await asyncio.wait({self._reign})
            reign, self._reign = self._reign, None
            if not reign.cancelled():
                reign.result()  # a crash ends the replica

    async def _lead(self, term: int) -> None:
        """A reign; another begins in the same term when a restore has replaced what this one stood on."""
        while True:
            await self._rule(term)

    async def _rule(self, term: int) -> None:
        fence = await self.backbone.take_charge(term)
        log.info("event=leading name=%s term=%d fence=%d", self._config.name, term, fence.mod_revision)
        try:
            if not await self._bootstrap():
                return
            await self._staffed.wait()
            assert self._workers is not None
            await self._workers.lead(fence)
            await self.backbone.keep_house()
        finally:
            if self._workers is not None:
                await self._workers.stop_leading()

    async def _bootstrap(self) -> bool:
        """Whether the cluster has what every cluster has; False after a pause: the store refuses now, begin anew."""
        try:
            await self.api.bootstrap()
        except StatusError as error:
            if error.code not in WAITED_OUT:
                raise
            log.warning("event=bootstrap-failed reason=%s", error.message)
            await self._clock.sleep(_BOOTSTRAP_RETRY_S)
            return False
        return True

    async def _end_reign(self) -> None:
        self._led_term = None
        reign = self._reign
        if reign is not None:
            reign.cancel()
            await asyncio.wait({reign})

    # -- health ----------------------------------------------------------------------------------------------------

    async def _note_synced(self) -> None:
        await self.informers.wait_synced()
        self._caches_synced = True

    def _check_store(self) -> str | None:
        failed = self.backbone.failed
        return f"stopped: {failed.result()}" if failed.done() else None

    def _check_leader(self) -> str | None:
        if self._stopping:
            return "the replica is stopping"
        status = self.cell.status()
        return None if status.leader else f"no leader in term {status.term}"

    async def _check_read(self) -> str | None:
        try:
            await self.cell.read_barrier(timeout_ms=_READ_CHECK_TIMEOUT_MS)
        except StatusError as error:
            return error.message
        return None

    def _check_caches(self) -> str | None:
        return None if self._caches_synced else "informers have not had their first list"


def run(config: ReplicaConfig) -> None:
    """Run one replica until SIGTERM or SIGINT. A disk that refuses closes it until the disk does not.

    Raises:
        QuarterdeckError: it could not start, or had to stop by itself; the message says why.
    """
    failpoints.arm_from_environment()
    if failpoints.FILE_VARIABLE in os.environ and not os.environ.get(failpoints.VARIABLE):
        failpoints.arm_from_file()
    uvloop.run(_run(config))


def _outage_tls(files: TlsFiles) -> Callable[[], ssl.SSLContext]:
    return lambda: server_context(files, protocols=("http/1.1",))


async def _run(config: ReplicaConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if failpoints.FILE_VARIABLE in os.environ:
        loop.add_signal_handler(signal.SIGUSR2, failpoints.arm_from_file)
    credentials = Reloader(config.tls) if config.tls is not None else None
    finding = loop.create_task(find_place(config, clock=SystemClock(), credentials=credentials))
    stopped = loop.create_task(stop.wait())
    await asyncio.wait({finding, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not finding.done():  # told to stop while nobody answered
        finding.cancel()
        return
    place = finding.result()
    await supervise(
        lambda had_data: App(config, had_data=had_data, place=place),
        stop,
        outage=health_port(config.me.metrics, None if config.tls is None else _outage_tls(config.tls)),
        free_bytes=lambda: shutil.disk_usage(config.data_dir).free,
        clock=SystemClock(),
    )
    log.info("event=stopped name=%s", config.name)
