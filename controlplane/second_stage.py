"""What a replica can do without until it takes part: the HTTP port's server, controllers and scheduler.

Imported by ``app`` on a thread once the replica takes part, because what these need (aiohttp, numpy) costs as much
processor time as all the rest of a start: a replica that comes back votes, serves and acknowledges that much sooner.
So everything heavy that only they use belongs here, and nothing that is needed before may import it
(``tests/unit/test_start_imports.py``).

Owns the making of these parts and their life as one; knows no terms and no backbone: ``app`` says who leads.
"""

from __future__ import annotations

from collections.abc import Callable

from controlplane.api.session_table import SessionTable
from controlplane.base.clock import Clock
from controlplane.base.http import ObservabilityServer
from controlplane.base.rand import Rand
from controlplane.client.caches import Caches, EventSink
from controlplane.client.interface import ApiClient
from controlplane.controllers.bundle import all_controllers
from controlplane.controllers.manager import ControllerManager
from controlplane.controllers.nodelifecycle import NodeLifecycle
from controlplane.controllers.nodelifecycle_decide import LifecycleConfig
from controlplane.controllers.state_metrics import ObjectMetrics
from controlplane.etcd import export, gateway
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.scheduler.scheduler import Scheduler

__all__ = ["LATER", "ObservabilityServer", "Workers"]

#: Imported here for those who import them when they are used: that must not keep the loop waiting.
LATER = (export, gateway)


class Workers:
    """The controllers and the scheduler of one replica: warm everywhere, at work while it leads.

    Args:
        client, caches, events: the API, the shared informers (the caller runs them) and where to report.
        sessions: what is known of every node's contact.
        replica_grace_s: see LifecycleConfig.
        leading: whether this replica leads, for its metrics.
    """

    def __init__(
        self,
        client: ApiClient,
        caches: Caches,
        *,
        events: EventSink,
        sessions: SessionTable,
        replica_grace_s: float,
        leading: Callable[[], bool],
        clock: Clock,
        rand: Rand,
    ) -> None:
        lifecycle = LifecycleConfig(replica_grace_s=replica_grace_s)
        factories = (*all_controllers(), lambda env: NodeLifecycle(env, sessions, lifecycle))
        self.controllers = ControllerManager(client, caches, factories, events=events, clock=clock, rand=rand)
        self.scheduler = Scheduler(client, caches, events=events, clock=clock, rand=rand)
        #: A collector of what the caches hold.
        self.metrics = ObjectMetrics(caches, leading)

    async def lead(self, fence: api_pb2.Fence) -> None:
        """Begin to work, every write behind this fence."""
        await self.controllers.lead(fence)
        await self.scheduler.lead(fence)

    async def stop_leading(self) -> None:
        """End all work. Safe when there is none."""
        await self.controllers.stop_leading()
        await self.scheduler.stop_leading()
