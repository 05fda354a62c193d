"""An ApiServer on the real store, over a Raft that commits at once."""

from __future__ import annotations

import json
from typing import Any

import yaml

from controlplane.api.registry import kind_of
from controlplane.api.server import ApiServer, LogSource
from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Node, Pod, Service
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft

__all__ = ["Cluster", "config_map", "node", "pod", "service"]


def pod(name: str, *, namespace: str = "default", labels: dict[str, str] | None = None, node: str = "") -> Pod:
    made = Pod()
    made.metadata.name, made.metadata.namespace = name, namespace
    made.metadata.labels.update(labels or {})
    made.spec.containers.add(name="main", image="host", command=["sleep", "60"])
    if node:
        made.spec.nodeName = node
    return made


def config_map(name: str, *, namespace: str = "default", **data: str) -> ConfigMap:
    made = ConfigMap(data=data)
    made.metadata.name, made.metadata.namespace = name, namespace
    return made


def service(name: str, *, cluster_ip: str = "") -> Service:
    made = Service()
    made.metadata.name, made.metadata.namespace = name, "default"
    made.spec.ports.add(name="http", port=80)
    if cluster_ip:
        made.spec.clusterIP = cluster_ip
    return made


def node(name: str) -> Node:
    made = Node()
    made.metadata.name = name
    return made


class Cluster:
    """One replica, or with ``join`` another one of the same cluster."""

    def __init__(
        self,
        *,
        join: Cluster | None = None,
        service_cidr: str = "127.96.0.0/16",
        name: str = "r1",
        seed: int = 1,
        logs: LogSource | None = None,
    ) -> None:
        self.store = Store()
        if join is None:
            self.raft = FakeRaft(self.store)
        else:
            self.raft = FakeRaft(self.store, name=name, join=join.raft)
        self.clock: ManualClock = ManualClock() if join is None else join.clock
        rand = SeededRand(seed)
        self.kv = LocalKV(self.raft, self.store, clock=self.clock, rand=rand)
        self.api = ApiServer(self.kv, clock=self.clock, rand=rand, service_cidr=service_cidr, logs=logs)

    async def start(self) -> Cluster:
        await self.api.bootstrap()
        return self

    async def create(self, obj: Any, **options: Any) -> Any:
        request = api_pb2.CreateRequest(object=_wrap(obj), options=api_pb2.WriteOptions(**options))
        return _held(await self.api.create(request))

    async def update(self, obj: Any, **options: Any) -> Any:
        request = api_pb2.UpdateRequest(object=_wrap(obj), options=api_pb2.WriteOptions(**options))
        return _held(await self.api.update(request))

    async def update_status(self, obj: Any, **options: Any) -> Any:
        request = api_pb2.UpdateRequest(object=_wrap(obj), options=api_pb2.WriteOptions(**options))
        return _held(await self.api.update_status(request))

    async def get(self, resource: str, name: str, namespace: str = "default") -> Any:
        return _held(await self.api.get(api_pb2.GetRequest(resource=resource, namespace=namespace, name=name)))

    async def names(self, resource: str, **request: Any) -> list[str]:
        answer = await self.api.list(api_pb2.ListRequest(resource=resource, **request))
        return [_held(item).metadata.name for item in answer.items]

    async def delete(self, resource: str, name: str, namespace: str = "default", **request: Any) -> Any:
        return _held(
            await self.api.delete(api_pb2.DeleteRequest(resource=resource, namespace=namespace, name=name, **request))
        )

    async def patch(self, resource: str, name: str, patch: Any, *, json_patch: bool = False, **request: Any) -> Any:
        return _held(
            await self.api.patch(
                api_pb2.PatchRequest(
                    resource=resource,
                    namespace="default",
                    name=name,
                    type=api_pb2.PatchRequest.JSON if json_patch else api_pb2.PatchRequest.MERGE,
                    patch=json.dumps(patch).encode(),
                    **request,
                )
            )
        )

    async def apply(self, manifest: str | dict[str, Any], **options: Any) -> api_pb2.ApplyResponse:
        values = yaml.safe_load(manifest) if isinstance(manifest, str) else manifest
        request = api_pb2.ApplyRequest(manifest=json.dumps(values).encode(), options=api_pb2.WriteOptions(**options))
        return await self.api.apply(request)

    async def exists(self, resource: str, name: str, namespace: str = "default") -> bool:
        return name in await self.names(resource, namespace=namespace)

    async def put_raw(self, key: bytes, value: bytes) -> int:
        """A key set behind the API's back; its mod revision."""
        response = await self.kv.put(etcd.PutRequest(key=key, value=value))
        return response.header.revision


def _wrap(obj: Any) -> api_pb2.Object:
    wrapped = api_pb2.Object()
    getattr(wrapped, kind_of(obj).field).CopyFrom(obj)
    return wrapped


def _held(wrapped: api_pb2.Object) -> Any:
    return getattr(wrapped, wrapped.WhichOneof("kind") or "")
