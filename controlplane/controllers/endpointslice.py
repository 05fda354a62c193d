"""EndpointSlice controller: keeps each Service's slices true to its pods. Effects only; see endpointslice_decide.

This is what takes a Suspect node out of load balancing, so a node that stops (or starts again) to serve wakes the
Services of all its pods at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from controlplane.client.interface import ApiError, NotFoundError
from controlplane.client.objects import key_of, node_serves, split_key
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.endpointslice_decide import SERVICE_NAME, decide
from controlplane.controllers.expectations import Expectations
from controlplane.controllers.indexes import BY_LABEL, BY_NAMESPACE, BY_NODE, BY_SERVICE, label_key
from controlplane.controllers.replicaset import random_suffix
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice

__all__ = ["EndpointSliceController"]


class EndpointSliceController(Controller):
    """See the module."""

    name = "endpointslice"
    workers = 8

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._services = env.caches.of(Service)
        self._pods = env.caches.of(Pod)
        self._nodes = env.caches.of(Node)
        self._slices = env.caches.of(EndpointSlice)
        self._expectations = Expectations(env.clock)
        self._services.on_change(self._service_changed)
        self._pods.on_change(self._pod_changed)
        self._nodes.on_change(self._node_changed)
        self._slices.on_change(self._slice_changed)

    def keys(self) -> Iterable[str]:
        return [key_of(s) for s in self._services.list()]

    def on_lead(self) -> None:
        self._expectations.clear()

    # -- what wakes it -----------------------------------------------------------------------------------------------

    def _service_changed(self, old: Service | None, new: Service | None) -> None:
        if new is not None:
            self.enqueue(key_of(new))
        elif old is not None:
            self._expectations.forget(key_of(old))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        for pod in (old, new):
            if pod is not None:
                self._wake_services(pod)

    def _wake_services(self, pod: Pod) -> None:
        labels = pod.metadata.labels
        for service in self._services.by_index(BY_NAMESPACE, pod.metadata.namespace):
            selector = service.spec.selector
            if selector and all(labels.get(k) == v for k, v in selector.items()):
                self.enqueue(key_of(service))

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        before = old is not None and node_serves(old)
        after = new is not None and node_serves(new)
        node = new if new is not None else old
        if before != after and node is not None:
            for pod in self._pods.by_index(BY_NODE, node.metadata.name):
                self._wake_services(pod)

    def _slice_changed(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        for slice_ in (old, new):
            name = slice_.metadata.labels.get(SERVICE_NAME) if slice_ is not None else None
            if slice_ is not None and name:
                key = f"{slice_.metadata.namespace}/{name}"
                self._expectations.creation_settled(key, slice_.metadata.name)
                self.enqueue(key)

    # -- what it does ------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        service = self._services.get(name, namespace)
        if service is None or service.metadata.HasField("deletionTimestamp"):
            return None  # its slices go with it: they name it as their owner
        slices = self._slices.by_index(BY_SERVICE, key)
        plan = decide(service, self._selected(service), self._nodes.get, node_serves, slices)
        creations = () if self._expectations.wait_s(key) is not None else plan.create
        for slice_ in creations:
            slice_.metadata.name = f"{service.metadata.name[:200]}-{random_suffix(self.env.rand.token(5))}"
            self._expectations.expect_creation(key, slice_.metadata.name)
        writes = [
            *(self._create(key, s) for s in creations),
            *(self.env.client.update(s) for s in plan.update),
            *(self._delete(s) for s in plan.delete),
        ]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        return self._expectations.wait_s(key)

    def _selected(self, service: Service) -> list[Pod]:
        """The pods that match all of the selector, found by its rarest pair."""
        namespace, selector = service.metadata.namespace, dict(service.spec.selector)
        if not selector:
            return []
        found = min((self._pods.by_index(BY_LABEL, label_key(namespace, k, v)) for k, v in selector.items()), key=len)
        return [p for p in found if all(p.metadata.labels.get(k) == v for k, v in selector.items())]

    async def _create(self, key: str, slice_: EndpointSlice) -> None:
        try:
            await self.env.client.create(slice_)
        except ApiError as error:
            if not error.unknown_outcome:
                self._expectations.creation_settled(key, slice_.metadata.name)
            raise

    async def _delete(self, slice_: EndpointSlice) -> None:
        meta = slice_.metadata
        try:
            await self.env.client.delete(EndpointSlice, meta.name, namespace=meta.namespace, uid=meta.uid)
        except NotFoundError:
            return
