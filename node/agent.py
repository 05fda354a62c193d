"""The agent: wires its parts, runs them, and stops them in order. Owns nothing but the order.

Start: lock the state directory, bind both ports, let the runtime find what runs, adopt it, then look for a replica.
Pods are supervised from that moment on, with or without a control plane.

Stop: the pods are ended (unless ``leave_pods``), their last statuses are given to a replica if one takes them within a
second, goodbye is said, the ports close. A second signal skips what is left of the pods' grace.

kill -9 of the agent leaves its pods running, so that a new agent can adopt them and nobody loses service by it.
Whoever wants agent and pods gone together kills the process groups in the pods' records as well.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from controlplane.base.aio import run_until_first
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError
from controlplane.base.http import ObservabilityServer
from controlplane.base.identity import node
from controlplane.base.rand import Rand
from controlplane.client.events import EventRecorder
from controlplane.client.grpc_client import GrpcClient
from controlplane.client.tls import Reloader
from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.quarterdeck.v1.node_pb2 import Assignments, Goodbye, Hello, Welcome
from node import metrics
from node.config import AgentConfig
from node.container_config import ApiConfigMaps, ContainerConfigs
from node.layout import Layout
from node.node_object import node_object
from node.pod_routes import make_local
from node.pod_scope import WorkerDeps
from node.podips import PodIPs
from node.pods import NodePods
from node.probes import RealProber
from node.proxy.userspace import UserspaceProxy
from node.runtime.base import Runtime
from node.runtime.process import ProcessRuntime
from node.server import AgentServer
from node.session import NodeSession

__all__ = ["Agent", "Proxy"]

log = logging.getLogger("quarterdeck.agent")

PROTOCOL_VERSION: Final = 1
_HOUSEKEEPING_S: Final = 5.0
_SETTLE_S: Final = 1.0
_GOODBYE_S: Final = 1.5


class Proxy(Protocol):
    """What serves Service addresses on this node."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Agent:
    """One node agent.

    Args:
        config: validated.
        runtime: what runs containers; None is the process runtime.
    """

    def __init__(self, config: AgentConfig, *, clock: Clock, rand: Rand, runtime: Runtime | None = None) -> None:
        self._config = config
        self._clock = clock
        self._boot_id = rand.token(8).hex()
        self._layout = Layout(config.state_dir)
        self._lock_fd = -1
        self.runtime: Runtime = runtime or ProcessRuntime(self._layout, clock=clock, rand=rand)
        self._tls = Reloader(config.tls, clock=clock) if config.tls is not None else None
        if self._tls is not None and self._tls.identity != node(config.name):
            raise ConfigError(
                f"{self._tls.files.cert} is the certificate of {self._tls.identity}, not of {config.name}"
            )
        self._client = GrpcClient(
            config.endpoints, field_manager=f"node/{config.name}", credentials=self._tls, clock=clock, rand=rand
        )
        self._events = EventRecorder(self._client, "kubelet", host=config.name, clock=clock, rand=rand)
        self._prober = RealProber(self.runtime)
        self._ips = PodIPs(self._layout.root / "podips.json")
        self.session = NodeSession(
            config.endpoints, self, clock=clock, rand=rand, credentials=self._tls, discover=config.discover
        )
        configs = ContainerConfigs(
            self._layout, ApiConfigMaps(self._client), node_name=config.name, host_ip=config.host_ip
        )
        deps = WorkerDeps(
            runtime=self.runtime,
            configs=configs,
            prober=self._prober,
            clock=clock,
            events=self._events,
            host_ip=config.host_ip,
        )
        self.pods = NodePods(self._layout, deps, self._ips, report=self.session.report, drop=self.session.drop)
        self._server = AgentServer(self.pods, self.runtime, clock, self._tls)
        self._http = ObservabilityServer(config.metrics_listen, {"session": self._session_check})
        self._proxy: Proxy | None = None
        if config.proxy:
            self._proxy = UserspaceProxy(self._client, clock=clock, rand=rand, report=self._report_service)
        self._stop = asyncio.Event()

    # -- what the session asks and says ---------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(
            node_name=self._config.name,
            boot_id=self._boot_id,
            node=node_object(self._config, self.runtime, agent_port=self._server.port),
            running_pod_uids=self.pods.running_uids(),
            protocol_version=PROTOCOL_VERSION,
        )

    def welcomed(self, welcome: Welcome) -> None:
        if welcome.pod_cidr:
            try:
                self._ips.set_cidr(welcome.pod_cidr)
                self._route_pods()
            except (ValueError, OSError) as error:
                log.error("pod range not taken cidr=%s why=%s", welcome.pod_cidr, error)

    def assigned(self, assignments: Assignments) -> None:
        self.pods.assigned(assignments)

    # -- running --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin to stop; said again, hurry."""
        if self._stop.is_set():
            self.pods.hurry()
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`. Raises ConfigError when it cannot start; nothing is left behind then."""
        try:
            self._lock()
            self._route_pods()
            await self._server.start(self._config.listen)
            await self._http.start()
            await self.runtime.start()
            await self.pods.adopt()
            metrics.NODE_NAME.labels(self._config.name).set(1)
            log.info(
                "agent up name=%s listen_port=%d metrics_port=%d runtime=%s state=%s",
                self._config.name,
                self._server.port,
                self._http.port,
                self.runtime.name,
                self._layout.root,
            )
            if self._proxy is not None:
                await self._proxy.start()
            await self._work()
        finally:
            await self._close()

    async def _work(self) -> None:
        session = asyncio.get_running_loop().create_task(self.session.run())
        try:
            await run_until_first(
                _never_ends(session),
                self.pods.run(),
                self._housekeep(),
                self._events.run(),
                self._keep_certificate(),
                self._stop_asked(),
            )
            await self._end_pods(session)
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)

    async def _keep_certificate(self) -> None:
        if self._tls is not None:
            await self._tls.run()
        await self._stop.wait()

    async def _stop_asked(self) -> None:
        await self._stop.wait()

    async def _end_pods(self, session: asyncio.Task[None]) -> None:
        if self._config.leave_pods:
            log.info("stopping, pods are left running pods=%d", len(self.pods.running_uids()))
            await self.pods.abandon()
        else:
            log.info("stopping with pods=%d", len(self.pods.workers))
            await self.pods.shut_down(self._config.shutdown_grace_s)
        if self.session.connected:
            await self.session.settle(_SETTLE_S)
            self.session.say_goodbye(Goodbye(reason="the agent was asked to stop", drained=not self._config.leave_pods))
            await asyncio.wait({session}, timeout=_GOODBYE_S)

    async def _housekeep(self) -> None:
        last_s = self._clock.monotonic()
        while True:
            began_s = self._clock.monotonic()
            metrics.RELIST_INTERVAL_SECONDS.observe(began_s - last_s)
            last_s = began_s
            await self.pods.housekeep()
            await self.runtime.rotate_logs(self._config.log_bytes_max, self._config.log_files_max)
            metrics.SESSION_CONNECTED.set(1 if self.session.connected else 0)
            metrics.RELIST_SECONDS.observe(self._clock.monotonic() - began_s)
            await self._clock.sleep(_HOUSEKEEPING_S)

    async def _close(self) -> None:
        closers: list[Coroutine[Any, Any, None]] = [
            self._server.stop(),
            self._http.stop(),
            self._prober.close(),
            self.runtime.close(),
            self._client.close(),
        ]
        if self._proxy is not None:
            await self._proxy.stop()
        for closer in closers:
            await closer
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- inside --------------------------------------------------------------------------------------------------

    def _route_pods(self) -> None:
        """Before pods are adopted, and whenever the range is told. Raises ConfigError."""
        if self._config.pod_routes and self._ips.cidr:
            make_local(self._ips.cidr)

    def _lock(self) -> None:
        try:
            self._layout.root.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(self._layout.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._layout.prepare()
        except BlockingIOError as error:
            raise ConfigError(f"--state-dir {self._layout.root}: another agent is running on it") from error
        except OSError as error:
            raise ConfigError(f"--state-dir {self._layout.root}: {error.strerror or error}") from error

    def _session_check(self) -> str | None:
        if self.session.connected:
            return None
        return f"no session with any replica for {self.session.silent_s:.0f} s; the pods run on"

    def _report_service(self, service: Service, reason: str, message: str) -> None:
        self._events.event(service, "Warning", reason, message)


async def _never_ends(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)
