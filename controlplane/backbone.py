"""What a control-plane process stands on: replicas that hold the state themselves, or an etcd cluster that does.

Owns the wiring of either kind (:class:`Embedded` here, :class:`~controlplane.external.backbone.External`), and nothing
of what stands on it: API, sessions, controllers and scheduler are the same on both.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from prometheus_client.registry import Collector

from controlplane import quarantine
from controlplane.api.cell import Cell
from controlplane.api.operator import OperatorService
from controlplane.base.clock import Clock
from controlplane.base.errors import StatusError
from controlplane.base.health import Check
from controlplane.base.rand import Rand
from controlplane.base.retention import parse_retention
from controlplane.client.charge import take_charge
from controlplane.config import ReplicaConfig
from controlplane.etcd import service as etcd_service
from controlplane.etcd.cluster_service import ETCD_VERSION
from controlplane.etcd.compactor import AutoCompactor
from controlplane.etcd.integrity import CorruptMemberError, Integrity
from controlplane.etcd.local import LocalKV
from controlplane.etcd.metrics import StateMetrics
from controlplane.etcd.restoring import LiveRestore
from controlplane.joining import keep_published
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2, operator_pb2_grpc
from controlplane.raft.config import RaftConfig, make_members
from controlplane.raft.driver import Replica
from controlplane.raft.founding import Founding
from controlplane.store.kv import KVStore
from controlplane.store.store import Store
from controlplane.transport.authorization import AuthorizationInterceptor
from controlplane.transport.handlers import Both, HandlerTable
from controlplane.transport.interceptors import StatusInterceptor
from controlplane.transport.tls import Reloader, auth_context_of

if TYPE_CHECKING:  # imported by replicas that have them, and the gateway once the replica takes part
    from aiohttp import web

    from controlplane.backup.service import Backups

__all__ = ["Backbone", "Embedded", "backbone_of"]

log = logging.getLogger("quarterdeck.backbone")


class Backbone(Protocol):
    """The store, the peers, and what of the process's life belongs to them."""

    @property
    def kv(self) -> KVStore: ...

    @property
    def cell(self) -> Cell: ...

    @property
    def services(self) -> Sequence[str]:
        """Full names of the gRPC services :meth:`add_services` adds, for health and reflection."""
        ...

    def routes(self) -> Iterable[Any]:
        """HTTP routes beside health and metrics. Not asked before ``second_stage`` is imported."""
        ...

    @property
    def ready_checks(self) -> Mapping[str, Check]:
        """Of ``/readyz``, beside the process's own."""
        ...

    @property
    def live_checks(self) -> Mapping[str, Check]:
        """Of ``/livez``, beside the process's own."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """What ``/version`` says besides our own."""
        ...

    @property
    def collectors(self) -> Sequence[Collector]:
        """Metrics to show while it runs."""
        ...

    @property
    def log_index(self) -> Callable[[], int] | None:
        """Index of the last log entry applied here; None: the log is not ours."""
        ...

    @property
    def isolation_ms(self) -> int:
        """For how long a process that delivers no report to a leader keeps its agents: longer than a fail-over."""
        ...

    @property
    def has_data(self) -> bool:
        """Whether its directory was seen to hold this member's data."""
        ...

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Done when it had to stop by itself."""
        ...

    def add_services(self, server: grpc.aio.Server) -> None:
        """The gRPC services that are the store's and the peers' own."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Hand leadership over and take no more part."""
        ...

    async def close(self) -> None:
        """After the last request was answered."""
        ...

    async def take_charge(self, term: int) -> api_pb2.Fence:
        """The fence of every write of a reign that was just won."""
        ...

    async def keep_house(self) -> None:
        """What the store needs done by the leader, for as long as it leads. Returns when the state was replaced under
        it: then it has to take charge anew."""
        ...


class Embedded:
    """A Raft replica with the store in it. ``had_data``: an earlier life in this process had data in the directory."""

    def __init__(
        self,
        config: ReplicaConfig,
        *,
        had_data: bool,
        place: Founding | None,
        clock: Clock,
        rand: Rand,
        tls: Reloader | None = None,
    ) -> None:
        cluster_id, members = make_members(
            config.cluster_token, ((m.name, m.peer, m.client, m.metrics) for m in config.initial_cluster)
        )
        settings = members
        if place is not None:
            cluster_id, members = place.cluster_id, place.membership.members
        self._config = config
        self._clock = clock
        self._cluster_id = cluster_id
        self._rand = rand
        self.store = Store(cluster_id=cluster_id)
        self._noted = None
        if config.backup is not None:
            from controlplane.backup.notes import NotedStore

            self._noted = NotedStore(self.store, clock)
        self._backups: Backups | None = None
        self.raft = Replica(
            config=RaftConfig.of(
                heartbeat_ms=config.heartbeat_ms,
                election_min_ms=config.election_ms_min,
                election_max_ms=config.election_ms_max,
                snapshot_entries=config.snapshot_entries,
            ),
            cluster_id=cluster_id,
            members=members,
            name=config.name,
            data_dir=config.data_dir,
            state_machine=self._noted or self.store,
            create_data_dir=True,
            had_data=had_data,
            member_id=None if place is None else place.member_id,
            settings=settings,
            clock=clock,
            rand=rand,
            tls=tls,
            dial=dict(config.dial),
        )
        self.cell = self.raft
        self.kv = LocalKV(
            self.raft, self.store, clock=clock, rand=rand, election_timeout_ms=config.election_ms_max,
            quota_bytes=config.quota_backend_bytes,
        )  # fmt: skip
        self.integrity = Integrity(self.kv, self.raft, self.store, clock)
        self.restoring = LiveRestore(
            self.kv, self.raft, self.store, clock, rand, lambda: shutil.disk_usage(config.data_dir).free
        )
        #: Set when a restore has replaced the state.
        self._replaced = asyncio.Event()
        self._reign_of = 0
        self.store.leases.listen(lambda _: self._note_replaced())
        self.compactor = AutoCompactor(
            self.kv, clock, self._leads,
            parse_retention(config.auto_compaction_mode, config.auto_compaction_retention),
        )  # fmt: skip
        self._work: tuple[asyncio.Task[None], ...] = ()
        self._failed: asyncio.Future[BaseException] | None = None
        self.services = etcd_service.SERVICE_NAMES
        guard = [AuthorizationInterceptor()] if tls is not None else []
        self._gateway_table = HandlerTable([StatusInterceptor(clock), *guard])
        self.versions = {"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_VERSION}
        # By etcd's names.
        self.live_checks: Mapping[str, Check] = {"serializable_read": self._check_local_read}
        self.ready_checks: Mapping[str, Check] = {
            **self.live_checks, "data_corruption": self._check_sound, "non_learner": self._check_voter,
        }  # fmt: skip
        self.log_index: Callable[[], int] | None = lambda: self.store.applied_index
        self.isolation_ms = 1_500
        self.collectors = (
            StateMetrics(self.store, self.raft, version=ETCD_VERSION, quota_bytes=config.quota_backend_bytes),
        )

    def routes(self) -> Iterable[Any]:
        from controlplane.etcd.gateway import Gateway

        return Gateway(self._gateway_table, _certificate_behind).routes()

    @property
    def has_data(self) -> bool:
        return self.raft.has_data

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        return self._failed or self.raft.failed

    def add_services(self, server: grpc.aio.Server) -> None:
        etcd_service.add_services(
            Both(server, self._gateway_table), self.kv, self.raft, self.store, clock=self._clock,
            election_timeout_ms=self._config.election_ms_max, tls=self._config.tls is not None,
        )  # fmt: skip
        operator = OperatorService(self.raft, self.store, self._clock, self.restoring)
        operator_pb2_grpc.add_OperatorServicer_to_server(operator, server)

    async def start(self) -> None:
        """Recover the state, take part. Raises CorruptStateError, StorageError."""
        quarantine.check(self._config.data_dir)
        self._backups = self._prepare_backups()
        self.kv.start()
        await self.raft.start()
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        self.raft.failed.add_done_callback(self._note_failed)
        self._work = (
            loop.create_task(self.integrity.run(), name="integrity"),
            loop.create_task(self.compactor.run(), name="compactor"),
            loop.create_task(self.restoring.run(), name="restoring"),
            loop.create_task(keep_published(self.raft, self._config.me, self._clock), name="publish"),
            *([loop.create_task(self._backups.run(), name="backups")] if self._backups is not None else []),
        )
        for task in self._work:
            task.add_done_callback(self._note_ended)

    def _check_sound(self) -> str | None:
        alarms = self.store.alarms
        if self.raft.status().member_id in alarms.condemned:
            return "alarm activated: CORRUPT: its state is not that of the others"
        return "alarm activated: CORRUPT: declared by a client (etcdctl alarm disarm)" if alarms.corrupt else None

    def _check_voter(self) -> str | None:
        return "a learner: it does not vote and serves little" if self.raft.is_learner else None

    async def _check_local_read(self) -> str | None:
        try:
            await self.kv.range(rpc_pb2.RangeRequest(key=b"\0", serializable=True, limit=1))
        except StatusError as error:
            return error.message
        return None

    def _prepare_backups(self) -> Backups | None:
        """Raises ConfigError: the place or the keys are no good."""
        config = self._config
        if config.backup is None or self._noted is None:
            return None
        from controlplane.backup.service import Backups

        return Backups(
            config.backup, self.raft, self._noted.note, cluster_id=self._cluster_id, name=config.name,
            data_dir=config.data_dir, clock=self._clock, rand=self._rand,
        )  # fmt: skip

    def _leads(self) -> bool:
        status = self.raft.status()
        return status.leader == status.name

    def _note_failed(self, failed: asyncio.Future[BaseException]) -> None:
        if not failed.cancelled():
            self._fail(failed.result())

    def _note_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CorruptMemberError):
            quarantine.impose(self._config.data_dir, str(error))
        if error is not None:
            log.critical("event=part-failed part=%s error=%r", task.get_name(), error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    async def stop(self) -> None:
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self.raft.stop()
        if self._backups is not None:
            self._backups.close()

    async def close(self) -> None:
        await self.kv.stop()

    async def take_charge(self, term: int) -> api_pb2.Fence:
        self._reign_of = self.store.restored_index
        return await take_charge(self.kv, name=self._config.name, term=term, clock=self._clock)

    async def keep_house(self) -> None:
        """Wait for a restore, which takes the leader key with everything else. Compaction is not done here: it also has
        to go on where taking charge does not, for lack of space."""
        while self.store.restored_index == self._reign_of:
            self._replaced.clear()
            await self._replaced.wait()

    def _note_replaced(self) -> None:
        if self.store.restored_index != self._reign_of:
            self._replaced.set()


def _certificate_behind(request: web.BaseRequest) -> Mapping[str, Sequence[bytes]]:
    transport = request.transport
    return auth_context_of(transport.get_extra_info("ssl_object") if transport is not None else None)


def backbone_of(
    config: ReplicaConfig,
    *,
    had_data: bool,
    place: Founding | None,
    clock: Clock,
    rand: Rand,
    tls: Reloader | None = None,
) -> Backbone:
    """What the configuration asks for. ``tls``: this member's certificate, if it has one. Raises ConfigError."""
    if config.store is None:
        return Embedded(config, had_data=had_data, place=place, clock=clock, rand=rand, tls=tls)
    from controlplane.external.backbone import External

    me = config.me
    return External(config.store, name=me.name, client=me.client, metrics=me.metrics, clock=clock, rand=rand, tls=tls)
