"""Objects as metrics: what dashboards of kube-state-metrics read, from the leader only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry

from controlplane.client.caches import Caches
from controlplane.controllers.state_metrics import PODS_MAX, ObjectMetrics
from tests.unit.controllers.objects import deployment, node, pod


class FixedCache:
    """The objects of one kind, as given."""

    def __init__(self, objects: Sequence[Any]) -> None:
        self._objects = objects

    def list(self) -> Sequence[Any]:
        return self._objects


class FixedCaches:
    """The objects given, by kind."""

    def __init__(self, *objects: Any) -> None:
        self._objects = objects

    def of(self, kind: type[Any]) -> FixedCache:
        return FixedCache([o for o in self._objects if isinstance(o, kind)])


def shown(*objects: Any, leading: bool = True) -> CollectorRegistry:
    registry = CollectorRegistry()
    ObjectMetrics(cast(Caches, FixedCaches(*objects)), lambda: leading).register(registry)
    return registry


def test_the_leader_shows_nodes_pods_and_deployments_as_kube_state_metrics_does() -> None:
    lost = node("n1", ready=False)
    lost.spec.unschedulable = True
    lost.spec.taints.add(key="k", value="v", effect="NoSchedule")
    wanted = deployment(4)
    wanted.status.availableReplicas = 3
    value = shown(lost, pod("a", phase="Pending", ready=False), wanted).get_sample_value
    ready = {"node": "n1", "condition": "Ready"}
    assert value("kube_node_status_condition", {**ready, "status": "unknown"}) == 1
    assert value("kube_node_status_condition", {**ready, "status": "true"}) == 0
    assert value("kube_node_spec_unschedulable", {"node": "n1"}) == 1
    assert value("kube_node_spec_taint", {"node": "n1", "key": "k", "value": "v", "effect": "NoSchedule"}) == 1
    names = {"namespace": "default", "pod": "a", "uid": "uid-a"}
    assert value("kube_pod_status_phase", {**names, "phase": "Pending"}) == 1
    assert value("kube_pod_status_ready", {**names, "condition": "false"}) == 1
    assert value("kube_deployment_spec_replicas", {"namespace": "default", "deployment": "web"}) == 4
    assert value("kube_deployment_status_replicas_available", {"namespace": "default", "deployment": "web"}) == 3
    assert value("leader_election_master_status", {"name": "quarterdeck"}) == 1


def test_a_follower_shows_only_how_many_objects_there_are() -> None:
    value = shown(node("n1"), pod("a"), pod("b"), leading=False).get_sample_value
    assert value("kube_node_spec_unschedulable", {"node": "n1"}) is None
    assert value("apiserver_resource_objects", {"group": "", "resource": "pods"}) == 2
    assert value("apiserver_resource_objects", {"group": "apps", "resource": "deployments"}) == 0
    assert value("leader_election_master_status", {"name": "quarterdeck"}) == 0


def test_pods_beyond_the_limit_are_left_out_and_counted() -> None:
    registry = shown(*(pod(f"p{i}") for i in range(PODS_MAX + 7)))
    assert registry.get_sample_value("quarterdeck_kube_pod_series_omitted_pods") == 7
    phases = next(m for m in registry.collect() if m.name == "kube_pod_status_phase")
    assert len(phases.samples) == PODS_MAX
