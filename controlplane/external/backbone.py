"""External: a control-plane process on an etcd cluster of its own standing. See ``controlplane.backbone.Backbone``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
from prometheus_client.registry import Collector

from controlplane.base.clock import Clock
from controlplane.base.health import Check
from controlplane.base.rand import Rand
from controlplane.etcd.compactor import Compactor
from controlplane.external.cell import ExternalCell
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.external.operator import ExternalOperator
from controlplane.external.peers import SERVICE_NAME
from controlplane.pb.quarterdeck.internal.v1 import peers_pb2, peers_pb2_grpc
from controlplane.pb.quarterdeck.v1 import api_pb2, operator_pb2_grpc
from controlplane.transport.tls import Reloader

__all__ = ["External"]

#: After the lease of a dead leader: etcd looks for expired leases twice a second, and somebody has to be elected.
_FAILOVER_MS: Final = 1_500


class External:
    """See the module. ``client`` and ``metrics`` are this process's own addresses, as others reach them."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        name: str,
        client: str,
        metrics: str,
        clock: Clock,
        rand: Rand,
        tls: Reloader | None = None,
    ) -> None:
        self._clock = clock
        self._connection = Connection(config, clock=clock, rand=rand)
        self.kv = RemoteKV(self._connection, clock=clock, rand=rand)
        self.cell = ExternalCell(
            self.kv,
            peers_pb2.RosterEntry(name=name, client_endpoint=client, metrics_endpoint=metrics),
            store_endpoints=config.endpoints,
            ttl_s=config.lease_ttl_s,
            clock=clock,
            rand=rand,
            credentials=tls,
        )
        self.services: Sequence[str] = (SERVICE_NAME,)
        self.versions: Mapping[str, str] = {}
        self.collectors: Sequence[Collector] = ()
        self.ready_checks: Mapping[str, Check] = {}
        self.live_checks: Mapping[str, Check] = {}
        self.log_index: Callable[[], int] | None = None
        self.isolation_ms = config.lease_ttl_s * 1000 + _FAILOVER_MS
        self.has_data = False
        self._failed: asyncio.Future[BaseException] | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed

    def routes(self) -> Iterable[Any]:
        return ()

    def add_services(self, server: grpc.aio.Server) -> None:
        """No etcd API: whoever wants it speaks to the etcd cluster itself."""
        peers_pb2_grpc.add_PeersServicer_to_server(self.cell.peers, server)
        operator_pb2_grpc.add_OperatorServicer_to_server(ExternalOperator(self.cell, self._clock), server)

    async def start(self) -> None:
        """Take part; an etcd out of reach is waited for."""
        self._running = asyncio.get_running_loop().create_task(self.cell.run(), name="store")
        self._running.add_done_callback(self._ended)

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.cell.close()

    async def close(self) -> None:
        await self._connection.close()

    async def take_charge(self, term: int) -> api_pb2.Fence:
        """Winning wrote the leader key already: nothing is left to do."""
        return self.cell.fence(term)

    async def keep_house(self) -> None:
        """Compact the store, as a kube-apiserver does."""
        await Compactor(self.kv, self._clock).run()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self.failed.done():
            self.failed.set_result(task.exception() or RuntimeError("the part on the store ended"))
