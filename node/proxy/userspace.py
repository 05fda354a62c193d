"""The userspace proxy: keeps one listener per Service address in step with Services and EndpointSlices.

Every agent serves every VIP. Agents of one host bind the same address with SO_REUSEPORT, and the kernel spreads
connections over them; an agent's death takes only its own listener away. Endpoints of Suspect nodes leave because the
EndpointSlice controller marks them not ready; there is no second path.

Invariants: a frontend's listener lives as long as some Service claims the address; a change of endpoints never touches
a listener; a port that cannot be bound is said in an event on the Service, tried again every few seconds, and stops
nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Protocol

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.informer import Informer
from controlplane.client.interface import ApiClient
from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from node.proxy import metrics
from node.proxy.balancer import Balancer
from node.proxy.table import Frontend, ServicePort, build
from node.proxy.tcp import TcpFrontend
from node.proxy.udp import UdpFrontend

__all__ = ["Reporter", "UserspaceProxy"]

log = logging.getLogger("quarterdeck.proxy")

_RETRY_S = 5.0
#: What requests under way get when the agent stops.
DRAIN_S = 0.5


class Reporter(Protocol):
    """Where the proxy tells of a Service it cannot serve (the agent's event recorder)."""

    def __call__(self, service: Service, reason: str, message: str) -> None: ...


class UserspaceProxy:
    """All Service addresses, served by this process.

    Args:
        client: the resource API.
        report: called with (service, reason, message) when an address cannot be served.
    """

    def __init__(self, client: ApiClient, *, clock: Clock, rand: Rand, report: Reporter) -> None:
        self._clock = clock
        self._rand = rand
        self._report = report
        self._services = Informer(client, Service, clock=clock, rand=rand)
        self._slices = Informer(client, EndpointSlice, clock=clock, rand=rand)
        self._frontends: dict[Frontend, TcpFrontend | UdpFrontend] = {}
        self._refused: dict[Frontend, str] = {}
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow the API and serve; returns at once."""
        self._services.on_change(lambda _old, _new: self._dirty.set())
        self._slices.on_change(lambda _old, _new: self._dirty.set())
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._services.run()),
            loop.create_task(self._slices.run()),
            loop.create_task(self._run()),
        ]

    async def stop(self) -> None:
        """Close every listener, and every connection once it is done or :data:`DRAIN_S` have passed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(frontend.stop(DRAIN_S) for frontend in self._frontends.values()))
        self._frontends.clear()

    async def _run(self) -> None:
        # Both caches first: a Service without its endpoints yet would refuse connections it could serve.
        await self._services.wait_synced()
        await self._slices.wait_synced()
        while True:
            self._dirty.clear()
            with metrics.SYNC_SECONDS.time():
                await self._sync()
            if self._refused:
                waiter = asyncio.create_task(self._dirty.wait())
                sleeper = asyncio.create_task(self._clock.sleep(_RETRY_S))
                try:
                    await asyncio.wait({waiter, sleeper}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter.cancel()
                    sleeper.cancel()
            else:
                await self._dirty.wait()

    async def _sync(self) -> None:
        table = build(self._services.list(), self._slices.list())
        for frontend in [f for f in self._frontends if f not in table]:
            await self._frontends.pop(frontend).stop()
            log.info("event=closed frontend=%s:%d/%s", frontend.ip, frontend.port, frontend.protocol)
        self._refused = {f: why for f, why in self._refused.items() if f in table}
        for frontend, wanted in table.items():
            running = self._frontends.get(frontend) or await self._open(frontend, wanted)
            if running is not None:
                running.balancer.update(wanted.endpoints, wanted.affinity_s)
        for protocol in ("TCP", "UDP"):
            count = sum(f.protocol == protocol for f in self._frontends)
            metrics.FRONTENDS.labels(protocol).set(count)

    async def _open(self, frontend: Frontend, wanted: ServicePort) -> TcpFrontend | UdpFrontend | None:
        balancer = Balancer(self._rand.randint(0, 1_000_000))
        balancer.update(wanted.endpoints, wanted.affinity_s)
        kind = TcpFrontend if frontend.protocol == "TCP" else UdpFrontend
        running = kind(frontend.ip, frontend.port, balancer, self._clock)
        try:
            await running.start()
        except OSError as error:
            self._refuse(frontend, wanted, error)
            return None
        self._refused.pop(frontend, None)
        self._frontends[frontend] = running
        log.info(
            "event=listening frontend=%s:%d/%s service=%s/%s",
            frontend.ip, frontend.port, frontend.protocol, wanted.namespace, wanted.service,
        )  # fmt: skip
        return running

    def _refuse(self, frontend: Frontend, wanted: ServicePort, error: OSError) -> None:
        address = f"{frontend.ip}:{frontend.port}/{frontend.protocol}"
        if error.errno in {errno.EACCES, errno.EPERM}:
            why = f"cannot listen on {address}: the port needs privileges; choose one above 1023 or run agents as root"
        elif error.errno == errno.EADDRINUSE:
            why = f"cannot listen on {address}: another program uses it"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = f"cannot listen on {address}: not an address of this host (VIPs of this proxy are 127.x)"
        else:
            why = f"cannot listen on {address}: {error.strerror or error}"
        if self._refused.get(frontend) == why:
            return
        self._refused[frontend] = why
        log.warning("event=refused frontend=%s reason=%s", address, why)
        service = self._services.get(wanted.service, wanted.namespace)
        if service is not None:
            self._report(service, "ListenFailed", why)
