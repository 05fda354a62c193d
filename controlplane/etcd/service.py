"""The etcd v3 API of one replica: every gRPC service of it, added to a server."""

from __future__ import annotations

from typing import Any, Final

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.rand import Rand, SystemRand
from controlplane.etcd.auth_service import AuthService
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.cluster_service import ClusterService
from controlplane.etcd.concurrency_service import ElectionService, LockService
from controlplane.etcd.guard import LeaderGuard, guarded
from controlplane.etcd.kv_service import KVService
from controlplane.etcd.lease_service import LeaseService
from controlplane.etcd.local import LocalKV
from controlplane.etcd.maintenance_service import MaintenanceService
from controlplane.etcd.passwords import Passwords
from controlplane.etcd.tokens import Tokens
from controlplane.etcd.watch_service import WatchService
from controlplane.pb.etcd import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

__all__ = ["SERVICE_NAMES", "add_services"]

#: Full names, for the health and reflection services.
SERVICE_NAMES: Final = (
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
)


def add_services(
    server: Any,
    kv: LocalKV,
    raft: RaftHandle,
    store: Store,
    *,
    clock: Clock | None = None,
    rand: Rand | None = None,
    election_timeout_ms: int = 1_000,
    passwords: Passwords | None = None,
    tls: bool = False,
) -> None:
    """Serve the etcd v3 API on ``server`` (anything that takes gRPC services, such as a handler table).
    ``kv`` is started and stopped by the caller. ``tls``: members' URLs say https."""
    clock = clock or SystemClock()
    rand = rand or SystemRand()
    tokens = Tokens(store.auth, clock)
    authorizer = Authorizer(store.auth, kv.barrier, tokens)
    auth = AuthService(kv, store.auth, authorizer, tokens, passwords or Passwords(rand), rand)
    guard = LeaderGuard(raft, clock, election_timeout_ms=election_timeout_ms)
    # Of these, a learner serves its status and its backup, as in etcd; of KV, what is read from its own state.
    cluster = ClusterService(kv, raft, authorizer, tls=tls)
    maintenance = MaintenanceService(kv, raft, store, authorizer, clock, tls=tls)
    rpc_pb2_grpc.add_AuthServicer_to_server(guarded(auth, guard), server)
    rpc_pb2_grpc.add_ClusterServicer_to_server(guarded(cluster, guard), server)
    rpc_pb2_grpc.add_MaintenanceServicer_to_server(guarded(maintenance, guard, local=("Status", "Snapshot")), server)
    v3lock_pb2_grpc.add_LockServicer_to_server(guarded(LockService(kv, authorizer, clock), guard), server)
    v3election_pb2_grpc.add_ElectionServicer_to_server(guarded(ElectionService(kv, authorizer, clock), guard), server)
    rpc_pb2_grpc.add_KVServicer_to_server(KVService(kv, guard, authorizer), server)
    rpc_pb2_grpc.add_LeaseServicer_to_server(LeaseService(kv, guard, authorizer), server)
    rpc_pb2_grpc.add_WatchServicer_to_server(WatchService(kv, store, guard, authorizer, clock, rand), server)
