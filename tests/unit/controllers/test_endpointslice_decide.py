"""What the EndpointSlices of a Service should be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.client.objects import node_serves
from controlplane.controllers.endpointslice_decide import ENDPOINTS_PER_SLICE, MANAGED_BY, SlicePlan, decide
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from tests.unit.controllers.objects import node, pod, service

NODES = {n.metadata.name: n for n in (node("n1"), node("suspect", suspect=True), node("dead", ready=False))}


def plan_for(made: Service, pods: list[Pod], slices: list[EndpointSlice] | None = None) -> SlicePlan:
    def node_of(name: str) -> Node | None:
        return NODES.get(name)

    return decide(made, pods, node_of, node_serves, slices or [])


def applied(slices: list[EndpointSlice], plan: SlicePlan) -> list[EndpointSlice]:
    """The slices after the plan is carried out."""
    gone = {s.metadata.name for s in (*plan.update, *plan.delete)}
    after = [s for s in slices if s.metadata.name not in gone] + list(plan.update)
    for i, made in enumerate(plan.create):
        made.metadata.name = f"made-{len(after)}-{i}"
    return after + list(plan.create)


@pytest.mark.parametrize(
    ("made", "conditions"),
    [
        pytest.param(pod("p"), (True, True, False), id="ready"),
        pytest.param(pod("p", ready=False), (False, False, False), id="not ready"),
        pytest.param(pod("p", deleting=True), (False, True, True), id="terminating still serves"),
        pytest.param(pod("p", node="suspect"), (False, False, False), id="on a suspect node"),
        pytest.param(pod("p", node="dead"), (False, False, False), id="on a dead node"),
        pytest.param(pod("p", node="unknown"), (False, False, False), id="on a node that is gone"),
        pytest.param(pod("p", ip=""), None, id="without an address"),
        pytest.param(pod("p", phase="Failed"), None, id="finished"),
    ],
)
def test_an_endpoint_says_whether_it_may_be_used(made: Pod, conditions: tuple[bool, bool, bool] | None) -> None:
    (created,) = plan_for(service(), [made]).create
    found = [(e.conditions.ready, e.conditions.serving, e.conditions.terminating) for e in created.endpoints]
    assert found == ([] if conditions is None else [conditions])


def test_a_slice_names_its_service_ports_and_pods() -> None:
    (created,) = plan_for(service(), [pod("p")]).create
    assert created.metadata.labels["kubernetes.io/service-name"] == "web"
    assert created.metadata.ownerReferences[0].uid == "uid-web"
    assert [(p.name, p.port, p.protocol) for p in created.ports] == [("http", 8080, "TCP")]
    endpoint = created.endpoints[0]
    assert (endpoint.nodeName, endpoint.targetRef.name, list(endpoint.addresses)) == ("n1", "p", ["127.0.0.9"])


def test_unready_pods_are_published_when_the_service_asks_for_it() -> None:
    made = service()
    made.spec.publishNotReadyAddresses = True
    (created,) = plan_for(made, [pod("p", ready=False)]).create
    assert created.endpoints[0].conditions.ready


def test_a_named_target_port_is_each_pods_own() -> None:
    made = service()
    made.spec.ports[0].targetPort.Clear()
    made.spec.ports[0].targetPort.strVal = "web"
    pods = []
    for name, number in (("a", 8080), ("b", 9090), ("c", 8080)):
        pods.append(pod(name))
        pods[-1].spec.containers.add().ports.add(name="web", containerPort=number, protocol="TCP")
    created = plan_for(made, pods).create
    assert {s.ports[0].port: [e.targetRef.name for e in s.endpoints] for s in created} == {
        8080: ["a", "c"],
        9090: ["b"],
    }


def test_no_endpoints_is_an_empty_slice_and_stays_one() -> None:
    plan = plan_for(service(), [])
    assert [list(s.endpoints) for s in plan.create] == [[]]
    assert plan_for(service(), [], applied([], plan)).empty


def test_slices_of_others_and_services_without_selector_are_left_alone() -> None:
    manual = EndpointSlice()
    manual.metadata.name = "manual"
    manual.metadata.labels["kubernetes.io/service-name"] = "web"
    assert manual not in plan_for(service(), [pod("p")], [manual]).delete
    bare = service()
    bare.spec.selector.clear()
    assert plan_for(bare, [], [manual]).empty
    manual.metadata.labels[MANAGED_BY] = "somebody-else"
    assert plan_for(bare, [], [manual]).empty


def test_an_external_name_loses_the_slices_it_had() -> None:
    slices = applied([], plan_for(service(), [pod("p")]))
    named = service()
    named.spec.type = "ExternalName"
    assert len(plan_for(named, [pod("p")], slices).delete) == 1


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 260), min_size=1, max_size=5))
def test_slices_converge_in_one_step_and_never_hold_too_many(counts: list[int]) -> None:
    slices: list[EndpointSlice] = []
    for count in counts:
        pods = [pod(f"p{i:03}") for i in range(count)]
        slices = applied(slices, plan_for(service(), pods, slices))
        assert all(len(s.endpoints) <= ENDPOINTS_PER_SLICE for s in slices)
        assert sorted(e.targetRef.name for s in slices for e in s.endpoints) == [f"p{i:03}" for i in range(count)]
        assert plan_for(service(), pods, slices).empty


def test_one_changed_pod_rewrites_one_slice() -> None:
    pods = [pod(f"p{i:03}") for i in range(250)]
    slices = applied([], plan_for(service(), pods))
    pods[120] = pod("p120", ready=False)
    plan = plan_for(service(), pods, slices)
    assert (len(plan.create), len(plan.update), len(plan.delete)) == (0, 1, 0)
