"""The state of objects as metrics, under the names of kube-state-metrics and kube-apiserver, read when scraped.

Owns no state: it looks at the caches that are warm anyway. Only the leader shows the ``kube_*`` series, as a cluster
has one kube-state-metrics: shown by every replica, dashboards would add them up. Per-pod series stop at
:data:`PODS_MAX` pods, because a scrape holds up the loop; what is left out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from controlplane.client.caches import Caches
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice

__all__ = ["PODS_MAX", "ObjectMetrics"]

PODS_MAX: Final = 1_000
_COUNTED: Final[tuple[type[Any], ...]] = (Node, Pod, ReplicaSet, Deployment, Service, EndpointSlice)
_STATUSES: Final = ("true", "false", "unknown")


class ObjectMetrics:
    """A collector.

    Args:
        caches: what is read.
        leading: whether this replica leads.
    """

    def __init__(self, caches: Caches, leading: Callable[[], bool]) -> None:
        self._counted = {kind: caches.of(kind) for kind in _COUNTED}
        self._nodes = caches.of(Node)
        self._pods = caches.of(Pod)
        self._deployments = caches.of(Deployment)
        self._leading = leading

    def register(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Show these in a registry. ``registry.unregister(self)`` ends it."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        leading = self._leading()
        master = GaugeMetricFamily(
            "leader_election_master_status", "1 if this replica works the controllers' queues.", labels=["name"]
        )
        master.add_metric(["quarterdeck"], float(leading))
        yield master
        objects = GaugeMetricFamily(
            "apiserver_resource_objects", "Objects stored, by kind.", labels=["group", "resource"]
        )
        for kind, cache in self._counted.items():
            info = info_of(kind)
            group = info.api_version.rpartition("/")[0]
            objects.add_metric([group, info.resource], float(len(cache.list())))
        yield objects
        if leading:
            yield from _of_nodes(self._nodes.list())
            yield from _of_pods(self._pods.list())
            yield from _of_deployments(self._deployments.list())


def _of_nodes(nodes: Sequence[Node]) -> Iterator[Metric]:
    conditions = GaugeMetricFamily(
        "kube_node_status_condition", "1 for the status a node's condition has.", labels=["node", "condition", "status"]
    )
    cordoned = GaugeMetricFamily("kube_node_spec_unschedulable", "1 if a node takes no new pods.", labels=["node"])
    taints = GaugeMetricFamily(
        "kube_node_spec_taint", "1 for each taint of a node.", labels=["node", "key", "value", "effect"]
    )
    for node in nodes:
        name = node.metadata.name
        for condition in node.status.conditions:
            for status in _STATUSES:
                conditions.add_metric([name, condition.type, status], float(condition.status.lower() == status))
        cordoned.add_metric([name], float(node.spec.unschedulable))
        for taint in node.spec.taints:
            taints.add_metric([name, taint.key, taint.value, taint.effect], 1.0)
    yield from (conditions, cordoned, taints)


def _of_pods(pods: Sequence[Pod]) -> Iterator[Metric]:
    phases = GaugeMetricFamily(
        "kube_pod_status_phase", "1 for the phase a pod is in.", labels=["namespace", "pod", "uid", "phase"]
    )
    readiness = GaugeMetricFamily(
        "kube_pod_status_ready",
        "1 for what a pod's Ready condition says.",
        labels=["namespace", "pod", "uid", "condition"],
    )
    for pod in pods[:PODS_MAX]:
        names = [pod.metadata.namespace, pod.metadata.name, pod.metadata.uid]
        ready = next((c.status for c in pod.status.conditions if c.type == "Ready"), "False")
        phases.add_metric([*names, pod.status.phase or "Pending"], 1.0)
        readiness.add_metric([*names, ready.lower()], 1.0)
    yield from (phases, readiness)
    yield GaugeMetricFamily(
        "quarterdeck_kube_pod_series_omitted_pods",
        "Pods without kube_pod_* series, because there are too many to show.",
        value=float(max(0, len(pods) - PODS_MAX)),
    )


def _of_deployments(deployments: Sequence[Deployment]) -> Iterator[Metric]:
    labels = ["namespace", "deployment"]
    wanted = GaugeMetricFamily("kube_deployment_spec_replicas", "Pods a Deployment asks for.", labels=labels)
    available = GaugeMetricFamily(
        "kube_deployment_status_replicas_available", "Pods of a Deployment that are available.", labels=labels
    )
    updated = GaugeMetricFamily(
        "kube_deployment_status_replicas_updated", "Pods of a Deployment made from its present template.", labels=labels
    )
    for deployment in deployments:
        names = [deployment.metadata.namespace, deployment.metadata.name]
        wanted.add_metric(names, float(deployment.spec.replicas))
        available.add_metric(names, float(deployment.status.availableReplicas))
        updated.add_metric(names, float(deployment.status.updatedReplicas))
    yield from (wanted, available, updated)
